"""The tables of README and docs are made from the result files."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import readme_tables

ROOT = Path(__file__).parents[2]


def test_the_pages_have_the_committed_results():
    texts = [page.read_text(encoding="utf-8") for page in readme_tables.PAGES]
    assert {found[2] for text in texts for found in readme_tables.MARKED.finditer(text)} == readme_tables.TABLES.keys()
    assert [readme_tables.rewritten(text) for text in texts] == texts


def test_another_result_is_another_readme(tmp_path, monkeypatch):
    shutil.copytree(readme_tables.RESULTS, tmp_path / "results")
    monkeypatch.setattr(readme_tables, "RESULTS", tmp_path / "results")
    file = tmp_path / "results" / "reproduce" / "results.json"
    results = json.loads(file.read_text(encoding="utf-8"))
    rows = next(table["rows"] for table in results["tables"] if table["name"] == "table1")
    rows[1]["tuned"]["difference"] = {"mean": -0.4567, "low": -0.5, "high": -0.4}
    file.write_text(json.dumps(results), encoding="utf-8")
    readme = tmp_path / "results.md"
    shutil.copy(ROOT / "docs/results.md", readme)
    for given, ended in ((["--check"], 1), ([], None), (["--check"], 0)):
        monkeypatch.setattr("sys.argv", ["readme_tables.py", "--readme", str(readme), *given])
        if ended is None:
            readme_tables.main()
            continue
        with pytest.raises(SystemExit) as end:
            readme_tables.main()
        assert end.value.code == ended
    assert "-45.7 [-50.0, -40.0]" in readme.read_text(encoding="utf-8")
