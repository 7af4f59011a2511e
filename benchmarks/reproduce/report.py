"""The tables as Markdown, as one self-contained HTML page, and Figure 5 as images."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.reproduce.figure import draw
from benchmarks.reproduce.update import RESULTS
from pumer.demo.report import render
from pumer.reducers import ReleasedPuMerConfig
from pumer.utils.files import write_json, write_text

Results = Mapping[str, Any]

NOT_RUN, NONE = "not run", "–"
POINT = 0.01 + 1e-9
"""A drop of exactly one point is one point."""
COLUMNS = (
    "task",
    "model",
    "seeds",
    "examples",
    "accuracy %",
    "difference",
    "agreement %",
    "difference, not fine-tuned",
    "throughput",
    "memory, autograd on",
    "memory, inference",
    "MACs, times fewer",
    "the paper's accuracy %, throughput, memory",
)
REPORT = "report.md"
MACS = ("model and task", "original", "PuMer", "fewer", "paper: original", "paper: PuMer")
EXPLAINED = (
    "Accuracy in percent with its 95% interval (bootstrap over the test images, examples of one image together); "
    "difference and agreement: to the original of the same seed, paired, in percentage points. Rows with several "
    "seeds show means over them; the intervals are over the images alone, so the smallest and largest difference of a "
    "seed are given beside the number of seeds. Throughput, memory (peak of a forward, weights "
    "included; the paper's was measured with autograd on) and MACs: against the original; in brackets the quartiles "
    "of paired ratios. The paper's numbers are of full-size models on the real data."
)
AT_EQUAL = {"at_equal_throughput": "equal throughput", "at_equal_macs": "equal MACs"}
TRAINING = ("task", "model", "seeds", "steps", "minutes", "examples per second", "against the original")


def write(results: Results, folder: Path) -> None:
    """Write `results.json`, `report.md`, `report.html`, and the figures of tables that have points to draw.

    Args:
        results: `title`, `scale`, `tables` (see `collect.collect_table`), and `runs`: for each `of` (backbones and
            tasks by table), `steps`, `machines`, `commits` (how many steps each ran), `rule` (of VQA
            accuracy; older runs lack it) and `provenance`.
        folder: where to; made if it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = {table["name"]: table["rows"] for table in results["tables"] if _is_figure(table)}
    drawn = {name: image for name, rows in figures.items() if (image := draw(rows)) is not None}
    for name, image in drawn.items():
        (folder / f"{name}.svg").write_bytes(image)
        (folder / f"{name}.png").write_bytes(draw(figures[name], "png") or b"")
    write_json(folder / RESULTS, results)
    write_text(folder / REPORT, markdown(results, drawn))
    write_text(folder / "report.html", html(results, drawn))


def markdown(results: Results, drawn: Collection[str] = ()) -> str:
    """The report for reading on a code host; the figures that are drawn lie beside it."""
    parts = [f"# {results['title']}", *[f"- {sentence}" for sentence in goals(results)], EXPLAINED]
    for table in results["tables"]:
        parts += [f"## {table['title']}", _markdown_table(*content(table)), table["note"]]
        if table["name"] in drawn:
            parts.append(f"![{table['title']}]({table['name']}.svg)")
    parts += [
        "## Provenance",
        "The commands that trained, tested and timed are in results.json.",
        *_runs(results),
    ]
    return "\n\n".join(parts) + "\n"


def html(results: Results, drawn: Mapping[str, bytes]) -> str:
    """The same as one page, with the figures, SVG by name of the table, inside."""
    tables = []
    for table in results["tables"]:
        columns, rows = content(table)
        shown = {"title": table["title"], "note": table["note"], "columns": columns, "rows": rows}
        tables.append(shown | {"figure": drawn.get(table["name"])})
    return render(
        "tables.html",
        Path(__file__).parent,
        title=results["title"],
        goals=goals(results),
        explained=EXPLAINED,
        tables=tables,
        runs=_runs(results),
        provenance=results["runs"],
    )


def _is_figure(table: Mapping[str, Any]) -> bool:
    return any(row.get("series") for row in table["rows"])


def _runs(results: Results) -> list[str]:
    """What was run when, where and by which code: steps that are done stay done when the code changes."""
    sentences = []
    for run in results["runs"]:
        where = run["provenance"]
        versions = ", ".join(f"{name} {value}" for name, value in where["versions"].items())
        parts = [f"`{where['command']}`; {where['date'][:10]}; {versions}; commit {where['commit']}."]
        if len(results["runs"]) > 1:
            parts.append(f"Of it are {'; '.join(f'{name}: ' + ', '.join(run['of'][name]) for name in run['of'])}.")
        parts += [f"{what}: {', '.join(machines)}." for what, machines in run["machines"].items() if machines]
        if "rule" in run:
            parts.append(f"VQA accuracy by rule={run['rule']}.")
        ran = ", ".join(f"{commit} ({steps})" for commit, steps in run["commits"].items())
        sentences.append(" ".join([*parts, f"Steps that trained, tested and timed, by commit: {ran or NONE}."]))
    return sentences


def content(table: Mapping[str, Any]) -> tuple[Sequence[str], list[list[str]]]:
    """Columns and cells of a table, row by row; a cell's second line, if it has one, is its spread."""
    columns, line = {"cells": (COLUMNS, _line), "macs": (MACS, _macs), "training": (TRAINING, _training)}[table["kind"]]
    if _is_figure(table):
        lines = [[*_line(row), *(_at_equal(row, name) for name in AT_EQUAL)] for row in table["rows"]]
        return (*columns, *(f"against PuMer at {what}" for what in AT_EQUAL.values())), lines
    return columns, [line(row) for row in table["rows"]]


def goals(results: Results) -> list[str]:
    """How many of the figures that are there meet the goals, and a sentence for every one that misses its goal."""
    rows = [(table["name"], row) for table in results["tables"] if table["kind"] == "cells" for row in table["rows"]]
    first = [row for name, row in rows if name == "table1" and row["changed"] and row["tuned"]]
    others = [row for _, row in rows if row.get("series") and row["series"] != ReleasedPuMerConfig.method]
    return [*_drops(first), *(sentence for name in AT_EQUAL for sentence in _better(others, name))]


def _drops(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Table 1: a drop of one point at most."""
    if not rows:
        return []
    dropped = [row for row in rows if row["tuned"]["difference"]["mean"] < -POINT]
    sure = [row for row in rows if row["tuned"]["difference"]["low"] >= -POINT]
    fine = f"{len(rows) - len(dropped)} of {len(rows)} rows of reduced models lose one point or less"
    sentences = [f"Table 1: {fine}, {len(sure)} of them with their whole interval."]
    for row in dropped:
        drop = -100 * row["tuned"]["difference"]["mean"]
        sentences.append(f"Missed: {row['where']} loses {drop:.2f} points with {row['model']}, more than one.")
    return sentences


def _better(rows: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    """Figure 5: no other method above PuMer, at a speed of `AT_EQUAL`."""
    beside = [(row["model"], row[name]) for row in rows if row.get(name)]
    if not beside:
        return []
    better = [(model, found) for model, found in beside if found["low"] > 0]
    beyond = sum(found["beyond"] for _, found in beside if found["low"] <= 0)
    fine = len(beside) - len(better) - beyond
    sentences = [
        f"Figure 5, at {AT_EQUAL[name]}: {fine} of {len(beside)} others are not surely more accurate than PuMer."
    ]
    if beyond:
        sentences[0] += f" {beyond} go further than every PuMer here, and are not surely more accurate than its last."
    for model, found in better:
        points = _in_one_line(_interval(found))
        sentences.append(f"Missed: at {AT_EQUAL[name]}, {model} is {points} points more accurate than PuMer.")
    return sentences


def _line(row: Mapping[str, Any]) -> list[str]:
    tuned, cost = row["tuned"], row["cost"]
    cells = [row["where"], row["model"], _seeds(row), NONE if tuned is None else f"{tuned['questions']:,}"]
    cells += [NOT_RUN if tuned is None else _interval(tuned["accuracy"])]
    if tuned is not None and "difference" in tuned:
        cells += [_interval(tuned["difference"], "+"), f"{100 * tuned['agreement']:.1f}"]
    else:
        cells += [NOT_RUN if tuned is None and row["changed"] else NONE] * 2
    if not row["changed"]:
        cells += [NONE] * 5
    else:
        cells += [NOT_RUN if row["untuned"] is None else _untuned(row)]
        cells += [NOT_RUN] * 4 if cost is None else _cost(cost)
    return [*cells, _paper(row["paper"])]


def _untuned(row: Mapping[str, Any]) -> str:
    """The difference without fine-tuning; with its seeds, where they are other ones than the row's."""
    seeds = row["untuned"]["seeds"]
    other = row["tuned"] is None or row["tuned"]["seeds"] != seeds
    return _interval(row["untuned"]["difference"], "+") + f", seeds: {seeds}" * other


def _paper(figures: Mapping[str, float | None] | None) -> str:
    """What the paper prints in this place."""
    forms = {"accuracy": "{:.1f}", "throughput": "{:.2f}x", "memory": "{:+.0f}%"}
    shown = [form.format(figures[name]) for name, form in forms.items() if figures and figures[name] is not None]
    return ", ".join(shown) or NONE


def _at_equal(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        return NOT_RUN if row["changed"] and not (row["tuned"] and row["cost"]) else NONE
    if row[name] is None:
        return NONE
    return _interval(row[name], "+") + ", to the fastest" * row[name]["beyond"]


def _macs(row: Mapping[str, Any]) -> list[str]:
    """In 10^9."""
    paper, macs = [f"{figure:g} G" for figure in row["paper"]], row["macs"]
    if macs is None:
        return [row["where"], *[NOT_RUN] * 3, *paper]
    ours = [f"{macs[name] / 1e9:.3f} G" for name in ("original", "pumer")]
    return [row["where"], *ours, f"{macs['original'] / macs['pumer']:.2f}x", *paper]


def _training(row: Mapping[str, Any]) -> list[str]:
    if row["training"] is None:
        return [row["where"], row["model"], "0", *[NOT_RUN] * 4]
    runs, faster = row["training"], row["faster"]
    cells = [str(len(runs)), f"{fmean(run['steps'] for run in runs):.0f}"]
    in_one_go = [run for run in runs if not run["resumed_from"]]
    if in_one_go:
        seconds, rate = (fmean(run[name] for run in in_one_go) for name in ("seconds", "samples_per_second"))
        cells += [f"{seconds / 60:.1f}", f"{rate:.1f}"]
    else:
        cells += ["interrupted"] * 2
    return [row["where"], row["model"], *cells, NONE if faster is None else f"{faster:.2f}x"]


def _seeds(row: Mapping[str, Any]) -> str:
    run = row["tuned"]["seeds"] if row["tuned"] else 0
    shown = str(run) if run == row["seeds_wanted"] else f"{run} of {row['seeds_wanted']}"
    if run > 1 and "by_seed" in row["tuned"]:
        shown += "\n({:+.1f} to {:+.1f})".format(*(100 * end(row["tuned"]["by_seed"]) for end in (min, max)))
    return shown


def _cost(cost: Mapping[str, Any]) -> list[str]:
    speed = cost["throughput"]
    slower = " as fast" if speed["median"] < 1 else ""
    shown = f"{speed['median']:.2f}x{slower}\n[{speed['low']:.2f}, {speed['high']:.2f}]"
    memory = [f"{100 * (cost[mode] - 1):+.0f}%" for mode in ("memory", "memory_inference")]
    return [shown, *memory, f"{cost['macs_fewer']:.2f}x"]


def _interval(part: Mapping[str, float], sign: str = "") -> str:
    mean, low, high = (f"{100 * part[name]:{sign}.1f}" for name in ("mean", "low", "high"))
    return f"{mean}\n[{low}, {high}]"


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    ruled = [list(columns), ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(_in_one_line, cells))} |" for cells in ruled)


def _in_one_line(cell: str) -> str:
    return cell.replace("\n", " ")
