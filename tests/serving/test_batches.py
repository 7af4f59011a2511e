"""Shards and folders of images on a Ray cluster: the answers of `Predictor`, whatever dies on the way."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from tiny.decoders import DECODERS
from tiny.processors import PROCESSORS
from typer.testing import CliRunner

import pumer
from pumer.checkpoint import load_processor
from pumer.cli import app
from pumer.evaluation.predict import Predictor
from pumer.serving import batches
from pumer.serving.shards import ABOUT, SHARD, all_shards
from pumer.settings.predict import PredictConfig
from pumer.utils.errors import InputError

QUESTIONS = ("what is this?", "is it red?", "what colour is it?", "is it?")
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SECONDS = 600


def png(number):
    """The content of a file with an image that is like no other."""
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def table(start, rows):
    """A shard as datasets writes it."""
    numbers = range(start, start + rows)
    images = [{"bytes": png(number), "path": f"{number}.png"} for number in numbers]
    asked = [QUESTIONS[number % 4] for number in numbers]
    columns = {"id": pa.array(numbers, pa.int64()), "image": pa.array(images, IMAGE)}
    return pa.table({**columns, "question": pa.array(asked, pa.string())})


def write_tar(path, samples):
    """Files of WebDataset samples, by their endings."""
    with tarfile.open(path, "w") as file:
        for key, files in samples.items():
            for ending, content in files.items():
                about = tarfile.TarInfo(f"{key}.{ending}")
                about.size = len(content)
                file.addfile(about, io.BytesIO(content))


@pytest.fixture(scope="module")
def model(tiny_vilt, tmp_path_factory):
    """A reduced ViLT whose answers differ."""
    folder, vilt = tmp_path_factory.mktemp("model"), pumer.load(tiny_vilt)
    vilt.classifier[-1].weight.data.mul_(30)
    pumer.save(pumer.patch(vilt, pumer.PuMerConfig(layers=(2,), prune_ratio=0.2, merge_ratio=0.3)), folder)
    load_processor(tiny_vilt).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def predictor(model):
    return Predictor(model)


@pytest.fixture
def shards(tmp_path):
    """Two shards with questions and an empty one."""
    for number, rows in enumerate((5, 0, 25)):
        (tmp_path / "shards").mkdir(exist_ok=True)
        parquet.write_table(table(100 * number, rows), tmp_path / "shards" / f"{number}.parquet")
    return tmp_path / "shards"


@pytest.fixture(scope="module")
def ray_cluster():
    """A cluster of this process with more cores than there may be, that jobs find in use."""
    ray = pytest.importorskip("ray")
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
    ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="CRITICAL")
    yield ray
    ray.shutdown()


def config(model, shards, out, **settings):
    return PredictConfig(model=model, questions=shards, out=out, batch_size=4, **settings)


def expected(predictor, shard):
    """What a shard's file must hold."""
    rows = parquet.read_table(shard).to_pylist()
    images = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows]
    answers = [predictor(image, row["question"]) for image, row in zip(images, rows, strict=True)]
    return [
        {**row, "image": row["image"]["path"], "answer": answer, "error": None}
        for row, answer in zip(rows, answers, strict=True)
    ]


def answered(shards, replica, size=3):
    """What a cluster hands over: the rows of shards in order, in batches."""
    read = [parquet.read_table(path) for path in shards]
    named = [
        one.append_column(SHARD, pa.array([str(path)] * len(one), pa.string()))
        for one, path in zip(read, shards, strict=True)
    ]
    rows = pa.concat_tables(named)
    return [replica(rows.slice(start, size)) for start in range(0, len(rows), size)]


@pytest.fixture(scope="module")
def replica(model):
    return batches._Replica({"model": model})


@pytest.fixture
def here(monkeypatch, replica):
    """Answer in this process, in place of a cluster; notes which shards are asked."""
    asked = []

    def answer(config, shards, before):
        asked.append([Path(shard.name).stem for shard in shards])
        rows = answered([Path(shard.name) for shard in shards], replica)
        return batches._write(config, rows, {shard.name: shard for shard in shards}, before)

    monkeypatch.setattr(batches, "_answer", answer)
    monkeypatch.setenv("RAY_ADDRESS", "nowhere:1")
    monkeypatch.setattr(batches, "cluster", lambda *given, **settings: open(os.devnull))  # noqa: SIM115
    return asked


@pytest.mark.slow
def test_two_replicas_answer_as_one_model_also_when_one_is_killed(
    model, shards, predictor, tmp_path, ray_cluster, monkeypatch, caplog
):
    by_shard, killed = batches._by_shard, []

    def disturbed(rows):
        for piece in by_shard(rows):
            if not killed:
                processes = psutil.Process().children(recursive=True)
                killed.append(next(each for each in processes if each.name().startswith("ray::MapWorker")))
                killed[0].send_signal(signal.SIGKILL)
            yield piece

    monkeypatch.setattr(batches, "_by_shard", disturbed)
    job = replace(config(model, shards, tmp_path / "out", replicas=2), batch_size=1)
    assert batches.run(job) == 30
    assert len(killed) == 1 and not killed[0].is_running()
    assert "1.parquet" in caplog.text  # holds no rows
    for name in ("0.parquet", "1.parquet", "2.parquet"):
        found = parquet.read_table(tmp_path / "out" / name)
        assert found.to_pylist() == expected(predictor, shards / name)
        assert json.loads(found.schema.metadata[ABOUT])["versions"]["pumer"]
    assert len({row["answer"] for row in found.to_pylist()}) > 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.parquet", "1.parquet", "2.parquet"]


@pytest.mark.slow
def test_tar_files_and_a_folder_of_images(model, predictor, tmp_path, ray_cluster):
    (tmp_path / "tars").mkdir()
    note = json.dumps({"question": QUESTIONS[1], "license": "CC0"})
    write_tar(
        tmp_path / "tars" / "0.tar",
        {
            "a/first": {"png": png(1), "txt": QUESTIONS[0].encode()},
            "a/second": {"json": note.encode(), "png": png(2)},
            "none": {"txt": b"what?"},
            "broken": {"jpg": b"no image", "txt": b"what?"},
            "mute": {"png": png(3), "json": b"{}"},
        },
    )
    write_tar(tmp_path / "tars" / "1.tar", {"last": {"jpeg": png(4), "txt": QUESTIONS[2].encode()}})
    job = config(model, tmp_path / "tars", tmp_path / "out", on_error="record", replicas=1)
    assert batches.run(job) == 6
    rows = parquet.read_table(tmp_path / "out" / "0.parquet").to_pylist()
    rows += parquet.read_table(tmp_path / "out" / "1.parquet").to_pylist()
    assert [row["key"] for row in rows] == ["a/first", "a/second", "none", "broken", "mute", "last"]
    pictures = [Image.open(io.BytesIO(png(number))) for number in (1, 2, 4)]
    answers = [predictor(image, text) for image, text in zip(pictures, QUESTIONS, strict=False)]
    assert [row["answer"] for row in rows] == [*answers[:2], None, None, None, answers[2]]
    assert [bool(row["error"]) for row in rows] == [False, False, True, True, True, False]
    assert [row["json"] for row in rows] == [None, note, None, None, "{}", None]
    assert rows[1]["question"] == QUESTIONS[1]

    (tmp_path / "photos" / "deep").mkdir(parents=True)
    names = ["b#1 %20?.png", "_a.png", "deep/c.PNG"]
    for number, name in enumerate(names):
        (tmp_path / "photos" / name).write_bytes(png(number))
    job = PredictConfig(model=model, question=QUESTIONS[0], images=tmp_path / "photos", out=tmp_path / "of")
    assert batches.run(job) == 3
    found = parquet.read_table(tmp_path / "of" / "000000.parquet").to_pylist()
    assert sorted(row["image"] for row in found) == sorted(names)
    for row in found:
        assert row["answer"] == predictor(tmp_path / "photos" / row["image"], QUESTIONS[0])

    whole = (tmp_path / "tars" / "0.tar").read_bytes()
    (tmp_path / "tars" / "2.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"2\.tar cannot be read"):
        batches.run(job := config(model, tmp_path / "tars", tmp_path / "out", on_error="record"))
    (tmp_path / "tars" / "2.tar").unlink()
    with pytest.raises(InputError, match="flickr30k"):
        batches.run(replace(job, task="flickr30k", out=tmp_path / "ranked"))


KILLED = """
import os, signal, sys
from pumer.cli import app
from pumer.serving import batches
by_shard = batches._by_shard
def disturbed(rows):
    for number, piece in enumerate(by_shard(rows)):
        if number == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        yield piece
batches._by_shard = disturbed
app(sys.argv[1:])
"""
"""`pumer`, killed within the second shard with rows."""


@pytest.mark.slow
def test_a_killed_command_goes_on_with_the_shards_that_are_left(model, shards, predictor, tmp_path):
    command = ["predict", model, "--questions", f"{shards}/*.parquet", "--out", str(tmp_path / "out"), "batch_size=4"]
    options = {"env": os.environ, "capture_output": True, "text": True, "timeout": SECONDS, "check": False}
    assert subprocess.run([sys.executable, "-c", KILLED, *command], **options).returncode == -signal.SIGKILL
    (tmp_path / "out" / ".2.parquet.0123abcd").touch()  # as a kill in the middle of writing leaves it
    assert [path.name for path in (tmp_path / "out").glob("*.parquet")] == ["0.parquet"]
    first = (tmp_path / "out" / "0.parquet").stat().st_mtime_ns
    done = subprocess.run([sys.executable, "-m", "pumer", *command], **options)
    assert done.stdout == f"30 answers are in {tmp_path / 'out'}\n"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert lines[0] == "going on with the answers to 1 of 3 shards" and len(lines) == 2  # one is empty
    assert (tmp_path / "out" / "0.parquet").stat().st_mtime_ns == first
    for name in ("0.parquet", "2.parquet"):
        assert parquet.read_table(tmp_path / "out" / name).to_pylist() == expected(predictor, shards / name)
    assert not list((tmp_path / "out").glob(".*"))


def test_the_same_command_goes_on_and_another_one_is_refused(model, shards, predictor, tmp_path, here, monkeypatch):
    out, by_shard = tmp_path / "out", batches._by_shard

    def interrupted(rows):
        for number, piece in enumerate(by_shard(rows)):
            if number == 4:
                raise KeyboardInterrupt
            yield piece

    job = config(model, f"{shards}/*.parquet", out)
    monkeypatch.setattr(batches, "_by_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        batches.run(job)
    assert [path.name for path in out.iterdir()] == ["0.parquet"]
    monkeypatch.setattr(batches, "_by_shard", by_shard)
    assert batches.run(replace(job, batch_size=2, on_error="record")) == batches.run(job) == 30
    assert here == [["0", "1", "2"], ["1", "2"]]
    without, one = (parquet.read_schema(out / name) for name in ("1.parquet", "0.parquet"))
    assert without == one
    for name in ("0.parquet", "1.parquet", "2.parquet"):
        assert parquet.read_table(out / name).to_pylist() == expected(predictor, shards / name)

    other = replace(job, image_size=64)
    with pytest.raises(InputError, match=r"0\.parquet .*--force"):
        batches.run(other)
    os.utime(shards / "2.parquet", (0, 0))
    with pytest.raises(InputError, match=r"2\.parquet .*--force"):
        batches.run(job)
    (out / "0.parquet").write_bytes(b"something else")
    with pytest.raises(InputError, match=r"0\.parquet .*--force"):
        batches.run(job)
    assert batches.run(replace(job, force=True)) == 30
    assert here[-1] == ["0", "2"]
    for name in ("0.parquet", "2.parquet"):  # a batch holds rows of both
        assert parquet.read_table(out / name).to_pylist() == expected(predictor, shards / name)


@pytest.mark.parametrize("broken", [b"no image", b"", None])
def test_a_row_that_cannot_be_answered(model, shards, tmp_path, here, broken, caplog):
    rows = parquet.read_table(shards / "2.parquet").to_pylist()
    rows[17]["image"] = {"bytes": broken, "path": None}
    rows[19]["question"] = None
    parquet.write_table(pa.Table.from_pylist(rows, table(0, 1).schema), shards / "2.parquet")
    job = config(model, shards, tmp_path / "out")
    with pytest.raises(InputError, match=r"2\.parquet: row 17: .*image.*on_error=record"):
        batches.run(job)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["0.parquet"]
    assert batches.run(replace(job, on_error="record")) == 30
    assert "2 of 25 rows" in caplog.text
    found = parquet.read_table(tmp_path / "out" / "2.parquet").to_pylist()
    assert [row["id"] for row in found if row["error"]] == [217, 219]
    assert [row["id"] for row in found if row["answer"] is None] == [217, 219]
    assert batches.run(replace(job, on_error="record")) == 30  # without asking again
    with pytest.raises(InputError, match=r"2\.parquet: row 17: "):
        batches.run(job)
    assert here == [["0", "1", "2"], ["1", "2"], ["2"]]
    assert len(parquet.read_table(tmp_path / "out" / "2.parquet")) == 25


def test_images_of_every_form_are_answered(model, predictor, tmp_path):
    (tmp_path / "cat.png").write_bytes(png(7))
    answer = predictor(tmp_path / "cat.png", "is it red?")
    forms = {
        "content": pa.array([png(7)]),
        "large": pa.array([png(7)], pa.large_binary()),
        "name": pa.array(["cat.png"]),
        "large name": pa.array(["cat.png"], pa.large_string()),
        "both": pa.array([{"bytes": png(7), "path": "x.png"}]),
        "named": pa.array([{"bytes": None, "path": "cat.png"}], IMAGE),
    }
    replica = batches._Replica({"model": model}, images=tmp_path)
    for form, column in forms.items():
        (row,) = replica(pa.table({"image": column, "sentence": ["is it red?"]})).to_pylist()
        assert row["answer"] == answer, form
        assert ("image" in row) == (form not in ("content", "large"))
    asking = batches._Replica({"model": model}, "is it red?", tmp_path)
    (row,) = asking(pa.table({"image": ["cat.png"]})).to_pylist()
    assert (row["question"], row["answer"]) == ("is it red?", answer)
    pair = pa.table({"image1": ["cat.png"], "image2": ["cat.png"], "question": ["is it red?"]})
    assert "not 2" in replica(pair).column("error")[0].as_py()
    assert replica(pa.table({"image": ["dog.png"], "question": ["?"]})).column("error")[0].as_py().count("dog.png") == 1


def test_a_model_that_generates(tmp_path):
    pumer.save(DECODERS["llava"].model(), tmp_path / "llava")
    PROCESSORS["llava"]().save_pretrained(tmp_path / "llava")
    settings = {"model": str(tmp_path / "llava"), "max_new_tokens": 3}
    predictor, replica = Predictor(**settings), batches._Replica(settings)
    rows = table(0, 2)
    answers = [predictor(Image.open(io.BytesIO(png(number))), QUESTIONS[number]) for number in range(2)]
    assert replica(rows).column("answer").to_pylist() == answers


def test_only_tar_files_are_unpacked(model):
    """Or a Parquet file could run what it likes."""
    packed = batches._packed({"__key__": "k", "png": png(1), "txt": b"what is this?"})
    replica = batches._Replica({"model": model}, samples=True)
    (row,) = replica(pa.Table.from_pylist([packed])).to_pylist()
    assert row["key"] == "k" and row["answer"]
    (row,) = batches._Replica({"model": model})(
        pa.table({"image": [png(1)], "question": ["what is this?"], batches.FILES: [b"\x80"]})
    ).to_pylist()
    assert row[batches.FILES] == b"\x80" and row["answer"]


def test_samples_of_pairs():
    files = {"image2.JPG": b"second", "image1.png": b"first", "json": b'{"sentence": "both are red"}'}
    files |= {"depth.png": b"another", "npy": b"another"}
    rows = pa.Table.from_pylist([batches._packed({"__key__": "k", "__url__": "u", **files})])
    _, images, texts = batches._samples(rows)
    assert images == [(b"first", b"second")]
    assert texts == ["both are red"]


@pytest.mark.parametrize(
    ("columns", "question", "named"),
    [
        ({"picture": [b""], "question": ["?"]}, None, "picture"),
        ({"image": [b""]}, None, "--question"),
        ({"image": [b""], "question": ["?"]}, "what?", "--question"),
        ({"image": [b""], "question": ["?"], "answer": ["?"]}, None, "'answer'"),
        ({"image": [b""], "question": ["?"], "path": ["?"]}, None, "'path'"),
        ({"image": [b""], "question": ["?"], "id": ["?"]}, None, "other columns"),
    ],
)
def test_columns_that_do_not_fit(model, shards, tmp_path, here, columns, question, named):
    parquet.write_table(pa.table(columns), shards / ("3.parquet" if named == "other columns" else "-.parquet"))
    with pytest.raises(InputError, match=rf"(3|-)\.parquet .*{named}"):
        batches.run(config(model, shards, tmp_path / "out", question=question))
    assert not (tmp_path / "out").exists() and not here


def test_files_that_cannot_be_read(model, shards, tmp_path, here):
    for name, content in (("3.parquet", b"PAR1"), ("4?.parquet", (shards / "0.parquet").read_bytes())):
        (shards / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name[0]}.*\.parquet "):
            batches.run(config(model, shards, tmp_path / "out"))
        (shards / name).unlink()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty"):
        batches.run(PredictConfig(model=model, question="what?", images=tmp_path / "empty", out=tmp_path / "out"))


def test_a_folder_that_is_named_as_an_image_is_none(model, tmp_path):
    (tmp_path / "photos" / "album.jpg").mkdir(parents=True)
    job = PredictConfig(model=model, question="what?", images=tmp_path / "photos", out=tmp_path / "out")
    with pytest.raises(InputError, match="photos"):
        list(all_shards(job))
    (tmp_path / "photos" / "album.jpg" / "a.png").write_bytes(png(1))
    (shard,) = all_shards(job)
    assert [path.name for path in shard.images] == ["a.png"]


def test_places_are_checked_before_anything_is_loaded(model, shards, tmp_path):
    (shards / "4.tar").touch()
    for questions, out, named in (
        (shards, "out", r"\.parquet, \.tar"),
        (f"{shards}/*.parquet", shards, "out"),
        (shards / "..", shards / "out", r"\.parquet, \.tar"),
        (f"{shards}/*.arrow", "out", "arrow"),
        (shards / "9.parquet", "out", r"9\.parquet"),
        (f"{shards}/../*", "out", "no such files|files in"),
    ):
        with pytest.raises(InputError, match=named):
            config(model, questions, tmp_path / out).check_places()
    (shards / "4.tar").unlink()
    with pytest.raises(InputError, match="out"):
        config(model, shards, shards / "out").check_places()
    (shards / "a").mkdir()
    parquet.write_table(table(0, 1), shards / "a" / "0.parquet")
    found = config(model, f"{shards}/**/*.parquet", tmp_path / "out").shards()
    assert [path.relative_to(tmp_path / "out").as_posix() for path in found.values()] == [
        *("0.parquet", "1.parquet", "2.parquet", "a/0.parquet"),
    ]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"replicas": 2}, "replicas=2"),
        ({"address": "auto", "questions": "q.csv"}, "address=auto"),
        ({"on_error": "record"}, "on_error=record"),
        ({"question": " "}, "question"),
        ({"question": "what?", "questions": "q.csv"}, "CSV"),
        ({"question": "what?", "limit": 3}, "limit"),
        ({"questions": "q.parquet", "workers": 2}, "workers=2"),
    ],
)
def test_settings_that_do_not_go_together(settings, named):
    with pytest.raises(InputError, match=named):
        PredictConfig(model="m", **settings)


def test_replicas_fit_the_machines(monkeypatch):
    ray = pytest.importorskip("ray")

    def room(replicas, *machines):
        nodes = [{"Alive": True, "Resources": dict(zip(("CPU", "GPU"), each, strict=False))} for each in machines]
        monkeypatch.setattr(ray, "nodes", lambda: nodes)
        return tuple(batches._room(replicas).values())

    assert room(None, [1]) == (1, 0, 0)
    assert room(2, [2]) == (2, 0.5, 0)
    assert room(None, [8]) == room(1, [8], [8]) == (1, 7, 0)
    assert room(None, [8], [8]) == (2, 7, 0)
    assert room(3, [8]) == (3, 2, 0)
    assert room(None, [16, 2], [40, 4], [8]) == (6, 7, 1)
    assert room(3, [16, 4]) == (3, 3, 1)
    for replicas, machines in ((3, [[2]]), (5, [[16, 4], [64]])):
        with pytest.raises(InputError, match=f"replicas={replicas}"):
            room(replicas, *machines)


def test_processes_of_torchrun_are_refused(model, shards, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="torchrun"):
        batches.run(config(model, shards, tmp_path / "out"))


def test_ray_is_named_where_it_is_missing(model, shards, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    done = CliRunner().invoke(app, ["predict", model, "--questions", str(shards), "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert done.stderr == "error: ray is not installed; install pumer[serve]\n"
