"""Loading is strict: a checkpoint that is not whole, or holds what does not belong to it, is refused by name."""

import dataclasses
import json
import logging
import os
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import TINY
from transformers import ViltForMaskedLM

import pumer
from pumer import DynamicViTConfig, InputError, PuMerConfig
from pumer.checkpoint import HEADS_FILE, LEARNED_FILE, REDUCTION_FILE, TRAINING_RECORD, load_processor, trained_with
from pumer.evaluation import evaluate
from pumer.evaluation.predict import Predictor
from pumer.profiling import benchmark, planning
from pumer.settings.benchmark import BenchmarkConfig
from pumer.settings.evaluate import EvaluateConfig, EvaluationData
from pumer.settings.plan import PlanConfig
from pumer.settings.visualize import VisualizeConfig
from pumer.tasks import VQAv2
from pumer.tasks.heads import ranking_from
from pumer.training import run as train
from pumer.utils.shipped import SMALL
from pumer.visualization import visualize

WEIGHTS = "model.safetensors"
HEAD, OF_BODY = "classifier.3.weight", "encoder."
LEARNING = DynamicViTConfig(layers=(0, 2), prune_ratio=0.3)


@pytest.fixture(params=["vilt", "meter"])
def folder(request, tmp_path):
    """A saved, patched model of each backbone."""
    pumer.save(pumer.patch(TINY[request.param].build(), PuMerConfig(layers=(0, 2), prune_ratio=0.2)), tmp_path)
    return tmp_path


@pytest.fixture
def learned(tmp_path):
    """A saved model with a reduction that learns."""
    pumer.save(pumer.patch(TINY["vilt"].build(), LEARNING), tmp_path)
    return tmp_path


def rewrite(file, change):
    """Let a function change the tensors of a file, a dict."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def body(tensors):
    """The name of a weight in the middle of the body."""
    return next(name for name in sorted(tensors) if OF_BODY in name and tensors[name].dim() == 2)


def replaced(value):
    """A change of the head's last weight."""
    return lambda tensors: tensors.update({HEAD: value(tensors[HEAD])})


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda tensors: tensors.pop(HEAD), HEAD),
        (lambda tensors: tensors.pop(body(tensors)), OF_BODY),
        (lambda tensors: [tensors.pop(name) for name in list(tensors) if "classifier" in name], "classifier."),
        (lambda tensors: tensors.update({"classifier.9.weight": torch.ones(2)}), "classifier.9.weight"),
        (lambda tensors: tensors.update({f"{body(tensors)}_scale": torch.ones(2)}), "weight_scale"),
        (lambda tensors: tensors.update({"elsewhere.weight": torch.ones(2)}), "elsewhere.weight"),
        (replaced(lambda weight: weight[:3].clone()), HEAD),
        (lambda tensors: tensors.update({body(tensors): torch.ones(3, 3)}), OF_BODY),
        (replaced(lambda weight: weight.to(torch.int8)), HEAD),
        (replaced(lambda weight: weight > 0), HEAD),
        (replaced(lambda weight: weight * float("nan")), HEAD),
        (replaced(lambda weight: weight + float("inf")), HEAD),
    ],
    ids=["head", "body", "whole", "extra", "surplus", "name", "shape", "inside", "integers", "bools", "nan", "inf"],
)
def test_tensors_that_do_not_fit_are_named(folder, change, name):
    rewrite(folder / WEIGHTS, change)
    with pytest.raises(InputError) as caught:
        pumer.load(folder)
    assert str(folder) in str(caught.value) and name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
@pytest.mark.parametrize("sharded", [False, True])
def test_integers_are_no_weights_in_any_format(tiny_vilt, tmp_path, kind, sharded):
    tensors = load_file(tiny_vilt / WEIGHTS)
    whole = WEIGHTS if kind == "safetensors" else "pytorch_model.bin"
    file = whole.replace(".", "-00001-of-00001.") if sharded else whole
    shutil.copyfile(tiny_vilt / "config.json", tmp_path / "config.json")
    if sharded:
        index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(tensors, file)}
        (tmp_path / f"{whole}.index.json").write_text(json.dumps(index))
    write = partial(save_file, metadata={"format": "pt"}) if kind == "safetensors" else torch.save
    write(tensors, tmp_path / file)
    pumer.load(tmp_path)
    write(tensors | {HEAD: tensors[HEAD].to(torch.int8)}, tmp_path / file)
    with pytest.raises(InputError, match=rf"not floating point: {HEAD} \(.*8\)"):
        pumer.load(tmp_path)


def test_many_tensors_are_counted(folder):
    rewrite(folder / WEIGHTS, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".bias" in name])
    with pytest.raises(InputError, match=r"and \d+ more"):
        pumer.load(folder)


def test_buffers_of_older_versions_and_heads_of_other_tasks_are_no_fault(folder, caplog):
    """transformers 4 saved positions and token types as buffers; pre-training leaves a matching layer."""
    base = "vilt.embeddings.text_embeddings" if "vilt" in type(pumer.load(folder)).__name__.lower() else ""
    base = base or "meter.text_model.embeddings"
    old = {f"{base}.position_ids": torch.arange(40)[None], f"{base}.token_type_ids": torch.zeros(1, 40).long()}
    matching = {"itm_score.fc.weight": torch.ones(2, 32), "itm_score.fc.bias": torch.ones(2)}
    expected = load_file(folder / WEIGHTS)
    rewrite(folder / WEIGHTS, lambda tensors: tensors.update(old | matching))
    with caplog.at_level(logging.INFO, "pumer"):
        loaded = pumer.load(folder).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    assert "itm_score" in caplog.text and "position_ids" not in caplog.text


def test_a_masked_language_model_of_transformers_4(tmp_path):
    """There, the bias of its decoder had two names, of which a file holds the other one, or both."""
    model = TINY["vilt"].build("ViltForMaskedLM")
    pumer.save(model, tmp_path)
    new, old = "mlm_score.decoder.bias", "mlm_score.bias"
    for change in (
        lambda tensors: tensors.update({old: tensors[new].clone()}),
        lambda tensors: tensors.pop(new),
    ):
        rewrite(tmp_path / WEIGHTS, change)
        assert torch.equal(pumer.load(tmp_path).get_parameter(new), model.get_parameter(new))
    with pytest.raises(InputError, match=r"mlm_score\.transform"):
        rewrite(tmp_path / WEIGHTS, lambda tensors: tensors.pop("mlm_score.transform.dense.weight"))
        pumer.load(tmp_path)


def test_shards_and_half_precision_load(folder):
    model = pumer.load(folder)
    (folder / WEIGHTS).unlink()
    model.half().save_pretrained(folder, max_shard_size="20KB")
    assert not (folder / WEIGHTS).exists()
    loaded = pumer.load(folder).state_dict()
    assert all(torch.equal(x, loaded[name]) for name, x in model.state_dict().items())
    rewrite(min(folder.glob("model-*-of-*")), lambda tensors: tensors.popitem())
    with pytest.raises(InputError, match="missing"):
        pumer.load(folder)


@pytest.mark.parametrize("name", ["small:vilt", "small:meter"])
def test_what_ships_is_whole(name):
    pumer.load(SMALL[name])


def test_the_caller_may_ask_for_another_head(folder):
    """As in transformers: what the caller allows is no fault."""
    assert pumer.load(folder, num_labels=3, ignore_mismatched_sizes=True).classifier[-1].out_features == 3


def first(tensors):
    return min(tensors)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        (LEARNED_FILE, lambda tensors: tensors.pop(first(tensors)), LEARNED_FILE),
        (LEARNED_FILE, lambda tensors: tensors.update({first(tensors): torch.ones(1)}), "reducer"),
        (LEARNED_FILE, lambda tensors: tensors.update({first(tensors): tensors[first(tensors)] / 0}), "reducer"),
        (LEARNED_FILE, lambda tensors: tensors.update({"vilt.reducer.fusion_1.x": torch.ones(1)}), "fusion_1"),
    ],
    ids=["missing", "shape", "inf", "extra"],
)
def test_what_a_reduction_learned_is_read_as_strictly(learned, file, change, words):
    rewrite(learned / file, change)
    with pytest.raises(InputError, match=words) as caught:
        pumer.load(learned)
    assert str(learned) in str(caught.value) and "\n" not in str(caught.value)


def test_learned_weights_without_their_reduction(learned):
    """The model would run unreduced, or reduced in another way than it was trained."""
    (learned / REDUCTION_FILE).unlink()
    with pytest.raises(InputError, match=REDUCTION_FILE):
        pumer.load(learned)


def whole(folder, tiny_vilt):
    """A folder with every file that a model's folder can hold."""
    for file in tiny_vilt.iterdir():
        if "tokenizer" in file.name or "processor" in file.name:
            shutil.copy(file, folder)
    save_file({"itm_score.fc.weight": torch.ones(2, 32), "itm_score.fc.bias": torch.ones(2)}, folder / HEADS_FILE)
    (folder / TRAINING_RECORD).write_text('{"config": {}}')
    return sorted(file.name for file in folder.iterdir())


def use(folder):
    """Read all that is in it."""
    pumer.load(folder)
    load_processor(folder)
    trained_with(folder)
    ranking_from(str(folder), {"vilt": type(TINY["vilt"].build("ViltForImageAndTextRetrieval"))})


def dangle(file):
    file.unlink()
    os.symlink(file.with_name("gone"), file)


def into_folder(file):
    file.unlink()
    file.mkdir()


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("spoil", [dangle, into_folder, cut, lambda file: file.write_bytes(b"")])
def test_a_file_that_is_there_but_cannot_be_read_is_never_absent(learned, tiny_vilt, spoil):
    names = whole(learned, tiny_vilt)
    assert {"config.json", WEIGHTS, REDUCTION_FILE, LEARNED_FILE, HEADS_FILE, TRAINING_RECORD} < set(names)
    use(learned)
    for name in names:
        broken = shutil.copytree(learned, learned / "broken")
        spoil(broken / name)
        with pytest.raises(InputError) as caught:
            use(broken)
        assert str(broken) in str(caught.value) and "\n" not in str(caught.value)
        if spoil in (dangle, into_folder):
            assert name in str(caught.value)
        shutil.rmtree(broken)


@pytest.fixture
def broken(tiny_vilt, tmp_path):
    """A checkpoint whose last layer is missing; it would answer at random."""
    rewrite(shutil.copytree(tiny_vilt, tmp_path / "broken") / WEIGHTS, lambda tensors: tensors.pop(HEAD))
    return str(tmp_path / "broken")


@pytest.mark.parametrize(
    "command",
    [
        lambda name, data, training, image, out: evaluate.run(EvaluateConfig(model=name, data=data)),
        lambda name, data, training, image, out: Predictor(name),
        lambda name, data, training, image, out: visualize.run(
            VisualizeConfig(model=name, images=(image,), questions=("what is it?",), out=out / "out.png")
        ),
        lambda name, data, training, image, out: benchmark.run(BenchmarkConfig(model=name)),
        lambda name, data, training, image, out: planning.run(PlanConfig(model=name)),
        lambda name, data, training, image, out: train.run(dataclasses.replace(training, model=name), progress=False),
        lambda name, data, training, image, out: train.run(dataclasses.replace(training, teacher=name), progress=False),
        lambda name, data, training, image, out: VQAv2.model(name, ["red", "blue"]),
    ],
    ids=["evaluate", "predict", "visualize", "benchmark", "plan", "model", "teacher", "task"],
)
def test_every_command_refuses_alike(broken, training, tiny_vqa, tmp_path, command):
    data = EvaluationData(root=tiny_vqa)
    image = next((tiny_vqa / "val2014").iterdir())
    with pytest.raises(InputError, match=HEAD):
        command(broken, data, training, image, tmp_path)
    assert not (tmp_path / "out.png").exists() and not (training.output / WEIGHTS).exists()


def test_a_head_of_another_task_is_named_and_the_body_is_whole(tiny_vilt, tmp_path, caplog):
    """Ranking starts from question answering; a body tensor must never be missing."""
    models = {"vilt": type(TINY["vilt"].build("ViltForImageAndTextRetrieval"))}
    with caplog.at_level(logging.INFO, "pumer"):
        ranking_from(str(tiny_vilt), models)
    assert "classifier" in caplog.text
    ViltForMaskedLM.from_pretrained(tiny_vilt).save_pretrained(tmp_path)
    rewrite(tmp_path / WEIGHTS, lambda tensors: tensors.pop("vilt.encoder.layer.3.output.dense.weight"))
    for start in (lambda: ranking_from(str(tmp_path), models), lambda: VQAv2.model(str(tmp_path), ["red"])):
        with pytest.raises(InputError, match=r"layer\.3\.output\.dense\.weight"):
            start()


def test_half_a_head_is_no_head(tiny_vilt, tmp_path):
    """A ranking layer of which a tensor is lost must not start at random in silence."""
    models = {"vilt": type(TINY["vilt"].build("ViltForImageAndTextRetrieval"))}
    pumer.save(ranking_from(str(tiny_vilt), models), tmp_path)
    rewrite(tmp_path / WEIGHTS, lambda tensors: tensors.pop("rank_output.bias"))
    with pytest.raises(InputError, match=r"rank_output\.bias"):
        ranking_from(str(tmp_path), models)


def test_a_training_does_not_start_from_half_of_what_was_learned(tiny_vilt, training, tmp_path):
    settings = {"method": "dynamicvit", "layers": [2, 5], "prune_ratio": 0.4}
    model = pumer.patch(pumer.load(tiny_vilt), DynamicViTConfig(layers=(2, 5), prune_ratio=0.4))
    start = shutil.copytree(tiny_vilt, tmp_path / "start")
    pumer.save(model, start)
    rewrite(start / LEARNED_FILE, lambda tensors: tensors.pop(first(tensors)))
    with pytest.raises(InputError, match=LEARNED_FILE):
        train.run(dataclasses.replace(training, model=str(start), reduction=settings), progress=False)


@pytest.mark.parametrize("spoil", [cut, dangle])
def test_a_plan_does_not_guess_the_image_size(tiny_vilt, tmp_path, spoil):
    folder = shutil.copytree(tiny_vilt, tmp_path / "model")
    for file in folder.glob("*processor*"):
        spoil(file)
    with pytest.raises(InputError, match=str(folder)):
        planning.run(PlanConfig(model=str(folder)))


def test_answers_that_are_no_numbers_draw_nothing(tiny_vilt, tiny_vqa, tmp_path, monkeypatch):
    """Whatever made them so: its finite weights may still be too large for its number format."""
    monkeypatch.setattr("pumer.checkpoint.not_finite", lambda tensors: [])
    folder = shutil.copytree(tiny_vilt, tmp_path / "model")
    rewrite(folder / WEIGHTS, replaced(lambda weight: weight * float("nan")))
    image, out = next((tiny_vqa / "val2014").iterdir()), tmp_path / "out.png"
    with pytest.raises(InputError, match="NaN"):
        visualize.run(VisualizeConfig(model=str(folder), images=(image,), questions=("what is it?",), out=out))
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", {"hidden_act": "no such function"}),
        ("config.json", {"hidden_size": None}),
        ("config.json", {"architectures": -1}),
        ("config.json", {"id2label": -1}),
        ("config.json", {"dtype": "x"}),
        ("config.json", {"patch_size": 0}),
        ("tokenizer.json", []),
        ("tokenizer_config.json", {"tokenizer_class": []}),
        ("processor_config.json", None),
    ],
)
def test_nonsense_in_a_file_is_one_line(tiny_vilt, tmp_path, name, content):
    """transformers checks little: whatever it raises, it is about the user's file."""
    folder = shutil.copytree(tiny_vilt, tmp_path / "model")
    if content and name != "tokenizer.json":
        content = json.loads((folder / name).read_text()) | content
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        pumer.load(folder)
        load_processor(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
