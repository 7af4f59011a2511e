import csv
import filecmp
import io
import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

import pumer
from pumer.cli import app
from pumer.data.images import image_bytes, read_image
from pumer.settings.data import CheckConfig, PrepareConfig
from pumer.tasks import TASKS, VQAv2, prepare
from pumer.tasks.check import images_per_second
from pumer.tasks.check import run as check
from pumer.tasks.prepare import run
from pumer.utils.errors import InputError


def encoded(image, kind="PNG", **settings):
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
BROKEN = {
    "train2014/COCO_train2014_000000000000.jpg": ("does not exist", None),
    "train2014/COCO_train2014_000000000001.png": ("is empty", b""),
    "train2014/COCO_train2014_000000000002.jpg": ("is no image", b"<html>404</html>"),
    "train2014/COCO_train2014_000000000003.png": ("cannot be decoded", encoded(NOISE, "JPEG")[:-200]),
    "train2014/COCO_train2014_000000000004.jpg": ("is too large", encoded(Image.new("1", (12000, 12000)))),
    "val2014/COCO_val2014_000000000002.jpg": ("does not exist", None),
}


def odd_images():
    """Content and RGB pixels of images that are unusual but whole."""
    turned, grey = Image.Exif(), np.arange(600, dtype=np.uint16).reshape(20, 30) << 6
    turned[0x0112] = 6
    palette, red = NOISE.quantize(32), (255, 0, 0)
    return [
        (encoded(NOISE), np.asarray(NOISE)),  # under the name of a JPEG
        (encoded(Image.new("CMYK", (4, 5), (0, 255, 255, 0)), "TIFF"), np.full((5, 4, 3), red)),
        (encoded(palette, "GIF"), np.asarray(palette.convert("RGB"))),
        (encoded(Image.fromarray(grey)), np.repeat((grey >> 8)[..., None], 3, axis=2)),
        (encoded(NOISE, exif=turned), np.rot90(np.asarray(NOISE), -1)),
        (encoded(Image.new("RGB", (1, 1), red)), np.full((1, 1, 3), red)),
        (encoded(Image.new("RGB", (20000, 20), red)), np.full((20, 20000, 3), red)),
    ]


@pytest.fixture
def broken_vqa(tiny_vqa):
    """The tiny data with images that are of no use, and unusual ones."""
    for name, (_, content) in BROKEN.items():
        (tiny_vqa / name).unlink()
        if content is not None:
            (tiny_vqa / name).write_bytes(content)
    for number, (content, _) in enumerate(odd_images(), start=5):
        suffix = "png" if number % 2 else "jpg"
        (tiny_vqa / "train2014" / f"COCO_train2014_{number:012d}.{suffix}").write_bytes(content)
    return tiny_vqa


def files_in(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def equal(one, other):
    names = files_in(one)
    return names == files_in(other) and filecmp.cmpfiles(one, other, names, shallow=False)[1:] == ([], [])


@pytest.mark.parametrize(
    ("task", "data"),
    [
        ("vqav2", "tiny_vqa"),
        ("nlvr2", "tiny_nlvr2"),
        ("snli_ve", "tiny_snli_ve"),
        ("flickr30k", "tiny_flickr"),
        ("coco", "tiny_coco"),
    ],
)
def test_a_prepared_folder_reads_like_the_download(task, data, request, tmp_path):
    root, out = request.getfixturevalue(data), tmp_path / "out"
    record = run(PrepareConfig(task=task, root=root, out=out), progress=False)
    assert (record["skipped"], record["reasons"]) == (0, {})
    assert not [path for path in files_in(out) if path.suffix in (".jpg", ".png")]
    for split in record["splits"]:
        expected, found = TASKS[task].read(root, split), TASKS[task].read(out, split)
        assert record["splits"][split] == {"examples": len(expected), "left_out": 0}
        assert [replace(one, images=()) for one in expected] == [replace(one, images=()) for one in found]
        for one, other in zip(expected, found, strict=True):
            names = [[path.relative_to(place) for path in each.images] for each, place in ((one, root), (other, out))]
            assert names[0] == names[1]
            assert list(map(image_bytes, one.images)) == list(map(image_bytes, other.images))
    assert TASKS[task].vocabulary(out, 1) == TASKS[task].vocabulary(root, 1)
    with pytest.raises(InputError, match=r"nope\.jpg does not exist"):
        read_image(out / "train2014" / "nope.jpg")


def test_a_prepared_coco_keeps_its_folders_and_restval(tiny_coco, tmp_path):
    (tiny_coco / "val2014" / "COCO_val2014_000000000004.jpg").unlink()
    out = tmp_path / "out"
    record = run(PrepareConfig(task="coco", root=tiny_coco, out=out), progress=False)
    assert record["splits"] == {
        "train": {"examples": 20, "left_out": 0},
        "restval": {"examples": 10, "left_out": 5},
        "val": {"examples": 20, "left_out": 0},
        "test": {"examples": 41, "left_out": 0},
    }
    assert (out / "skipped.csv").read_text().splitlines()[1:] == [
        "val2014/COCO_val2014_000000000004.jpg,does not exist"
    ]
    both = TASKS["coco"].read(out, "train+restval")
    assert len(both) == 25
    assert {pair.images[0].parent.name for pair in both} == {"train2014", "val2014"}


def test_training_on_a_prepared_folder_equals_training_on_the_download(tiny_vqa, tiny_vilt, tmp_path):
    prepared = tmp_path / "prepared"
    assert CliRunner().invoke(app, ["data", "prepare", "vqav2", str(tiny_vqa), str(prepared)]).exit_code == 0
    (tmp_path / "recipe.yaml").write_text(f"{{model: {tiny_vilt}, output: o, data: {{root: r, min_answer_count: 1}}}}")
    settings = ["batch_size=6", "max_steps=2", "report_to=[]"]
    for root, output in ((tiny_vqa, tmp_path / "one"), (prepared, tmp_path / "two")):
        given = [str(tmp_path / "recipe.yaml"), f"data.root={root}", f"output={output}", *settings]
        result = CliRunner().invoke(app, ["train", *given])
        assert result.exit_code == 0, result.output
        shutil.rmtree(tiny_vqa, ignore_errors=True)  # the second time there is nothing but the prepared folder
    one, two = (pumer.load(tmp_path / name).state_dict() for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert CliRunner().invoke(app, ["evaluate", str(tmp_path / "two")]).exit_code == 0


def test_the_arrow_files_are_datasets_of_images(tiny_vqa, tmp_path):
    run(PrepareConfig(task="vqav2", root=tiny_vqa, out=tmp_path / "out"), progress=False)
    rows = Dataset.from_file(str(tmp_path / "out" / "arrow" / "00000-of-00001.arrow"))
    assert rows[0]["name"] == "train2014/COCO_train2014_000000000000.jpg"
    assert rows[0]["image"].size == (40, 32)


def test_bad_images_are_listed_and_their_questions_left_out(broken_vqa, tmp_path, caplog):
    out = tmp_path / "out"
    record = run(PrepareConfig(task="vqav2", root=broken_vqa, out=out), progress=False)
    assert record["skipped"] == sum(record["reasons"].values()) == 6
    assert record["reasons"]["does not exist"] == 2
    assert record["splits"] == {"train": {"examples": 24, "left_out": 10}, "val": {"examples": 12, "left_out": 2}}
    with (out / "skipped.csv").open(newline="") as file:
        listed = {row["image"]: row["reason"] for row in csv.DictReader(file)}
    assert listed.keys() == BROKEN.keys()
    for name, (reason, _) in BROKEN.items():
        assert listed[name].startswith(reason)
        with pytest.raises(InputError, match=f"{name} {reason}"):
            read_image(out / name)
    examples = VQAv2.read(out, "train")
    assert len(examples) == 14
    assert "10 of 24 examples are left out" in caplog.text
    for (_, pixels), example in zip(odd_images(), examples[::2], strict=True):
        assert np.array_equal(np.asarray(read_image(example.images[0])), pixels)


def test_strict_stops_and_continues_once_repaired(broken_vqa, tmp_path):
    config = PrepareConfig(task="vqav2", root=broken_vqa, out=tmp_path / "out", strict=True)
    for name in BROKEN:
        with pytest.raises(InputError, match=rf"{name} .*--strict"):
            run(config, progress=False)
        with pytest.raises(InputError, match="prepared only in part"):
            VQAv2.read(tmp_path / "out", "train")
        Image.new("RGB", (8, 8)).save(broken_vqa / name)
    assert run(config, progress=False)["skipped"] == 0


def test_strict_leaves_a_complete_folder_complete(broken_vqa, tmp_path):
    config = PrepareConfig(task="vqav2", root=broken_vqa, out=tmp_path / "out")
    run(config, progress=False)
    with pytest.raises(InputError, match=rf"{next(iter(BROKEN))} does not exist; without --strict"):
        run(replace(config, strict=True), progress=False)
    assert len(VQAv2.read(tmp_path / "out", "train")) == 14
    for name in BROKEN:
        Image.new("RGB", (8, 8)).save(broken_vqa / name)
    assert run(replace(config, strict=True), progress=False)["skipped"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda questions: [], r"val2014_questions\.json holds no examples of split val;"),
        (lambda questions: [*questions, questions[3]], r"val2014_questions\.json has question_id 1001 2 times"),
    ],
)
def test_empty_files_and_double_ids_are_refused(tiny_vqa, tmp_path, change, message):
    path = tiny_vqa / "v2_OpenEnded_mscoco_val2014_questions.json"
    path.write_text(json.dumps({"questions": change(json.loads(path.read_text())["questions"])}))
    with pytest.raises(InputError, match=message):
        check(CheckConfig(task="vqav2", root=tiny_vqa), progress=False)
    with pytest.raises(InputError, match=message):
        run(PrepareConfig(task="vqav2", root=tiny_vqa, out=tmp_path / "out"), progress=False)


def test_a_split_that_karpathys_file_lacks_is_refused_when_asked_for(tiny_flickr):
    path = tiny_flickr / "dataset_flickr30k.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({"images": [entry for entry in content["images"] if entry["split"] != "val"]}))
    assert list(check(CheckConfig(task="flickr30k", root=tiny_flickr), progress=False)["splits"]) == ["train", "test"]
    with pytest.raises(InputError, match=r"dataset_flickr30k\.json holds no examples of split val"):
        check(CheckConfig(task="flickr30k", root=tiny_flickr, splits=("val",)), progress=False)


def test_retry_takes_up_repaired_images(broken_vqa, tmp_path):
    config = {"task": "vqav2", "root": broken_vqa, "out": tmp_path / "out"}
    assert run(PrepareConfig(**config), progress=False)["skipped"] == 6
    for name in BROKEN:
        Image.new("RGB", (8, 8)).save(broken_vqa / name)
    assert run(PrepareConfig(**config), progress=False)["skipped"] == 6
    assert run(PrepareConfig(**config, retry=True), progress=False)["skipped"] == 0


def test_resize_scales_the_shorter_edge_down_only(tiny_vqa, tmp_path):
    Image.new("RGB", (90, 60), (200, 0, 0)).save(tiny_vqa / "train2014" / "COCO_train2014_000000000000.jpg")
    Image.new("RGB", (900, 5), (200, 0, 0)).save(tiny_vqa / "train2014" / "COCO_train2014_000000000001.png")
    run(PrepareConfig(task="vqav2", root=tiny_vqa, out=tmp_path / "out", resize=20), progress=False)
    folder = tmp_path / "out" / "train2014"
    assert read_image(folder / "COCO_train2014_000000000000.jpg").size == (30, 20)
    assert np.ptp(np.asarray(read_image(folder / "COCO_train2014_000000000000.jpg")), axis=(0, 1)).max() <= 2
    narrow = "COCO_train2014_000000000001.png"
    assert image_bytes(folder / narrow) == (tiny_vqa / "train2014" / narrow).read_bytes()


def test_the_result_depends_on_neither_processes_nor_interruptions(broken_vqa, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "SHARD_IMAGES", 4)
    run(PrepareConfig(task="vqav2", root=broken_vqa, out=tmp_path / "one"), progress=False)
    run(PrepareConfig(task="vqav2", root=broken_vqa, out=tmp_path / "two", workers=2), progress=False)
    assert equal(tmp_path / "one", tmp_path / "two")
    rename = Path.replace
    for after in (False, True):  # stopped just before or after a file gets its name
        for moment in (0, 3, 7, 11):
            out = tmp_path / f"stopped-{after}-{moment}"
            count = 0

            def counted(self, target, out=out, moment=moment, after=after):
                nonlocal count
                count += 1
                if count == moment + 1:
                    if after:
                        rename(self, target)
                    raise KeyboardInterrupt
                return rename(self, target)

            with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
                patched.setattr(Path, "replace", counted)
                run(PrepareConfig(task="vqav2", root=broken_vqa, out=out), progress=False)
            run(PrepareConfig(task="vqav2", root=broken_vqa, out=out), progress=False)
            assert equal(tmp_path / "one", out)


KILLED = """
import os, signal, sys
from pathlib import Path
from pumer.settings.data import PrepareConfig
from pumer.tasks import prepare
prepare.SHARD_IMAGES = 2
decode, left = prepare.decode, int(sys.argv[3])
def killed(data):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(data)
prepare.decode = killed
prepare.run(PrepareConfig(task="vqav2", root=Path(sys.argv[1]), out=Path(sys.argv[2])), progress=False)
"""


def test_kill_9_and_again(broken_vqa, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "SHARD_IMAGES", 2)
    run(PrepareConfig(task="vqav2", root=broken_vqa, out=tmp_path / "whole"), progress=False)
    command = [sys.executable, "-c", KILLED, str(broken_vqa), str(tmp_path / "out"), "8"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert files_in(tmp_path / "out" / ".unfinished")
    run(PrepareConfig(task="vqav2", root=broken_vqa, out=tmp_path / "out"), progress=False)
    assert equal(tmp_path / "whole", tmp_path / "out")


def test_what_cannot_be_continued_is_refused(tiny_vqa, tmp_path):
    run(PrepareConfig(task="vqav2", root=tiny_vqa, out=tmp_path / "out"), progress=False)
    with pytest.raises(InputError, match="begun with resize=None, not 20"):
        run(PrepareConfig(task="vqav2", root=tiny_vqa, out=tmp_path / "out", resize=20), progress=False)
    with pytest.raises(InputError, match="lies in the input folder"):
        run(PrepareConfig(task="vqav2", root=tiny_vqa, out=tiny_vqa / "out"), progress=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(InputError, match="holds other files"):
        run(PrepareConfig(task="vqav2", root=tiny_vqa, out=tmp_path / "other"), progress=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file cannot be written"):
        run(PrepareConfig(task="vqav2", root=tiny_vqa, out=tmp_path / "file"), progress=False)
    with pytest.raises(InputError, match=r"workers.*-1"):
        CheckConfig(task="vqav2", root=tiny_vqa, workers=-1)
    with pytest.raises(InputError, match="place of its own"):
        PrepareConfig(task="vqav2", root=tiny_vqa, out=tiny_vqa)
    with pytest.raises(InputError, match="holds no annotation files"):
        run(PrepareConfig(task="vqav2", root=tmp_path / "other", out=tmp_path / "none"), progress=False)
    shutil.rmtree(tmp_path / "out" / "arrow")
    with pytest.raises(InputError, match="holds 0 of 1 files"):
        VQAv2.read(tmp_path / "out", "train")


def test_check_says_what_is_wrong(broken_vqa, tmp_path):
    result = check(CheckConfig(task="vqav2", root=broken_vqa, output=tmp_path / "bad.csv"), progress=False)
    counts = {name: (each["missing"], each["broken"]) for name, each in result["splits"].items()}
    assert counts == {"train": (1, 4), "val": (1, 0)}
    assert {Path(path).relative_to(broken_vqa).as_posix() for path in result["problems"]} == BROKEN.keys()
    assert len((tmp_path / "bad.csv").read_text().splitlines()) == 7
    run(PrepareConfig(task="vqav2", root=broken_vqa, out=tmp_path / "out"), progress=False)
    assert len(check(CheckConfig(task="vqav2", root=tmp_path / "out"), progress=False)["problems"]) == 6
    assert images_per_second([broken_vqa / "val2014" / "COCO_val2014_000000000000.jpg"], 16) > 0


def test_check_counts_texts_that_will_be_cut_and_words_that_are_split(tiny_vqa, tiny_vilt):
    path = tiny_vqa / "v2_OpenEnded_mscoco_val2014_questions.json"
    content = json.loads(path.read_text())
    content["questions"][0]["question"] = "what colour is this elephant?"
    path.write_text(json.dumps(content))
    settings = {"task": "vqav2", "root": tiny_vqa, "model": str(tiny_vilt)}
    assert "texts" not in check(CheckConfig(task="vqav2", root=tiny_vqa), progress=False)
    own = check(CheckConfig(**settings), progress=False)["texts"]["val"]
    assert own == {"text_length": 12, "texts": 12, "longest": 8, "cut": 0, "words": 6 * 4 + 1 + 6 * 3, "split": 1}
    console = Console(file=io.StringIO(), width=200)
    assert check(CheckConfig(**settings, text_length=7), console, progress=False)["texts"]["val"]["cut"] == 1
    assert "1 of 12 texts" in console.file.getvalue()


def test_the_folder_beside_is_named(tiny_vqa):
    shutil.move(tiny_vqa, tiny_vqa.parent / "world" / "vqav2")
    with pytest.raises(InputError, match=r"did you mean .*world/vqav2"):
        check(CheckConfig(task="vqav2", root=tiny_vqa.parent / "world"), progress=False)


def test_check_asks_for_a_model_to_count_tokens_and_for_one_of_the_task(tiny_vqa):
    with pytest.raises(InputError, match=r"text_length=7.*model"):
        CheckConfig(task="vqav2", root=tiny_vqa, text_length=7)
    with pytest.raises(InputError, match="llava"):
        check(CheckConfig(task="vqav2", root=tiny_vqa, model="small:llava"), progress=False)


def test_through_the_command_line(broken_vqa, tmp_path):
    result = CliRunner().invoke(app, ["data", "prepare", "vqav2", str(broken_vqa), str(tmp_path / "out"), "workers=1"])
    assert result.exit_code == 0, result.output
    assert "12 images in 1 files, 6 skipped" in result.stdout
    assert "2 x does not exist" in result.stdout
    result = CliRunner().invoke(app, ["data", "check", "vqav2", str(broken_vqa), "--speed", "edge=16", "workers=1"])
    assert result.exit_code == 2
    assert "images/s per core" in result.stdout
    assert "is empty" in result.stdout
    assert "error: 6 images are missing or broken" in result.stderr
    result = CliRunner().invoke(
        app, ["data", "prepare", "vqav2", str(broken_vqa), str(tmp_path / "two"), "workers=1", "--strict"]
    )
    assert result.exit_code == 2
    assert "--strict" in result.stderr.splitlines()[-1]


def test_images_of_a_prepared_folder_are_found_by_name(tiny_vqa, tiny_vilt, tmp_path):
    prepared, image = tmp_path / "prepared", "val2014/COCO_val2014_000000000001.png"
    (tmp_path / "questions.csv").write_text(f"image,question\n{image},what colour is this?\n")
    questions = ["--questions", str(tmp_path / "questions.csv"), "--out", str(tmp_path / "answers.csv")]
    for command in (
        ["data", "prepare", "vqav2", str(tiny_vqa), str(prepared)],
        ["predict", str(tiny_vilt), *questions, "--images", str(prepared)],
        ["visualize", str(tiny_vilt), str(prepared / image), "is it red?", "--out", str(tmp_path / "tokens.png")],
    ):
        assert CliRunner().invoke(app, command).exit_code == 0, command
    assert len((tmp_path / "answers.csv").read_text().splitlines()) == 2
    absent = ["visualize", str(tiny_vilt), str(prepared / "val2014/absent.png"), "is it red?"]
    assert "absent.png" in CliRunner().invoke(app, [*absent, "--out", str(tmp_path / "more.png")]).stderr
