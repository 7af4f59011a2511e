"""A teacher that is asked once: the same training, fewer questions."""

import dataclasses
import shutil

import pytest
import torch

import pumer
from pumer.checkpoint import load_processor
from pumer.settings.common import AugmentConfig
from pumer.settings.train import DistillationConfig
from pumer.tasks import VQAv2
from pumer.tasks.fingerprint import data_fingerprint
from pumer.tasks.loading import Collator, Examples, make_inputs
from pumer.training import teacher as teachers
from pumer.training.run import run
from pumer.training.teacher import Teacher, cached_teacher
from pumer.utils.errors import InputError
from pumer.utils.progress import progress_bar


@pytest.fixture
def config(training):
    return dataclasses.replace(training, teacher="self", data=dataclasses.replace(training.data, eval=None))


class Counting(Teacher):
    """Counts the examples it is asked about."""

    asked = 0

    def __call__(self, batch):
        self.asked += len(batch["inputs"]["input_ids"])
        return super().__call__(batch)


@pytest.fixture
def ask(config, tmp_path):
    """Cache a teacher's answers; returns the cached teacher, the asked one, and all examples."""
    task = VQAv2(VQAv2.vocabulary(config.data.root, 1))
    read = task.read(config.data.root, "train")
    settings = dataclasses.replace(config, teacher_cache=tmp_path / "cache")

    def ask(seed=0, prepare=lambda model: None, text_length=12, **changes):
        torch.manual_seed(seed)  # a part of the head is drawn
        teacher = Counting(pumer.patch(task.model(config.model, task.labels), pumer.NoReduction()), task)
        prepare(teacher.model)
        examples = Examples(read, task)
        given = dataclasses.replace(settings, **changes)
        collate = Collator(task, make_inputs(load_processor(config.model), text_length))
        cached = cached_teacher(
            teacher, given, examples, collate, "data", torch.device("cpu"), progress_bar(enabled=False)
        )
        return cached, teacher, examples, collate

    return ask


def test_answers_are_the_teachers(ask):
    cached, teacher, examples, collate = ask()
    assert teacher.asked == len(examples) == 24
    batch = collate([examples[index] for index in (5, 0, 17)])
    assert torch.allclose(cached(batch).logits, teacher(batch).logits, atol=1e-5)


def test_nothing_is_asked_twice(ask):
    ask()
    assert ask()[1].asked == 0


def test_another_run_may_finish_the_shared_file_first(ask, tmp_path, monkeypatch):
    asked = teachers._logits

    def overtaken(*args):
        for part in (tmp_path / "cache").glob("*.part"):
            part.rename(part.with_suffix(".npy"))
        return asked(*args)

    monkeypatch.setattr(teachers, "_logits", overtaken)
    cached, teacher, examples, collate = ask()
    batch = collate([examples[3]])
    assert torch.allclose(cached(batch).logits, teacher(batch).logits, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"blank": "text"},
        {"precision": "bf16"},
        {"text_length": 5},
        {"prepare": lambda model: torch.nn.init.ones_(model.classifier[-1].bias)},
    ],
)
def test_other_settings_and_weights_are_asked_anew(ask, change, tmp_path):
    ask()
    assert ask(**change)[1].asked == 24
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2


def test_an_interrupted_call_is_continued(ask, monkeypatch, tmp_path):
    original, calls = teachers._logits, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(teachers, "_logits", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ask()
    assert not list((tmp_path / "cache").glob("*.npy"))
    cached, teacher, examples, collate = ask()
    assert teacher.asked == 24 - 3 * 4
    monkeypatch.undo()
    batch = collate([examples[index] for index in range(24)])
    assert torch.allclose(cached(batch).logits, teacher(batch).logits, atol=1e-5)


@pytest.mark.parametrize("suffix", [".npy", ".part"])
@pytest.mark.parametrize("left", [0, 300])
def test_a_broken_file_is_refused_by_name(ask, tmp_path, suffix, left):
    ask()
    (file,) = (tmp_path / "cache").iterdir()
    broken = file.rename(file.with_suffix(suffix))
    broken.write_bytes(broken.read_bytes()[:left])
    with pytest.raises(InputError, match=broken.name) as caught:
        ask()
    assert "\n" not in str(caught.value) and "pickle" not in str(caught.value)


def test_answers_that_are_nan_are_refused(ask):
    with pytest.raises(InputError, match="not all finite"):
        ask(prepare=lambda model: torch.nn.init.constant_(model.classifier[-1].bias, float("nan")))


def test_a_small_disk_is_refused(ask, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100})())
    with pytest.raises(InputError, match=r"teacher_cache needs 0\.0 GiB in .*; give teacher_cache=FOLDER"):
        ask()


def test_the_training_is_the_same(config, tmp_path):
    asked = run(config, progress=False)
    cached = run(dataclasses.replace(config, teacher_cache=True, output=tmp_path / "cached"), progress=False)
    assert len(list((tmp_path / "cached" / "teacher").glob("*.npy"))) == 1
    losses = [[entry["loss"] for entry in result["history"] if "loss" in entry] for result in (asked, cached)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment": AugmentConfig()}, "but augment changes the images in every epoch; leave out either"),
        ({"task": "flickr30k"}, "but task flickr30k draws other texts in every epoch"),
        ({"distillation": DistillationConfig(hidden_weight=1.0)}, "but distillation.hidden_weight needs hidden states"),
        ({"teacher": None}, "teacher_cache needs a teacher"),
    ],
)
def test_only_where_examples_stay_the_same(config, changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(config, teacher_cache=True, **changes)


def test_hidden_states_need_a_teacher_that_is_looked_into(config):
    hidden = DistillationConfig(hidden_weight=1.0)
    with pytest.raises(InputError, match="hidden_weight needs a teacher"):
        dataclasses.replace(config, teacher=None, distillation=hidden)
    with pytest.raises(InputError, match="give compile=false"):
        dataclasses.replace(config, compile=True, distillation=hidden)


def test_fingerprint_of_data(tiny_vqa, tmp_path):
    def fingerprint(root):
        return data_fingerprint(VQAv2, root, ("train", "val"), VQAv2.read(root, "train"))

    first = fingerprint(tiny_vqa)
    moved = shutil.copytree(tiny_vqa, tmp_path / "elsewhere")
    assert fingerprint(moved) == first
    questions = moved / "v2_OpenEnded_mscoco_val2014_questions.json"
    questions.write_text(questions.read_text().replace("red", "rot"))
    assert fingerprint(moved) != first
    image = next((tiny_vqa / "train2014").iterdir())
    image.write_bytes(image.read_bytes() + b"\0")
    assert fingerprint(tiny_vqa) != first
    assert len(first) == len("sha256:") + 64
