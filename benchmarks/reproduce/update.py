"""Results of several runs as one: what a new run has measured takes the place of what was there before."""

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pumer.evaluation.summary import FORMER_RULE
from pumer.utils.errors import InputError
from pumer.utils.files import read_json

logger = logging.getLogger(__name__)

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
        raise InputError(f"{file} holds no results of this command; move it away, or give another --results")
    if found["scale"] != scale:
        raise InputError(f"{file} is of scale {found['scale']}, this run of {scale}; give another --results")
    return found


def updated(before: Results, now: Results, order: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Results with what a new run measured.

    Rows stand and fall together: those of one table about one model on one task are of one run, for they are compared
    with each other. A run with fewer results for them than before leaves them as they were.

    Args:
        before: results of earlier runs, as `benchmarks.reproduce.run.Reproduction.report` makes them.
        now: the same of the new one.
        order: of the tables and their backbones and tasks; what is not among them is dropped.

    Returns:
        The same, with one entry in `runs` for every run that rows are left of.
    """
    earlier, latest = ({table["name"]: table for table in results["tables"]} for results in (before, now))
    tables, taken = [], {}
    for name, pairs in order.items():
        old, new = (_by_pair(found.get(name, {"rows": ()})) for found in (earlier, latest))
        taken[name] = {pair for pair in new if _count(new[pair]) >= _count(old.get(pair, ()))}
        for pair in new:
            if pair not in taken[name] and _count(new[pair]):
                logger.warning("%s of %s stays as it was: this run has fewer results", name, pair)
        rows = [row for pair in pairs for row in (new if pair in taken[name] else old).get(pair, ())]
        if rows:
            tables.append({**earlier.get(name, {}), **latest.get(name, {}), "rows": rows})
    runs = [_left_of(run, taken) for run in now["runs"]]
    staying = {name: set(pairs) - taken[name] for name, pairs in order.items()}
    earlier_runs = [_left_of({"rule": FORMER_RULE, **run}, staying) for run in before["runs"]]
    kept = {table["name"]: table for table in tables}
    _warn_of_other_rules(earlier_runs, kept, now["runs"][0].get("rule"))
    runs += earlier_runs
    return {**now, "tables": tables, "runs": [run for run in runs if run["of"]]}


def measured_pairs(table: Mapping[str, Any]) -> list[str]:
    """Backbones and tasks, such as "vilt/nlvr2", of which a table has a figure."""
    return [pair for pair, rows in _by_pair(table).items() if _count(rows)]


def _by_pair(table: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Rows by backbone and task, whatever the direction of retrieval."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in table["rows"]:
        found.setdefault(str(row["where"]).split()[0], []).append(row)
    return found


def _count(rows: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """Count the results of each kind; of what was tested, one per seed."""
    count: Counter[str] = Counter()
    for row in rows:
        for name in _MEASURED:
            if row.get(name):
                count[name] += row[name].get("seeds", 1) if isinstance(row[name], Mapping) else 1
    return count


def _warn_of_other_rules(runs: Sequence[Mapping[str, Any]], tables: Mapping[str, Any], rule: str | None) -> None:
    """Say which of the kept rows are scored by another rule of VQA accuracy."""
    for run in runs:
        for name, pairs in run["of"].items() if run["rule"] != rule else ():
            for pair in pairs:
                rows = _by_pair(tables[name])[pair] if pair.endswith("/vqav2") else ()
                if any(row.get("tuned") or row.get("untuned") for row in rows):
                    message = "%s of %s is kept from an earlier run, scored by rule=%s, not %s; run it again"
                    logger.warning(message, name, pair, run["rule"], rule)


def _left_of(run: Mapping[str, Any], pairs: Mapping[str, Collection[str]]) -> dict[str, Any]:
    """A run with those of its backbones and tasks that a report still has from it."""
    of = {name: [pair for pair in run["of"][name] if pair in pairs.get(name, ())] for name in run["of"]}
    return {**run, "of": {name: left for name, left in of.items() if left}}
