"""What scripts of results share."""

import shutil

import pytest

from benchmarks.common import difference, fingerprint, keep_settings
from pumer.utils.errors import InputError
from pumer.utils.files import read_json


def test_differences_are_paired_by_example():
    ours = [{"id": number, "source": number // 2, "score": score} for number, score in enumerate((1.0, 0.0, 0.5, 1.0))]
    others = [{"id": number, "score": 0.5} for number in (3, 1, 0, 2)]
    others[0]["score"] = 0.0
    assert difference(ours, others)["mean"] == pytest.approx((0.5 - 0.5 + 0.0 + 1.0) / 4)


def test_work_of_other_settings_is_refused(tmp_path):
    keep_settings(tmp_path / "work", {"limit": None, "trials": 4})
    keep_settings(tmp_path / "work", {"limit": None, "train": "a"})
    assert read_json(tmp_path / "work" / "settings.json") == {"limit": None, "trials": 4, "train": "a"}
    for other in ({"limit": 5}, {"trials": 5, "limit": None}, {"train": "b"}):
        ((name, value), *_) = other.items()
        with pytest.raises(InputError, match=f"{name}=.* not {value}.*--work"):
            keep_settings(tmp_path / "work", other)


def test_a_model_is_known_by_what_is_in_its_folder(tiny_vilt, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    shutil.copytree(tiny_vilt, tmp_path / "a" / "original")
    other = shutil.copytree(tiny_vilt, tmp_path / "b" / "original")
    assert fingerprint(tmp_path / "a" / "original") == fingerprint(other)
    content = bytearray((other / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (other / "model.safetensors").write_bytes(content)
    assert fingerprint(tmp_path / "a" / "original") != fingerprint(other)
    with pytest.raises(InputError, match="nowhere"):
        fingerprint(tmp_path / "nowhere")
