"""Released and original METER checkpoints: their own outputs (goldens), every head, and what cannot be converted."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import pumer
from pumer import ReleasedPuMerConfig
from pumer.conversion import convert
from pumer.models.meter.modeling_meter import resize_positions
from pumer.utils.errors import InputError
from pumer.utils.files import read_json

GOLDENS = Path(__file__).parents[1] / "goldens"
D = 32


class Golden:
    """What the released code computed for one tiny model."""

    def __init__(self, name):
        with safe_open(GOLDENS / f"{name}.safetensors", "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
            described = json.loads(file.metadata()["description"])
        self.order = described.get("cross_modal_order", "sequential")
        self.config, self.schedules = described["config"], described["schedules"]
        self.weights = {n.removeprefix("weights/"): t for n, t in tensors.items() if n.startswith("weights/")}
        self.outputs = {n: t for n, t in tensors.items() if n.startswith("outputs/")}
        self.inputs = {
            "input_ids": tensors["inputs/text_ids"],
            "attention_mask": tensors["inputs/text_masks"],
            "pixel_values": tensors["inputs/pixel_values"],
        }

    def released_config(self, index):
        schedule = self.schedules[index]
        return self.config | {
            "cross_modal_order": self.order,
            "reduce_layers": schedule["reduce_layers"],
            "prune_r": schedule.get("prune_ratio"),
            "merge_r": schedule.get("merge_ratio"),
            "merge_text": schedule.get("text_merge_ratio"),
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
def golden():
    return Golden("meter-vqa2-parallel")


def largest(a, b):
    return (a - b).abs().max().item()


# ---------------------------------------------------------------- goldens


@pytest.mark.parametrize(
    ("name", "index"), [("meter-vqa2-parallel", 0), ("meter-vqa2", 0), ("meter-vqa2", 1), ("meter-vqa2", 2)]
)
def test_released_outputs_are_reproduced(name, index):
    golden = Golden(name)
    model = convert.from_released(golden.weights, golden.released_config(index), "vqa2")
    assert model.config.cross_modal_order == golden.order
    if index == 0:  # nothing is reduced, but padding is still seen as the released softmax sees it
        assert pumer.reduction(model) is None
        model = pumer.patch(model, ReleasedPuMerConfig())
    logits, pooled = golden.run(model)
    assert largest(logits, golden.outputs[f"outputs/{index}/logits"]) < 1e-5
    assert largest(pooled, golden.outputs[f"outputs/{index}/pooled"]) < 1e-5


@pytest.mark.parametrize("name", ["meter-vqa2-parallel", "meter-vqa2"])
def test_without_padding_the_plain_model_is_the_released_one(name):
    golden = Golden(name)
    model = convert.from_released(golden.weights, golden.released_config(0), "vqa2")
    logits, pooled = golden.run(model)
    whole = golden.inputs["attention_mask"].all(dim=1)
    assert whole.any()
    assert largest(logits[whole], golden.outputs["outputs/0/logits"][whole]) < 1e-5
    assert largest(pooled[whole], golden.outputs["outputs/0/pooled"][whole]) < 1e-5
    assert largest(pooled, golden.outputs["outputs/0/pooled"]) < 1e-2


def test_states_are_reproduced(golden):
    model = pumer.patch(convert.from_released(golden.weights, golden.released_config(0), "vqa2"), ReleasedPuMerConfig())
    with torch.no_grad():
        output = model.meter(**golden.inputs)
    real = golden.inputs["attention_mask"].bool()
    assert largest(output.text_last_hidden_state[real], golden.outputs["outputs/0/text"][real]) < 1e-5
    assert largest(output.image_last_hidden_state, golden.outputs["outputs/0/image"]) < 1e-5


def test_the_order_of_a_pair_matters(golden):
    config = golden.released_config(0) | {"cross_modal_order": "sequential"}
    _, pooled = golden.run(convert.from_released(golden.weights, config, "vqa2"))
    assert largest(pooled, golden.outputs["outputs/0/pooled"]) > 1e-2


def test_heads_are_always_averaged(golden):
    config = golden.config | {"reduce_layers": [0, 2], "prune_r": 0.2, "merge_r": 0.3, "sim_method": "first_head"}
    model = convert.from_released(golden.weights, config, "vqa2")
    assert pumer.reduction(model) == ReleasedPuMerConfig(layers=(0, 2), prune_ratio=0.2, merge_ratio=0.3)
    with pytest.raises(InputError, match="sim_method 'random'"):
        convert.from_released(golden.weights, config | {"sim_method": "random"}, "vqa2")


# ---------------------------------------------------------------- original names


def original(golden):
    """The golden as METER's authors would have written it, with all that they keep beside the model."""
    weights = {
        name.removeprefix("meter.").replace("vit_model.", "vit_model.visual."): tensor
        for name, tensor in golden.weights.items()
    }
    torch.manual_seed(1)
    return weights | {
        "text_transformer.embeddings.position_ids": torch.arange(42)[None],
        "text_transformer.pooler.dense.weight": torch.randn(D, D),
        "text_transformer.pooler.dense.bias": torch.randn(D),
        "vit_model.token_embedding.weight": torch.randn(50, 24),
        "vit_model.positional_embedding": torch.randn(77, 24),
        "vit_model.ln_final.weight": torch.randn(24),
        "vit_model.ln_final.bias": torch.randn(24),
        "itm_score.fc.weight": torch.randn(2, 2 * D),
        "itm_score.fc.bias": torch.randn(2),
        "mlm_score.bias": torch.randn(120),
        "mlm_score.transform.dense.weight": torch.randn(D, D),
        "mlm_score.transform.dense.bias": torch.randn(D),
        "mlm_score.transform.LayerNorm.weight": torch.randn(D),
        "mlm_score.transform.LayerNorm.bias": torch.randn(D),
        "mlm_score.decoder.weight": torch.randn(120, D),
    }


def test_original_names(golden):
    weights = original(golden)
    model = convert.from_released(weights, golden.config, convert.infer_task(weights))
    assert model.config.cross_modal_order == "parallel"
    released = convert.from_released(golden.weights, golden.released_config(0), "vqa2")
    assert released.config.to_dict() == model.config.to_dict()
    assert all(torch.equal(a, b) for a, b in zip(released.parameters(), model.parameters(), strict=True))


def test_the_last_block_of_a_whole_clip_is_left_out(golden):
    weights = original(golden)
    model = convert.from_released(weights, golden.config, "vqa2")
    block = "vit_model.visual.transformer.resblocks."
    weights |= {n.replace(f"{block}3.", f"{block}4."): t for n, t in weights.items() if n.startswith(f"{block}3.")}
    weights |= {
        "vit_model.visual.proj": torch.randn(D, 24),
        "vit_model.text_projection": torch.randn(24, 24),
        "vit_model.logit_scale": torch.tensor(1.0),
        "vit_model.transformer.resblocks.0.ln_1.weight": torch.randn(24),
    }
    whole = convert.from_released(weights, golden.config, "vqa2")
    assert whole.config.vision_config.num_hidden_layers == 4
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), model.parameters(), strict=True))


# ---------------------------------------------------------------- heads


def classifier(name, inputs, outputs):
    return {
        f"{name}.0.weight": torch.randn(2 * D, inputs),
        f"{name}.0.bias": torch.randn(2 * D),
        f"{name}.1.weight": torch.randn(2 * D),
        f"{name}.1.bias": torch.randn(2 * D),
        f"{name}.3.weight": torch.randn(outputs, 2 * D),
        f"{name}.3.bias": torch.randn(outputs),
    }


def body(golden):
    return {name: tensor for name, tensor in golden.weights.items() if name.startswith("meter.")}


@pytest.mark.parametrize("name", ["ve_classifier", "snli_classifier"])
def test_entailment(golden, name):
    weights = body(golden) | classifier(name, 2 * D, 3)
    assert convert.infer_task(weights) == "ve"
    model = convert.from_released(weights, golden.config, "ve")
    assert type(model).__name__ == "MeterForQuestionAnswering"
    assert model.config.id2label == {0: "contradiction", 1: "neutral", 2: "entailment"}
    assert torch.equal(model.classifier[3].weight, weights[f"{name}.3.weight"])


def test_two_images(golden):
    kinds = torch.randn(3, D)
    weights = body(golden) | classifier("nlvr2_classifier", 4 * D, 2) | {"meter.token_type_embeddings.weight": kinds}
    assert convert.infer_task(weights) == "nlvr2"
    model = convert.from_released(weights, golden.config, "nlvr2")
    assert model.config.id2label == {0: "False", 1: "True"}
    pixels = golden.inputs["pixel_values"]
    inputs = golden.inputs | {"pixel_values": torch.stack([pixels, pixels.flip(0)], dim=1)}
    with torch.no_grad():
        assert model(**inputs).logits.shape == (3, 2)
    assert torch.equal(model.meter.modality_embeddings.weight, kinds)


def test_retrieval(golden):
    weights = body(golden) | {"rank_output.weight": torch.randn(1, 2 * D), "rank_output.bias": torch.randn(1)}
    assert convert.infer_task(weights) == "irtr"
    weights["itm_score.fc.weight"] = torch.randn(2, 2 * D)
    model = convert.from_released(weights, golden.config, "irtr")
    assert torch.equal(model.rank_output.weight, weights["rank_output.weight"])


def test_a_ranking_starts_from_the_matching(golden):
    weights = {name: t for name, t in original(golden).items() if not name.startswith("vqa_classifier")}
    with pytest.raises(InputError, match="it has none; give --task vqa2"):
        convert.infer_task(weights)
    model = convert.from_released(weights, golden.config, "irtr")
    assert torch.equal(model.rank_output.weight, weights["itm_score.fc.weight"][1:])
    assert torch.equal(model.rank_output.bias, weights["itm_score.fc.bias"][1:])


def test_masked_words_keep_a_decoder_of_their_own(golden):
    weights = original(golden)
    model = convert.from_released(weights, golden.config, "mlm")
    assert torch.equal(model.mlm_score.decoder.weight, weights["mlm_score.decoder.weight"])
    assert torch.equal(model.mlm_score.decoder.bias, weights["mlm_score.bias"])
    with torch.no_grad():
        states = model.meter(**golden.inputs).text_last_hidden_state
        inner = nn.functional.linear(
            states, weights["mlm_score.transform.dense.weight"], weights["mlm_score.transform.dense.bias"]
        )
        norm = (weights["mlm_score.transform.LayerNorm.weight"], weights["mlm_score.transform.LayerNorm.bias"])
        inner = nn.functional.layer_norm(nn.functional.gelu(inner), (D,), *norm, eps=1e-12)
        expected = inner @ weights["mlm_score.decoder.weight"].T + weights["mlm_score.bias"]
        assert largest(model(**golden.inputs).logits, expected) < 1e-4


# ---------------------------------------------------------------- sizes


def test_another_image_size(golden):
    model = convert.from_released(golden.weights, golden.config | {"image_size": 96}, "vqa2")
    expected = resize_positions(golden.weights["meter.vit_model.positional_embedding"], 12)
    assert torch.equal(model.meter.vision_model.embeddings.position_embedding.weight, expected)
    assert (model.config.image_size, expected.shape) == (96, (145, D))
    inputs = golden.inputs | {"pixel_values": torch.randn(3, 3, 96, 96)}
    assert model(**inputs).logits.shape == (3, 11)


def test_sizes_follow_the_tensors(golden):
    config = convert.from_released(golden.weights, golden.config, "vqa2").config
    assert (config.hidden_size, config.num_attention_heads, config.num_cross_modal_pairs) == (D, 4, 6)
    assert (config.text_config.num_hidden_layers, config.text_config.vocab_size) == (3, 120)
    assert (config.vision_config.num_hidden_layers, config.patch_size, config.image_size) == (4, 8, 64)
    assert (config.text_config.layer_norm_eps, config.layer_norm_eps) == (1e-5, 1e-12)


# ---------------------------------------------------------------- what does not fit


def test_all_that_does_not_fit_is_named_at_once(golden):
    weights = dict(golden.weights)
    del weights["meter.cross_modal_image_layers.2.crossattention.self.key.bias"]
    weights["meter.vit_model.surplus"] = torch.zeros(1)
    weights["meter.vit_model.transformer.resblocks.1.attn.in_proj_weight"] = torch.zeros(90, D)
    with pytest.raises(InputError) as error:
        convert.from_released(weights, golden.config, "vqa2")
    said = str(error.value)
    assert "missing: meter.cross_modal_image_layers.2.crossattention.self.key.bias" in said
    assert "unexpected: meter.vit_model.surplus" in said
    assert "'meter.vit_model.transformer.resblocks.1.attn.in_proj_weight' gives (30, 32)" in said


@pytest.mark.parametrize("name", ["meter.vit_model.positional_embedding", "meter.cross_modal_text_transform.weight"])
def test_a_tensor_that_sizes_hang_on_is_named(golden, name):
    with pytest.raises(InputError, match=f"'{name}' is missing"):
        convert.from_released({n: t for n, t in golden.weights.items() if n != name}, golden.config, "vqa2")


def test_other_text_encoders_are_refused(golden):
    with pytest.raises(InputError, match="'bert-base-uncased' is not supported"):
        convert.from_released(golden.weights, golden.config | {"tokenizer": "bert-base-uncased"}, "vqa2")


def test_an_unknown_task_is_refused(golden):
    with pytest.raises(InputError, match="'gqa' is unknown; give one of vqa2, ve, nlvr2, irtr, mlm"):
        convert.from_released(golden.weights, golden.config, "gqa")


# ---------------------------------------------------------------- files


@pytest.fixture
def lightning(golden, tmp_path, monkeypatch):
    """A checkpoint as Lightning writes it: settings, and the classes of callbacks, beside the tensors."""
    module = ModuleType("pytorch_lightning.callbacks")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    file = tmp_path / "meter.ckpt"
    content = {
        "epoch": 9,
        "callbacks": {module.ModelCheckpoint: {"best_model_score": torch.tensor(0.7)}},
        "state_dict": original(golden),
        "hyper_parameters": {"config": golden.config | {"vit": "ViT-B/16"}},
    }
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "pytorch_lightning", ModuleType("pytorch_lightning"))
        patched.setitem(sys.modules, module.__name__, module)
        torch.save(content, file)
    return file


def test_converting_an_original_file(golden, lightning, tmp_path):
    result = convert.run(convert.ConvertConfig(source=str(lightning), out=tmp_path / "out"))
    assert (result["task"], result["reduction"]) == ("vqa2", None)
    assert "pytorch_lightning" not in sys.modules
    model = pumer.load(tmp_path / "out")
    assert model.config.cross_modal_order == "parallel"
    logits, _ = golden.run(pumer.patch(model, ReleasedPuMerConfig()))
    assert largest(logits, golden.outputs["outputs/0/logits"]) < 1e-5


def test_task_and_image_size_can_be_chosen(lightning, tmp_path):
    convert.run(convert.ConvertConfig(source=str(lightning), out=tmp_path / "out", task="irtr", image_size=96))
    model = pumer.load(tmp_path / "out")
    assert (type(model).__name__, model.config.image_size) == ("MeterForImageAndTextRetrieval", 96)
    settings = read_json(tmp_path / "out" / "preprocessor_config.json")
    assert settings["size"] == {"height": 96, "width": 96}


def test_converting_a_released_folder(tmp_path):
    golden, source = Golden("meter-vqa2"), tmp_path / "released"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(golden.released_config(1)))
    save_file(golden.weights, source / "model.safetensors")
    result = convert.run(convert.ConvertConfig(source=str(source), out=tmp_path / "out"))
    assert result["reduction"]["layers"] == [0, 2, 4, 6]
    logits, _ = golden.run(pumer.load(tmp_path / "out"))
    assert largest(logits, golden.outputs["outputs/1/logits"]) < 1e-5


def test_vilt_takes_no_image_size(tmp_path):
    with safe_open(GOLDENS / "vilt-vqa2.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.startswith("weights/")]  # noqa: SIM118
        save_file(
            {name.removeprefix("weights/"): file.get_tensor(name) for name in names}, tmp_path / "vilt.safetensors"
        )
    with pytest.raises(InputError, match="image_size is 96"):
        convert.run(
            convert.ConvertConfig(source=str(tmp_path / "vilt.safetensors"), out=tmp_path / "out", image_size=96)
        )
