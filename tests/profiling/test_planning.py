"""MACs against the closed formula, what a plan leaves alone, and law 4: what attention may cost and form."""

import pytest
import tiny
import torch
from transformers import (
    ViltConfig,
    ViltForImagesAndTextClassification,
    ViltForQuestionAnswering,
    ViltModel,
)

import pumer
from pumer import NoReduction, PuMerConfig, ToMeConfig
from pumer.backbones import Reduction
from pumer.backbones.layers import LayerCall
from pumer.profiling import named_models
from pumer.profiling.inputs import inputs_for
from pumer.profiling.macs import MacCounter
from pumer.profiling.planning import on_meta, plan
from pumer.reducers import RandomPruningConfig
from pumer.tokens import Decision, Tokens
from pumer.utils.errors import InputError

PAPER = {"prune_ratio": 0.1, "merge_ratio": 0.3, "text_merge_ratio": 0.2}
D, DEPTH, SIDE, PATCH, ANSWERS = 32, 4, 12, 8, 11


def small(cls=ViltForQuestionAnswering, **settings):
    config = ViltConfig(
        vocab_size=50,
        hidden_size=D,
        num_hidden_layers=DEPTH,
        num_attention_heads=4,
        intermediate_size=4 * D,
        image_size=SIDE * PATCH,
        patch_size=PATCH,
        num_labels=ANSWERS,
        **settings,
    )
    return cls(config).eval()


def full_size(config=None):
    """ViLT-B/32 as its authors built it, without memory for its weights."""
    with torch.device("meta"):
        model = ViltForQuestionAnswering(ViltConfig(num_labels=3129))
    return model if config is None else pumer.patch(model, config)


def layer_macs(attended, width, fed_forward=None):
    """Closed formula: four projections and two attention products, then the two feed-forward products."""
    fed_forward = attended if fed_forward is None else fed_forward
    return 4 * attended * width**2 + 2 * attended**2 * width + 8 * fed_forward * width**2


def interpolation(rows, columns, side, width):
    return rows * side * side * width + rows * columns * side * width


@pytest.mark.parametrize(
    ("config", "least", "most"),
    [
        (None, 15.93, 15.97),
        (NoReduction(), 15.93, 15.97),
        (PuMerConfig(layers=(2, 5, 8), **PAPER), 8.72, 8.75),
        (PuMerConfig(layers=(2, 4, 6, 8), **PAPER), 7.67, 7.70),
    ],
)
def test_full_size_model_as_in_the_paper(config, least, most):
    planned = plan(full_size(config))
    assert least <= planned.macs / 1e9 <= most
    assert 15.93 <= planned.macs_unreduced / 1e9 <= 15.97
    assert planned.ideal_speedup == planned.macs_unreduced / planned.macs


def test_the_closed_formula_without_reduction():
    T, V = 7, 1 + SIDE * SIDE
    planned = plan(small(), image_size=SIDE * PATCH, text_length=T)
    assert [row.macs for row in planned.layers] == [layer_macs(T + V, D)] * DEPTH
    assert planned.embedding_macs == (V - 1) * 3 * PATCH**2 * D + interpolation(SIDE, SIDE, SIDE, D)
    assert planned.head_macs == D * D + D * 2 * D + 2 * D * ANSWERS  # pooler and classifier
    assert planned.macs == planned.macs_unreduced


def test_the_closed_formula_with_reduction():
    T, V, K, Dh = 10, 145, 87, D // 4  # 145 - round(14.5) - round(43.5) image tokens stay
    model = pumer.patch(small(), PuMerConfig(layers=(1,), **PAPER))
    planned = plan(model, image_size=SIDE * PATCH, text_length=T)
    counts = [(r.text_tokens, r.image_tokens, r.text_tokens_out, r.image_tokens_out) for r in planned.layers]
    assert counts == [(T, V, T, V), (T, V, 8, K), (8, K, 8, K), (8, K, 8, K)]
    saliency = T * (T + V) * (D + 1)  # of every head, and the sum over words
    similarity = 2 * 73 * 73 * Dh  # even ranks with odd ones; words and image tokens are rows of 146
    merging = (8 + K) * (T + V) * D  # each token left is a mean over all there were
    expected = layer_macs(T + V, D, fed_forward=8 + K) + saliency + similarity + merging
    assert planned.layers[1].macs == expected
    assert planned.layers[2].macs == layer_macs(8 + K, D)


def test_the_counter_agrees_with_a_run_on_numbers():
    model = pumer.patch(small(), PuMerConfig(layers=(1, 2), **PAPER))
    planned = plan(model, image_size=SIDE * PATCH, text_length=10)
    inputs = {
        "input_ids": torch.randint(0, 50, (1, 10)),
        "pixel_values": torch.randn(1, 3, SIDE * PATCH, SIDE * PATCH),
    }
    for gradients in (torch.inference_mode(), torch.no_grad(), torch.enable_grad()):
        with gradients, MacCounter() as counter:
            model(**inputs)
        assert counter.macs.total() == planned.macs


def test_one_example_of_two_images():
    model = small(ViltForImagesAndTextClassification, num_images=2, modality_type_vocab_size=3)
    single = plan(small(ViltModel), image_size=96, text_length=5)
    double = plan(model, image_size=96, text_length=5)
    assert [row.macs for row in double.layers] == [2 * row.macs for row in single.layers]


def test_other_sizes_and_texts():
    assert plan(small()).image_size == (SIDE * PATCH, SIDE * PATCH)  # the model's own
    planned = plan(small(), image_size=(64, 120), text_length=3)
    assert planned.image_size == (64, 120)
    assert planned.layers[0].image_tokens == 1 + 8 * 15
    table = str(planned)
    assert "64 x 120 pixels, 3 words" in table
    assert len(table.splitlines()) == 3 + 1 + DEPTH + 1


def test_words_that_merge_with_patches_are_counted_with_them():
    table = str(plan(full_size(ToMeConfig(layers=(2, 5), merge_count=20)), text_length=16))
    assert "16 -> image    161 -> 141" in table and "in image    141 -> 121" in table
    assert table.endswith("both count as image tokens.")


def test_the_table_shows_what_shrinks():
    table = str(plan(full_size(PuMerConfig(layers=(2, 5, 8), **PAPER))))
    assert "ideal speed-up 1.83x" in table
    assert "145 -> 87" in table
    assert "32 -> 26" in table


def test_the_model_is_left_alone():
    model = small()
    before = {name: (tensor, tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    classes = [type(module) for module in model.modules()]
    plan(model, image_size=96)
    assert pumer.reduction(model) is None
    assert [type(module) for module in model.modules()] == classes
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert tensor is before[name][0]
        assert torch.equal(tensor, before[name][1])
    config = PuMerConfig(layers=(1,), max_image_tokens=150, **PAPER)
    plan(pumer.patch(model.train(), config), image_size=96)
    assert pumer.reduction(model) == config
    assert model.training


def test_a_disabled_model_is_planned_as_configured():
    model = pumer.patch(small(), PuMerConfig(layers=(1,), **PAPER))
    with pumer.disabled(model):
        assert plan(model, image_size=96).ideal_speedup > 1


def test_inputs_that_do_not_fit():
    with pytest.raises(InputError, match="text_length is 41; the model takes 1 to 40"):
        plan(small(), text_length=41)
    with pytest.raises(InputError, match="at least one patch"):
        plan(small(), image_size=4)
    bounded = pumer.patch(small(), PuMerConfig(layers=(1,), max_image_tokens=100, **PAPER))
    with pytest.raises(InputError, match="144 patches but max_image_tokens is 100"):
        plan(bounded, image_size=96)
    with pytest.raises(InputError, match="cannot be patched"):
        plan(torch.nn.Linear(2, 2))


def test_saliency_costs_at_most_one_percent_of_its_layer():
    """Law 4, at the size of the paper."""
    tokens, text, heads, width = 177, 32, 12, 64
    query = torch.empty(1, heads, tokens, width, device="meta")
    size = torch.ones(1, tokens, device="meta")
    stream = Tokens((torch.empty(1, tokens, heads * width, device="meta"),), size, (None,), text, size.long)

    class Reducer:
        needs = frozenset({"text_rows"})

        def decide(self, cues):
            self.cues, self.rows = cues, cues.text_rows()
            return Decision(None, torch.empty(1, 2), (text, tokens - text))

    reduction, reducer = Reduction(NoReduction()), Reducer()
    reduction.reducers = {("fusion", 0): reducer}
    with MacCounter() as saliency:
        call = LayerCall(reduction, ("fusion", 0), stream)
        call.collect(query, query)
        call.reduce(stream.states)
    assert reducer.rows.shape == (1, heads, text, tokens - text) and reducer.cues.cls_query is None
    assert 0 < saliency.macs.total() <= 0.01 * layer_macs(tokens, heads * width)


def test_saliency_costs_at_most_one_percent_of_a_pair_of_meter():
    """The text layer that prunes has the words' attention to the image for itself; its pair has another layer."""
    with torch.device("meta"):
        model = named_models.skeleton("preset:meter-b16")
    pruned = {"layers": (0,), "prune_ratio": 0.2}
    by_text, by_chance = (
        [row.macs for row in plan(pumer.patch(model, config)).layers if row.stack == "fusion"]
        for config in (PuMerConfig(**pruned), RandomPruningConfig(**pruned))
    )
    saliency = by_text[0] - by_chance[0]
    assert 0 < saliency <= 0.015 * by_text[0]
    assert saliency <= 0.01 * (by_text[0] + by_text[1])


def test_a_reducer_without_saliency_pays_nothing():
    merge_only = pumer.patch(small(), PuMerConfig(layers=(1,), merge_ratio=0.3))
    T, V, M = 10, 145, 44
    row = plan(merge_only, image_size=96, text_length=T).layers[1]
    products = 73 * 73 * (D // 4) + (T + V - M) * (T + V) * D
    assert row.macs == layer_macs(T + V, D, fed_forward=T + V - M) + products


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_no_square_matrix_of_tokens_is_formed(mode):
    """Law 4: on the CPU, where attention is one fused operator."""
    model = pumer.patch(small(), PuMerConfig(layers=(1, 2), **PAPER))
    inputs = {
        "input_ids": torch.randint(0, 50, (2, 10)),
        "pixel_values": torch.randn(2, 3, 96, 96),
    }
    lengths = {10 + 145, 8 + 87, 6 + 52}  # before, between and after the reductions
    assert [(r.text_tokens + r.image_tokens) for r in plan(model, 96, 10).layers] == [155, 155, 95, 58]
    with torch.set_grad_enabled(mode == "training"), tiny.Shapes() as shapes:
        loss = model.train(mode == "training")(**inputs).logits.sum()
        if mode == "training":
            loss.backward()
    square = {shape for shape in shapes.seen if sum(size in lengths for size in shape) > 1}
    members = {(2, 95, 155), (2, 58, 95)}  # of a decision: which tokens before it each token after it holds
    if mode == "training":
        members |= {(B, N, K) for B, K, N in members}
    assert square <= members, "no product of queries and keys, in no head"
    with tiny.Shapes() as shapes:  # transformers' own forward does form it: the test can see one
        pumer.unpatch(model)(**inputs)
    assert any(shape[-2:] == (155, 155) for shape in shapes.seen)


def test_meta_copies_take_no_memory():
    twin = on_meta(small())
    assert {tensor.device.type for tensor in [*twin.parameters(), *twin.buffers()]} == {"meta"}
    assert twin(**inputs_for(twin, (96, 96), 5, batch=3)).logits.shape == (3, ANSWERS)


@pytest.mark.parametrize("size", [0, -8, 7, 320_000, (96, 10**9)])
def test_sizes_that_no_image_has_are_refused_at_once(size):
    with pytest.raises(InputError, match="image_size"):
        pumer.plan(small(), image_size=size)
