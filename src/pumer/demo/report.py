"""The results of a comparison as one self-contained HTML page and as a table in the terminal.

A results dict is plain data, as read back from `results.json`:

- `title`, `summary` (text), `story` (pairs of a heading and a sentence), `questions` (count of test examples),
- `rows`: one per model, the unreduced original first. A row has a `name` and, where measured, `note`,
  `accuracy` and `difference` (to the original; both `{"mean", "low", "high"}` as fractions), `agreement` (a
  fraction), `splits` (accuracy on other test splits by name), `by_type` (`{question type: {"mean",
  "questions"}}`), `speed` (a list of `{"batch", "images_per_second"}`, with `"speedup": {"median", "low",
  "high"}` against the original), `memory` (bytes), `macs`, `ideal_speedup`,
- `tokens`: `{row name: [(layer, text tokens after it, image tokens after it), ...]}`,
- `examples`: `{"path" of an image (relative to the page), "question", "truth", "answers": {row name: answer}}`,
- `provenance`: see `pumer.utils.provenance.collect`.

A value that was not measured is shown as a dash.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich import box
from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from pumer.utils.files import write_text

UNMEASURED = "–"
TEMPLATES = Path(__file__).with_name("templates")
Results = Mapping[str, Any]


def write(results: Results, path: Path) -> None:
    """Write the page with its images, whose paths are relative to its folder, embedded."""
    columns = headline(results)
    columns["model"] = [f"{row['name']}\n{row.get('note', '')}" for row in results["rows"]]
    tokens = results.get("tokens", {})
    examples = [{**each, "png": (path.parent / each["path"]).read_bytes()} for each in results.get("examples", ())]
    page = render(
        "report.html",
        title=results["title"],
        summary=results["summary"],
        story=results.get("story", ()),
        columns=list(columns),
        lines=list(zip(*columns.values(), strict=True)),
        note=_note(results),
        tokens=tokens,
        highest=max((text + image for layers in tokens.values() for _, text, image in layers), default=0),
        **_sorted(examples),
        provenance=results.get("provenance", {}),
        **_by_type(results["rows"]),
    )
    write_text(path, page)


def render(name: str, *folders: Path, **values: Any) -> str:
    """Fill in a template, from one of the folders or else from this package; values are escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.loader = FileSystemLoader([*folders, TEMPLATES])
    environment.filters["pretty_json"] = partial(json.dumps, indent=2, ensure_ascii=False)
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode("ascii")
    return environment.get_template(name).render(values)


def tables(results: Results) -> Group:
    """The headline for the terminal: accuracy in one table, cost in another; each fits 80 columns."""
    columns, about_accuracy = headline(results), ("accuracy", "difference", "agreement", *_other_splits(results))
    names, shown = columns.pop("model"), []
    for accuracy in (True, False):
        part = {name: cells for name, cells in columns.items() if (name in about_accuracy) == accuracy}
        table = Table("", *(Column(name, justify="right") for name in part), box=box.SIMPLE_HEAD)
        for name, cells in zip(names, zip(*part.values(), strict=True), strict=bool(part)):
            if set(cells) != {UNMEASURED}:
                table.add_row(name, *cells)
        shown += [table] * bool(part)
    return Group(*shown, Text(_note(results), "dim"))


def headline(results: Results) -> dict[str, list[str]]:
    """Columns of the headline table: name to one cell per row; columns without any value are left out.

    A cell's second line, if it has one, is its spread.
    """
    rows = results["rows"]
    columns = {
        "model": [row["name"] for row in rows],
        "accuracy": [_interval(row.get("accuracy"), " %") for row in rows],
        "difference": [_interval(row.get("difference"), sign="+") for row in rows],
        "agreement": [f"{100 * row['agreement']:.1f} %" if "agreement" in row else UNMEASURED for row in rows],
    }
    for split in _other_splits(results):
        columns[split] = [_interval(row.get("splits", {}).get(split), " %") for row in rows]
    for batch in sorted({speed["batch"] for row in rows for speed in row.get("speed", ())}):
        columns[f"images/s, batch {batch}"] = [_speed(row, batch) for row in rows]
    columns["peak memory"] = [_memory(row.get("memory")) for row in rows]
    columns["MACs"] = [_macs(row) for row in rows]
    return {name: cells for name, cells in columns.items() if any(cell != UNMEASURED for cell in cells)}


def _other_splits(results: Results) -> list[str]:
    """Names of the test splits beside the main one, in order of appearance."""
    return list(dict.fromkeys(split for row in results["rows"] for split in row.get("splits", ())))


def _interval(interval: Mapping[str, float] | None, unit: str = "", sign: str = "") -> str:
    if interval is None:
        return UNMEASURED
    mean, low, high = (f"{100 * interval[name]:{sign}.1f}" for name in ("mean", "low", "high"))
    return f"{mean}{unit}\n[{low}, {high}]"


def _speed(row: Results, batch: int) -> str:
    measured = next((speed for speed in row.get("speed", ()) if speed["batch"] == batch), None)
    if measured is None:
        return UNMEASURED
    rate, speedup = f"{measured['images_per_second']:.0f}", measured.get("speedup")
    if speedup is None:
        return rate
    slower = " as fast" if speedup["median"] < 1 else ""
    return f"{rate} ({speedup['median']:.2f}x{slower})\n[{speedup['low']:.2f}, {speedup['high']:.2f}]"


def _memory(count: int | None) -> str:
    if count is None:
        return UNMEASURED
    size = count / 2**20
    return f"{size:.0f} MiB" if size >= 100 else f"{size:.1f} MiB"


def _macs(row: Results) -> str:
    if "macs" not in row:
        return UNMEASURED
    ideal = f"\nideal {row['ideal_speedup']:.2f}x" if row.get("ideal_speedup", 1) != 1 else ""
    return f"{row['macs'] / 1e9:.3f} G{ideal}"


def _note(results: Results) -> str:
    return (
        f"{results['questions']:,} test questions. Difference and agreement: to the first row, in percentage "
        "points. In brackets: 95 % intervals (paired bootstrap); for speed-ups their middle half. "
        f"{UNMEASURED} not measured."
    )


def _sorted(examples: Sequence[Results]) -> dict[str, Any]:
    """`opening`, an example that all models get right, `lost`, one that the first model alone does, and the others.

    Neither of the two need exist.
    """
    right = [[answer == each["truth"] for answer in each["answers"].values()] for each in examples]
    opening = next((at for at, all_of in enumerate(right) if all(all_of)), None)
    lost = next((at for at, (first, *others) in enumerate(right) if first and not any(others)), None)
    named = {"opening": opening, "lost": lost}
    others = [each for at, each in enumerate(examples) if at not in named.values()]
    return {name: None if at is None else examples[at] for name, at in named.items()} | {"examples": others}


def _by_type(rows: Sequence[Results]) -> dict[str, Any]:
    """The accuracy by question type: `by_type`, each type with a mean per row, and `typed_rows`, the rows' names."""
    known = [row for row in rows if row.get("by_type")]
    counts = {name: entry["questions"] for row in known for name, entry in row["by_type"].items()}
    types = [
        (f"{name}\n{count:,} questions", [row["by_type"].get(name, {}).get("mean") for row in known])
        for name, count in sorted(counts.items())
    ]
    return {"by_type": types, "typed_rows": [row["name"] for row in known]}
