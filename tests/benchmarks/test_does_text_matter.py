"""The benchmark of what the text decides, on a few images."""

import numpy as np

from benchmarks import does_text_matter
from pumer.utils.files import read_json


def test_rows_report_what_is_left_of_the_named_objects(tmp_path, monkeypatch):
    monkeypatch.setattr(does_text_matter, "LAYERS", {"vilt": (2, 5)})
    monkeypatch.setattr(does_text_matter, "RATIOS", (0.3,))
    out, figure = tmp_path / "text.json", tmp_path / "text.png"
    given = ["does_text_matter.py", "--images", "3", "--batch", "2", "--out", str(out), "--figure", str(figure)]
    monkeypatch.setattr("sys.argv", given)
    does_text_matter.main()
    rows = read_json(out)["rows"]
    assert [(row["layer"], row["method"]) for row in rows] == [(n, m) for n in (2, 5) for m in does_text_matter.METHODS]
    for row in rows:
        assert 0.6 < row["patches"]["mean"] < 0.75 if row["layer"] == 2 else row["patches"]["mean"] < 0.6
        assert 0 <= row["named"]["low"] <= row["named"]["mean"] <= row["named"]["high"] <= 1
        assert ("more" in row) == (row["method"] != "chance")
    assert figure.stat().st_size > 0


def test_what_is_left_follows_from_the_patches_kept():
    kept = np.array([[True, True, False, False], [True, False, True, False]])
    named = [np.array([True, False, True, False]), np.array([False, False, True, False])]
    assert does_text_matter._after_layer(kept, named) == {"patches": 0.5, "named": 0.75, "likeness": 1 / 3}
