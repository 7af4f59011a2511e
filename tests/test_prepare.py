import csv
import filecmp
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from typer.testing import CliRunner

from pumer import prepare
from pumer.check import CheckConfig, images_per_second
from pumer.check import run as check
from pumer.cli import app
from pumer.errors import InputError
from pumer.prepare import PrepareConfig, run
from pumer.tasks import VQAv2
from pumer.tasks.images import image_bytes, read_image

BROKEN = {
    "train2014/COCO_train2014_000000000000.jpg": ("does not exist", None),
    "train2014/COCO_train2014_000000000003.png": ("is empty", b""),
    "val2014/COCO_val2014_000000000002.jpg": ("is no image", b"<html>404</html>"),
}


@pytest.fixture
def broken_vqa(tiny_vqa):
    """The tiny data with three images that are of no use, and one with a wrong extension."""
    for name, (_, content) in BROKEN.items():
        (tiny_vqa / name).unlink()
        if content is not None:
            (tiny_vqa / name).write_bytes(content)
    Image.new("RGB", (9, 9)).save(tiny_vqa / "train2014" / "COCO_train2014_000000000002.jpg", "PNG")
    return tiny_vqa


def files_in(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def equal(one, other):
    names = files_in(one)
    return names == files_in(other) and filecmp.cmpfiles(one, other, names, shallow=False)[1:] == ([], [])


def test_a_prepared_folder_reads_like_the_download(tiny_vqa, tmp_path):
    record = run(PrepareConfig("vqav2", tiny_vqa, tmp_path / "out"), progress=False)
    assert (record["images"], record["skipped"], record["reasons"]) == (18, 0, {})
    assert record["splits"] == {"train": {"examples": 24, "left_out": 0}, "val": {"examples": 12, "left_out": 0}}
    assert not (tmp_path / "out" / "train2014").exists()
    for split in ("train", "val"):
        expected, found = VQAv2.read(tiny_vqa, split), VQAv2.read(tmp_path / "out", split)
        assert len(expected) == len(found)
        for one, other in zip(expected, found, strict=True):
            assert (one.id, one.text, one.answers, one.groups) == (other.id, other.text, other.answers, other.groups)
            assert one.images[0].relative_to(tiny_vqa) == other.images[0].relative_to(tmp_path / "out")
            assert image_bytes(one.images[0]) == image_bytes(other.images[0])
    assert VQAv2.vocabulary(tmp_path / "out", 1) == VQAv2.vocabulary(tiny_vqa, 1)
    with pytest.raises(InputError, match=r"nope\.jpg does not exist"):
        read_image(tmp_path / "out" / "train2014" / "nope.jpg")


def test_the_arrow_files_are_datasets_of_pictures(tiny_vqa, tmp_path):
    run(PrepareConfig("vqav2", tiny_vqa, tmp_path / "out"), progress=False)
    rows = Dataset.from_file(str(tmp_path / "out" / "arrow" / "00000-of-00001.arrow"))
    assert rows[0]["name"] == "train2014/COCO_train2014_000000000000.jpg"
    assert rows[0]["image"].size == (40, 32)


def test_bad_images_are_listed_and_their_questions_left_out(broken_vqa, tmp_path, caplog):
    out = tmp_path / "out"
    record = run(PrepareConfig("vqav2", broken_vqa, out), progress=False)
    assert record["skipped"] == 3
    assert sum(record["reasons"].values()) == 3
    assert record["splits"] == {"train": {"examples": 24, "left_out": 4}, "val": {"examples": 12, "left_out": 2}}
    with (out / "skipped.csv").open(newline="") as file:
        listed = {row["image"]: row["reason"] for row in csv.DictReader(file)}
    assert listed.keys() == BROKEN.keys()
    for name, (reason, _) in BROKEN.items():
        assert listed[name].startswith(reason)
        with pytest.raises(InputError, match=f"{name} {reason}"):
            read_image(out / name)
    examples = VQAv2.read(out, "train")
    assert len(examples) == 20
    assert "4 of 24 examples are left out" in caplog.text
    assert all(read_image(example.images[0]).mode == "RGB" for example in examples)


def test_strict_stops_and_continues_once_repaired(broken_vqa, tmp_path):
    config = PrepareConfig("vqav2", broken_vqa, tmp_path / "out", strict=True)
    for name in BROKEN:
        with pytest.raises(InputError, match=rf"{name} .*--strict"):
            run(config, progress=False)
        with pytest.raises(InputError, match="prepared only in part"):
            VQAv2.read(tmp_path / "out", "train")
        Image.new("RGB", (8, 8)).save(broken_vqa / name)
    assert run(config, progress=False)["skipped"] == 0


def test_retry_takes_up_repaired_images(broken_vqa, tmp_path):
    config = {"task": "vqav2", "root": broken_vqa, "out": tmp_path / "out"}
    assert run(PrepareConfig(**config), progress=False)["skipped"] == 3
    for name in BROKEN:
        Image.new("RGB", (8, 8)).save(broken_vqa / name)
    assert run(PrepareConfig(**config), progress=False)["skipped"] == 3
    assert run(PrepareConfig(**config, retry=True), progress=False)["skipped"] == 0


def test_resize_scales_the_shorter_edge_down_only(tiny_vqa, tmp_path):
    Image.new("RGB", (90, 60), (200, 0, 0)).save(tiny_vqa / "train2014" / "COCO_train2014_000000000000.jpg")
    Image.new("RGB", (900, 5), (200, 0, 0)).save(tiny_vqa / "train2014" / "COCO_train2014_000000000001.png")
    run(PrepareConfig("vqav2", tiny_vqa, tmp_path / "out", resize=20), progress=False)
    folder = tmp_path / "out" / "train2014"
    assert read_image(folder / "COCO_train2014_000000000000.jpg").size == (30, 20)
    assert np.ptp(np.asarray(read_image(folder / "COCO_train2014_000000000000.jpg")), axis=(0, 1)).max() <= 2
    narrow = "COCO_train2014_000000000001.png"
    assert image_bytes(folder / narrow) == (tiny_vqa / "train2014" / narrow).read_bytes()


def test_the_result_depends_on_neither_processes_nor_interruptions(broken_vqa, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "SHARD_IMAGES", 4)
    run(PrepareConfig("vqav2", broken_vqa, tmp_path / "one"), progress=False)
    run(PrepareConfig("vqav2", broken_vqa, tmp_path / "two", workers=2), progress=False)
    assert equal(tmp_path / "one", tmp_path / "two")
    replace = Path.replace
    for after in (False, True):  # stopped just before or after a file gets its name
        for moment in (0, 3, 7, 11):
            out = tmp_path / f"stopped-{after}-{moment}"
            count = 0

            def counted(self, target, out=out, moment=moment, after=after):
                nonlocal count
                count += 1
                if count == moment + 1:
                    if after:
                        replace(self, target)
                    raise KeyboardInterrupt
                return replace(self, target)

            with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
                patched.setattr(Path, "replace", counted)
                run(PrepareConfig("vqav2", broken_vqa, out), progress=False)
            run(PrepareConfig("vqav2", broken_vqa, out), progress=False)
            assert equal(tmp_path / "one", out)


KILLED = """
import os, signal, sys
from pathlib import Path
from pumer import prepare
prepare.SHARD_IMAGES = 2
decode, left = prepare.decode, int(sys.argv[3])
def killed(data):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(data)
prepare.decode = killed
prepare.run(prepare.PrepareConfig("vqav2", Path(sys.argv[1]), Path(sys.argv[2])), progress=False)
"""


def test_kill_9_and_again(broken_vqa, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "SHARD_IMAGES", 2)
    run(PrepareConfig("vqav2", broken_vqa, tmp_path / "whole"), progress=False)
    command = [sys.executable, "-c", KILLED, str(broken_vqa), str(tmp_path / "out"), "8"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert files_in(tmp_path / "out" / ".unfinished")
    run(PrepareConfig("vqav2", broken_vqa, tmp_path / "out"), progress=False)
    assert equal(tmp_path / "whole", tmp_path / "out")


def test_what_cannot_be_continued_is_refused(tiny_vqa, tmp_path):
    run(PrepareConfig("vqav2", tiny_vqa, tmp_path / "out"), progress=False)
    with pytest.raises(InputError, match="begun with resize=None, not 20"):
        run(PrepareConfig("vqav2", tiny_vqa, tmp_path / "out", resize=20), progress=False)
    with pytest.raises(InputError, match="holds other files"):
        run(PrepareConfig("vqav2", tiny_vqa, tiny_vqa / "train2014"), progress=False)
    with pytest.raises(InputError, match="place of its own"):
        PrepareConfig("vqav2", tiny_vqa, tiny_vqa)
    with pytest.raises(InputError, match="holds no annotation files"):
        run(PrepareConfig("vqav2", tmp_path, tmp_path / "none"), progress=False)
    shutil.rmtree(tmp_path / "out" / "arrow")
    with pytest.raises(InputError, match="holds 0 of 1 files"):
        VQAv2.read(tmp_path / "out", "train")


def test_check_says_what_is_wrong(broken_vqa, tmp_path):
    result = check(CheckConfig("vqav2", broken_vqa, output=tmp_path / "bad.csv"), progress=False)
    counts = {name: (each["missing"], each["broken"]) for name, each in result["splits"].items()}
    assert counts == {"train": (1, 1), "val": (0, 1)}
    assert {Path(path).relative_to(broken_vqa).as_posix() for path in result["problems"]} == BROKEN.keys()
    assert len((tmp_path / "bad.csv").read_text().splitlines()) == 4
    run(PrepareConfig("vqav2", broken_vqa, tmp_path / "out"), progress=False)
    assert len(check(CheckConfig("vqav2", tmp_path / "out"), progress=False)["problems"]) == 3
    assert images_per_second([broken_vqa / "val2014" / "COCO_val2014_000000000000.jpg"], 16) > 0


def test_through_the_command_line(broken_vqa, tmp_path):
    result = CliRunner().invoke(app, ["data", "prepare", "vqav2", str(broken_vqa), str(tmp_path / "out"), "workers=1"])
    assert result.exit_code == 0, result.output
    assert "15 images in 1 files, 3 skipped" in result.stdout
    assert "1 x does not exist" in result.stdout
    result = CliRunner().invoke(app, ["data", "check", "vqav2", str(broken_vqa), "--speed", "edge=16", "workers=1"])
    assert result.exit_code == 2
    assert "images/s per core" in result.stdout
    assert "is empty" in result.stdout
    assert "error: 3 images are missing or broken" in result.stderr
    result = CliRunner().invoke(
        app, ["data", "prepare", "vqav2", str(broken_vqa), str(tmp_path / "two"), "workers=1", "--strict"]
    )
    assert result.exit_code == 2
    assert "--strict" in result.stderr.splitlines()[-1]
