"""The files around the code: one version, paths in the documentation that exist, the same checks everywhere."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

import pumer
from pumer.cli import app
from pumer.reducers import METHODS

ROOT = Path(__file__).parents[1]
TEXTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
TEXTS += [*sorted((ROOT / "docs").glob("*.md")), ROOT / ".github/pull_request_template.md"]
PLACES = ("benchmarks", "configs", "docs", "examples", "recipes", "src", "tests", ".ci", ".github")
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def targets(text):
    """Link targets of a Markdown file that lie in the repository."""
    return {target for target in re.findall(r"\]\(([^)\s#]+)", text) if "://" not in target}


def paths(text):
    """Paths from the root of the repository that it names, placeholders such as <method> as wildcards."""
    named = re.findall(rf"(?<![\w./-])((?:{'|'.join(map(re.escape, PLACES))})/[\w<>{{}},*./-]*[\w>}}*/])", text)
    return {re.sub(r"<\w+>", "*", path) for path in named}


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: file.name)
def test_paths_in_the_documentation_exist(file):
    text = file.read_text(encoding="utf-8")
    missing = [target for target in targets(text) if not (file.parent / target).exists()]
    missing += [path for path in paths(text) if not any(ROOT.glob(path.rstrip("/")))]
    assert not missing


def test_paths_are_found_and_missing_ones_are_seen():
    text = "see [a](docs/a.md), [b](https://x.org/docs/b.md), `src/pumer/<method>.py` and out/tests/x; recipes/vilt/."
    assert targets(text) == {"docs/a.md"}
    assert paths(text) == {"docs/a.md", "src/pumer/*.py", "recipes/vilt/"}


def test_modules_named_in_the_documentation_exist():
    for file in TEXTS:
        text = file.read_text(encoding="utf-8")
        names = [f"src/{name}" for name in re.findall(r"\b(?:from|import) (pumer(?:\.\w+)+)", text)]
        for name in names + re.findall(r"python -m (benchmarks\.\w+)", text):
            path = ROOT / name.replace(".", "/")
            assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), f"{file.name} names {name}"


def test_citation_and_changelog_have_the_version_of_the_package():
    version = PROJECT["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == version
    newest = re.search(r"^## (\S+) - (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest[1] == version.partition(".dev")[0]
    assert (newest[2] == "unreleased") == (".dev" in version)
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", pumer.__version__)


def test_hooks_run_what_make_lint_runs():
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    hooks = {tuple(shlex.split(hook["entry"])[:2]) for hook in local["hooks"]}
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1]
    linted = {tuple(line.replace("$(BIN)", ".venv/bin").split()[:2]) for line in recipe.splitlines()}
    assert local["repo"] == "local"
    assert hooks == linted


def test_the_workflow_runs_the_check_of_a_change():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    assert any(step.get("run", "").split()[:1] == [".ci/run"] for step in job["steps"])
    oldest = re.search(r"\d+\.\d+", PROJECT["project"]["requires-python"])[0]
    assert job["strategy"]["matrix"]["python"][0] == oldest
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_form(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert form["name"] and form["description"] and form["body"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_every_method_is_in_the_documentation():
    rows, names = ((ROOT / name).read_text(encoding="utf-8") for name in ("docs/methods.md", "README.md"))
    assert [method for method in METHODS if f"| `{method}` |" not in rows] == []
    assert [method for method in METHODS if f"`{method}`" not in names] == []


def test_every_part_of_the_package_is_in_the_map():
    source = ROOT / "src/pumer"
    parts = {path.name for path in source.iterdir() if path.suffix == ".py" or any(path.glob("*.py"))}
    parts = parts - {"__init__.py", "__main__.py"} | {"assets", "recipes"}
    rows = re.findall(r"^\| `src/pumer/([\w.]+)", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(rows) == parts


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150 and len(text.encode()) <= 12_000
    prose = re.sub(r"```.*?```|^\|.*$|^#.*$|<!--.*?-->", "\n\n", text, flags=re.DOTALL | re.MULTILINE)
    sentences = re.split(r"[.:](?=\s)|\n\n|\n- |\n\d\. ", prose)
    assert [sentence for sentence in sentences if len(sentence.split()) > 35] == []


def test_every_page_is_in_the_index():
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert targets((ROOT / "docs/index.md").read_text(encoding="utf-8")) == pages | {"../README.md"}


def test_every_command_is_in_its_page():
    text = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    names = [command.name or command.callback.__name__ for command in [*app.registered_commands]]
    names += [f"{group.name}" for group in app.registered_groups]
    assert [name for name in names if f"`pumer {name}" not in text] == []
