"""The benchmark of reading, on a tiny world."""

from pathlib import Path

from pumer.settings.data import WorldConfig
from pumer.utils.files import read_json
from pumer.world.write import write_world

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "reading.py"


def test_a_row_tells_of_both_kinds_of_files(script, tmp_path, monkeypatch):
    write_world(tmp_path / "world", WorldConfig(train=40, val=12, test=12, heldout=0, tasks=("snli_ve",)))
    out = tmp_path / "reading.json"
    given = ["reading.py", "--world", str(tmp_path / "world"), "--tasks", "snli_ve", "--steps", "2", "--out", str(out)]
    monkeypatch.setattr("sys.argv", given)
    script.main()
    result = read_json(out)
    row = result["tasks"]["snli_ve"]
    assert row["images"] > 10
    assert row["prepare_peak_mib"] > 50
    for kind in ("files", "prepared"):
        assert 0 < row[kind]["waiting_share"] < 1
        assert row[kind]["images_per_second"] > 0
        assert row[kind]["examples_per_second"] > 0
