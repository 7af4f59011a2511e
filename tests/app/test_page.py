"""What the page's controls do, without a browser."""

from types import SimpleNamespace

import pytest

pytest.importorskip("gradio", reason="pumer[app] is not installed")
from pumer.app.page import Page
from pumer.app.strength import Strength
from pumer.checkpoint import load
from pumer.settings.app import AppConfig
from pumer.settings.tune import INSIDE
from pumer.utils.shipped import SMALL


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    strength = Strength.of(load(SMALL["small:vilt"]), "vqav2", INSIDE)
    models = {"small:vilt": SimpleNamespace(strength=strength, small=True)}
    models["large"] = SimpleNamespace(strength=strength, small=False)
    return Page(models, AppConfig(results=tmp_path_factory.mktemp("empty")), tmp_path_factory.mktemp("uploads"))


def test_another_method_is_as_strong_as_the_one_before(page):
    for prune, merge in ((20, 60), (0, 45), (85, 0), (0, 0), (90, 90)):
        for method in page.models["large"].strength.methods:
            _, first, second = page.choose_method("large", method, prune, merge)
            shares = first.value, second.value
            assert (first.visible, second.visible) == Strength.amounts(method)
            assert sum(shares) == (prune + merge if method == "pumer" and prune and merge else min(prune + merge, 90))
            assert all(share == 0 for share, slider in zip(shares, (first, second), strict=True) if not slider.visible)


def test_a_model_keeps_the_method_where_it_can(page):
    method, prune, merge, note = page.choose_model("large", "cls", 30, 0)
    assert method.value == "cls" and prune.value == 30 and not merge.visible and not note.visible
    method, *_, note = page.choose_model("small:vilt", "fastv", 30, 0)
    assert method.value == "pumer" and note.visible and "small:vilt" in note.value


def test_without_results_it_is_said_how_to_make_some(page):
    said = page.show(None)
    assert all(command in said for command in ("pumer tune", "pumer benchmark", "pumer evaluate", "results=FOLDER"))
    assert str(page.folder) in said


def test_an_image_must_be_one_that_was_uploaded(page, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    (page.uploads / "link.png").symlink_to(tmp_path / "secret.png")
    for upload in (
        {"path": str(tmp_path / "secret.png")},
        {"path": str(page.uploads / "link.png")},
        {"path": str(page.uploads / "../secret.png")},
        {"path": "a\0b"},
        {"path": 3},
        {},
        "secret.png",
    ):
        assert "refused" in page.check(upload), upload
    assert "no image" in page.check(None)


@pytest.mark.parametrize("percent", [10**400, -1, 100.1, float("nan"), True, "much", None])
def test_a_share_that_is_no_percentage_is_named(page, percent):
    for shares in ((percent, 0), (0, percent)):
        said = page.ask("large", None, "what?", "pumer", *shares)
        assert "refused" in said and f"{percent!r:.40}"[1:-1] in said and len(said) < 300
