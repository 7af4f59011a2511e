"""The benchmark of reading, on a tiny world."""

import pytest

from benchmarks import reading
from pumer.settings.data import WorldConfig
from pumer.utils.files import read_json
from pumer.world.write import write_world


@pytest.mark.slow
def test_a_row_has_both_kinds_of_files(tmp_path, monkeypatch):
    write_world(tmp_path / "world", WorldConfig(train=40, val=12, test=12, heldout=0, tasks=("snli_ve",)))
    out = tmp_path / "reading.json"
    given = ["reading.py", "--world", str(tmp_path / "world"), "--tasks", "snli_ve", "--steps", "2", "--out", str(out)]
    monkeypatch.setattr("sys.argv", given)
    reading.main()
    result = read_json(out)
    row = result["tasks"]["snli_ve"]
    assert row["images"] > 10
    assert row["prepare_peak_mib"] > 50
    for kind in ("files", "prepared"):
        assert 0 < row[kind]["waiting_share"] < 1
        assert row[kind]["images_per_second"] > 0
        assert row[kind]["examples_per_second"] > 0
