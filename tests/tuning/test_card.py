"""What a tuning found, in words: of MACs nothing is called fast."""

import pytest
from rich.console import Console

from benchmarks.common import RESULTS
from pumer.tuning import card
from pumer.utils.files import read_json


@pytest.fixture
def found():
    return read_json(RESULTS / "tune-vilt-small.json")


def test_the_table_says_what_is_gained_and_what_decides(found, capsys):
    best = found["rows"][found["best"]]
    for cost, words, others in (("time", "times as fast", "fewer MACs"), ("macs", "fewer MACs", "as fast")):
        Console(width=80).print(card.tables(found | {"cost": cost}))
        shown = capsys.readouterr().out
        assert words in shown and others not in shown and f"{best['loss']:.4f}" in shown
        assert ("quartiles" in shown) == (cost == "time")
