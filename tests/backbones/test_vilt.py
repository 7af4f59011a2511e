"""The ViLT adapter against transformers' own ViLT, with another patch order the only difference allowed."""

from functools import partial

import pytest
import tiny
import torch
from by_hand import decide_by_hand
from hypothesis import given
from hypothesis import strategies as st
from tiny import GRIDS, PATCH, TINY, answer, max_examples
from torch.nn.functional import interpolate
from torch.utils._python_dispatch import TorchDispatchMode

import pumer
import pumer.reducers.decisions as decisions
from pumer import InputError, NoReduction, PuMerConfig, Step
from pumer.backbones.vilt import interpolate_positions

VILT = TINY["vilt"]
CLOSE = partial(torch.testing.assert_close, atol=1e-5, rtol=0)
STRONG = PuMerConfig(layers=(0, 2), prune_ratio=0.2, merge_ratio=0.3, text_merge_ratio=0.3)
SHALLOW = PuMerConfig(layers=(0,), prune_ratio=0.2, merge_ratio=0.3, text_merge_ratio=0.3)

each_head = pytest.mark.parametrize("head", VILT.heads)


@pytest.fixture
def no_random_patches(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("torch.multinomial draws patches at random")

    monkeypatch.setattr(torch, "multinomial", refuse)


@each_head
@pytest.mark.parametrize("masked", [True, False])
def test_fast_path_equals_transformers(head, masked):
    model, inputs = VILT.build(head), VILT.batch(GRIDS, head)
    if not masked:
        del inputs["attention_mask"], inputs["pixel_mask"]
    plain = answer(model, inputs)
    CLOSE(answer(pumer.patch(model, NoReduction()), inputs), plain)


@max_examples(15)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 8), st.integers(1, 8)), min_size=1, max_size=4),
    st.integers(0, 1000),
)
def test_fast_path_equals_transformers_for_any_image_size(grids, seed):
    model, inputs = VILT.build(), VILT.batch(grids, seed=seed)
    plain = answer(model, inputs)
    CLOSE(answer(pumer.patch(model, NoReduction()), inputs), plain)


@pytest.mark.parametrize("size", [(50, 61), (47, 64), (8, 15)])
def test_images_that_are_no_multiple_of_the_patch(size):
    model = VILT.build()
    inputs = {
        "input_ids": torch.tensor([[5, 6, 7], [8, 9, 10]]),
        "pixel_values": torch.randn(2, 3, *size),
        "pixel_mask": torch.ones(2, *size, dtype=torch.int64),
    }
    inputs["pixel_mask"][1, :, size[1] * 2 // 3 :] = 0
    plain = answer(model, inputs)
    CLOSE(answer(pumer.patch(model, NoReduction()), inputs), plain)


@max_examples(25)
@given(st.lists(st.tuples(st.just(2), st.integers(1, 8), st.integers(1, 8)), min_size=1, max_size=4))
def test_patches_stand_in_raster_order_with_transformers_embedding(grids):
    """Position by position: what transformers embeds at a cell, we embed at that cell's raster rank."""
    model, inputs = VILT.build("ViltModel"), VILT.batch(grids)
    theirs, their_mask, (cells, _) = model.embeddings.visual_embed(
        inputs["pixel_values"], inputs["pixel_mask"], max_image_length=-1
    )
    pumer.patch(model, NoReduction())
    states, mask, cell = model.embeddings.image_tokens(inputs["pixel_values"], inputs["pixel_mask"], None)
    CLOSE(states[:, 0], theirs[:, 0])
    assert mask[:, 0].all() and (cell[:, 0] == -1).all()
    for b, (_, rows, columns) in enumerate(grids):
        assert mask[b].sum() == rows * columns + 1
        ours = [tuple(pair) for pair in cell[b, 1 : 1 + rows * columns].tolist()]
        assert ours == [(y, x) for y in range(rows) for x in range(columns)]
        assert (cell[b, 1 + rows * columns :] == -1).all()
        by_cell = {tuple(cells[b, i].tolist()): theirs[b, i + 1] for i in range(cells.shape[1]) if their_mask[b, i + 1]}
        assert sorted(by_cell) == sorted(ours)
        for rank, place in enumerate(ours):
            CLOSE(states[b, rank + 1], by_cell[place])


@given(st.integers(1, 9), st.lists(st.tuples(st.integers(1, 11), st.integers(1, 11)), min_size=1, max_size=3))
def test_positions_against_torch_interpolate(side, sizes):
    table = torch.randn(side * side, 5)
    heights, widths = (torch.tensor(axis) for axis in zip(*sizes, strict=True))
    rows, columns, corner = int(heights.max()) + 3, int(widths.max()) + 2, 2
    spans = [(torch.full_like(axis, corner), corner + axis - 1) for axis in (heights, widths)]
    resized = interpolate_positions(table, *spans, rows, columns).view(-1, rows, columns, 5)
    square = table.view(1, side, side, 5).permute(0, 3, 1, 2)
    for b, (height, width) in enumerate(sizes):
        expected = interpolate(square, (height, width), mode="bilinear", align_corners=True)[0].permute(1, 2, 0)
        CLOSE(resized[b, corner : corner + height, corner : corner + width], expected)
    assert resized.isfinite().all()


# ---------------------------------------------------------------- where an image lies


def shifted(inputs, down, right, canvas=9):
    """The batch with each image elsewhere on a canvas of so many patches a side; what surrounds it is noise."""
    B, side = len(inputs["input_ids"]), canvas * PATCH
    pixels, mask = torch.randn(B, 3, side, side), torch.zeros(B, side, side, dtype=torch.int64)
    for b in range(B):
        height, width = (int(inputs["pixel_mask"][b].any(dim=dim).sum()) for dim in (1, 0))
        place = (
            slice(down * VILT.patch, down * VILT.patch + height),
            slice(right * VILT.patch, right * VILT.patch + width),
        )
        pixels[b][:, *place], mask[b][place] = inputs["pixel_values"][b, :, :height, :width], 1
    return inputs | {"pixel_values": pixels, "pixel_mask": mask}


@pytest.mark.parametrize("config", [NoReduction(), NoReduction(max_image_tokens=40), STRONG], ids=str)
@pytest.mark.parametrize(("down", "right"), [(0, 3), (2, 0), (1, 2)])
def test_an_image_may_lie_anywhere(config, down, right):
    model, inputs = VILT.build(), VILT.batch(GRIDS)
    expected = answer(model, inputs)
    if config.method != "none":
        expected = answer(pumer.patch(model, config), inputs)
    CLOSE(answer(pumer.patch(model, config), shifted(inputs, down, right)), expected)


def test_images_that_lie_elsewhere_are_traced_alike():
    model, inputs = pumer.patch(VILT.build(), STRONG), VILT.batch(GRIDS)
    with pumer.trace(model) as trace:
        model(**inputs | {"pixel_mask": inputs["pixel_mask"]})
        model(**shifted(inputs, 2, 1, canvas=8))
    here, there = trace.forwards
    slots = here.patch_cell.shape[1]
    assert torch.equal(here.grid, there.grid)
    assert torch.equal(here.patch_cell, there.patch_cell[:, :slots]) and (there.patch_cell[:, slots:] == -1).all()


def test_patches_left_out_inside_an_image_move_no_others():
    """The image is the rectangle around its real patches."""
    model, inputs = pumer.patch(VILT.build("ViltModel"), NoReduction()), VILT.batch(GRIDS[:1])
    whole, _, cells = model.embeddings.image_tokens(inputs["pixel_values"], inputs["pixel_mask"], None)
    hole = inputs["pixel_mask"].clone()
    hole[:, 8:24], hole[:, :, 32:40] = 0, 0
    states, mask, cell = model.embeddings.image_tokens(inputs["pixel_values"], hole, None)
    left = [i for i, (row, column) in enumerate(cells[0].tolist()) if row not in (1, 2) and column != 4]
    assert cell[0, : len(left)].tolist() == cells[0, left].tolist() and mask.sum() == len(left)
    CLOSE(states[0, : len(left)], whole[0, left])


@pytest.mark.parametrize("config", [NoReduction(), STRONG], ids=["none", "pumer"])
def test_an_image_without_a_real_pixel_is_refused(config):
    model, inputs = pumer.patch(VILT.build(), config), VILT.batch(GRIDS)
    inputs["pixel_mask"][1] = 0
    with pytest.raises(InputError, match=r"pixel_mask of image 1 is 0 everywhere"):
        model(**inputs)


@pytest.mark.parametrize("config", [NoReduction(), SHALLOW], ids=["none", "pumer"])
def test_in_a_graph_an_image_without_a_real_pixel_has_no_answer(config):
    model, inputs = pumer.patch(VILT.build(layers=1), config), VILT.batch(GRIDS)
    with torch.no_grad():
        expected = answer(model, inputs)
        exported = torch.export.export(model, (), inputs).module()
        inputs["pixel_mask"][1] = 0
        output = exported(**inputs).logits
    assert output[1].isnan().all()
    CLOSE(output[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("shape", [(2, 48, 48), (3, 1, 48, 48), (48, 48)])
def test_a_mask_of_another_batch(shape):
    model, inputs = pumer.patch(VILT.build(), STRONG), VILT.batch(GRIDS)
    with pytest.raises(InputError, match=r"pixel_mask is \(.*\(3, height, width\)"):
        model(**inputs | {"pixel_mask": torch.ones(shape)})


def test_no_patches_are_drawn_at_random(no_random_patches):
    model, inputs = VILT.build(), VILT.batch(GRIDS)
    for config in (NoReduction(), STRONG):
        answer(pumer.patch(model, config), inputs)
    with pytest.raises(AssertionError, match="multinomial"):
        answer(pumer.unpatch(model), inputs)


@pytest.mark.parametrize("sides", [[[0] * 4 + [1] * 6, [0] * 7 + [1] * 3], [[1, 0, 1, 1, 0, 1, 1, 1, 0, 0], [1] * 10]])
@pytest.mark.parametrize("head", ["ViltForQuestionAnswering", "ViltForTokenClassification"])
def test_left_padded_and_holey_text(head, sides):
    model, inputs = VILT.build(head), VILT.batch(GRIDS[:1] * 2, head)
    inputs["attention_mask"] = torch.tensor(sides)
    plain = answer(model, inputs)
    CLOSE(answer(pumer.patch(model, NoReduction()), inputs), plain)


def test_padded_words_may_stand_anywhere_when_text_is_merged():
    """Which slots are padding does not matter to per-word outputs, as long as the words keep their positions."""
    model, inputs = VILT.build("ViltForTokenClassification"), VILT.batch(GRIDS[:1], "ViltForTokenClassification")
    inputs["attention_mask"] = torch.tensor([[1, 0, 1, 1, 0, 1, 1, 1, 1, 1]])
    pumer.patch(model, STRONG)
    logits, real = answer(model, inputs), inputs["attention_mask"][0] > 0
    inputs["input_ids"][0, ~real] = 17
    torch.testing.assert_close(answer(model, inputs)[0, real], logits[0, real], atol=1e-6, rtol=0)


@pytest.mark.parametrize("config", [NoReduction(), STRONG], ids=["none", "pumer"])
def test_words_and_patches_embedded_by_the_caller(config):
    model, inputs = VILT.build(), VILT.batch(GRIDS)
    embeddings = pumer.patch(model, config).vilt.embeddings
    expected = answer(model, inputs)
    words = embeddings.text_embeddings.word_embeddings(inputs["input_ids"])
    image, mask, _ = embeddings.image_tokens(inputs["pixel_values"], inputs["pixel_mask"], None)
    mine = {"attention_mask": inputs["attention_mask"], "image_embeds": image, "pixel_mask": mask.long()}
    CLOSE(answer(model, {"input_ids": inputs["input_ids"], **mine}), expected)
    # the text embedding adds to its input in place, in transformers, too: hand it a copy
    CLOSE(answer(model, {"inputs_embeds": words.clone(), **mine}), expected)
    if config == NoReduction():
        CLOSE(answer(pumer.unpatch(model), {"inputs_embeds": words.clone(), **mine}), expected)


@pytest.mark.parametrize("config", [NoReduction(), STRONG], ids=["none", "pumer"])
def test_outputs_keep_transformers_contract(config):
    model, inputs = pumer.patch(VILT.build("ViltModel"), config), VILT.batch(GRIDS)
    output = model(**inputs, output_hidden_states=True)
    T, layers = 10, len(model.encoder.layer)
    assert len(output.hidden_states) == layers + 1 and output.attentions is None
    lengths = [states.shape[1] for states in output.hidden_states]
    with pumer.trace(model) as trace:
        model(**inputs)
    (told,) = trace.forwards
    assert lengths[0] == told.mask.shape[1] == T + 37
    if config == NoReduction():
        assert lengths == [47] * (layers + 1)
    else:
        assert lengths[0] > lengths[1] == lengths[2] > lengths[3] == told.size.shape[1]
    image = told.size.shape[1] - int((told.tokens_per_place or [(torch.tensor([T]), 0)])[-1][0].max())
    assert output.last_hidden_state.shape[:2] == (3, T + image)
    as_tuple = model(**inputs, output_hidden_states=True, return_dict=False)
    assert len(as_tuple) == 3
    assert torch.equal(as_tuple[0], output.last_hidden_state) and torch.equal(as_tuple[1], output.pooler_output)
    assert all(torch.equal(a, b) for a, b in zip(as_tuple[2], output.hidden_states, strict=True))
    assert len(model(**inputs, return_dict=False)) == 2
    assert model(**inputs).hidden_states is None


@each_head
def test_plain_tuples_from_every_head(head):
    model, inputs = pumer.patch(VILT.build(head), STRONG), VILT.batch(GRIDS, head)
    as_tuple = model(**inputs, return_dict=False)
    output = model(**inputs)
    first = output.last_hidden_state if head == "ViltModel" else output.logits
    assert torch.equal(as_tuple[0], first)


def test_last_hidden_state_gives_each_word_the_state_of_its_token():
    model, inputs = pumer.patch(VILT.build("ViltModel"), STRONG), VILT.batch(GRIDS)
    with pumer.trace(model) as trace:
        output = model(**inputs, output_hidden_states=True)
    states = model.layernorm(output.hidden_states[-1])
    owner = trace.forwards[0].owner[:, :10]
    assert (owner.max(dim=1).values < 9).any(), "no text was merged"
    for b in range(3):
        for t in range(10):
            expected = states[b, owner[b, t]] if owner[b, t] >= 0 else torch.zeros(32)
            assert torch.equal(output.last_hidden_state[b, t], expected)


@pytest.mark.parametrize("head", sorted(VILT.per_word))
def test_heads_on_words_see_all_positions_after_merging(head):
    model, inputs = pumer.patch(VILT.build(head), STRONG), VILT.batch(GRIDS, head)
    labels = inputs["input_ids"] % 7
    output = model(**inputs, labels=labels)
    assert output.logits.shape[:2] == (3, 10) and output.loss.isfinite()


def test_attention_matrices_are_refused_with_the_way_out():
    model, inputs = pumer.patch(VILT.build(), STRONG), VILT.batch(GRIDS)
    with pytest.raises(InputError, match=r"pumer\.unpatch"):
        model(**inputs, output_attentions=True)
    model = pumer.patch(VILT.build(output_attentions=True), STRONG)
    with pytest.raises(InputError, match="output_attentions"):
        model(**inputs)
    assert model(**inputs, output_attentions=False).logits.shape == (3, 7)


def test_bounded_image_buffer_gives_the_same_answer():
    model, inputs = VILT.build(), VILT.batch(GRIDS, columns=9, rows=8)  # grid 8 x 9, at most 36 real patches
    free = answer(pumer.patch(model, PuMerConfig(layers=(0,), prune_ratio=0.3, merge_ratio=0.2)), inputs)
    for slots in (36, 50, 72, 500):
        config = PuMerConfig(layers=(0,), prune_ratio=0.3, merge_ratio=0.2, max_image_tokens=slots)
        pumer.patch(model, config)
        CLOSE(answer(model, inputs), free)
        width = model(**inputs, output_hidden_states=True).hidden_states[0].shape[1]
        assert width == 10 + 1 + min(slots, 72)


def test_an_image_that_does_not_fit_the_buffer_is_refused():
    model = pumer.patch(VILT.build(), NoReduction(max_image_tokens=35))
    with pytest.raises(InputError, match=r"36 patches but max_image_tokens is 35"):
        model(**VILT.batch(GRIDS))


def test_random_sampling_of_patches_is_refused():
    model = pumer.patch(VILT.build(max_image_length=20), NoReduction())
    with pytest.raises(InputError, match=r"max_image_length is 20 but the image grid has 36"):
        model(**VILT.batch(GRIDS))
    pumer.patch(VILT.build(max_image_length=36), NoReduction())(**VILT.batch(GRIDS))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input_ids": None}, "input_ids and inputs_embeds"),
        ({"pixel_values": None}, "pixel_values and image_embeds"),
        ({"image_embeds": torch.zeros(3, 4, 32)}, "pixel_values and image_embeds"),
        ({"pixel_values": torch.zeros(2, 3, 48, 48), "pixel_mask": None}, "3 texts but 2 images"),
        ({"pixel_values": None, "image_embeds": torch.zeros(3, 4, 32)}, "one entry per token"),
    ],
)
def test_inputs_that_do_not_go_together(change, words):
    model = pumer.patch(VILT.build("ViltModel"), STRONG)
    with pytest.raises(InputError, match=words):
        model(**VILT.batch(GRIDS) | change)


def test_a_sample_without_any_word_stays_finite_and_harms_no_other():
    model, inputs = pumer.patch(VILT.build(), STRONG), VILT.batch(GRIDS)
    expected = answer(model, inputs)
    inputs["attention_mask"][1] = 0
    output = answer(model, inputs)
    assert output.isfinite().all()
    CLOSE(output[[0, 2]], expected[[0, 2]])


# ---------------------------------------------------------------- the reduced model as a whole


def reduced_by_hand(model, sample, config):
    """Logits of one example: transformers' modules, full attention matrices, loops over tokens. No padding, float64."""
    vilt, steps = model.vilt, {step.layer: step for step in config.schedule}
    inputs = tiny.to(VILT.collate([sample]), torch.float64)
    image, _, (cells, _) = vilt.embeddings.visual_embed(inputs["pixel_values"], inputs["pixel_mask"], -1)
    raster = sorted(range(cells.shape[1]), key=lambda i: cells[0, i].tolist())
    kinds = vilt.embeddings.token_type_embeddings.weight
    text = vilt.embeddings.text_embeddings(inputs["input_ids"])[0] + kinds[0]
    x = torch.cat([text, image[0, [0, *(i + 1 for i in raster)]] + kinds[1]])
    T, size = len(text), torch.ones(len(x), dtype=torch.float64)
    for index, layer in enumerate(vilt.encoder.layer):
        normed, attention = layer.layernorm_before(x), layer.attention.attention
        heads = [
            linear(normed).view(len(x), 4, 8).transpose(0, 1)
            for linear in (attention.query, attention.key, attention.value)
        ]
        logits = heads[0] @ heads[1].transpose(1, 2) / 8**0.5
        if config.proportional_attention:
            logits = logits + size.log()
        probabilities = logits.softmax(dim=-1)
        context = (probabilities @ heads[2]).transpose(0, 1).reshape(len(x), 32)
        x = x + layer.attention.output.dense(context)
        if index in steps:
            keys, rows = heads[1], probabilities[:, :T, T:]
            text_groups, image_groups = decide_by_hand(steps[index], keys[:, :T], keys[:, T:], rows)
            groups = [*text_groups, *([T + i for i in group] for group in image_groups)]
            x = torch.stack([sum(x[i] * size[i] for i in group) / size[group].sum() for group in groups])
            size, T = torch.stack([size[group].sum() for group in groups]), len(text_groups)
        x = x + layer.output.dense(layer.intermediate(layer.layernorm_after(x)))
    pooled = torch.tanh(vilt.pooler.dense(vilt.layernorm(x)[0]))
    return model.classifier(pooled)


RATIO = st.one_of(st.just(0.0), st.floats(0.05, 0.9))


@max_examples(25)
@given(
    st.lists(st.builds(Step, layer=st.integers(0, 2), prune_ratio=RATIO, merge_ratio=RATIO, text_merge_ratio=RATIO)),
    st.booleans(),
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 6), st.integers(1, 7)), min_size=1, max_size=3),
    st.integers(0, 1000),
)
def test_reduced_model_against_a_loop(steps, proportional, grids, seed):
    steps = tuple({step.layer: step for step in steps}.values()) or (Step(layer=1, prune_ratio=0.3, merge_ratio=0.2),)
    config = PuMerConfig(schedule=steps, proportional_attention=proportional)
    model = VILT.build().double()
    samples = [VILT.sample(seed + i, *grid) for i, grid in enumerate(grids)]
    with torch.no_grad():
        expected = torch.stack([reduced_by_hand(model, sample, config) for sample in samples])
        batched = answer(pumer.patch(model, config), tiny.to(VILT.collate(samples), torch.float64))
    torch.testing.assert_close(batched, expected, atol=2e-6, rtol=0)  # positions and shares are float32


@pytest.mark.parametrize("config", [NoReduction(), STRONG], ids=["none", "pumer"])
def test_no_attention_matrix_is_formed_outside_the_kernel(config):
    """Law 4: whatever is computed, nothing of size (tokens, tokens) comes out of it."""
    model, inputs = pumer.patch(VILT.build(), config), VILT.batch(GRIDS)
    lengths = {states.shape[1] for states in model(**inputs, output_hidden_states=True).hidden_states}
    square = {(n, n) for n in lengths}
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple) else (out,):
                if isinstance(x, torch.Tensor) and tuple(x.shape[-2:]) in square:
                    seen.append(func)
            return out

    with torch.no_grad():
        with Watch():
            answer(model, inputs)
        assert not seen, seen
        with Watch():
            answer(pumer.unpatch(model), VILT.batch(GRIDS[:1]))
    assert seen, "transformers forms it: otherwise this test would show nothing"


# ---------------------------------------------------------------- precision and training


@pytest.mark.parametrize("config", [NoReduction(), STRONG], ids=["none", "pumer"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_agrees_roughly(dtype, config):
    model, inputs = pumer.patch(VILT.build(initializer_range=0.1), config), VILT.batch(GRIDS)
    with torch.no_grad():
        full = answer(model, inputs)
        low = answer(model.to(dtype), tiny.to(inputs, dtype))
    assert low.dtype == dtype and low.isfinite().all()
    similar = torch.cosine_similarity(full, low.float(), dim=-1)
    assert (similar > 0.9).all(), similar


@pytest.mark.parametrize("config", [NoReduction(), STRONG], ids=["none", "pumer"])
def test_autocast(config):
    model, inputs = pumer.patch(VILT.build(initializer_range=0.1), config), VILT.batch(GRIDS)
    full = answer(model, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = answer(model, inputs)
    assert low.isfinite().all()
    assert (torch.cosine_similarity(full, low.float(), dim=-1) > 0.9).all()
    low.float().sum().backward()


def test_merging_is_done_in_the_precision_of_the_states_under_autocast(monkeypatch):
    """A similarity or an average in bfloat16 would throw away digits that the residual stream has."""
    model, inputs = pumer.patch(VILT.build(), STRONG), VILT.batch(GRIDS)
    seen = []

    def watch(place, name, tensor):
        original = getattr(place, name)

        def spy(*arguments):
            seen.append((name, torch.is_autocast_enabled("cpu"), tensor(arguments[0]).dtype))
            return original(*arguments)

        monkeypatch.setattr(place, name, spy)

    watch(pumer.tokens.Tokens, "reduce", lambda tokens: tokens.states)
    watch(decisions, "propose", lambda features: features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(**inputs)
    assert set(seen) == {("reduce", False, torch.float32), ("propose", False, torch.float32)}


@each_head
def test_gradients_reach_every_parameter(head):
    model, inputs = pumer.patch(VILT.build(head), STRONG).train(), VILT.batch(GRIDS, head)
    output = model(**inputs)
    values = output.logits if "logits" in output else output.pooler_output
    (values**2).sum().backward()
    # a pooler-free loss sees all but what its head does not use
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    allowed = ["pooler"] if head in VILT.per_word else []
    assert not [n for n in silent if not any(word in n for word in allowed)]


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_loss_and_gradients(reentrant):
    inputs = VILT.batch(GRIDS)

    def train(checkpointed):
        model = pumer.patch(VILT.build(), STRONG).train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(3)  # dropout: checkpointing restores it
        loss = (answer(model, inputs) ** 2).sum()
        loss.backward()
        return loss, {name: p.grad for name, p in model.named_parameters()}

    (loss, gradients), (same_loss, same_gradients) = train(False), train(True)
    torch.testing.assert_close(same_loss, loss, atol=0, rtol=0)
    for name, gradient in gradients.items():
        assert gradient is not None, name
        torch.testing.assert_close(same_gradients[name], gradient, atol=1e-5, rtol=1e-4)


def test_checkpointing_before_patching_stays_on():
    model = VILT.build()
    model.gradient_checkpointing_enable()
    pumer.patch(model, STRONG)
    assert all(layer.gradient_checkpointing for layer in model.vilt.encoder.layer)


def test_states_of_layers_are_freed_unless_asked_for():
    """Each layer's input may go as soon as the next has it: it matters for the memory that is measured."""
    import weakref

    model, inputs = pumer.patch(VILT.build(), NoReduction()), VILT.batch(GRIDS)
    alive, most = [], []

    def watch(module, args):
        alive.append(weakref.ref(args[0]))
        most.append(sum(ref() is not None for ref in alive))

    for layer in model.vilt.encoder.layer:
        layer.register_forward_pre_hook(watch)
    with torch.no_grad():
        model(**inputs)
    assert most[-1] <= 2


@pytest.mark.parametrize("kind", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_is_on_in_training_only(kind):
    model, inputs = VILT.build(**{kind: 0.5}), VILT.batch(GRIDS)
    pumer.patch(model, STRONG).train()
    assert not torch.equal(answer(model, inputs), answer(model, inputs))
    model.eval()
    assert torch.equal(answer(model, inputs), answer(model, inputs))
