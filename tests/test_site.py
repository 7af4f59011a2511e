"""The documentation builds as a site: no warning, no broken link, nothing from another host."""

import re
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

import pumer
from pumer.settings.train import TrainConfig
from pumer.utils.config import described

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))  # raises at a warning
    return folder


def test_nothing_is_loaded_from_elsewhere(site):
    loaded = (
        r'<(?:script|img|source|iframe)[^>]*\ssrc="?(https?:[^" >]+)|<link[^>]*stylesheet[^>]*href="?(https?:[^" >]+)'
    )
    found = {page.name: re.findall(loaded, page.read_text(encoding="utf-8")) for page in site.rglob("*.html")}
    assert len(found) > 10 and not any(found.values())
    styles = [
        style for style in site.rglob("*.css") if re.search(r"url\(['\"]?https?:", style.read_text(encoding="utf-8"))
    ]
    assert not styles


def test_the_references_hold_every_setting_and_name(site):
    settings = (site / "reference/settings.html").read_text(encoding="utf-8")
    assert [name for name in described(TrainConfig) if f"<code>{name}</code>" not in settings] == []
    api = (site / "reference/api.html").read_text(encoding="utf-8")
    assert [name for name in pumer.__all__ if f'.{name}"' not in api] == []
