"""The results of a comparison as one self-contained HTML page and as a table in the terminal.

A results dict is plain data, as read back from `results.json`:

- `title`, `summary` (text), `questions` (count of test examples),
- `rows`: one per model, the unreduced original first. A row has a `name` and, where measured, `note`,
  `accuracy` and `difference` (to the original; both `{"mean", "low", "high"}` as fractions), `agreement` (a
  fraction), `splits` (accuracy on other test splits by name), `by_type` (`{question type: {"mean",
  "questions"}}`), `speed` (a list of `{"batch", "images_per_second"}`, with `"speedup": {"median", "low",
  "high"}` against the original), `memory` (bytes), `macs`, `ideal_speedup`,
- `tokens`: `{row name: [(layer, text tokens after it, image tokens after it), ...]}`,
- `pictures`: `{"path" (relative to the page), "question", "truth", "answers": {row name: answer}}`,
- `provenance`: what `pumer.utils.provenance.collect` gives.

What a row does not hold was not measured and is shown as a dash.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from pumer.utils.files import write_text

UNMEASURED = "–"
Results = Mapping[str, Any]


def write(results: Results, path: Path) -> None:
    """Write the page; pictures are read from beside it and embedded.

    Args:
        results: see the module's text.
        path: the HTML file; `results["pictures"]` are relative to its folder.
    """
    sections = [
        f"<h1>{escape(results['title'])}</h1><p class=lead>{escape(results['summary'])}</p>",
        _headline_section(results),
        _type_section(results),
        _tokens_section(results),
        _pictures_section(results, path.parent),
        provenance_section(results),
    ]
    write_text(path, page(results["title"], sections))


def page(title: str, sections: Sequence[str]) -> str:
    """A page in the project's style.

    Args:
        title: of the window.
        sections: HTML.
    """
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(sections)}</main></body></html>"
    )


def tables(results: Results) -> Group:
    """The headline for the terminal: accuracy in one table, cost in another; each fits 80 columns."""
    cost = headline(results)
    names = cost.pop("model")
    about_accuracy = ["accuracy", "difference", "agreement", *_other_splits(results)]
    accuracy = {name: cost.pop(name) for name in about_accuracy if name in cost}
    parts = [_terminal_table(names, part) for part in (accuracy, cost) if part]
    return Group(*parts, Text(_note(results), "dim"))


def _terminal_table(names: Sequence[str], columns: Mapping[str, Sequence[str]]) -> Table:
    """Rows without any value are left out."""
    shown = Table("", *(Column(name, justify="right") for name in columns), box=box.SIMPLE_HEAD)
    for name, cells in zip(names, zip(*columns.values(), strict=True), strict=True):
        if any(cell != UNMEASURED for cell in cells):
            shown.add_row(name, *cells)
    return shown


def headline(results: Results) -> dict[str, list[str]]:
    """Columns of the headline table: name to one cell per row; columns that nobody measured are left out.

    A cell's second line, if it has one, is its spread.
    """
    rows = results["rows"]
    columns = {
        "model": [row["name"] for row in rows],
        "accuracy": [_accuracy(row.get("accuracy")) for row in rows],
        "difference": [_difference(row.get("difference")) for row in rows],
        "agreement": [_percent(row.get("agreement")) for row in rows],
    }
    for split in _other_splits(results):
        columns[split] = [_accuracy(row.get("splits", {}).get(split)) for row in rows]
    for batch in sorted({speed["batch"] for row in rows for speed in row.get("speed", ())}):
        columns[f"images/s, batch {batch}"] = [_speed(row, batch) for row in rows]
    columns["peak memory"] = [_memory(row.get("memory")) for row in rows]
    columns["MACs"] = [_macs(row) for row in rows]
    return {name: cells for name, cells in columns.items() if any(cell != UNMEASURED for cell in cells)}


def _other_splits(results: Results) -> list[str]:
    """Names of the test splits beside the main one, in order of appearance."""
    return list(dict.fromkeys(split for row in results["rows"] for split in row.get("splits", ())))


# Cells


def _percent(fraction: float | None) -> str:
    return UNMEASURED if fraction is None else f"{100 * fraction:.1f} %"


def _accuracy(interval: Mapping[str, float] | None) -> str:
    if interval is None:
        return UNMEASURED
    return f"{100 * interval['mean']:.1f} %\n[{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"


def _difference(interval: Mapping[str, float] | None) -> str:
    if interval is None:
        return UNMEASURED
    return f"{100 * interval['mean']:+.1f}\n[{100 * interval['low']:+.1f}, {100 * interval['high']:+.1f}]"


def _speed(row: Results, batch: int) -> str:
    for speed in row.get("speed", ()):
        if speed["batch"] == batch:
            rate, speedup = f"{speed['images_per_second']:.0f}", speed.get("speedup")
            if speedup is None:
                return rate
            slower = " as fast" if speedup["median"] < 1 else ""
            spread = f"[{speedup['low']:.2f}, {speedup['high']:.2f}]"
            return f"{rate} ({speedup['median']:.2f}x{slower})\n{spread}"
    return UNMEASURED


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


# Sections of the page


def _headline_section(results: Results) -> str:
    columns = headline(results)
    columns["model"] = [f"{row['name']}\n{row.get('note', '')}" for row in results["rows"]]
    lines = [[with_small_print(cell) for cell in line] for line in zip(*columns.values(), strict=True)]
    return f"{html_table(list(columns), lines)}<p class=note>{escape(_note(results))}</p>"


def with_small_print(cell: str) -> str:
    """A cell as HTML, its second line small."""
    first, _, second = cell.partition("\n")
    return f"{escape(first)}<small>{escape(second)}</small>"


def _note(results: Results) -> str:
    return (
        f"{results['questions']:,} test questions. Difference and agreement: to the first row, in percentage "
        "points. In brackets: 95 % intervals (paired bootstrap); for speed-ups their middle half. "
        f"{UNMEASURED} not measured."
    )


def _type_section(results: Results) -> str:
    rows = [row for row in results["rows"] if row.get("by_type")]
    counts: dict[str, int] = {}
    for row in rows:
        counts |= {name: entry["questions"] for name, entry in row["by_type"].items()}
    lines = []
    for name, count in sorted(counts.items()):
        found = [row["by_type"].get(name) for row in rows]
        bars = [UNMEASURED if entry is None else _bar(entry["mean"]) for entry in found]
        lines.append([with_small_print(f"{name}\n{count:,} questions"), *bars])
    columns = ["question type", *(row["name"] for row in rows)]
    return f"<h2>Accuracy by question type</h2>{html_table(columns, lines)}" if lines else ""


def _bar(fraction: float) -> str:
    return f'<span class=bar style="--share:{fraction:.4f}">{_percent(fraction)}</span>'


def html_table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table; column names are escaped here, cells come as HTML."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>" for line in lines)
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _tokens_section(results: Results) -> str:
    tokens = results.get("tokens", {})
    if not tokens:
        return ""
    highest = max(text + image for layers in tokens.values() for _, text, image in layers)
    charts = [
        f"<figure><figcaption>{escape(name)}</figcaption>{_token_chart(layers, highest)}</figure>"
        for name, layers in tokens.items()
    ]
    legend = "<p class=note><i class='key image'></i> image tokens <i class='key text'></i> text tokens</p>"
    return f"<h2>Tokens after each layer</h2><div class=charts>{''.join(charts)}</div>{legend}"


def _token_chart(layers: Sequence[tuple[str, int, int]], highest: int) -> str:
    """Stacked bars, one per layer, as inline SVG; a bar of `highest` tokens fills the height."""
    step, bar, height, top = 46, 34, 130, 18
    shapes = []
    for place, (layer, text, image) in enumerate(layers):
        left, centre = place * step + 6, place * step + 6 + bar // 2
        image_top = top + height * (1 - image / highest)
        text_top = image_top - height * text / highest
        shapes += [
            _rect("image", left, image_top, bar, top + height - image_top),
            _rect("text", left, text_top, bar, image_top - text_top),
            f'<text x="{centre}" y="{text_top - 4:.1f}">{text + image}</text>',
            f'<text x="{centre}" y="{top + height + 16}">{layer}</text>',
        ]
    width, bottom = len(layers) * step + 6, top + height + 22
    return f'<svg viewBox="0 0 {width} {bottom}" width="{width}" role="img">{"".join(shapes)}</svg>'


def _rect(kind: str, left: int, top: float, width: int, height: float) -> str:
    return f'<rect class="{kind}" x="{left}" y="{top:.1f}" width="{width}" height="{height:.1f}"/>'


def _pictures_section(results: Results, folder: Path) -> str:
    cards = []
    for picture in results.get("pictures", ()):
        data = base64.b64encode((folder / picture["path"]).read_bytes()).decode("ascii")
        answers = "".join(
            f"<li class={'right' if answer == picture['truth'] else 'wrong'}>"
            f"{escape(name)}: <b>{escape(answer)}</b></li>"
            for name, answer in picture["answers"].items()
        )
        cards.append(
            f"<article><h3>{escape(picture['question'])}</h3>"
            f"<ul><li>truth: <b>{escape(picture['truth'])}</b></li>{answers}</ul>"
            f'<img alt="what was pruned and merged" src="data:image/png;base64,{data}"></article>'
        )
    return f"<h2>What was pruned, what was merged</h2>{''.join(cards)}" if cards else ""


def provenance_section(results: Results) -> str:
    """What `pumer.utils.provenance.collect` gave, folded."""
    provenance = json.dumps(results.get("provenance", {}), indent=2, ensure_ascii=False)
    return (
        "<h2>How these figures were made</h2><details><summary>command, machine, versions, settings</summary>"
        f"<pre>{escape(provenance)}</pre></details>"
    )


_STYLE = """
:root {
  color-scheme: light dark;
  --ink: light-dark(#1c1e24, #e8e9ee); --faint: light-dark(#63687a, #a0a5b5);
  --paper: light-dark(#fff, #16181d); --card: light-dark(#f6f7fa, #1e2128);
  --line: light-dark(#dfe2ea, #343843);
  --image: light-dark(#2563c9, #5b93f0); --text: light-dark(#e8832a, #f0a052);
  --good: light-dark(#15803d, #5bd089); --bad: light-dark(#c02626, #ff8080);
}
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
main { max-width: 1340px; margin: 0 auto; padding: 40px 24px 80px }
h1 { font-size: 30px; margin: 0 0 8px }
h2 { font-size: 21px; margin: 48px 0 12px }
h3 { font-size: 17px; margin: 0 }
.lead { font-size: 18px; max-width: 75ch; margin: 0 0 28px }
.note, small { color: var(--faint); font-size: 13px }
.note { max-width: 110ch }
small { display: block; font-weight: 400 }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 15px; min-width: 100% }
th { text-align: left; font-weight: 600; color: var(--faint); font-size: 13px; vertical-align: bottom }
th, td { padding: 9px 20px 9px 0; border-bottom: 1px solid var(--line) }
td { white-space: nowrap; vertical-align: top }
td:first-child { font-weight: 600; white-space: normal; min-width: 17em }
.bar { display: block; min-width: 110px; padding: 1px 6px; border-radius: 3px;
  background: linear-gradient(to right, var(--shade) calc(100% * var(--share)), transparent 0);
  --shade: color-mix(in srgb, var(--image) 30%, transparent) }
.charts { display: flex; flex-wrap: wrap; gap: 32px }
figure { margin: 0 }
figcaption { font-weight: 600 }
svg { max-width: 100%; height: auto; font-size: 12px; fill: var(--faint); text-anchor: middle }
rect.image, .key.image { fill: var(--image); background: var(--image) }
rect.text, .key.text { fill: var(--text); background: var(--text) }
.key { display: inline-block; width: 12px; height: 12px; margin: 0 4px 0 12px; border-radius: 2px }
article { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px }
article { margin: 0 0 20px }
article ul { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 24px; padding: 0; margin: 4px 0 14px }
article img { max-width: 100%; border-radius: 6px; display: block }
.right::after { content: " ✓"; color: var(--good) }
.wrong::after { content: " ✗"; color: var(--bad) }
pre { overflow-x: auto; background: var(--card); padding: 16px; border-radius: 8px; font-size: 13px }
summary { cursor: pointer }
"""
