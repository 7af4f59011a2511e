"""METER's adapter against a loop over tokens, and what is special about it: pairs, two streams, kept encodings."""

import pytest
import tiny
import torch
from by_hand import decide_by_hand, merge_by_hand
from hypothesis import given
from hypothesis import strategies as st
from tiny import GRIDS, TINY, answer, max_examples
from torch.utils._python_dispatch import TorchDispatchMode

import pumer
from pumer import NoReduction, PuMerConfig, Step
from pumer.utils.errors import InputError

METER = TINY["meter"]
STRONG = METER.fit(PuMerConfig(layers=(0, 1, 2), prune_ratio=0.2, merge_ratio=0.3, text_merge_ratio=0.3))
VISION = PuMerConfig(
    schedule=(
        Step(stack="vision", layer=1, merge_ratio=0.3),
        Step(stack="vision", layer=2, merge_ratio=0.2),
        Step(layer=2, prune_ratio=0.2, merge_ratio=0.2, text_merge_ratio=0.3),
    )
)
CONFIGS = pytest.mark.parametrize("config", [NoReduction(), STRONG, VISION], ids=["none", "pumer", "vision"])


# ---------------------------------------------------------------- the reduced model as a whole


def attend(x, context, query, key, value, size):
    """What the tokens read, ``(H, n, Dh)`` keys, and full attention probabilities; ``size`` weighs the columns."""
    q, k, v = (
        linear(source).view(len(source), 4, 8).transpose(0, 1)
        for linear, source in ((query, x), (key, context), (value, context))
    )
    probabilities = (q @ k.transpose(1, 2) / 8**0.5 + size.log()).softmax(dim=-1)
    return (probabilities @ v).transpose(0, 1).reshape(len(x), 32), k, probabilities


def averaged(x, size, groups):
    return torch.stack([sum(x[i] * size[i] for i in group) / size[group].sum() for group in groups])


def seen_by_hand(vision, pixels, steps):
    """The vision encoder on one image: states and sizes."""
    x = vision.pre_layrnorm(vision.embeddings(pixels[None]))[0]
    size = torch.ones(len(x), dtype=x.dtype)
    for index, layer in enumerate(vision.encoder.layers):
        part = layer.self_attn
        normed = layer.layer_norm1(x)
        context, keys, _ = attend(normed, normed, part.q_proj, part.k_proj, part.v_proj, size)
        x = x + part.out_proj(context)
        if index in steps:
            count = min(round(steps[index].merge_ratio * len(x)), (len(x) - 1) // 2)
            groups = merge_by_hand(keys.mean(dim=0), list(range(len(x))), count)
            x, size = averaged(x, size, groups), torch.stack([size[group].sum() for group in groups])
        x = x + layer.mlp(layer.layer_norm2(x))
    return vision.post_layernorm(x), size


def reduced_by_hand(model, sample, config):
    """Logits of one example: METER's modules, full attention matrices, loops over tokens. No padding, float64."""
    meter = model.meter
    steps = {(step.stack, step.layer): step for step in config.schedule}
    vision_steps = {layer: step for (stack, layer), step in steps.items() if stack == "vision"}
    words, kinds = meter.encode_text(sample.words[None]).states[0], meter.modality_embeddings.weight
    patches, sizes = seen_by_hand(meter.vision_model, sample.images[0].double(), vision_steps)
    streams = {"text": words + kinds[0], "image": meter.image_projection(patches) + kinds[1]}
    sizes = {"text": torch.ones(len(words), dtype=torch.float64), "image": sizes}

    def attention(layer, x, size, context, context_size):
        own, cross = layer.attention, layer.cross_attention
        read, own_keys, _ = attend(x, x, own.query, own.key, own.value, size)
        x = own.layer_norm(own.dense(read) + x)
        read, keys, rows = attend(x, context, cross.query, cross.key, cross.value, context_size)
        return cross.layer_norm(cross.dense(read) + x), own_keys, keys, rows

    def feed_forward(layer, x):
        return layer.layer_norm(layer.output(layer.act(layer.intermediate(x))) + x)

    for pair, (text_layer, image_layer) in enumerate(
        zip(meter.encoder.text_layers, meter.encoder.image_layers, strict=True)
    ):
        entered, entered_size = streams["text"], sizes["text"]
        text, text_keys, image_keys, rows = attention(
            text_layer, entered, entered_size, streams["image"], sizes["image"]
        )
        if step := steps.get(("fusion", 2 * pair)):
            groups = dict(zip(streams, decide_by_hand(step, text_keys, image_keys, rows), strict=True))
            text = averaged(text, sizes["text"], groups["text"])
            streams["image"] = averaged(streams["image"], sizes["image"], groups["image"])
            sizes = {name: torch.stack([sizes[name][group].sum() for group in groups[name]]) for name in sizes}
        streams["text"] = feed_forward(text_layer, text)
        seen = (entered, entered_size)
        if meter.config.cross_modal_order == "sequential":
            seen = (streams["text"], sizes["text"])
        image, *_ = attention(image_layer, streams["image"], sizes["image"], *seen)
        streams["image"] = feed_forward(image_layer, image)
    pooled = [meter.text_pooler(streams["text"][None]), meter.image_pooler(streams["image"][None])]
    return model.classifier(torch.cat(pooled, dim=1))[0]


RATIO = st.one_of(st.just(0.0), st.floats(0.05, 0.9))
FUSION = st.builds(Step, layer=st.sampled_from((0, 2, 4)), prune_ratio=RATIO, merge_ratio=RATIO, text_merge_ratio=RATIO)
SEEING = st.builds(Step, stack=st.just("vision"), layer=st.integers(0, 2), merge_ratio=RATIO)


@pytest.mark.parametrize("order", ["parallel", "sequential"])
@max_examples(15)
@given(st.lists(FUSION, min_size=1), st.lists(SEEING), st.lists(st.integers(1, 9), min_size=1, max_size=3))
def test_reduced_model_against_a_loop(order, fusion, vision, words):
    config = PuMerConfig(schedule=tuple({(s.stack, s.layer): s for s in (*fusion, *vision)}.values()))
    model = METER.build(cross_modal_order=order).double()
    samples = [METER.sample(i, count, 0, 0) for i, count in enumerate(words)]
    with torch.no_grad():
        expected = torch.stack([reduced_by_hand(model, sample, config) for sample in samples])
        batched = answer(pumer.patch(model, config), tiny.to(METER.collate(samples), torch.float64))
    torch.testing.assert_close(batched, expected, atol=2e-6, rtol=0)  # sizes and shares are float32


# ---------------------------------------------------------------- encodings


@CONFIGS
def test_kept_encodings_give_the_answer_of_a_whole_forward(config):
    model, inputs = pumer.patch(METER.build(), config), METER.batch(GRIDS)
    images, texts = model.encode_image(inputs["pixel_values"]), model.encode_text(inputs["input_ids"][:1])
    each = [model(encoded_text=texts, encoded_image=images.select([i])).logits for i in range(3)]
    same = {**inputs, "input_ids": inputs["input_ids"][:1].expand(3, -1)}
    del same["attention_mask"]
    torch.testing.assert_close(torch.cat(each), answer(model, same), atol=1e-5, rtol=0)


def test_a_trace_of_a_kept_encoding_goes_back_to_the_patches():
    model, inputs = pumer.patch(METER.build(), VISION), METER.batch(GRIDS)
    with pumer.trace(model) as whole:
        model(**inputs)
    image = model.encode_image(inputs["pixel_values"]).select([2, 0])
    text = model.encode_text(inputs["input_ids"], inputs["attention_mask"]).select([2, 0])
    with pumer.trace(model) as parts:
        model(encoded_text=text, encoded_image=image)
    (first,), (second,) = whole.forwards, parts.forwards
    assert second.places == (("vision", 1), ("vision", 2), ("fusion", 2))
    for name in ("owner", "pruned_at", "merged_at", "merged_into", "size", "mask", "patch_cell"):
        assert torch.equal(getattr(first, name)[[2, 0]], getattr(second, name)), name


def test_merged_in_the_vision_encoder_alone():
    """Sizes weigh the cross-modal attention although nothing is reduced there; nothing is pruned."""
    config = PuMerConfig(schedule=(Step(stack="vision", layer=0, merge_ratio=0.4),))
    model, inputs = pumer.patch(METER.build(), config), METER.batch(GRIDS)
    image = model.encode_image(inputs["pixel_values"])
    assert image.states.shape[1] == 37 - 15 and torch.equal(image.size.sum(dim=1), torch.full((3,), 37.0))
    with pumer.trace(model) as trace:
        expected = answer(model, inputs)
    assert (trace.forwards[0].pruned_at < 0).all() and (trace.forwards[0].merged_at == 0).any()
    config = PuMerConfig(schedule=config.schedule, proportional_attention=False)
    assert (answer(pumer.patch(model, config), inputs) - expected).abs().max() > 1e-4


def test_disabled_reduces_nowhere():
    model, inputs = METER.build(), METER.batch(GRIDS)
    expected = answer(model, inputs)
    with pumer.disabled(pumer.patch(model, VISION)):
        assert model.encode_image(inputs["pixel_values"]).size is None
        torch.testing.assert_close(answer(model, inputs), expected, atol=1e-5, rtol=0)


# ---------------------------------------------------------------- outputs and errors


@pytest.mark.parametrize("config", [NoReduction(), STRONG, VISION], ids=["none", "pumer", "vision"])
def test_words_are_back_at_their_positions(config):
    model, inputs = pumer.patch(METER.build("MeterModel"), config), METER.batch(GRIDS)
    output = model(**inputs, output_hidden_states=True)
    assert output.text_last_hidden_state.shape == (3, 10, 32)
    assert len(output.text_hidden_states) == len(output.image_hidden_states) == 4
    assert output.image_last_hidden_state.shape == output.image_hidden_states[-1].shape


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PuMerConfig(layers=(1,), prune_ratio=0.1), "layer 1 of meter cannot reduce.*pair 0.*give 0"),
        (PuMerConfig(layers=(6,), prune_ratio=0.1), "fusion layer 6 does not exist.*0 to 5"),
        (PuMerConfig(schedule=(Step(stack="vision", layer=3, merge_ratio=0.1),)), "vision layer 3 does not exist"),
    ],
)
def test_layers_that_cannot_reduce_are_refused(config, message):
    with pytest.raises(InputError, match=message):
        pumer.patch(METER.build(), config)


def test_vilt_has_no_vision_encoder():
    with pytest.raises(InputError, match="vilt has no vision layers"):
        pumer.patch(TINY["vilt"].build(), VISION)


def test_a_buffer_that_loses_patches_is_refused():
    model = pumer.patch(METER.build(), PuMerConfig(layers=(0,), prune_ratio=0.1, max_image_tokens=30))
    with pytest.raises(InputError, match="36 patches but max_image_tokens is 30"):
        model(**METER.batch(GRIDS))


@CONFIGS
def test_no_attention_matrix_is_formed_outside_the_kernel(config):
    """Law 4: nothing of size (image tokens, image tokens) comes out of anything that is computed."""
    model, inputs = pumer.patch(METER.build(), config), METER.batch(GRIDS)
    lengths, seen = set(range(12, 38)), []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple) else (out,):
                if (
                    isinstance(x, torch.Tensor)
                    and x.ndim == 4
                    and x.shape[-1] == x.shape[-2]
                    and x.shape[-1] in lengths
                ):
                    seen.append((func, x.shape))
            return out

    with torch.no_grad():
        with Watch():
            answer(model, inputs)
        assert not seen, seen
        pumer.unpatch(model).set_attn_implementation("eager")
        with Watch():
            answer(model, inputs)
    assert seen, "eager attention forms it: otherwise this test would show nothing"


# ---------------------------------------------------------------- precision and training


@CONFIGS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_agrees_roughly(dtype, config):
    model, inputs = pumer.patch(METER.build(), config), METER.batch(GRIDS)
    with torch.no_grad():
        expected = answer(model, inputs)
        half = answer(model.to(dtype), tiny.to(inputs, dtype)).float()
    assert half.isfinite().all() and (half - expected).abs().mean() < 0.3


@CONFIGS
def test_autocast(config):
    model, inputs = pumer.patch(METER.build(), config), METER.batch(GRIDS)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert answer(model, inputs).isfinite().all()


@pytest.mark.parametrize("head", METER.heads)
def test_gradients_reach_every_parameter(head):
    model, inputs = pumer.patch(METER.build(head), VISION).train(), METER.batch(GRIDS, head)
    answer(model, inputs).pow(2).sum().backward()
    idle = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    unread = {name for name in idle if "pooler" in name or "image_layers.2" in name}  # a head on words reads no image
    assert idle == (unread if head in METER.per_word else set())


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_loss_and_gradients(reentrant):
    gradients = []
    for checkpointed in (False, True):
        model = pumer.patch(METER.build(), VISION).train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        answer(model, METER.batch(GRIDS)).pow(2).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, expected in gradients[0].items():
        if expected is None and gradients[1][name] is None:
            continue
        torch.testing.assert_close(gradients[1][name], expected, atol=1e-5, rtol=1e-4, msg=name)
