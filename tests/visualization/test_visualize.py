import dataclasses
import itertools

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from tiny import GRID, TINY
from transformers import ViltForQuestionAnswering

import pumer
from benchmarks.pretrain_small.small import small_processor, small_vilt
from pumer.settings.visualize import VisualizeConfig
from pumer.visualization import drawing
from pumer.visualization.tracing import ForwardTrace, Trace, trace
from pumer.visualization.visualize import IMAGE_EDGE, draw, run

BLUE = (40, 90, 200)


def hand_made(rows, cols, pruned=(), groups=(), words=4, word_groups=(), layers=(1, 3), padding=2):
    """A trace of one sample: `pruned` maps patch to layer, `groups` are patches that share an owner."""
    text, patches = words + padding, rows * cols
    count = text + 1 + patches + padding
    mask = torch.zeros(1, count, dtype=torch.bool)
    mask[0, :words] = True
    mask[0, text : text + 1 + patches] = True
    owner = torch.where(mask, torch.arange(count), -1)
    pruned_at = torch.full((1, count), -1)
    for patch, layer in dict(pruned).items():
        pruned_at[0, text + 1 + patch] = layers.index(layer)
        owner[0, text + 1 + patch] = -1
    for group in groups:
        owner[0, [text + 1 + patch for patch in group]] = text + 1 + group[0]
    for group in word_groups:
        owner[0, list(group)] = group[0]
    cell = torch.full((1, 1 + patches + padding), -1)
    cell[0, 1 : 1 + patches] = torch.arange(patches)
    forward = ForwardTrace(
        text_tokens=text,
        mask=mask,
        grid=torch.tensor([[rows, cols]]),
        patch_cell=cell,
        owner=owner,
        size=mask.to(torch.float32),
        pruned_at=pruned_at,
        merged_at=torch.full_like(pruned_at, -1),
        merged_into=torch.full_like(pruned_at, -1),
        places=tuple(("fusion", layer) for layer in layers),
        tokens_per_place=[(torch.tensor([words]), torch.tensor([1 + patches]))] * len(layers),
    )
    return Trace([forward])


def patch_colour(picture, panel, patch, rows, cols):
    """The colour in the middle of a patch of a panel of `draw`'s picture."""
    cell = IMAGE_EDGE // max(rows, cols)
    width = max(cols * cell, drawing.NARROWEST_PANEL)
    left = drawing.MARGIN + panel * (width + drawing.MARGIN)
    row, col = divmod(patch, cols)
    return picture.getpixel((left + col * cell + cell // 2, drawing.MARGIN + 34 + row * cell + cell // 2))


def test_paths_pil_images_and_arrays_are_drawn_alike(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    path, exif = tmp_path / "cat.png", Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(colours).save(path, exif=exif)
    expected = draw(hand_made(3, 3), np.rot90(colours, -1)).tobytes()
    for image in (path, str(path), Image.open(path), np.rot90(colours, -1) / 255):
        assert draw(hand_made(3, 3), image).tobytes() == expected
    dark = np.full((8, 8), 60 << 8, dtype=np.uint16)
    assert draw(hand_made(1, 1), dark).tobytes() == draw(hand_made(1, 1), np.uint8(dark >> 8)).tobytes()
    with pytest.raises(pumer.InputError, match=r"\(3, 30, 40\)"):
        draw(hand_made(3, 3), colours.transpose(2, 0, 1))


@pytest.mark.parametrize(("rows", "cols"), [(3, 3), (2, 5), (6, 2)])
def test_pruned_patches_have_the_tint_of_their_layer_and_no_other_is_touched(rows, cols):
    pruned = {0: 1, 4: 3, rows * cols - 1: 3}
    picture = draw(hand_made(rows, cols, pruned), Image.new("RGB", (70, 50), BLUE))
    expected = {
        patch: drawing.mixed(BLUE, drawing.LAYER_COLOURS[(1, 3).index(at)], 0.75) for patch, at in pruned.items()
    }
    for patch in range(rows * cols):
        assert patch_colour(picture, 0, patch, rows, cols) == BLUE
        seen = patch_colour(picture, 1, patch, rows, cols)
        assert seen == pytest.approx(expected.get(patch, BLUE), abs=1)


def test_patches_of_one_token_share_a_colour_that_no_other_token_has():
    groups = [(0, 1, 5), (6, 7)]
    picture = draw(hand_made(3, 3, {8: 1}, groups), Image.new("RGB", (9, 9), BLUE))
    colours = [patch_colour(picture, 2, patch, 3, 3) for patch in range(9)]
    assert colours[0] == colours[1] == colours[5]
    assert colours[6] == colours[7]
    assert colours[2] == colours[3] == colours[4] == BLUE  # alone: as they are
    assert len({colours[0], colours[6], colours[8], BLUE}) == 4


@pytest.mark.parametrize("corner", [0, 2, 6, 8])
def test_an_outline_closes_around_a_patch_in_a_corner(corner):
    picture = Image.new("RGB", (60, 60), BLUE)
    drawing.outline(picture, {corner}, cols=3, cell=20, colour=(255, 0, 0))
    left, top, right, bottom = drawing.patch_box(corner, 3, 20)
    middle_x, middle_y = (left + right) // 2, (top + bottom) // 2
    border = [(left, middle_y), (right - 1, middle_y), (middle_x, top), (middle_x, bottom - 1)]
    assert all(picture.getpixel(place) == (255, 0, 0) for place in border)
    assert picture.getpixel((middle_x, middle_y)) == BLUE
    red = sum(count for count, colour in picture.getcolors() if colour == (255, 0, 0))
    assert red == 20 * 20 - 16 * 16  # nothing outside of the patch


def test_no_outline_between_patches_of_one_token():
    picture = Image.new("RGB", (60, 60), BLUE)
    drawing.outline(picture, {0, 1}, cols=3, cell=20, colour=(255, 0, 0))
    assert picture.getpixel((19, 10)) == picture.getpixel((20, 10)) == BLUE


def test_merged_words_share_a_colour_and_a_bracket():
    image = Image.new("RGB", (9, 9), BLUE)
    plain = draw(hand_made(3, 3, words=4), image, "red dots")
    joined = draw(hand_made(3, 3, words=4, word_groups=[(1, 2)]), image, "red dots")
    colour = drawing.group_colour(0)
    assert colour not in {seen for _, seen in plain.getcolors(2**20)}
    assert colour in {seen for _, seen in joined.getcolors(2**20)}


def test_long_questions_wrap_and_keep_their_brackets():
    words = ["[CLS]", *["extraordinarily"] * 20, "[SEP]"]
    chips = drawing.chips(words, width=600, brackets=1)
    assert max(chip.right for chip in chips) <= 600
    rows = sorted({chip.top for chip in chips})
    assert len(rows) > 2
    assert min(b - a for a, b in itertools.pairwise(rows)) >= drawing.CHIP_HEIGHT + drawing.bracket_room(1)
    traced = hand_made(3, 3, words=len(words), word_groups=[(1, 20)])
    assert draw(traced, Image.new("RGB", (9, 9)), words).height > draw(hand_made(3, 3), Image.new("RGB", (9, 9))).height


def test_a_text_that_does_not_fit_the_tokens_is_written_out_instead():
    traced, image = hand_made(3, 3, words=4), Image.new("RGB", (9, 9))
    fitting, other = draw(traced, image, "red dots"), draw(traced, image, "how many are there?")
    assert other.height == fitting.height + 30


@pytest.mark.parametrize(("sample", "forward", "seen"), [(1, 0, "sample 1"), (0, 1, "forward 1")])
def test_what_is_not_in_the_trace_is_refused(sample, forward, seen):
    with pytest.raises(pumer.InputError, match=seen):
        draw(hand_made(2, 2), Image.new("RGB", (8, 8)), sample=sample, forward=forward)


def test_an_empty_trace_is_refused():
    with pytest.raises(pumer.InputError, match=r"with pumer\.trace"):
        draw(Trace(), Image.new("RGB", (8, 8)))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small random model whose reductions matter, saved with its processor and its reduction."""
    torch.manual_seed(0)
    config = small_vilt(layers=3)
    config.initializer_range = 0.2
    model = pumer.patch(
        ViltForQuestionAnswering(config).eval(),
        pumer.PuMerConfig(layers=(0, 1), prune_ratio=0.2, merge_ratio=0.3, text_merge_ratio=0.2),
    )
    folder = tmp_path_factory.mktemp("checkpoint")
    small_processor().save_pretrained(folder)
    pumer.checkpoint.save(model, folder)
    return folder


def test_every_patch_of_a_padded_batch_is_drawn_as_the_trace_says(checkpoint):
    model, processor = pumer.checkpoint.load(checkpoint), pumer.checkpoint.load_processor(checkpoint)
    images = [Image.new("RGB", (160, 96), BLUE), Image.new("RGB", (96, 120), (200, 60, 20))]
    inputs = processor(images, ["what is it?", "is there a red square?"], padding=True, return_tensors="pt")
    with torch.inference_mode(), trace(model) as traced:
        model(**inputs)
    (forward,) = traced.forwards
    for sample, image in enumerate(images):
        rows, cols = forward.grid[sample].tolist()
        assert rows != cols
        picture = draw(traced, image, sample=sample)
        for token, patch in enumerate(forward.patch_cell[sample].tolist(), start=forward.text_tokens):
            if patch >= 0:
                gone = forward.pruned_at[sample, token] >= 0
                assert (patch_colour(picture, 1, patch, rows, cols) != image.getpixel((0, 0))) == gone


def test_run_writes_the_picture_and_gives_the_models_answer(checkpoint, tmp_path):
    Image.new("RGB", (120, 80), BLUE).save(tmp_path / "cat.png")
    config = VisualizeConfig(
        model=str(checkpoint),
        images=(tmp_path / "cat.png",),
        question="what is it?",
        out=tmp_path / "new" / "tokens.png",
    )
    answer = run(config)
    model = pumer.checkpoint.load(checkpoint)
    assert answer in model.config.label2id
    reduced = Image.open(config.out)
    run(dataclasses.replace(config, reduction="none", out=tmp_path / "unreduced.png"))
    unreduced = Image.open(tmp_path / "unreduced.png")
    tinted = [patch_colour(unreduced, 1, patch, 12, 12) != BLUE for patch in range(144)]
    assert not any(tinted)
    assert sum(patch_colour(reduced, 1, patch, 12, 12) != BLUE for patch in range(144)) > 20


@pytest.mark.parametrize(("backbone", "example"), GRID, ids=tiny.label)
def test_every_method_is_drawn(backbone, example, monkeypatch):
    case, said = TINY[backbone], []
    inputs = case.batch([(6, 6, 6)])
    with torch.no_grad(), pumer.trace(model := pumer.patch(case.build(), example.config)) as recorded:
        model(**inputs)
    monkeypatch.setattr(drawing, "panel", lambda picture, title, legend: said.append((title, legend)) or picture)
    draw(recorded, Image.new("RGB", (48, 48), BLUE), ["word"] * 6)
    told = recorded.forwards[0]
    pruned = int((told.pruned_at[0, told.text_tokens :][told.patch_cell[0] >= 0] >= 0).sum())
    ((title, legend),) = [(title, legend) for title, legend in said if title.startswith("pruned")]
    assert title == f"pruned: {pruned} of 36 patches"
    assert sum(int(text.rpartition(": ")[2]) for _, text in legend) == pruned


def test_run_refuses_a_broken_image(checkpoint, tmp_path):
    (tmp_path / "cat.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    with pytest.raises(pumer.InputError, match=r"cat\.jpg"):
        run(
            VisualizeConfig(
                model=str(checkpoint),
                images=(tmp_path / "cat.jpg",),
                question="what is it?",
                out=tmp_path / "tokens.png",
            )
        )
    assert not (tmp_path / "tokens.png").exists()
