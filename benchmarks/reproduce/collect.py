"""From the records of finished steps to the rows of the tables; what was not run is None."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from benchmarks.reproduce.cells import RETRIEVAL, Cell
from benchmarks.reproduce.equal_speed import LEADING, Scores, compared
from benchmarks.reproduce.paper import TABLE_7
from benchmarks.reproduce.setup import Setup
from benchmarks.reproduce.steps import benchmark_step, macs_step, test_step, train_step
from benchmarks.reproduce.tables import Row, Table
from pumer.demo.stages import Record
from pumer.evaluation.statistics import bootstrap
from pumer.utils.files import read_json

_QUERIES = {"TR": "image ", "IR": "caption "}


def collect_table(table: Table, done: Mapping[str, Record], setup: Setup) -> dict[str, Any]:
    """A table as plain data.

    Args:
        table: its rows.
        done: records of finished steps by name.
        setup: where the answers lie.

    Returns:
        `name`, `title`, `note`, `kind`, and `rows`. Of a table of cells each row has `where`, `model`, `changed`,
        `paper`, `seeds_wanted`, `tuned` and `untuned` (see `_tested`; None if not run), `cost` and
        `training` (likewise); of Figure 5 also `at_equal_throughput`, see `benchmarks.reproduce.equal_speed.compared`.
    """
    if table.kind == "macs":
        rows = [_macs(row, done) for row in table.rows]
    elif table.kind == "training":
        rows = [_trained(row, done) for row in table.rows]
    else:
        rows = [_row(row, done, setup) for row in table.rows]
    if any(row.series for row in table.rows):
        compared(rows, lambda number: _scores(table.rows[number], done, setup), LEADING)
    return {"name": table.name, "title": table.title, "note": table.note, "kind": table.kind, "rows": rows}


def _macs(row: Row, done: Mapping[str, Record]) -> dict[str, Any]:
    """Multiply-accumulates of original and PuMer, and the paper's in 10^9."""
    record = done.get(macs_step(row.cell))
    return {"where": row.where, "paper": TABLE_7[row.where], "macs": None if record is None else record["result"]}


def _trained(row: Row, done: Mapping[str, Record]) -> dict[str, Any]:
    """What fine-tuning took, beside the original's."""
    ours, theirs = (_training(each, done) for each in (row, replace(row, cell=row.cell.original)))
    rate, base = (_rate(runs or ()) for runs in (ours, theirs))
    faster = rate / base if rate and base and row.cell != row.cell.original else None
    return {"where": row.where, "model": row.model, "training": ours, "faster": faster}


def _rate(runs: Sequence[Mapping[str, Any]]) -> float | None:
    """Examples per second of the trainings that ran in one go."""
    rates = [run["samples_per_second"] for run in runs if not run["resumed_from"]]
    return _mean(rates) if rates else None


def _row(row: Row, done: Mapping[str, Record], setup: Setup) -> dict[str, Any]:
    return {
        "where": row.where,
        "model": row.model,
        "changed": row.changed,
        "series": row.series,
        "reduction": row.cell.settings,
        "image_size": row.cell.image_size,
        "paper": None if row.paper is None else asdict(row.paper),
        "seeds_wanted": row.seeds,
        "tuned": _tested(row.tuned, row.direction, done, setup),
        "untuned": _tested(row.untuned, row.direction, done, setup),
        "cost": _cost(row, done, setup),
        "training": _training(row, done),
    }


def _tested(cells: Sequence[Cell], direction: str, done: Mapping[str, Record], setup: Setup) -> dict[str, Any] | None:
    """Accuracy, and the difference to the original of the same seed, of values that are averaged over the seeds.

    The interval is over test examples: whole examples are drawn, with the mean of their values over the seeds. How much
    the seeds differ, it does not know: `by_seed` has the difference of each.
    """
    ready = _ready(cells, done)
    if not ready:
        return None
    ours = [_answers(cell, direction, setup) for cell in ready]
    theirs = [_answers(cell.original, direction, setup) for cell in ready]
    ids = list(ours[0])
    accuracy = [_mean(run[number]["score"] for run in ours) for number in ids]
    beside = list(zip(ours, theirs, strict=True))
    gained = [[run[number]["score"] - other[number]["score"] for number in ids] for run, other in beside]
    differences = [_mean(each) for each in zip(*gained, strict=True)]
    same = [run[number]["answer"] == other[number]["answer"] for run, other in beside for number in ids]
    sources = [ours[0][number]["source"] for number in ids]
    found = {"seeds": len(ready), "questions": len(ids), "accuracy": bootstrap(accuracy, sources)}
    if ready[0] != ready[0].original:
        found |= {"difference": bootstrap(differences, sources), "agreement": _mean(same)}
        found["by_seed"] = [_mean(each) for each in gained]
    found["commands"] = [done[test_step(cell)]["result"]["command"] for cell in ready]
    return found


def _ready(cells: Sequence[Cell], done: Mapping[str, Record]) -> list[Cell]:
    return [cell for cell in cells if {test_step(cell), test_step(cell.original)} <= done.keys()]


def _scores(row: Row, done: Mapping[str, Record], setup: Setup) -> Scores:
    """Per test example, its source and the mean over the seeds."""
    runs = [_answers(cell, row.direction, setup) for cell in _ready(row.tuned, done)]
    return {number: (entry["source"], _mean(run[number]["score"] for run in runs)) for number, entry in runs[0].items()}


def _answers(cell: Cell, direction: str, setup: Setup) -> dict[str, Any]:
    """A cell's answers and scores by example; of retrieval those of one direction, and the best candidate alone."""
    entries = read_json(setup.file(cell, "answers"))["examples"]
    if cell.task in RETRIEVAL:
        asked = [entry for entry in entries if str(entry["id"]).startswith(_QUERIES[direction])]
        return {entry["id"]: entry | {"answer": entry["answer"].split()[0]} for entry in asked}
    return {entry["id"]: entry for entry in entries}


def _cost(row: Row, done: Mapping[str, Record], setup: Setup) -> dict[str, Any] | None:
    """Speed, memory and arithmetic beside the original's.

    Memory is the peak of a forward, weights included, with autograd on (as the paper's was measured) and off.
    """
    record = done.get(benchmark_step(row.cell)) if row.changed else None
    if record is None:
        return None
    measured = read_json(setup.file(row.cell.architecture, "benchmark"))
    before, after = measured["rows"]
    (speed,), (point,) = after["speed"], measured["speed"]["points"]
    return {
        "batch": speed["batch"],
        "examples_per_second": speed["images_per_second"],
        "throughput": speed["speedup"],
        "rounds": point["pairs"],
        "memory": _memory(measured["memory"], "autograd"),
        "memory_inference": _memory(measured["memory"], "inference"),
        "macs": after["macs"],
        "macs_fewer": before["macs"] / after["macs"],
        "command": record["result"]["command"],
        "device": record["result"]["provenance"]["device"],
        "threads": record["result"]["provenance"]["threads"],
    }


def _memory(measured: Mapping[str, Mapping[str, int]], mode: str) -> float:
    """Peak memory in parts of the original's."""
    before, after = (each["weights"] + each[mode] for each in measured.values())
    return after / before


def _training(row: Row, done: Mapping[str, Record]) -> list[dict[str, Any]] | None:
    """What each seed's fine-tuning took; one that was interrupted knows the time of its last part alone."""
    steps = [done[name]["result"] for cell in row.tuned if (name := train_step(cell)) in done]
    names = ("command", "steps", "resumed_from", "seconds", "samples_per_second")
    return [{key: step.get(key, 0) for key in names} for step in steps if step] or None


def _mean(values: Any) -> float:
    listed = [float(value) for value in values]
    return sum(listed) / len(listed)
