"""What the trace says beyond the laws: cells, grids, nesting, one entry per forward."""

import pytest
import tiny
import torch
from PIL import Image
from tiny import GRIDS, TINY
from tiny.decoders import DECODERS, IMAGE

import pumer
from pumer import DivPruneConfig, FastVConfig, NoReduction, PoolingPromptConfig, PuMerConfig
from pumer.visualization.views import Fate

VILT = TINY["vilt"]
CONFIG = PuMerConfig(layers=(0, 2), prune_ratio=0.2, merge_ratio=0.3, text_merge_ratio=0.3)


@pytest.fixture
def model():
    return pumer.patch(VILT.build(), CONFIG)


def run(model, inputs):
    with torch.no_grad(), pumer.trace(model) as trace:
        model(**inputs)
    return trace


def test_cells_and_grids_of_images_of_different_sizes(model):
    (told,) = run(model, VILT.batch(GRIDS, rows=7, columns=8)).forwards
    assert told.grid.tolist() == [[rows, columns] for _, rows, columns in GRIDS]
    assert told.text_tokens == 10
    for b, (words, rows, columns) in enumerate(GRIDS):
        patches = rows * columns
        assert told.patch_cell[b].tolist() == [-1, *range(patches), *[-1] * (56 - patches)]
        assert told.mask[b].tolist() == [*[True] * words, *[False] * (10 - words), *[True] * (patches + 1)] + [
            False
        ] * (56 - patches)


def test_text_positions_are_those_of_the_input(model):
    inputs = VILT.batch(GRIDS[:1])
    inputs["attention_mask"] = torch.tensor([[0, 0, 1, 1, 0, 1, 1, 1, 1, 1]])
    (told,) = run(model, inputs).forwards
    assert told.mask[0, :10].int().tolist() == inputs["attention_mask"][0].tolist()
    assert told.owner[0, 2] == 0, "the first real word is [CLS] and stands in slot 0"
    assert told.describe(0, 0) == "padding"


def test_everything_is_on_the_cpu_and_plain(model):
    (told,) = run(model, VILT.batch(GRIDS)).forwards
    tensors = [value for value in vars(told).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 8
    assert all(x.device.type == "cpu" and not x.requires_grad for x in tensors)
    assert told.places == (("fusion", 0), ("fusion", 2)) and len(told.tokens_per_place) == 2


def test_one_entry_per_forward_and_none_after_the_block(model):
    inputs = VILT.batch(GRIDS)
    with pumer.trace(model) as trace:
        model(**inputs)
        model(**inputs)
    model(**inputs)
    first, second = trace.forwards
    assert torch.equal(first.owner, second.owner)


def test_inner_trace_takes_over_for_its_block(model):
    inputs = VILT.batch(GRIDS)
    with pumer.trace(model) as outer:
        model(**inputs)
        with pumer.trace(model) as inner:
            model(**inputs)
        model(**inputs)
    assert (len(outer.forwards), len(inner.forwards)) == (2, 1)


def test_an_error_ends_the_trace(model):
    with pytest.raises(KeyError), pumer.trace(model):
        raise KeyError
    assert run(model, VILT.batch(GRIDS)).forwards


@pytest.mark.parametrize("config", [NoReduction(), CONFIG], ids=["none", "disabled"])
def test_without_reduction_everything_is_kept(model, config):
    pumer.patch(model, config)
    with pumer.disabled(model):
        (told,) = run(model, VILT.batch(GRIDS)).forwards
    assert told.places == () and told.tokens_per_place == []
    assert torch.equal(told.owner >= 0, told.mask) and torch.equal(told.size > 0, told.mask)
    assert {told.describe(2, token) for token in range(47)} == {"kept", "padding"}


def test_tracing_changes_no_bit(model):
    inputs = VILT.batch(GRIDS)
    expected = tiny.answer(model, inputs)
    with pumer.trace(model):
        assert torch.equal(tiny.answer(model, inputs), expected)


def test_a_trace_through_gradient_checkpointing_counts_each_layer_once(model):
    model.train().gradient_checkpointing_enable()
    with pumer.trace(model) as trace:
        tiny.answer(model, VILT.batch(GRIDS)).sum().backward()
    (told,) = trace.forwards
    assert told.places == (("fusion", 0), ("fusion", 2))


def test_a_pruned_token_that_held_others_takes_them_along():
    config = PuMerConfig(schedule=(pumer.Step(layer=0, merge_ratio=0.45), pumer.Step(layer=1, prune_ratio=0.7)))
    (told,) = run(pumer.patch(VILT.build(), config), VILT.batch(GRIDS[:1])).forwards
    both = (told.merged_at[0] >= 0) & (told.pruned_at[0] >= 0)
    assert both.any()
    token = int(both.nonzero()[0])
    target = int(told.merged_into[0, token])
    assert told.describe(0, token) == f"merged into token {target} at layer 0, which was pruned at layer 1"
    assert told.describe(0, target) == "pruned at layer 1"
    assert told.owner[0, token] == -1


# ---------------------------------------------------------------- printed


def numbers(line):
    return [int(word) for word in line.split() if word.isdigit()]


def test_printed_it_is_a_table_of_each_example(model):
    """Against the lengths that the decisions have left, and the tokens that were there before."""
    trace = run(model, VILT.batch(GRIDS))
    (told,) = trace.forwards
    heading, *tables = str(trace).split("example ")
    assert heading == "forward 0\n" and len(tables) == len(GRIDS)
    for b, table in enumerate(tables):
        columns, entered, *places = table.strip().splitlines()
        assert columns.split() == [str(b), "text", "image", "pruned", "merged"]
        words, rows, across = GRIDS[b]
        assert entered.split() == ["input", str(words), str(rows * across + 1)]
        assert [line.split("  ")[0] for line in places] == ["layer 0", "layer 2"]
        for here, (line, (text, image)) in enumerate(zip(places, told.tokens_per_place, strict=True)):
            merged, pruned = int((told.merged_at[b] == here).sum()), int((told.pruned_at[b] == here).sum())
            assert numbers(line)[1:] == [int(text[b]), int(image[b]), pruned, merged] and pruned > 0 and merged > 0


def test_printed_each_image_of_a_prompt_has_a_column():
    tiny_model = DECODERS["llava_next"]
    model = pumer.patch(tiny_model.model(), FastVConfig(layers=(1,), prune_ratio=0.5))
    samples = [tiny_model.sample(2, images=2), tiny_model.sample(1)]
    two, one = str(run(model, tiny_model.batch(samples, dtype=torch.float32))).split("\n\n")
    _, columns, entered, left = two.splitlines()
    assert columns.split("  ")[-4:] == ["image 0", "image 1", "pruned", "merged"]
    assert numbers(entered)[1:] == [image.ids.count(IMAGE) for image in samples[0].images]
    assert sum(numbers(left)[2:4]) + numbers(left)[4] == sum(numbers(entered)[1:])
    assert one.splitlines()[0].split() == ["example", "1", "text", "image", "pruned", "merged"]


@pytest.mark.parametrize("kind", ["llava", "llava_next"])
@pytest.mark.parametrize("config", [DivPruneConfig(prune_ratio=0.5), PoolingPromptConfig(block=2)])
def test_the_whole_images_enter_before_a_prompt_is_shortened(kind, config):
    tiny_model = DECODERS[kind]
    sample = tiny_model.sample(2, images=2 if kind == "llava_next" else 1)
    inputs, count = tiny_model.batch([sample], dtype=torch.float32), [image.ids.count(IMAGE) for image in sample.images]
    (told,) = run(pumer.patch(tiny_model.model(), config), inputs).forwards
    entered, shortened = told.rows(0)
    assert (entered.name, list(entered.images), entered.text) == ("input", count, int(told.text_mask(0).sum()))
    assert sum(shortened.images) == int((told.mask[0] & ~told.text_mask(0)).sum()) < sum(count)
    gone, merges = sum(count) - sum(shortened.images), isinstance(config, PoolingPromptConfig)
    assert str(told).splitlines()[2].startswith("before the decoder")
    assert (entered.gone, shortened.gone) == (None, (0, gone) if merges else (gone, 0))
    fate = Fate(told, 0, [Image.new("RGB", (24, 24))] * len(count))
    assert (fate.steps, fate.counts["image"]) == (("before the decoder",), [sum(count), sum(shortened.images)])
    for image, tile, cell, token in told.merged_before[0]:
        columns = told.images[0][image][tile].columns
        (row, column), (to_row, to_column) = (divmod(at, columns) for at in (cell, int(told.patch_cell[0, token])))
        assert (int(told.image[0, token]), to_row // 2, to_column // 2) == (image, row // 2, column // 2)
