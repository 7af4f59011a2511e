"""Imports point down only: DESIGN's layers as a table."""

import ast
import sys
from pathlib import Path

import pytest

import pumer

SOURCE = Path(pumer.__file__).parent

LAYERS: list[set[str]] = [
    {"utils"},
    {"functional", "kernels", "models", "resolution", "settings"},
    {"data", "tokens", "world"},
    {"reducers"},
    {"backbones"},
    {"patching"},
    {"checkpoint", "compiling", "prompts"},
    {"conversion", "generative", "profiling", "tasks"},
    {"exporting"},
    {"evaluation"},
    {"overview", "serving", "training", "tuning", "visualization"},
    {"app", "demo"},
    {"cli", "__init__", "__main__"},
]
"""Bottom first. A part may import from itself and from below, never from its neighbours in a layer."""

ONLY_TORCH = {"functional", "tokens"}


def part(module: str) -> str:
    """The name below ``pumer`` of a dotted module."""
    return module.split(".")[1] if "." in module else "__init__"


def height(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if name in names)


def imported(path: Path) -> set[str]:
    """Dotted names a file imports, wherever in it; ``from pumer import x`` counts as ``pumer.x``."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            submodule = [f"{node.module}.{alias.name}" for alias in node.names]
            found.update(submodule if node.module == "pumer" else [node.module or ""])
    return found


FILES = sorted(SOURCE.rglob("*.py"))


def module_of(path: Path) -> str:
    return ".".join(("pumer", *path.relative_to(SOURCE).with_suffix("").parts))


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_down(path):
    own = part(module_of(path))
    others = {part(name) for name in imported(path) if name.split(".")[0] == "pumer"} - {own}
    if own in LAYERS[-1]:
        return
    above = [other for other in others if height(other) >= height(own)]
    assert not above, f"{module_of(path)} imports {above}, which do not stand below it"


@pytest.mark.parametrize("path", [p for p in FILES if part(module_of(p)) in ONLY_TORCH], ids=module_of)
def test_the_method_imports_torch_only(path):
    outside = {name.split(".")[0] for name in imported(path)} - {"torch", "pumer", *sys.stdlib_module_names}
    assert not outside


def test_no_reducer_imports_transformers_or_a_backbone():
    for path in (SOURCE / "reducers").rglob("*.py"):
        assert not [name for name in imported(path) if name.split(".")[0] == "transformers" or "backbones" in name]


def test_no_backbone_imports_a_concrete_reducer():
    for path in (SOURCE / "backbones").rglob("*.py"):
        names = {name for name in imported(path) if name.startswith("pumer.reducers")}
        shared = ("base", "cues", "learned", "shortening.base", "tables")
        assert names <= {f"pumer.reducers.{name}" for name in shared}, path


def test_the_table_names_what_exists():
    parts = {part(module_of(path)) for path in FILES}
    assert {name for layer in LAYERS for name in layer} <= parts


def test_public_names_are_there_and_no_others():
    assert all(getattr(pumer, name) is not None for name in pumer.__all__)
    assert set(pumer.__all__) <= set(dir(pumer))
    with pytest.raises(AttributeError, match="no attribute 'prune'"):
        pumer.prune  # noqa: B018
