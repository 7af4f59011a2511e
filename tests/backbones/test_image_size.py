"""Fewer pixels: what the processor delivers, what the model reads, and that both stay so when they are saved."""

import dataclasses
import json

import pytest
import torch
from tiny import TINY, covering
from typer.testing import CliRunner

import pumer
from pumer.backbones.image_size import set_image_size
from pumer.checkpoint import load_processor
from pumer.cli import app
from pumer.evaluation import evaluate
from pumer.evaluation.predict import Predictor
from pumer.models.meter.modeling_meter import resize_positions
from pumer.profiling import benchmark
from pumer.profiling.named_models import default_image_size
from pumer.profiling.planning import run as run_plan
from pumer.settings.benchmark import BenchmarkConfig
from pumer.settings.evaluate import EvaluateConfig, EvaluationData
from pumer.settings.plan import PlanConfig
from pumer.tasks.loading import make_inputs
from pumer.training import run as train
from pumer.utils.errors import InputError

backbones = pytest.mark.parametrize("backbone", TINY)
LAYERS = {"vilt": [2, 5], "meter": [0, 2]}
PICTURE = "val2014/COCO_val2014_000000000000.jpg"


def reduction(backbone):
    return {"method": "pumer", "layers": LAYERS[backbone], "prune_ratio": 0.2, "merge_ratio": 0.2}


@pytest.mark.parametrize(("backbone", "size"), covering(TINY, [8, 48, 16, 32]))
def test_tokens_follow_from_the_size(backbone, size, tiny_vqa, request):
    folder = request.getfixturevalue(f"tiny_{backbone}")
    model, processor = pumer.patch(pumer.load(folder), pumer.NoReduction()), load_processor(folder)
    set_image_size(size, model, processor)
    inputs = make_inputs(processor, 12)
    pixels = inputs.pixels([tiny_vqa / PICTURE])
    assert pixels["pixel_values"].shape == (1, 3, size, size)
    words = {"input_ids": torch.ones(1, 4, dtype=torch.int64), "attention_mask": torch.ones(1, 4, dtype=torch.int64)}
    with torch.no_grad(), pumer.trace(model) as trace:
        model(**words, **pixels)
    assert int(trace.forwards[0].mask.sum()) == 4 + 1 + (size // 8) ** 2
    assert run_plan(PlanConfig(model=str(folder), image_size=size)).layers[-1].image_tokens == 1 + (size // 8) ** 2


def test_positions_of_meter_are_resized_and_those_of_vilt_are_not(tiny_meter, tiny_vilt):
    model = pumer.load(tiny_meter)
    before = model.base_model.vision_model.embeddings.position_embedding.weight.detach().clone()
    set_image_size(16, model)
    after = model.base_model.vision_model.embeddings.position_embedding.weight
    assert torch.equal(after, resize_positions(before, 2))
    assert after.requires_grad
    model = pumer.load(tiny_vilt)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    set_image_size(16, model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.config.image_size == 32


def invoke(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


@backbones
def test_a_trained_model_keeps_its_size(backbone, training, tiny_vqa, tmp_path, request):
    folder = request.getfixturevalue(f"tiny_{backbone}")
    config = dataclasses.replace(
        training, model=str(folder), image_size=16, teacher="self", max_steps=2, reduction=reduction(backbone)
    )
    trained = train.run(config, progress=False)
    out, result = config.output, tmp_path / "result.json"
    for saved in (out, out / "checkpoint-2"):
        size = load_processor(saved).image_processor.size
        assert size["shortest_edge" if backbone == "vilt" else "height"] == 16
    assert pumer.load(out).config.image_size == (32 if backbone == "vilt" else 16)
    assert default_image_size(str(out), pumer.load(out)) == 16
    invoke("evaluate", out, f"output={result}")
    assert json.loads(result.read_text())["accuracy"] == trained["accuracy"]
    assert run_plan(PlanConfig(model=str(out))).image_size == (16, 16)
    original = dataclasses.replace(config, output=tmp_path / "original", image_size=None, teacher=None, max_steps=1)
    train.run(original, progress=False)
    taught = {"teacher": str(original.output), "output": tmp_path / "more", "max_steps": 1}  # by one of another size
    again = dataclasses.replace(config, model=str(out), image_size=None, **taught)
    train.run(again, progress=False)
    assert default_image_size(str(again.output), pumer.load(again.output)) == 16


@backbones
def test_another_size_without_fine_tuning(backbone, tiny_vqa, tmp_path, request):
    folder = request.getfixturevalue(f"tiny_{backbone}")
    result, answers, predictions = (tmp_path / f"{name}.json" for name in ("result", "answers", "predictions"))
    settings = (f"data.root={tiny_vqa}", "image_size=16")
    invoke("evaluate", folder, *settings, f"per_example={answers}", f"output={result}")
    assert json.loads(result.read_text())["config"]["image_size"] == 16
    invoke("predict", folder, *settings, "split=val", "--out", predictions)
    evaluated = {row["id"]: row["answer"] for row in json.loads(answers.read_text())["examples"]}
    assert {row["question_id"]: row["answer"] for row in json.loads(predictions.read_text())} == evaluated
    predictor = Predictor(folder, image_size=16)
    assert predictor(tiny_vqa / PICTURE, "what colour is this?") == evaluated[0]
    picture = tmp_path / "tokens.png"
    what = ("what colour is this?", f"reduction={json.dumps(reduction(backbone))}", "image_size=16", "--out", picture)
    invoke("visualize", folder, tiny_vqa / PICTURE, *what)
    assert picture.is_file()


@pytest.mark.parametrize(("backbone", "sizes"), covering(TINY, [(20, 16), (4, 8), (35, 32)]))
def test_sizes_that_patches_do_not_fill_are_refused(backbone, sizes, tiny_vqa, request):
    size, near = sizes
    folder = str(request.getfixturevalue(f"tiny_{backbone}"))
    message = f"image_size {size} is not a multiple of the patch size 8; give {near}"
    jobs = {
        evaluate.run: EvaluateConfig(model=folder, data=EvaluationData(root=tiny_vqa), image_size=size),
        run_plan: PlanConfig(model=folder, image_size=size),
        benchmark.run: BenchmarkConfig(model=folder, reductions={"none": {"method": "none"}}, image_size=size),
    }
    for run, config in jobs.items():
        with pytest.raises(InputError, match=message):
            run(config)
    with pytest.raises(InputError, match=r"'image_size' .* must be .* in \[.* not 0"):
        EvaluateConfig(model=folder, image_size=0)


@backbones
def test_a_benchmark_puts_fewer_pixels_beside_fewer_tokens(backbone, request):
    folder = str(request.getfixturevalue(f"tiny_{backbone}"))
    rows = {"fewer tokens": reduction(backbone), "fewer pixels": {"method": "none", "image_size": 16}}
    fast = {"batch_sizes": (2,), "pairs": 1, "memory_batch": 0, "transformers": False, "progress": False}
    result = benchmark.run(BenchmarkConfig(model=folder, reductions=rows, **fast))
    figures = result["plan"]
    assert figures["unreduced"]["ideal_speedup"] == 1
    assert figures["fewer pixels"]["tokens"][-1][2] == 5
    assert (
        figures["unreduced"]["macs"] / figures["fewer pixels"]["macs"] == figures["fewer pixels"]["ideal_speedup"] > 2
    )
    assert result["speed"]["points"][0]["models"].keys() == {"unreduced", *rows}
    with pytest.raises(InputError, match=r"image_size of reductions\.a is 'x'"):
        benchmark.run(BenchmarkConfig(model=folder, reductions={"a": {"method": "none", "image_size": "x"}}, **fast))
