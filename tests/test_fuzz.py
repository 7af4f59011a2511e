"""2,000 mutated inputs, seeded: each is refused in one line, or read for what it holds."""

import io
import json
import math
import random
import shutil
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoConfig

import pumer
from pumer import checkpoint
from pumer.data.images import decode
from pumer.evaluation import score
from pumer.evaluation.predict import run as predict
from pumer.reducers import config_to_dict
from pumer.settings.predict import PredictConfig
from pumer.tasks import VQAv2
from pumer.utils.errors import InputError

pytestmark = pytest.mark.slow

TRIALS = {"image": 700, "questions": 300, "results": 300, "csv": 100, "weights": 250, "reduction": 250, "config": 100}
CHUNK = 50
FORMATS = {"PNG": "RGB", "JPEG": "RGB", "TIFF": "I;16", "GIF": "P", "WEBP": "RGBA", "BMP": "RGB", "PPM": "L"}
ODD = (None, True, 0, -1, 1, 2**40, 2**70, 0.5, math.nan, math.inf, "", "x", "12", "\ud800", [], [1], {}, {"a": 1})
LAYERS = {"method": "pumer", "layers": [2, 5], "prune_ratio": 0.1, "merge_ratio": 0.3, "text_merge_ratio": 0.2}


def chunks():
    return [(kind, start) for kind, trials in TRIALS.items() for start in range(0, trials, CHUNK)]


@pytest.mark.parametrize(("kind", "start"), chunks())
def test_mutated_inputs(kind, start, request, tmp_path):
    """Each trial draws its own mutation from its number, so that one can be run again by itself."""
    read = request.getfixturevalue(kind)
    outcomes = []
    for number in range(start, start + CHUNK):
        try:
            read(random.Random(f"{kind} {number}"))
            outcomes.append("read")
        except InputError as error:
            assert str(error).strip() and len(str(error).splitlines()) == 1, f"{kind} {number}: {error}"
            assert len(str(error)) < 1000, f"{kind} {number}: {error}"
            assert "weights_only" not in str(error), f"{kind} {number}: {error}"
            outcomes.append("refused")
        except BaseException as error:
            raise AssertionError(f"{kind} {number} ended in {type(error).__name__}: {error}") from error
    assert outcomes.count("refused") > CHUNK / 20 and (kind in ("config", "weights") or outcomes.count("read") > 0), (
        outcomes
    )


# ---------------------------------------------------------------- mutations


def bytes_changed(data, rng):
    """A few bytes replaced, removed, doubled, or all after some point."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at, kind = rng.randrange(len(data) or 1), rng.randrange(4)
        if kind == 0 and data:
            data[at] = rng.randrange(256)
        elif kind == 1:
            del data[at : at + rng.choice([1, 4, 64])]
        elif kind == 2:
            data[at:at] = data[at : at + rng.choice([1, 4, 64])]
        elif rng.random() < 0.3:
            del data[at:]
    return bytes(data)


def value_changed(content, rng):
    """One value of nested lists and dicts is removed, doubled, renamed or something else."""
    content = json.loads(json.dumps(content))
    places = []

    def walk(value):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            places.append((value, key))
            if isinstance(value[key], dict | list):
                walk(value[key])

    walk(content)
    holder, key = rng.choice(places)
    kind = rng.randrange(4)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.append(holder[key])
    elif kind == 2 and isinstance(holder, dict):
        holder[str(key) + "s"] = holder.pop(key)
    else:
        holder[key] = rng.choice(ODD)
    return content


def as_text(content, rng):
    """JSON of a changed value, or changed bytes of it."""
    if rng.random() < 0.6:
        return json.dumps(value_changed(content, rng)).encode("utf-8", "surrogatepass")
    return bytes_changed(json.dumps(content).encode(), rng)


def parsed(data):
    """What a strict reader of JSON finds, or None."""
    try:
        return json.loads(data.decode("utf-8-sig"))
    except (ValueError, UnicodeDecodeError):
        return None


# ---------------------------------------------------------------- what reads them


@pytest.fixture
def image():
    pixels = np.random.default_rng(0).integers(0, 2**16, (24, 20, 4))

    def made(name):
        mode = FORMATS[name]
        if mode == "I;16":
            picture = Image.fromarray(pixels[..., 0].astype(np.uint16))
        else:
            picture = Image.fromarray((pixels[..., :4] >> 8).astype(np.uint8), "RGBA").convert(mode)
        data = io.BytesIO()
        picture.save(data, name)
        return data.getvalue()

    sound = {name: made(name) for name in FORMATS}

    def read(rng):
        found = decode(bytes_changed(sound[rng.choice(list(FORMATS))], rng))
        assert found.mode == "RGB" and min(found.size) > 0
        np.asarray(found)

    return read


@pytest.fixture
def questions(tiny_vqa):
    names = {
        "questions": tiny_vqa / "v2_OpenEnded_mscoco_val2014_questions.json",
        "annotations": tiny_vqa / "v2_mscoco_val2014_annotations.json",
    }
    sound = {name: json.loads(path.read_text()) for name, path in names.items()}

    def read(rng):
        name = rng.choice(list(names))
        data = as_text(sound[name], rng)
        for each, path in names.items():
            path.write_bytes(data if each == name else json.dumps(sound[each]).encode())
        examples = VQAv2(["yes", "no"]).read(tiny_vqa, "val")
        content = parsed(data)
        asked = content["questions"] if name == "questions" else sound["questions"]["questions"]
        assert [(example.id, example.text) for example in examples] == [
            (entry["question_id"], entry["question"]) for entry in asked
        ]
        if name == "annotations":
            told = {entry["question_id"]: entry for entry in content["annotations"]}
            for example in examples:
                written = sorted(answer["answer"] for answer in told[example.id]["answers"])
                assert sorted(example.answers) == written

    return read


@pytest.fixture
def results(tiny_vqa, tmp_path):
    annotations = tiny_vqa / "v2_mscoco_val2014_annotations.json"
    truth = {
        entry["question_id"]: entry["multiple_choice_answer"]
        for entry in json.loads(annotations.read_text())["annotations"]
    }
    rng = random.Random(0)
    sound = [{"question_id": number, "answer": rng.choice(["red", "yes", answer])} for number, answer in truth.items()]
    path = tmp_path / "results.json"

    def read(rng):
        data = as_text(sound, rng)
        path.write_bytes(data)
        found = score.run(score.ScoreConfig(task="vqav2", annotations=annotations, predictions=path))
        given = {entry["question_id"]: entry["answer"] for entry in parsed(data)}
        assert given.keys() == truth.keys(), "an answer is missing, or one too many"
        right = sum(given[number] == answer for number, answer in truth.items())  # all ten annotators agree
        assert found["accuracy"]["mean"] == pytest.approx(right / len(truth))

    return read


@pytest.fixture
def csv(tiny_vilt, tiny_vqa, tmp_path):
    folder = tiny_vqa / "val2014"
    rows = [f"{path.name},what colour is this?" for path in sorted(folder.iterdir())[:3]]
    sound = "\n".join(["image,question", *rows]).encode()
    path, out = tmp_path / "questions.csv", tmp_path / "answers.csv"

    def read(rng):
        path.write_bytes(bytes_changed(sound, rng))
        out.unlink(missing_ok=True)
        count = predict(PredictConfig(model=str(tiny_vilt), out=out, questions=path, images=folder))
        assert count == len(out.read_text(encoding="utf-8").splitlines()) - 1 > 0

    return read


def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "model", dirs_exist_ok=True)


def holds_what_the_file_does(model, folder):
    with safe_open(folder / "model.safetensors", framework="pt") as tensors:
        names = set(tensors.keys())
        for name, value in model.state_dict().items():
            assert name in names and torch.equal(value, tensors.get_tensor(name).to(value.dtype)), name


@pytest.fixture
def weights(tiny_vilt, tmp_path):
    folder = copied(tiny_vilt, tmp_path)
    sound = (tiny_vilt / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", sound[:8])
    header, body = sound[8 : 8 + size], sound[8 + size :]

    def read(rng):
        kind = rng.randrange(3)
        if kind == 0:
            changed = json.dumps(value_changed(json.loads(header), rng)).encode("utf-8", "surrogatepass")
            data = struct.pack("<Q", len(changed)) + changed + body
        elif kind == 1:
            data = bytes_changed(sound[: 8 + size], rng) + body
        else:
            data = sound[: rng.randrange(len(sound))]
        (folder / "model.safetensors").write_bytes(data)
        holds_what_the_file_does(pumer.load(folder), folder)

    return read


@pytest.fixture
def reduction(tiny_vilt, tmp_path):
    folder = copied(tiny_vilt, tmp_path)
    model = pumer.load(tiny_vilt)
    sound = [config_to_dict(checkpoint.config_from_dict(LAYERS)), {"method": "tome", "merge_count": 3}]
    sound.append({"method": "random", "layers": [1, 2], "prune_ratio": 0.3})

    def read(rng):
        data = as_text(rng.choice(sound), rng)
        (folder / "reduction.json").write_bytes(data)
        config = checkpoint.read_reduction(folder)
        written = config_to_dict(config)
        assert checkpoint.config_from_dict(written) == config
        content = parsed(data)
        assert content["method"] == written["method"]
        for name in content.keys() & written.keys() - {"schedule"}:
            assert np.array_equal(content[name], written[name]), name
        pumer.patch(model, config)
        pumer.unpatch(model)

    return read


@pytest.fixture
def config(tiny_vilt, tmp_path):
    folder = copied(tiny_vilt, tmp_path)
    sound = json.loads((tiny_vilt / "config.json").read_text())

    def read(rng):
        (folder / "config.json").write_bytes(as_text(sound, rng))
        holds_what_the_file_does(pumer.load(folder), folder)
        AutoConfig.from_pretrained(folder)

    return read
