"""METER against an independent implementation, its encodings, its inputs, its precision, its memory."""

import copy

import pytest
import torch
from tiny import TINY
from torch import nn
from transformers import AutoModel, BridgeTowerConfig, CLIPVisionModel
from transformers.models.bridgetower.modeling_bridgetower import BridgeTowerBertCrossLayer

import pumer
from pumer.models.meter import MeterConfig, MeterModel
from pumer.models.meter.modeling_meter import resize_positions
from pumer.utils.errors import InputError

GRIDS = [(10, 6, 6), (6, 6, 6), (3, 6, 6)]


def build(**settings):
    return TINY["meter"].build("MeterModel", **settings)


@pytest.fixture
def inputs():
    return TINY["meter"].batch(GRIDS)


@pytest.fixture
def model():
    return build()


def largest(a, b):
    return (a - b).abs().max().item()


# ---------------------------------------------------------------- the architecture


def bridge_layer(layer, config):
    """The same layer as transformers' BridgeTower has it."""
    other = BridgeTowerBertCrossLayer(
        BridgeTowerConfig(
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            layer_norm_eps=config.layer_norm_eps,
            text_config={
                "hidden_size": config.hidden_size,
                "num_attention_heads": config.num_attention_heads,
                "intermediate_size": config.intermediate_size,
                "layer_norm_eps": config.layer_norm_eps,
                "attn_implementation": "eager",
            },
        ).text_config
    ).eval()
    parts = {"intermediate": "intermediate.dense", "output": "output.dense", "layer_norm": "output.LayerNorm"}
    for ours, theirs in (("attention", "attention"), ("cross_attention", "crossattention")):
        parts |= {f"{ours}.{name}": f"{theirs}.self.{name}" for name in ("query", "key", "value")}
        parts |= {f"{ours}.dense": f"{theirs}.output.dense", f"{ours}.layer_norm": f"{theirs}.output.LayerNorm"}
    weights = {name.rpartition("."): tensor for name, tensor in layer.state_dict().items()}
    other.load_state_dict({f"{parts[place]}.{kind}": tensor for (place, _, kind), tensor in weights.items()})
    other.attention.self.is_causal = False
    return other


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_cross_modal_layer_is_that_of_bridgetower(model, attention):
    model.set_attn_implementation(attention)
    layer = model.encoder.text_layers[0]
    states, context = torch.randn(2, 5, 32), torch.randn(2, 7, 32)
    mask, context_mask = torch.zeros(2, 1, 1, 5), torch.zeros(2, 1, 1, 7)
    mask[0, ..., 3:] = context_mask[1, ..., 2:] = torch.finfo(torch.float32).min
    with torch.no_grad():
        expected = bridge_layer(layer, model.config)(states, context, mask, context_mask)[0]
        assert largest(layer(states, context, mask, context_mask), expected) < 1e-5


@pytest.mark.parametrize("order", ["parallel", "sequential"])
def test_the_order_of_a_pair(inputs, order):
    model = build(layers=2, cross_modal_order=order)
    text, image = model.encode_text(inputs["input_ids"][:1, :10]), model.encode_image(inputs["pixel_values"][:1])
    kinds = model.modality_embeddings.weight
    x, y = text.states + kinds[0], image.states + kinds[1]
    states = [(x, y)]
    for text_layer, image_layer in zip(model.encoder.text_layers, model.encoder.image_layers, strict=True):
        after = text_layer(x, y)
        y = image_layer(y, x if order == "parallel" else after)
        x = after
        states.append((x, y))
    output = model.fuse(text, image, output_hidden_states=True)
    assert len(output.text_hidden_states) == len(output.image_hidden_states) == 3
    for (text_states, image_states), mine, yours in zip(
        states, output.text_hidden_states, output.image_hidden_states, strict=True
    ):
        assert largest(text_states, mine) < 1e-5
        assert largest(image_states, yours) < 1e-5
    pooled = torch.cat([model.text_pooler(x), model.image_pooler(y)], dim=-1)
    assert largest(output.pooler_output, pooled) < 1e-5


def test_every_image_token_is_normalised(model, inputs):
    vision: CLIPVisionModel = model.vision_model
    with torch.no_grad():
        states = vision(pixel_values=inputs["pixel_values"]).last_hidden_state
        expected = model.image_projection(vision.post_layernorm(states))
        assert torch.equal(model.encode_image(inputs["pixel_values"]).states, expected)


def test_random_weights_start_as_configured():
    model = MeterModel(MeterConfig(**TINY_SHAPE, initializer_range=0.5))
    assert model.encoder.text_layers[0].output.weight.std().item() == pytest.approx(0.5, rel=0.1)
    assert model.modality_embeddings.weight.std().item() == pytest.approx(0.5, rel=0.3)
    assert not model.encoder.text_layers[0].output.bias.any()
    assert torch.equal(model.encoder.image_layers[0].layer_norm.weight, torch.ones(32))
    assert model.text_model.encoder.layer[0].output.dense.weight.std().item() == pytest.approx(0.02, rel=0.1)


TINY_SHAPE = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_cross_modal_pairs": 1,
    "text_config": {"hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 100},
    "vision_config": {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1, "image_size": 48},
}


def test_the_encoders_may_be_wider():
    model = MeterModel(MeterConfig(**TINY_SHAPE)).eval()
    output = model(torch.randint(5, 100, (2, 4)), pixel_values=torch.randn(2, 3, 48, 48))
    assert output.text_last_hidden_state.shape == (2, 4, 32)
    assert output.image_last_hidden_state.shape == (2, 1 + 9, 32)
    assert output.pooler_output.shape == (2, 64)


def test_padding_changes_nothing(model, inputs):
    with torch.no_grad():
        together = model(**inputs).pooler_output
        for i, (words, _, _) in enumerate(GRIDS):
            alone = model(inputs["input_ids"][i : i + 1, :words], pixel_values=inputs["pixel_values"][i : i + 1])
            assert largest(together[i], alone.pooler_output[0]) < 1e-5


def test_embedded_words_do_as_well(model, inputs):
    embedded = model.get_input_embeddings()(inputs["input_ids"])
    with torch.no_grad():
        given = model(
            inputs_embeds=embedded, attention_mask=inputs["attention_mask"], pixel_values=inputs["pixel_values"]
        )
        assert largest(given.pooler_output, model(**inputs).pooler_output) < 1e-5


# ---------------------------------------------------------------- encodings


def test_encodings_may_be_kept(model, inputs):
    text = model.encode_text(inputs["input_ids"], inputs["attention_mask"])
    image = model.encode_image(inputs["pixel_values"])
    assert (text.grid, image.grid) == (None, (6, 6))
    with torch.no_grad():
        expected = model(**inputs).pooler_output
        assert torch.equal(model(encoded_text=text, encoded_image=image).pooler_output, expected)
        assert torch.equal(model(**inputs | {"pixel_values": None}, encoded_image=image).pooler_output, expected)
        back = model.fuse(text.select([2, 0]), image.select(torch.tensor([2, 0]))).pooler_output
    assert largest(back, expected[[2, 0]]) < 1e-6


def test_the_second_image_has_a_kind_of_its_own(model, inputs):
    with torch.no_grad():
        first, second = (model(**inputs, image_token_type_idx=kind).pooler_output for kind in (1, 2))
        model.modality_embeddings.weight[2] = model.modality_embeddings.weight[1]
        assert largest(first, second) > 1e-3
        assert torch.equal(model(**inputs, image_token_type_idx=2).pooler_output, first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": None}, "exactly one of input_ids, inputs_embeds and encoded_text"),
        ({"inputs_embeds": torch.zeros(3, 10, 32)}, "exactly one of input_ids, inputs_embeds and encoded_text"),
        ({"pixel_values": None}, "exactly one of pixel_values and encoded_image"),
        ({"pixel_values": torch.zeros(2, 3, 48, 48)}, "3 texts but 2 images"),
        ({"pixel_values": torch.zeros(3, 3, 48, 40)}, r"\(3, 3, 48, 40\) but the model reads .*48, 48.*image_size"),
        ({"image_token_type_idx": 3}, "image_token_type_idx 3 has no embedding; allowed: 1 to 2"),
        ({"output_attentions": True}, "output_attentions"),
    ],
)
def test_inputs_that_are_refused(model, inputs, change, message):
    with pytest.raises(InputError, match=message):
        model(**inputs | change)


def test_encodings_beside_what_they_stand_for_are_refused(model, inputs):
    text, image = model.encode_text(inputs["input_ids"]), model.encode_image(inputs["pixel_values"])
    for given, message in (
        (inputs | {"encoded_text": text}, "exactly one of input_ids"),
        (inputs | {"input_ids": None, "encoded_text": text}, "no attention_mask beside encoded_text"),
        (inputs | {"encoded_image": image}, "exactly one of pixel_values"),
    ):
        with pytest.raises(InputError, match=message):
            model(**given)


def test_merged_images_are_refused(model, inputs):
    steps = pumer.PuMerConfig(schedule=(pumer.Step(stack="vision", layer=1, merge_ratio=0.3),))
    with pumer.patched(model, steps):
        image = model.encode_image(inputs["pixel_values"])
    with pytest.raises(InputError, match="merged by a patched model"):
        model.fuse(model.encode_text(inputs["input_ids"]), image)


def test_a_tuple_instead_of_an_output(model, inputs):
    output = model(**inputs)
    assert all(torch.equal(a, b) for a, b in zip(model(**inputs, return_dict=False), output.to_tuple(), strict=True))


# ---------------------------------------------------------------- precision, memory, compilers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(model, inputs, dtype):
    with torch.no_grad():
        exact = model(**inputs).pooler_output
        half = model.to(dtype)(**inputs).pooler_output
    assert half.dtype == dtype
    assert largest(half.float(), exact) < 0.1


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")  # the old name fits every version
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(model, inputs, reentrant):
    def gradients(model):
        model.train()(**inputs).pooler_output.square().sum().backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    expected = gradients(copy.deepcopy(model))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
        inputs["pixel_values"].requires_grad_()
    counted = Counter(model.encoder.text_layers[0].attention)
    found = gradients(model)
    assert counted.calls == 2  # the second to recompute
    assert all(largest(found[name], gradient) < 1e-5 for name, gradient in expected.items())


class Counter:
    """Counts the forwards of a module."""

    def __init__(self, module: nn.Module):
        self.calls = 0
        module.register_forward_hook(self)

    def __call__(self, *args):
        self.calls += 1


def test_export(model, inputs):
    with torch.no_grad():
        exported = torch.export.export(model, (), dict(inputs)).module()
        assert largest(exported(**inputs).pooler_output, model(**inputs).pooler_output) < 1e-5


# ---------------------------------------------------------------- saving and loading


def test_saved_and_loaded(model, inputs, tmp_path):
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).eval()
    assert type(again) is MeterModel
    with torch.no_grad():
        assert torch.equal(again(**inputs).pooler_output, model(**inputs).pooler_output)


@pytest.mark.parametrize("way", ["setting", "config", "auto"])
def test_another_image_size_interpolates_the_positions(model, tmp_path, way):
    model.save_pretrained(tmp_path)
    if way == "config":
        config = MeterConfig.from_pretrained(tmp_path)
        config.vision_config.image_size = 64
        loaded, info = MeterModel.from_pretrained(tmp_path, config=config, output_loading_info=True)
        assert not info["missing_keys"]
    else:
        cls = AutoModel if way == "auto" else MeterModel
        loaded = cls.from_pretrained(tmp_path, vision_config={"image_size": 64})
    before = model.vision_model.embeddings.position_embedding.weight
    after = loaded.vision_model.embeddings.position_embedding.weight
    assert (after.shape, loaded.config.image_size) == ((1 + 8 * 8, 32), 64)
    assert torch.equal(before[0], after[0])
    grid = before[1:].T.reshape(1, 32, 6, 6)
    grid = nn.functional.interpolate(grid, size=(8, 8), mode="bicubic", align_corners=False)
    assert largest(after[1:], grid[0].flatten(1).T) < 1e-6
    assert after.requires_grad
    output = loaded.eval()(torch.randint(5, 100, (1, 4)), pixel_values=torch.randn(1, 3, 64, 64))
    assert output.image_last_hidden_state.shape == (1, 65, 32)
    loaded.save_pretrained(tmp_path / "again")
    assert MeterModel.from_pretrained(tmp_path / "again").config.image_size == 64


def test_an_image_size_that_patches_do_not_fill_is_refused(model):
    with pytest.raises(InputError, match="image_size 50 is not a multiple of the patch size 8"):
        model.set_image_size(50)


def test_positions_at_the_same_size_are_the_same_table():
    table = torch.randn(1 + 9, 4)
    assert resize_positions(table, 3) is table


def test_of_resized_positions_cls_stays_and_the_grid_keeps_its_orientation():
    row, column = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
    table = torch.cat([torch.tensor([[7.0, -7.0]]), torch.stack([row, column], dim=2).flatten(0, 1)])
    resized = resize_positions(table.to(torch.bfloat16), 12)
    assert (resized.dtype, resized.shape) == (torch.bfloat16, (145, 2))
    assert resized[0].tolist() == [7, -7]
    grid = resized[1:].float().view(12, 12, 2)
    assert (grid[1:, :, 0] - grid[:-1, :, 0] > -0.1).all()  # rows count downwards, columns to the right
    assert (grid[:, 1:, 1] - grid[:, :-1, 1] > -0.1).all()
    assert grid[3:9, 0, 0].tolist() == grid[3:9, 11, 0].tolist()
