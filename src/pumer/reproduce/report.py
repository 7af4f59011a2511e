"""The tables as Markdown and in the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from pumer.checkpoint import write_text

NOT_RUN, NONE = "not run", "–"
POINT = 0.01
COLUMNS = (
    "task",
    "model",
    "seeds",
    "accuracy %",
    "difference",
    "agreement %",
    "difference, not fine-tuned",
    "throughput",
    "memory",
    "MACs",
    "paper: accuracy %",
    "paper: throughput",
    "paper: memory",
)
MACS = ("model and task", "original", "PuMer", "fewer", "paper: original", "paper: PuMer")
TRAINING = ("task", "model", "steps", "minutes", "examples per second", "against the original")


def markdown(results: Mapping[str, Any]) -> str:
    """The whole report."""
    parts = [f"# {results['title']}", *sentences(results)]
    for table in results["tables"]:
        parts += [f"## {table['title']}", _markdown_table(*content(table)), table["note"]]
    where = results["provenance"]
    versions = ", ".join(f"{name} {value}" for name, value in where["versions"].items())
    made = f"`{where['command']}` on {where['device']}; {versions}; commit {where['commit']}."
    parts += ["## How these figures were made", made]
    return "\n\n".join(parts) + "\n"


def write_markdown(results: Mapping[str, Any], path: Any) -> None:
    """Write the report."""
    write_text(path, markdown(results))


def content(table: Mapping[str, Any]) -> tuple[Sequence[str], list[list[str]]]:
    """Columns and cells of a table, row by row."""
    columns, line = {"cells": (COLUMNS, _line), "macs": (MACS, _macs), "training": (TRAINING, _training)}[table["kind"]]
    return columns, [line(row) for row in table["rows"]]


def sentences(results: Mapping[str, Any]) -> list[str]:
    """What must be known before the tables are read."""
    told = [
        "Accuracy in percent with its 95% interval over the test examples; difference and agreement: to the original "
        "of the same seed, paired, in percentage points. Rows with several seeds show means over them. Throughput, "
        "memory and MACs: against the original. The paper's figures are of full-size models on the real data.",
    ]
    return [*told, *missed(results)]


def missed(results: Mapping[str, Any]) -> list[str]:
    """A sentence for every goal that the figures miss."""
    found = []
    for table in results["tables"]:
        for row in table["rows"] if table["name"] == "table1" else ():
            if row["changed"] and row["tuned"] and row["tuned"]["difference"]["mean"] < -POINT:
                drop = -100 * row["tuned"]["difference"]["mean"]
                found.append(f"Missed: {row['where']} loses {drop:.1f} points with {row['model']}, more than one.")
    return found


def _line(row: Mapping[str, Any]) -> list[str]:
    paper, tuned, cost = row["paper"] or {}, row["tuned"], row["cost"]
    cells = [row["where"], row["model"], _seeds(row)]
    cells += [NOT_RUN if tuned is None else _interval(tuned["accuracy"])]
    if "difference" in (tuned or {}):
        cells += [_interval(tuned["difference"], "+"), f"{100 * tuned['agreement']:.1f}"]
    else:
        cells += [NOT_RUN if tuned is None and row["changed"] else NONE] * 2
    if not row["changed"]:
        cells += [NONE] * 4
    else:
        cells += [NOT_RUN if row["untuned"] is None else _interval(row["untuned"]["difference"], "+")]
        cells += [NOT_RUN] * 3 if cost is None else _cost(cost)
    cells += [NONE if paper.get("accuracy") is None else f"{paper['accuracy']:.1f}"]
    cells += [NONE if paper.get("throughput") is None else f"{paper['throughput']:.2f}x"]
    cells += [NONE if paper.get("memory") is None else f"{paper['memory']:+.0f}%"]
    return cells


def _macs(row: Mapping[str, Any]) -> list[str]:
    """In 10^9."""
    paper, macs = [f"{figure:g} G" for figure in row["paper"]], row["macs"]
    if macs is None:
        return [row["where"], *[NOT_RUN] * 3, *paper]
    ours = [f"{macs[name] / 1e9:.3f} G" for name in ("original", "pumer")]
    return [row["where"], *ours, f"{macs['original'] / macs['pumer']:.2f}x", *paper]


def _training(row: Mapping[str, Any]) -> list[str]:
    if row["training"] is None:
        return [row["where"], row["model"], *[NOT_RUN] * 4]
    first, faster = row["training"][0], row["faster"]
    told = [str(first["steps"]), f"{first['seconds'] / 60:.1f}", f"{first['samples_per_second']:.1f}"]
    return [row["where"], row["model"], *told, NONE if faster is None else f"{faster:.2f}x"]


def _seeds(row: Mapping[str, Any]) -> str:
    run = row["tuned"]["seeds"] if row["tuned"] else 0
    return str(run) if run == row["seeds_wanted"] else f"{run} of {row['seeds_wanted']}"


def _cost(cost: Mapping[str, Any]) -> list[str]:
    speed = cost["throughput"]
    slower = " slower" if speed["median"] < 1 else ""
    shown = f"{speed['median']:.2f}x{slower} [{speed['low']:.2f}, {speed['high']:.2f}]"
    return [shown, f"{100 * (cost['memory'] - 1):+.0f}%", f"{cost['macs_fewer']:.2f}x fewer"]


def _interval(part: Mapping[str, float], sign: str = "") -> str:
    mean, low, high = (f"{100 * part[name]:{sign}.1f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    ruled = [list(columns), ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in ruled)
