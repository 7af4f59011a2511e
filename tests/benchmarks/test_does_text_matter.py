"""The benchmark of what the text decides, on a few pictures."""

from pathlib import Path

import numpy as np

from pumer.utils.files import read_json

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "does_text_matter.py"


def test_rows_tell_what_is_left_of_the_named_objects(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "LAYERS", {"vilt": (2, 5)})
    monkeypatch.setattr(script, "RATIOS", (0.3,))
    out, picture = tmp_path / "text.json", tmp_path / "text.png"
    given = ["does_text_matter.py", "--pictures", "3", "--batch", "2", "--out", str(out), "--picture", str(picture)]
    monkeypatch.setattr("sys.argv", given)
    script.main()
    rows = read_json(out)["rows"]
    assert [(row["layer"], row["method"]) for row in rows] == [(n, m) for n in (2, 5) for m in script.METHODS]
    for row in rows:
        assert 0.6 < row["patches"]["mean"] < 0.75 if row["layer"] == 2 else row["patches"]["mean"] < 0.6
        assert 0 <= row["named"]["low"] <= row["named"]["mean"] <= row["named"]["high"] <= 1
        assert ("more" in row) == (row["method"] != "chance")
    assert picture.stat().st_size > 0


def test_what_is_left_follows_from_the_patches_kept(script):
    kept = np.array([[True, True, False, False], [True, False, True, False]])
    named = [np.array([True, False, True, False]), np.array([False, False, True, False])]
    assert script._after_layer(kept, named) == {"patches": 0.5, "named": 0.75, "likeness": 1 / 3}
