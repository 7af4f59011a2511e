"""Results of several runs as one: what a new run has measured takes the place of what was there before."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pumer.checkpoint import read_json
from pumer.errors import InputError

Results = Mapping[str, Any]
RESULTS = "results.json"
_MEASURED = ("tuned", "untuned", "cost", "training", "macs")
"""What of a row is None as long as nothing was run for it."""


def read_results(folder: Path, scale: str) -> Results | None:
    """The results in a folder; None where there are none.

    Raises:
        InputError: for a file that is something else, and for results of another scale.
    """
    file = folder / RESULTS
    if not file.exists():
        return None
    found = read_json(file)
    if not isinstance(found, dict) or not {"scale", "tables", "runs"} <= found.keys():
        raise InputError(f"{file} holds no results of `pumer reproduce`; move it away, or give another --results")
    if found["scale"] != scale:
        raise InputError(f"{file} is of scale {found['scale']}, this run of {scale}; give another --results")
    return found


def updated(before: Results, now: Results, order: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Results with what a new run measured.

    Rows stand and fall together: those of one table about one model on one task are of one run, for they are compared
    with each other.

    Args:
        before: results of earlier runs, as `pumer.reproduce.run.Reproduction.report` makes them.
        now: the same of the new one.
        order: of the tables and their backbones and tasks; what is not among them is dropped.

    Returns:
        The same, with one entry in `runs` for every run that rows are left of.
    """
    earlier, latest = ({table["name"]: table for table in results["tables"]} for results in (before, now))
    fresh = {name: measured_pairs(table) for name, table in latest.items()}
    tables, kept = [], {}
    for name, pairs in order.items():
        staying = [pair for pair in pairs if pair not in fresh.get(name, ())]
        old = [row for row in earlier.get(name, {}).get("rows", ()) if pair_of(row) in staying]
        kept[name] = {pair_of(row) for row in old}
        new = [row for row in latest.get(name, {}).get("rows", ()) if pair_of(row) not in kept[name]]
        rows = [row for pair in pairs for row in (*old, *new) if pair_of(row) == pair]
        if rows:
            tables.append({**earlier.get(name, {}), **latest.get(name, {}), "rows": rows})
    runs = [*now["runs"]]
    for run in before["runs"]:
        left = {name: [pair for pair in pairs if pair in kept.get(name, ())] for name, pairs in run["of"].items()}
        left = {name: pairs for name, pairs in left.items() if pairs}
        runs += [{**run, "of": left}] if left else []
    return {**now, "tables": tables, "runs": runs}


def measured_pairs(table: Mapping[str, Any]) -> list[str]:
    """Backbones and tasks, such as "vilt/nlvr2", of which a table has a figure."""
    return list(dict.fromkeys(pair_of(row) for row in table["rows"] if any(row.get(name) for name in _MEASURED)))


def pair_of(row: Mapping[str, Any]) -> str:
    """Backbone and task of a row, without the direction of retrieval."""
    return str(row["where"]).split()[0]
