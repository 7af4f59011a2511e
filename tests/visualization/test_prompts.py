"""Traces of prompts, and drawings of them: several images of unequal size, tiles, and the answers."""

import itertools
import random

import pytest
import torch
import yaml
from PIL import Image
from tiny.decoder_examples import DECODER_EXAMPLES
from tiny.decoders import DECODERS, IMAGE
from tiny.processors import PROCESSORS
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas
from typer.testing import CliRunner

import pumer
from pumer import PuMerConfig, Step
from pumer.backbones.grids import Tile
from pumer.cli import app
from pumer.generative import generated, load_generative, prompt
from pumer.settings.visualize import VisualizeConfig
from pumer.visualization import drawing, shapes
from pumer.visualization.tracing import ForwardTrace, Trace
from pumer.visualization.views import Fate, columns_of
from pumer.visualization.visualize import draw, run

BLUE = (40, 90, 200)
CONFIG = PuMerConfig(
    schedule=(
        Step(stack="decoder", layer=1, prune_ratio=0.3, merge_ratio=0.3),
        Step(stack="decoder", layer=3, prune_ratio=0.3, merge_ratio=0.2),
    )
)
QUESTION = "what colour is this ?"
VISION = {"stack": "vision", "layer": 0, "merge_ratio": 0.3}


@pytest.mark.parametrize("family", DECODERS)
def test_fates_are_those_of_the_output(family):
    model = pumer.patch(DECODERS[family].model().double().requires_grad_(False), CONFIG)
    samples = [DECODERS[family].sample(1), DECODERS[family].sample(2, images=2, before=9)]
    inputs = DECODERS[family].batch(samples)
    with pumer.trace(model) as trace:
        states = model.model(**inputs).last_hidden_state
        model.generate(**inputs, max_new_tokens=4, do_sample=False)
    told, again = trace.forwards  # what follows a prompt is not recorded
    assert torch.equal(told.pruned_at, again.pruned_at) and torch.equal(told.owner, again.owner)
    assert told.places == (("decoder", 1), ("decoder", 3)) and told.text_tokens == 0
    assert torch.equal(told.mask, inputs["attention_mask"].bool())
    seen = set()
    for b, sample in enumerate(samples):
        real = [t for t in range(told.mask.shape[1]) if told.mask[b, t]]
        for t in real:
            assert (told.pruned_at[b, t] < 0) == (told.owner[b, t] >= 0)
            if told.owner[b, t] < 0 and t - 1 in real:
                assert torch.equal(states[b, t], states[b, t - 1]), "what is gone shows what stands before it"
        left = [t for t in real if told.owner[b, t] >= 0]
        for t in left:
            same = [u for u in left if torch.equal(states[b, t], states[b, u])]
            assert same == [u for u in left if told.owner[b, u] == told.owner[b, t]]
            if told.merged_at[b, t] >= 0:
                assert told.merged_into[b, t] in same
                assert told.describe(b, t).startswith(f"merged into token {told.merged_into[b, t]} at decoder layer ")
        text, image = (int(count[b]) for count in told.tokens_per_place[-1])
        assert len(set(told.owner[b, left].tolist())) == text + image
        images = [t for t in left if inputs["input_ids"][b, t] == IMAGE]
        assert len(set(told.owner[b, images].tolist())) == image
        assert told.describe(b, 0) == "padding" or len(real) == len(sample.ids) == told.mask.shape[1]
        seen |= {told.describe(b, t).split()[0] for t in real}
    assert seen == {"kept", "merged", "pruned"}


def test_a_prompt_without_images_is_not_recorded():
    model = pumer.patch(DECODERS["llava"].model().double(), CONFIG)
    with torch.no_grad(), pumer.trace(model) as trace:
        model.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=3)
    assert trace.forwards == []


@pytest.mark.parametrize("most", [6, 12])
def test_parts_are_arranged_as_internvls_processor_does(most):
    sizes = random.Random(0)
    for _ in range(300):
        width, height = sizes.randint(100, 3000), sizes.randint(100, 3000)
        across, down = get_optimal_tiled_canvas((height, width), (448, 448), 1, most)
        assert columns_of(across * down, width / height) == across


def hand_made(tiles, pruned=(), merged=()):
    """A trace of one prompt of two words, an image of these tiles, and a word; and the places of its image tokens."""
    cells = [(rank, *cell) for rank, tile in enumerate(tiles) for cell in tile.cells()]
    count = len(cells)
    image = torch.tensor([[-1, -1, *[0] * count, -1]])
    raster = [-1 if row < 0 else row * tiles[rank].columns + column for rank, row, column in cells]
    pruned_at = torch.full((1, count + 3), -1)
    pruned_at[0, list(pruned)] = 0
    owner = torch.where(pruned_at < 0, torch.arange(count + 3), -1)
    merged_at, merged_into = torch.full_like(pruned_at, -1), torch.full_like(pruned_at, -1)
    for first, other in itertools.product(merged[:1], merged[1:]):
        owner[0, other], merged_at[0, other], merged_into[0, other] = first, 0, first
    forward = ForwardTrace(
        text_tokens=0,
        mask=torch.ones(1, count + 3, dtype=torch.bool),
        grid=torch.zeros(1, 2, dtype=torch.int64),
        patch_cell=torch.tensor([[-1, -1, *raster, -1]]),
        owner=owner,
        size=torch.ones(1, count + 3),
        pruned_at=pruned_at,
        merged_at=merged_at,
        merged_into=merged_into,
        places=(("decoder", 1),),
        tokens_per_place=[(torch.tensor([3]), torch.tensor([count - len(pruned)]))],
        segment=image + 1,
        image=image,
        tile=torch.tensor([[-1, -1, *(rank for rank, *_ in cells), -1]]),
        images=((tuple(tiles),),),
    )
    return Trace([forward])


@pytest.mark.parametrize(("across", "size"), [(None, (30, 20)), (3, (20, 30))])
def test_equal_parts_are_put_together_and_the_whole_image_stands_apart(across, size):
    tiles = [Tile(2, 3, "part", across=across)] * 6 + [Tile(2, 3)]
    (forward,) = hand_made(tiles).forwards
    parts, whole = Fate(forward, 0, [Image.new("RGB", size)]).views
    assert (parts.rows, parts.cols, whole.rows, whole.cols) == (4, 9, 2, 3)
    for tile in range(6):
        for row in range(2):
            for column in range(3):
                at = (tile // 3 * 2 + row) * 9 + tile % 3 * 3 + column
                assert parts.tokens[at] == 2 + 6 * tile + 3 * row + column
    assert whole.tokens == list(range(2 + 36, 2 + 42))


def test_an_overview_and_the_tiles_have_a_row_each_and_ends_of_rows_are_not_drawn():
    (forward,) = hand_made([Tile(2, 2), Tile(2, 3, row_ends=True)]).forwards
    overview, tiles = Fate(forward, 0, [Image.new("RGB", (30, 20))]).views
    assert overview.tokens == [2, 3, 4, 5] and tiles.tokens == [6, 7, 8, 10, 11, 12]


def colours(drawn, number, view):
    """The colours at one side of the middles of the cells of the view with this number: photo, pruned, left."""
    shown = [shape for shape in drawn.last.shapes if isinstance(shape, shapes.ImageShape)][2 * number : 2 * number + 2]
    pixels = drawn.image
    right, down = shown[1].left - shown[0].left, shown[1].top - shown[0].top
    for panel in range(3):
        left, top = shown[0].left + panel * right, shown[0].top + panel * down
        places = [divmod(at, view.cols) for at in range(len(view.tokens))]
        yield [
            pixels.getpixel(
                (
                    int(2 * (left + (col + 0.85) * shown[0].width / view.cols)),
                    int(2 * (top + (row + 0.85) * shown[0].height / view.rows)),
                )
            )
            for row, col in places
        ]


def test_pruned_tokens_are_grey_on_their_own_grid():
    tiles, gone = [Tile(2, 2), Tile(2, 4, row_ends=True)], {2, 5, 7, 12}
    trace, image = hand_made(tiles, gone), Image.new("RGB", (40, 20), BLUE)
    drawn = draw(trace, image, QUESTION, "it")
    for number, view in enumerate(Fate(trace.forwards[0], 0, [image]).views):
        photo, pruned, _ = colours(drawn, number, view)
        for at, token in enumerate(view.tokens):
            assert photo[at] == BLUE
            assert (len(set(pruned[at])) == 1) == (token in gone)


def test_a_token_has_one_colour_in_whatever_view():
    tiles, merged = [Tile(2, 2), Tile(2, 4, row_ends=True)], [3, 7, 12]
    trace, image = hand_made(tiles, {5}, merged), Image.new("RGB", (40, 20), BLUE)
    image.paste((200, 60, 20), (0, 0, 20, 20))
    drawn, seen = draw(trace, image), {}
    for number, view in enumerate(Fate(trace.forwards[0], 0, [image]).views):
        *_, left = colours(drawn, number, view)
        seen |= dict(zip(view.tokens, left, strict=True))
    assert len({seen[token] for token in merged}) == 1 and len({BLUE, (200, 60, 20), seen[3], seen[5]}) == 4
    assert seen[5] == shapes.GONE
    assert {shown for token, shown in seen.items() if token not in (*merged, 5)} == {BLUE, (200, 60, 20)}


@pytest.mark.parametrize(
    ("method", "config"), [(name, config) for name, (config, *_) in DECODER_EXAMPLES.items() if name != "none"]
)
def test_every_method_is_drawn(method, config, monkeypatch):
    model = pumer.patch(DECODERS["qwen2_vl"].model().double().requires_grad_(False), config)
    inputs = DECODERS["qwen2_vl"].batch([DECODERS["qwen2_vl"].sample(1, images=2), DECODERS["qwen2_vl"].sample(3)])
    said = []
    with pumer.trace(model) as trace:
        model(**inputs)
    monkeypatch.setattr(drawing, "panel", lambda page, title, legend=(): said.append((title, legend)) or page)
    assert draw(trace, [Image.new("RGB", (48, 48), BLUE)] * 2, QUESTION).last
    (told,) = trace.forwards
    panels = iter(said)
    for number in range(2):
        ours = told.image[0] == number
        _, (title, legend) = next(panels), next(panels)
        if title == "":  # a note: nothing was reduced
            assert len(told.owner[0, ours].unique()) == int(ours.sum()) and (told.owner[0, ours] >= 0).all()
            continue
        pruned = int((told.pruned_at[0, ours] >= 0).sum())
        if not (told.pruned_at[0] >= 0).any():
            assert title.startswith("left: ")
            continue
        assert title == f"pruned: {pruned} of {int(ours.sum())} tokens"
        counts = [int((told.pruned_at[0, ours] == place).sum()) for place in range(len(told.places))]
        assert [key.text for key in legend] == [
            f"decoder layer {x}: {n}" for (_, x), n in zip(told.places, counts, strict=True) if n
        ]
        assert next(panels)[0].startswith("left: ")
    assert next(panels, None) is None


def test_what_a_vision_encoder_did_is_not_recorded():
    steps = Step(stack="vision", layer=0, merge_ratio=0.4), Step(stack="decoder", layer=2, prune_ratio=0.4)
    model = pumer.patch(DECODERS["llava"].model().double(), PuMerConfig(schedule=steps))
    with torch.no_grad(), pumer.trace(model) as trace:
        model.generate(**DECODERS["llava"].batch([DECODERS["llava"].sample(1)]), max_new_tokens=2)
    (told,) = trace.forwards
    assert told.places == (("decoder", 2),) and told.images == (((Tile(4, 4),),),)


def test_long_answers_are_broken_into_lines():
    one, many = (drawing.lines(["what?", "word " * n], 400) for n in (3, 60))
    assert one.height == 2 * (shapes.TEXT + 8) and many.height > 3 * one.height and many.width == 400
    assert drawing.lines([], 400).height == 0


def saved(family, folder, config=CONFIG):
    model = DECODERS[family].model()
    pumer.save(model if config is None else pumer.patch(model, config), folder)
    PROCESSORS[family]().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def pictures(tmp_path):
    """Two images of unequal shape."""
    files = tmp_path / "wide.png", tmp_path / "tall.png"
    for file, size in zip(files, ((64, 40), (30, 70)), strict=True):
        Image.new("RGB", size, BLUE).save(file)
    return files


@pytest.mark.parametrize("family", PROCESSORS)
def test_run_draws_each_image_and_gives_the_reduced_answer(family, pictures, tmp_path, monkeypatch):
    said, titles = [], []
    panel, lines = drawing.panel, drawing.lines
    monkeypatch.setattr(drawing, "panel", lambda *given: said.append(given[1]) or panel(*given))
    monkeypatch.setattr(drawing, "lines", lambda texts, *given: titles.extend(texts) or lines(texts, *given))
    folder, out = saved(family, tmp_path / "model"), tmp_path / "out" / "tokens.png"
    (asked,) = run(VisualizeConfig(model=folder, images=pictures, questions=(QUESTION,), out=out))
    model, processor = load_generative(folder)
    inputs = prompt(processor, [Image.open(file) for file in pictures], QUESTION)
    assert asked.answer == generated(model, processor, inputs)
    with pumer.disabled(model):
        whole = generated(model, processor, inputs)
    assert titles[:3] == [QUESTION, f"answer: {asked.answer}", f"without reduction: {whole}"]
    assert asked.answer != whole == asked.unreduced
    (table,) = asked.tokens
    assert [row["after"] for row in table] == ["input", "decoder layer 1", "decoder layer 3"]
    assert table[0]["image"] == sum(table[1][name] for name in ("image", "pruned", "merged"))
    assert table[0]["text"] == table[2]["text"] and table[1]["image"] > table[2]["image"]
    views = ["overview", "tiles"] if family == "llava_next" else [None]
    expected = [f"image {n}" + (f", {view}" if view else "") for n in (1, 2) for view in views]
    assert said[::3] == expected
    assert Image.open(out).width > 1000


def test_the_command_takes_several_images(pictures, tmp_path):
    folder, out = saved("qwen2_5_vl", tmp_path / "model"), tmp_path / "tokens.png"
    result = CliRunner().invoke(app, ["visualize", folder, *map(str, pictures), QUESTION, "--out", str(out)])
    assert result.exit_code == 0 and result.output.endswith(f"({out})\n") and out.exists()
    refused = CliRunner().invoke(app, ["visualize", folder, *map(str, pictures), "what", "colour?"])
    assert refused.exit_code == 2 and '"what colour?"' in refused.output


def test_an_image_is_drawn_as_its_processor_crops_it(tmp_path):
    image = Image.new("RGB", (96, 32), BLUE)
    image.paste((200, 60, 20), (0, 0, 16, 32))  # cut off
    image.save(tmp_path / "cat.png")
    config = PuMerConfig(schedule=(Step(stack="decoder", layer=1, merge_ratio=0.3),))
    folder, out = saved("llava", tmp_path / "model", config), tmp_path / "tokens.png"
    run(VisualizeConfig(model=folder, images=(tmp_path / "cat.png",), questions=(QUESTION,), out=out))
    drawn = {colour for _, colour in Image.open(out).getcolors(2**20)}
    assert BLUE in drawn and (200, 60, 20) not in drawn


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"task": "vqav2", "image_size": 64}, r"task=vqav2, image_size=64"),
        ({"reduction": {"method": "pumer", "schedule": [VISION]}}, "decoder"),
    ],
)
def test_settings_that_do_not_go_with_a_generative_model(settings, named, pictures, tmp_path):
    folder = saved("llava", tmp_path / "model")
    with pytest.raises(pumer.InputError, match=named):
        run(VisualizeConfig(model=folder, images=pictures, questions=(QUESTION,), out=tmp_path / "x.png", **settings))


def test_without_a_reduction_the_images_are_drawn_and_one_that_works_is_named(pictures, tmp_path, caplog):
    folder = saved("llava", tmp_path / "model", config=None)
    settings = {"model": folder, "images": pictures, "questions": (QUESTION,)}
    (asked,) = run(VisualizeConfig(**settings, out=tmp_path / "x.png"))
    assert asked.unreduced is None and (tmp_path / "x.png").exists()
    (said,) = caplog.messages
    given = yaml.safe_load(said.partition("'reduction=")[2].rstrip("'"))
    caplog.clear()
    (reduced,) = run(VisualizeConfig(**settings, out=tmp_path / "y.png", reduction=given))
    assert reduced.unreduced == asked.answer and not caplog.messages
    run(VisualizeConfig(**settings, out=tmp_path / "z.png", reduction="none"))
    assert not caplog.messages


def test_what_does_not_fit_the_prompt_is_refused():
    trace, image = hand_made([Tile(2, 2)]), Image.new("RGB", (8, 8))
    with pytest.raises(pumer.InputError, match="2 images are given"):
        draw(trace, [image, image])
    with pytest.raises(pumer.InputError, match="video"):
        draw(hand_made([Tile(2, 2, "frame")] * 2), image)
    trace.forwards[0].images = None
    with pytest.raises(pumer.InputError, match="encode the images inside"):
        draw(trace, image)
