"""Released checkpoints: their own outputs (goldens), and what cannot be converted."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import (
    AutoModelForVisualQuestionAnswering,
    ViltForImageAndTextRetrieval,
    ViltForQuestionAnswering,
)

import pumer
from pumer import ReleasedPuMerConfig, checkpoint
from pumer.conversion import convert, released, sources
from pumer.tasks.heads import classifier_from
from pumer.utils.errors import InputError
from pumer.utils.files import write_json

GOLDENS = Path(__file__).parents[1] / "goldens"
RATIOS = {"prune_r": 0.1, "merge_r": 0.3, "merge_text": 0.2}


class Golden:
    """What the released code computed for one tiny model."""

    def __init__(self, task):
        with safe_open(GOLDENS / f"vilt-{task}.safetensors", "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
            described = json.loads(file.metadata()["description"])
        self.config, self.schedules = described["config"], described["schedules"]
        self.weights = {n.removeprefix("weights/"): t for n, t in tensors.items() if n.startswith("weights/")}
        self.outputs = {n: t for n, t in tensors.items() if n.startswith("outputs/")}
        images = [t for n, t in sorted(tensors.items()) if n.startswith("inputs/pixel_values")]
        images = [image.repeat_interleave(32, dim=2).repeat_interleave(32, dim=3) for image in images]
        self.inputs = {
            "input_ids": tensors["inputs/text_ids"],
            "attention_mask": tensors["inputs/text_masks"],
            "pixel_values": images[0] if len(images) == 1 else torch.stack(images, dim=1),
        }

    def released_config(self, index):
        schedule = self.schedules[index]
        return self.config | {
            "reduce_layers": schedule["reduce_layers"],
            "prune_r": schedule["prune_ratio"],
            "merge_r": schedule["merge_ratio"],
            "merge_text": schedule["text_merge_ratio"],
        }

    def run(self, model):
        """Logits, and what the head sees."""
        pooled = []
        hook = model.classifier.register_forward_pre_hook(lambda module, args: pooled.append(args[0]))
        with torch.no_grad():
            logits = model(**self.inputs).logits
        hook.remove()
        return logits, pooled[0]


@pytest.fixture(scope="module")
def vqa():
    return Golden("vqa2")


def largest(a, b):
    return (a - b).abs().max().item()


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("task", ["vqa2", "nlvr2"])
def test_released_outputs_are_reproduced(task, index):
    golden = Golden(task)
    model = convert.from_released(golden.weights, golden.released_config(index), task)
    logits, pooled = golden.run(model)
    assert largest(logits, golden.outputs[f"outputs/{index}/logits"]) < 1e-5
    assert largest(pooled, golden.outputs[f"outputs/{index}/pooled"]) < 1e-5
    others = {0, 1, 2} - {index}  # the goldens tell the schedules apart
    assert all(largest(pooled, golden.outputs[f"outputs/{other}/pooled"]) > 1e-2 for other in others)


def test_a_model_is_patched_only_if_it_was_trained_reduced(vqa):
    assert pumer.reduction(convert.from_released(vqa.weights, vqa.config, "vqa2")) is None
    reduced = convert.from_released(vqa.weights, vqa.released_config(2), "vqa2")
    expected = ReleasedPuMerConfig(
        layers=(2, 4, 6, 8), prune_ratio=0.1, merge_ratio=0.3, text_merge_ratio=0.2, similarity="mean_head"
    )
    assert pumer.reduction(reduced) == expected


@pytest.mark.parametrize(
    ("name", "similarity"), [("mh", "mean_head"), ("fh", "first_head"), ("first_head", "first_head")]
)
def test_names_of_similarities(name, similarity):
    config = {"reduce_layers": [2], "sim_method": name, "merge_style": "tome", **RATIOS}
    assert released.released_reduction(config).similarity == similarity


@pytest.mark.parametrize(("key", "value"), [("sim_method", "random"), ("merge_style", "tip")])
def test_unpublished_reductions_are_refused_by_name(key, value):
    with pytest.raises(InputError, match=f"{key} '{value}'.*allowed"):
        released.released_reduction({"reduce_layers": [2], key: value})
    assert released.released_reduction({"reduce_layers": [], key: value}) is None


@pytest.mark.parametrize(
    ("value", "fault"),
    [(lambda x: x * float("nan"), "not finite"), (lambda x: (100 * x).to(torch.int8), "not floating point")],
)
def test_tensors_without_usable_values_are_named(vqa, value, fault):
    weights = vqa.weights
    name = next(name for name in weights if name.endswith("mlp.fc1.weight"))
    with pytest.raises(InputError, match=f"{fault}: {name}"):
        convert.from_released(weights | {name: value(weights[name])}, vqa.config, "vqa2")


def test_missing_and_unexpected_tensors_are_named(vqa):
    weights = dict(vqa.weights)
    del weights["vilt.transformer.blocks.3.attn.qkv.bias"]
    weights["vilt.surplus"] = torch.zeros(1)
    with pytest.raises(InputError, match=r"missing: vilt\.transformer\.blocks\.3\.attn\.qkv\.bias.*vilt\.surplus"):
        convert.from_released(weights, vqa.config, "vqa2")
    with pytest.raises(InputError, match=r"vilt\.transformer\.pos_embed"):
        convert.from_released({n: t for n, t in vqa.weights.items() if "pos_embed" not in n}, vqa.config, "vqa2")


def test_a_wrong_shape_is_named(vqa):
    weights = vqa.weights | {"vilt.pooler.dense.weight": torch.zeros(5, 32)}
    with pytest.raises(InputError, match=r"vilt\.pooler\.dense\.weight.*\(5, 32\).*\(32, 32\)"):
        convert.from_released(weights, vqa.config, "vqa2")


def test_unknown_tasks_are_refused(vqa):
    with pytest.raises(InputError, match="'gqa' is unknown"):
        convert.from_released(vqa.weights, vqa.config, "gqa")


def with_head(golden, released, rows):
    """The golden's weights with another head."""
    body = {name: tensor for name, tensor in golden.weights.items() if not name.startswith("vqa_classifier")}
    return body | {f"{released}.{name}": torch.randn(shape) for name, shape in rows.items()}


def test_entailment_is_question_answering_with_three_labels(vqa):
    rows = {
        "0.weight": (64, 32),
        "0.bias": (64,),
        "1.weight": (64,),
        "1.bias": (64,),
        "3.weight": (3, 64),
        "3.bias": (3,),
    }
    weights = with_head(vqa, "ve_classifier", rows)
    assert convert.infer_task(weights) == "ve"
    model = convert.from_released(weights, vqa.config, "ve")
    assert type(model).__name__ == "ViltForQuestionAnswering"
    assert model.config.id2label == {0: "contradiction", 1: "neutral", 2: "entailment"}
    assert torch.equal(model.classifier[3].weight, weights["ve_classifier.3.weight"])


def test_retrieval_leaves_the_training_heads_behind(vqa):
    weights = with_head(vqa, "rank_output", {"weight": (1, 32), "bias": (1,)})
    weights |= {"itm_score.fc.weight": torch.zeros(2, 32), "vilt.text_embeddings.position_ids": torch.arange(16)}
    assert convert.infer_task(weights) == "irtr"
    model = convert.from_released(weights, vqa.config, "irtr")
    assert isinstance(model, ViltForImageAndTextRetrieval)
    assert torch.equal(model.rank_output.weight, weights["rank_output.weight"])


def test_a_ranking_starts_from_the_matching(vqa):
    weights = {name: tensor for name, tensor in vqa.weights.items() if not name.startswith("vqa_classifier")}
    weights |= {"itm_score.fc.weight": torch.randn(2, 32), "itm_score.fc.bias": torch.randn(2)}
    for tensors in (weights, {name.removeprefix("vilt."): tensor for name, tensor in weights.items()}):
        model = convert.from_released(tensors, vqa.config, "irtr")
        assert torch.equal(model.rank_output.weight, weights["itm_score.fc.weight"][1:])
        assert torch.equal(model.rank_output.bias, weights["itm_score.fc.bias"][1:])


def test_names_of_original_vilt(vqa):
    bare = {name.removeprefix("vilt."): tensor for name, tensor in vqa.weights.items()}
    logits, _ = vqa.run(convert.from_released(bare, vqa.config, "vqa2"))
    assert largest(logits, vqa.outputs["outputs/0/logits"]) < 1e-5


def test_the_task_must_be_clear(vqa):
    with pytest.raises(InputError, match="it has none"):
        convert.infer_task(["vilt.pooler.dense.weight"])
    with pytest.raises(InputError, match="vqa_classifier and rank_output"):
        convert.infer_task([*vqa.weights, "rank_output.weight"])


@pytest.fixture
def source(tmp_path, vqa):
    folder = tmp_path / "released"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(vqa.released_config(1)))
    return folder


def test_converting_a_folder(source, tmp_path, vqa):
    save_file(vqa.weights, source / "model.safetensors")
    answers = [f"answer {index}" for index in range(11)]
    (tmp_path / "answers.txt").write_text("\n".join(answers) + "\n")
    out = tmp_path / "out"
    result = convert.run(convert.ConvertConfig(source=str(source), out=out, answers=tmp_path / "answers.txt"))
    assert result["task"] == "vqa2"
    assert result["reduction"]["layers"] == [2, 5, 8]
    model = pumer.load(out)
    assert list(model.config.id2label.values()) == answers
    logits, pooled = vqa.run(model)
    assert largest(logits, vqa.outputs["outputs/1/logits"]) < 1e-5
    assert largest(pooled, vqa.outputs["outputs/1/pooled"]) < 1e-5
    assert model.vilt.embeddings.text_embeddings.LayerNorm.eps == 1e-12
    assert model.vilt.layernorm.eps == 1e-6
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_tokenizer_that_is_not_there_is_missed(source, tmp_path, vqa):
    save_file(vqa.weights, source / "model.safetensors")
    assert convert.run(convert.ConvertConfig(source=str(source), out=tmp_path / "out"))["tokenizer"] is None
    with pytest.raises(InputError, match="holds no tokenizer"):
        checkpoint.load_processor(tmp_path / "out")


def test_fine_tuning_starts_with_the_eps_of_the_checkpoint(source, tmp_path, vqa):
    save_file(vqa.weights, source / "model.safetensors")
    convert.run(convert.ConvertConfig(source=str(source), out=tmp_path / "out"))
    model = classifier_from(str(tmp_path / "out"), ["yes", "no"], {"vilt": ViltForQuestionAnswering})
    assert model.vilt.embeddings.text_embeddings.LayerNorm.eps == 1e-12


def test_plain_transformers_reads_what_is_written(source, tmp_path, vqa):
    save_file(vqa.weights, source / "model.safetensors")
    convert.run(convert.ConvertConfig(source=str(source), out=tmp_path / "out"))
    model = AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path / "out").eval()
    logits, _ = vqa.run(model)  # unreduced, and the text embedding's eps is not restored
    assert largest(logits, vqa.outputs["outputs/0/logits"]) < 1e-3


def test_an_unreduced_checkpoint_replaces_a_reduced_one(source, tmp_path, vqa):
    save_file(vqa.weights, source / "model.safetensors")
    config = convert.ConvertConfig(source=str(source), out=tmp_path / "out")
    convert.run(config)
    (source / "config.json").write_text(json.dumps(vqa.config))
    with pytest.raises(InputError, match=r"holds a model already; .*--force"):
        convert.run(config)
    assert convert.run(replace(config, force=True))["reduction"] is None
    assert pumer.reduction(pumer.load(tmp_path / "out")) is None


def test_a_lightning_checkpoint(source, tmp_path, vqa):
    torch.save({"state_dict": vqa.weights, "epoch": 3}, source / "best.ckpt")
    convert.run(convert.ConvertConfig(source=str(source), out=tmp_path / "out"))
    logits, _ = vqa.run(pumer.load(tmp_path / "out"))
    assert largest(logits, vqa.outputs["outputs/1/logits"]) < 1e-5


class Harmful:
    """A pickle that would call a function when read."""

    def __reduce__(self):
        return Path.touch, (Path("harm"),)


def test_weights_that_would_run_code_are_not_opened(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "callback": Harmful()}, source / "pytorch_model.bin")
    with pytest.raises(InputError, match="hold more than tensors"):
        convert.run(convert.ConvertConfig(source=str(source), out=tmp_path / "out"))
    assert not Path("harm").exists()
    assert not Path("out").exists()


def test_sources_that_cannot_be_read(source, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match="holds no weights"):
        convert.run(convert.ConvertConfig(source=str(source), out=out))
    (source / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0broken")
    with pytest.raises(InputError, match="cannot be read"):
        convert.run(convert.ConvertConfig(source=str(source), out=out))
    (source / "config.json").unlink()
    with pytest.raises(InputError, match=r"holds no config\.json"):
        convert.run(convert.ConvertConfig(source=str(source), out=out))
    with pytest.raises(InputError, match="neither a folder nor on the hub"):
        convert.run(convert.ConvertConfig(source="nobody/nothing", out=out))
    assert not out.exists()


def test_answers(tmp_path, vqa):
    path = tmp_path / "answers.json"
    write_json(path, ["yes", "no"])
    assert sources.read_answers(path) == ["yes", "no"]
    model = convert.from_released(vqa.weights, vqa.config, "vqa2")
    with pytest.raises(InputError, match="2 answers but the head has 11 outputs"):
        convert.name_answers(model, ["yes", "no"])
    with pytest.raises(InputError, match="labels are fixed"):
        convert.name_answers(model, ["a", "b", "c"], task="ve")
    (tmp_path / "answers.txt").write_bytes(b"\xef\xbb\xbfyes\r\n\r\nno, two\r\n")
    assert sources.read_answers(tmp_path / "answers.txt") == ["yes", "", "no, two"]
    (tmp_path / "answers.txt").write_bytes('["yes"]'.encode("utf-16"))
    assert sources.read_answers(tmp_path / "answers.txt") == ["yes"]
    path.write_text('["yes", "no", "yes"]')
    with pytest.raises(InputError, match="yes more than once"):
        sources.read_answers(path)
    path.write_text('{"yes": 1}')
    with pytest.raises(InputError, match="JSON list"):
        sources.read_answers(path)
    with pytest.raises(InputError, match="does not exist"):
        sources.read_answers(tmp_path / "absent.txt")
