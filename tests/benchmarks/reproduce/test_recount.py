"""The MACs of the committed results are those of the code."""

import pytest

from benchmarks.common import RESULTS
from benchmarks.reproduce.recount import counted
from pumer.utils.files import read_json

COMMITTED = [
    row
    for table in read_json(RESULTS / "reproduce" / "results.json")["tables"]
    for row in table["rows"]
    if row.get("cost")
]
SEEN = [next(row for row in COMMITTED if name in row["model"]) for name in ("pumer: layers 2, 5, 8", "merge count 13")]
SEEN.append(next(row for row in COMMITTED if row["where"] == "meter/nlvr2"))
SEEN.append(next(row for row in COMMITTED if row["image_size"]))


@pytest.mark.parametrize("row", SEEN, ids=lambda row: f"{row['where']}, {row['model']}")
def test_macs_are_those_of_the_code(row):
    found = counted(row)
    assert found == {name: pytest.approx(row["cost"][name]) for name in found}
