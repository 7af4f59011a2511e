"""Settings of `pumer app` that are refused before anything is loaded."""

import pytest

from pumer.settings.app import AppConfig
from pumer.utils.errors import InputError


def test_the_defaults_are_usable():
    config = AppConfig()
    config.check_places()
    assert config.host == "127.0.0.1" and len(config.models) >= 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"models": ("small:vilt", "small:vilt")}, "small:vilt is given 2 times"),
        ({"models": ("small:vil",)}, "small:vilt"),
        ({"models": ()}, "models"),
        ({"models": ("/no/such/model",)}, "/no/such/model"),
        ({"results": "/no/such/folder"}, "/no/such/folder"),
        ({"port": 70_000}, "70000"),
        ({"max_image_pixels": 10**9}, "max_image_pixels"),
    ],
)
def test_wrong_settings_are_named(settings, said):
    with pytest.raises(InputError, match=said):
        AppConfig(**settings).check_places()


def test_an_exported_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "export.json").write_text("{}")
    with pytest.raises(InputError, match="exported"):
        AppConfig(models=(str(tmp_path),)).check_places()


def test_without_gradio_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr("pumer.settings.app.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"gradio.*pumer\[app\]"):
        AppConfig().check_places()
