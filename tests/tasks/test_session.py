"""What a session is set up from: the checkpoint, the record of its training, and what is given."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import FOLDERS

import pumer
from pumer.tasks import NLVR2, TASKS, Example, VQAv2, base
from pumer.tasks import session as sessions
from pumer.tasks.base import tokenize
from pumer.tasks.session import Session, bind, labels_of
from pumer.utils.errors import InputError

REDUCTION = {"method": "pumer", "layers": [2, 5], "prune_ratio": 0.2, "merge_ratio": 0.4}


@pytest.fixture
def trained(tiny_vilt, tmp_path):
    """A checkpoint with the record of a training."""
    folder = tmp_path / "trained"
    shutil.copytree(tiny_vilt, folder)
    settings = {"task": "vqav2", "text_length": 9, "resize": "aspect", "blank": "text", "data": {"root": "/somewhere"}}
    (folder / "run.json").write_text(json.dumps({"config": settings}))
    return folder


def settings_of(session):
    inputs = session.inputs
    return session.task.name, inputs.text_length, inputs.pixels.resize, inputs.blank_text, session.root


def test_what_is_not_given_is_as_in_training(trained, tiny_vilt):
    assert settings_of(Session.open(trained)) == ("vqav2", 9, "aspect", True, Path("/somewhere"))
    given = Session.open(trained, root=Path("here"), text_length=5, resize="square", blank="none")
    assert settings_of(given) == ("vqav2", 5, "square", False, Path("here"))
    plain = Session.open(tiny_vilt)
    positions = plain.model.config.max_position_embeddings
    assert settings_of(plain) == ("vqav2", positions, "square", False, None)
    assert plain.reduction["method"] == "none"
    assert not plain.model.training


def test_models_that_ship_are_opened_by_name():
    session = Session.open("small:vilt")
    assert (session.name, session.task.name) == ("small:vilt", "vqav2")
    assert "red" in session.task.labels


@pytest.mark.parametrize("backbone", ["vilt", "meter"])
@pytest.mark.parametrize("task", FOLDERS)
def test_a_batch_of_every_task_goes_through(task, backbone, tmp_path, request):
    kind, root = TASKS[task], request.getfixturevalue(FOLDERS[task])
    start = request.getfixturevalue(f"tiny_{backbone}")
    model = kind.model(str(start), kind.vocabulary(root, 1))
    new = Session.around(str(start), model, kind(kind.vocabulary(root, 1)), text_length=8, image_size=32)
    pumer.save(model, tmp_path / "model")
    new.processor.save_pretrained(tmp_path / "model")
    opened = Session.open(tmp_path / "model", task, text_length=8, device="cpu")
    assert opened.task.labels == new.task.labels
    examples = [new.task.draw(kind.read(root, "train"), 0, seed=0, epoch=0)]
    logits = []
    for session in (new, opened):
        batch = session.task.collate(examples, session.inputs)
        assert batch["inputs"]["pixel_values"].shape[-2:] == (32, 32)
        with torch.no_grad():
            logits.append(session.task.logits(session.model.eval(), batch))
    torch.testing.assert_close(*logits)


def test_texts_are_padded_to_one_length_for_a_compiled_training(tiny_vilt):
    model = VQAv2.model(str(tiny_vilt), ("red", "blue"))
    for fixed, length in ((False, 4), (True, 9)):
        session = Session.around(str(tiny_vilt), model, VQAv2(("red", "blue")), text_length=9, fixed_length=fixed)
        tokens = session.inputs.tokenizer("what is", padding="longest", return_tensors="pt").input_ids
        assert tokens.shape[1] == 4
        assert tokenize(["what is"], session.inputs)["input_ids"].shape[1] == length


def test_another_reduction_takes_the_place_of_the_saved_one(trained, caplog):
    def opened(reduction=None):
        caplog.clear()
        found = pumer.reduction(Session.open(trained, reduction=reduction).model)
        return found.method, [layer for _, layer in found.places()], "they are random" in caplog.text

    learned = {"method": "dynamicvit", "layers": [2, 5], "prune_ratio": 0.2}
    assert opened(REDUCTION) == ("pumer", [2, 5], False)
    assert opened(learned) == ("dynamicvit", [2, 5], True)
    pumer.save(Session.open(trained, reduction=learned).model, trained)
    assert opened() == ("dynamicvit", [2, 5], False)
    assert opened(learned | {"layers": [2]}) == ("dynamicvit", [2], False)
    assert opened(learned | {"layers": [2, 3]}) == ("dynamicvit", [2, 3], True)
    assert opened("none") == ("none", [], False)


def test_compiled_sessions_answer_like_the_model(tiny_vilt, tiny_vqa, monkeypatch):
    monkeypatch.setattr("pumer.tasks.session.compiled", lambda model: pumer.compile(model, "eager"))  # no graphs: fast
    session = Session.open(tiny_vilt, compile=True, device="cpu")
    assert session.forward is not session.model
    batch = session.task.collate(VQAv2.read(tiny_vqa, "val")[:3], session.inputs)["inputs"]
    with torch.inference_mode():
        torch.testing.assert_close(session.forward(**batch).logits, session.model(**batch).logits)


def test_models_of_another_task_and_rules_without_a_use_are_refused(tiny_vilt):
    model = pumer.load(tiny_vilt)
    assert bind("m", model, VQAv2, "published").rule == "published"
    with pytest.raises(InputError, match=r"m is a ViltForQuestionAnswering; task nlvr2 needs .*give task=vqav2"):
        bind("m", model, NLVR2)
    with pytest.raises(InputError, match="rule=published is for task vqav2"):
        bind("m", NLVR2.model(str(tiny_vilt), NLVR2.fixed_labels), NLVR2, "published")
    with pytest.raises(InputError, match="task 'vqa' is unknown"):
        Session.open(tiny_vilt, "vqa")


def test_every_column_has_a_name(tiny_vilt):
    model = pumer.load(tiny_vilt)
    assert labels_of(model) == tuple(model.config.id2label.values())
    model.config.id2label = {0: "red", 2: "blue"}
    with pytest.raises(InputError, match="columns 0 to 1, not lack 1"):
        labels_of(model)


def test_a_text_that_is_cut_is_reported_once(caplog):
    opened = Session.open("small:vilt", text_length=9)
    base._warn_of_cuts.cache_clear()
    tokenize(["what color is the large ring?"], opened.inputs)  # nine with [CLS] and [SEP]
    assert not caplog.messages
    for _ in range(2):
        tokenize(["is it", "what color is the very large ring?"], opened.inputs)
    assert len(caplog.messages) == 1 and "text_length" in caplog.messages[0] and " 9 " in caplog.messages[0]


def test_a_model_that_ships_warns_once_of_what_it_does_not_know(tmp_path, caplog):
    opened, names = Session.open("small:vilt"), ("world.png", "photo.png")
    for name, size in zip(names, ((96, 96), (120, 80)), strict=True):
        Image.new("RGB", size).save(tmp_path / name)
    known, other = (tmp_path / name for name in names)
    warn = sessions._warn_of_other_worlds
    for image, text in ((other, "is there a ring?"), (Image.open(other), "where?"), (known, "is there a cat?")):
        warn.cache_clear(), caplog.clear()
        opened.check(Example(0, (known,), "what color is the large ring?"))
        opened.check(Example(0, (np.zeros((96, 96, 3), np.uint8),), "where is the ring?"))
        assert not caplog.messages
        for _ in range(2):
            opened.check(Example(0, (image,), text))
        assert len(caplog.messages) == 1 and "small:vilt" in caplog.messages[0]
    opened.check(Example(0, (tmp_path / "missing.png",), "where is the ring?"))


def test_a_check_leaves_the_tokenizer_as_a_batch_set_it():
    """Another thread may be about to encode with these settings."""
    opened = Session.open("small:vilt")
    tokenizer = opened.inputs.tokenizer
    tokenizer(["what", "is there a ring"], padding=True, truncation=True, max_length=9)
    before = tokenizer.backend_tokenizer.padding, tokenizer.backend_tokenizer.truncation
    assert all(before)
    opened.check(Example(0, (np.zeros((96, 96, 3), np.uint8),), "where is the ring?"))
    assert (tokenizer.backend_tokenizer.padding, tokenizer.backend_tokenizer.truncation) == before
