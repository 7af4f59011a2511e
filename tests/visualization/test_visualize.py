import base64
import dataclasses
import io
import itertools
from xml.etree import ElementTree

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from tiny import GRID, TINY
from transformers import ViltForQuestionAnswering

import pumer
from benchmarks.pretrain_small.small import small_processor, small_vilt
from pumer.patching import reductions
from pumer.settings.visualize import VisualizeConfig
from pumer.visualization import drawing, shapes
from pumer.visualization import words as shown
from pumer.visualization.saliency import _Scored, saliency
from pumer.visualization.tracing import ForwardTrace, Trace, trace
from pumer.visualization.views import Fate
from pumer.visualization.visualize import draw, run

BLUE = (40, 90, 200)


def hand_made(rows, cols, pruned=(), groups=(), words=4, word_groups=(), layers=(1, 3), padding=2):
    """A trace of one sample: `pruned` maps patch to layer, `groups` are patches that share an owner."""
    text, patches = words + padding, rows * cols
    count = text + 1 + patches + padding
    mask = torch.zeros(1, count, dtype=torch.bool)
    mask[0, :words] = True
    mask[0, text : text + 1 + patches] = True
    owner = torch.where(mask, torch.arange(count), -1)
    pruned_at, merged_at, merged_into = (torch.full((1, count), -1) for _ in range(3))
    for patch, layer in dict(pruned).items():
        pruned_at[0, text + 1 + patch] = layers.index(layer)
        owner[0, text + 1 + patch] = -1
    for first, *others in [[text + 1 + patch for patch in group] for group in groups] + [list(g) for g in word_groups]:
        owner[0, others], merged_at[0, others], merged_into[0, others] = first, len(layers) - 1, first
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
        merged_at=merged_at,
        merged_into=merged_into,
        places=tuple(("fusion", layer) for layer in layers),
        tokens_per_place=[(torch.tensor([words]), torch.tensor([1 + patches]))] * len(layers),
    )
    return Trace([forward])


def panels(page):
    """The rectangles of the panels of a page, in order: those of the photo, of what was pruned, of what is left."""
    shown = [shape for shape in page.shapes if isinstance(shape, shapes.ImageShape)]
    places = [(shape.left, shape.top, shape.width, shape.height) for shape in shown]
    (left, top, width, height), (second, *_) = places
    return [*places, (2 * second - left, top, width, height)]


def patch_colours(drawn, panel, rows, cols):
    """The colours (rows x cols, 3) at one side of the middles of the patches of a panel, where no number stands."""
    left, top, width, height = panels(drawn.last)[panel]
    pixels = np.asarray(drawn.image)
    places = [((row + 0.85) * height / rows, (col + 0.85) * width / cols) for row in range(rows) for col in range(cols)]
    return np.array([pixels[int(2 * (top + y)), int(2 * (left + x))] for y, x in places], dtype=int)


def photo(rows, cols, seed=0):
    """An image whose patches have one colour each, and the colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (rows, cols, 3), dtype=np.uint8)
    return Image.fromarray(colours.repeat(20, axis=0).repeat(20, axis=1)), colours.reshape(-1, 3).astype(int)


def test_paths_pil_images_and_arrays_are_drawn_alike(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    path, exif = tmp_path / "cat.png", Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(colours).save(path, exif=exif)
    expected = draw(hand_made(3, 3), np.rot90(colours, -1)).image.tobytes()
    for image in (path, str(path), Image.open(path), np.rot90(colours, -1) / 255):
        assert draw(hand_made(3, 3), image).image.tobytes() == expected
    dark = np.full((8, 8), 60 << 8, dtype=np.uint16)
    seen, expected = (draw(hand_made(1, 1), image).image.tobytes() for image in (dark, np.uint8(dark >> 8)))
    assert seen == expected
    with pytest.raises(pumer.InputError, match=r"\(3, 30, 40\)"):
        draw(hand_made(3, 3), colours.transpose(2, 0, 1))


@pytest.mark.parametrize(("rows", "cols"), [(3, 3), (4, 5), (6, 4)])
def test_each_pruned_patch_is_a_flat_grey_and_paler_where_it_was_pruned_early(rows, cols):
    pruned, (image, colours) = {0: 1, 4: 3, rows * cols - 1: 3}, photo(rows, cols)
    drawn = draw(hand_made(rows, cols, pruned), image)
    assert np.abs(patch_colours(drawn, 0, rows, cols) - colours).max() <= 2
    seen = patch_colours(drawn, 1, rows, cols)
    for patch in range(rows * cols):
        if patch in pruned:
            assert len(set(seen[patch])) == 1
            early = {240, 144}  # the grey, and its lines
            assert (seen[patch, 0] in early) == (pruned[patch] == 1)
        else:
            assert np.abs(seen[patch] - colours[patch]).max() <= 2
    hatched = shapes.Hatched(0, 0, 1, 1, shapes.GONE)
    assert {tuple(colour) for colour in patch_colours(drawn, 2, rows, cols)[list(pruned)]} <= set(hatched.colours)


def test_the_patches_of_each_token_have_their_mean_colour():
    groups, (image, colours) = [(0, 1, 5), (6, 7)], photo(3, 3)
    seen = patch_colours(draw(hand_made(3, 3, {8: 1}, groups), image), 2, 3, 3)
    for group in (*groups, (2,), (3,), (4,)):
        for patch in group:
            assert np.abs(seen[patch] - colours[list(group)].mean(axis=0)).max() <= 1
    assert len(set(seen[8])) == 1


def test_the_largest_tokens_are_numbered_and_counted():
    groups = [(0, 1, 2, 3, 4), (5, 6), (7, 8, 9), (10, 11)]
    page = draw(hand_made(4, 4, groups=groups), photo(4, 4)[0], ["word"] * 4).last
    numbers = [text for text in texts(page) if text in "123"]
    assert numbers == ["1"] * 5 + ["2"] * 3 + ["3"] * 2  # in each patch, so that none is hidden in a piece apart
    assert {"1: 5", "2: 3", "3: 2", "16 patches merged into 8"} <= set(texts(page))
    assert not any(text.startswith("1: ") for text in texts(draw(hand_made(4, 4, {3: 1}), photo(4, 4)[0]).last))


def texts(page):
    return [shape.text for shape in page.shapes if isinstance(shape, shapes.Label)]


@pytest.mark.parametrize("size", [(40, 10), (10, 40), (30, 20), (20, 20)])
def test_images_keep_their_aspect(size):
    for traced in (hand_made(4, 4, {1: 1}), hand_made(4, 4)):
        for shape in draw(traced, Image.new("RGB", size, BLUE)).last.shapes:
            if isinstance(shape, shapes.ImageShape):
                assert shape.width / shape.height == pytest.approx(size[0] / size[1])
                assert shape.left + shape.width <= shapes.WIDTH


def test_nothing_reduced_is_said_beside_the_image_alone():
    drawn = draw(hand_made(3, 3), Image.new("RGB", (9, 9), BLUE))
    assert sum(isinstance(shape, shapes.ImageShape) for shape in drawn.last.shapes) == 1
    assert any(text.startswith("nothing was reduced") for text in texts(drawn.last))
    words = draw(hand_made(3, 3, word_groups=[(1, 2)]), Image.new("RGB", (9, 9), BLUE))
    assert any(text.startswith("nothing was reduced") for text in texts(words.last))


def test_frames_show_one_reduction_after_the_other(tmp_path):
    image, out = photo(3, 3)[0], tmp_path / "new" / "tokens.gif"
    drawn = draw(hand_made(3, 3, {0: 1, 8: 3}, [(4, 5)]), image)
    greys = [
        [len(set(colour)) == 1 for colour in patch_colours(replaced, 1, 3, 3)]
        for replaced in (drawing.Drawing(drawn.page, at) for at in (1, 2, 3))
    ]
    assert [sum(grey) for grey in greys] == [0, 1, 2]
    drawn.save(out)
    with Image.open(out) as animation:
        assert animation.n_frames == drawn.count == 3


def test_svg_is_xml_with_the_words_as_text_and_the_image_in_it(tmp_path):
    image, question = photo(3, 3)[0], 'is "a" < b & \x00 \U0001f600?'
    drawn = draw(hand_made(3, 3, {0: 1}, [(4, 5)], words=4), image, ["[CLS]", "<&>", '"', "\x07x"], question)
    drawn.save(tmp_path / "tokens.svg")
    root = ElementTree.parse(tmp_path / "tokens.svg").getroot()
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert words[:4] == ["[CLS]", "<&>", '"', " x"]
    assert 'answer: is "a" < b &   \U0001f600?' in words
    shown = [element.get("href") for element in root.iter("{http://www.w3.org/2000/svg}image")]
    assert len(shown) == 2
    for href in shown:
        data = base64.b64decode(href.removeprefix("data:image/png;base64,"))
        assert Image.open(io.BytesIO(data)).width % 3 == 0


def test_no_border_between_patches_of_one_token():
    found = drawing.borders([7, 7, None, None], 2, 2, 20, 20)
    assert set(found) == {
        (0, 0, 10, 0),
        (10, 0, 20, 0),
        (0, 10, 10, 10),
        (10, 10, 20, 10),
        (0, 0, 0, 10),
        (20, 0, 20, 10),
    }
    each = drawing.borders([1, 2, 3, 4], 2, 2, 20, 20)
    assert len(each) == len(set(each)) == 12


def test_merged_words_share_a_colour_and_a_bracket():
    image = Image.new("RGB", (9, 9), BLUE)
    plain = draw(hand_made(3, 3, words=4), image, "red dots").image
    joined = draw(hand_made(3, 3, words=4, word_groups=[(1, 2)]), image, "red dots").image
    colour = shapes.group_colour(0)
    assert colour not in {seen for _, seen in plain.getcolors(2**20)}
    assert colour in {seen for _, seen in joined.getcolors(2**20)}


def test_brackets_that_overlap_stand_below_each_other():
    traced = hand_made(2, 2, words=8, word_groups=[(0, 4), (1, 2), (5, 6)])
    fate = Fate(traced.forwards[0], 0, [Image.new("RGB", (9, 9))])
    levels = {token: shown.bracket_levels(fate)[group] for token, group in fate.text_groups.items()}
    assert levels[0] == levels[4] != levels[1] == levels[2]
    assert levels[5] == levels[6] == levels[0]


def test_a_question_that_was_cut_is_reported():
    image, traced = Image.new("RGB", (9, 9), BLUE), hand_made(3, 3, {0: 1}, words=4)
    for words in (
        "one two three four",
        ["[CLS]", "one", "two", "[SEP]", "three", "fo", "##ur"],
        ["<s>", "a", "\u0120b", "</s>", "\u0120three", "\u0120fo", "ur"],
    ):
        assert any(
            text.endswith("three four") and " 4 tokens" in text for text in texts(draw(traced, image, words).last)
        )
    assert not any("cut" in text for text in texts(draw(traced, image, "one two").last))


def test_long_questions_wrap_and_keep_their_brackets():
    words = ["[CLS]", *["extraordinarily"] * 20, "[SEP]"]
    chips = shown.chips([*words, "x" * 200], width=600, brackets=1)
    assert max(chip.right for chip in chips) <= 600
    rows = sorted({chip.top for chip in chips})
    assert len(rows) > 2
    assert min(b - a for a, b in itertools.pairwise(rows)) >= shown.CHIP_HEIGHT + shown.bracket_room(1)
    traced = hand_made(3, 3, words=len(words), word_groups=[(1, 20)])
    tall, short = draw(traced, Image.new("RGB", (9, 9)), words), draw(hand_made(3, 3), Image.new("RGB", (9, 9)))
    assert tall.image.height > short.image.height


def test_a_text_that_does_not_fit_the_tokens_is_written_out_instead():
    traced, image = hand_made(3, 3, words=4), Image.new("RGB", (9, 9))
    fitting, other = draw(traced, image, "red dots").last, draw(traced, image, "red").last
    assert texts(fitting)[:4] == ["[CLS]", "red", "dots", "[SEP]"]
    assert texts(other)[:5] == ["0", "1", "2", "3", "red"]


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
        seen = patch_colours(draw(traced, image, sample=sample), 1, rows, cols)
        for token, patch in enumerate(forward.patch_cell[sample].tolist(), start=forward.text_tokens):
            if patch >= 0:
                gone = forward.pruned_at[sample, token] >= 0
                assert (len(set(seen[patch])) == 1) == gone


def test_run_writes_the_picture_and_gives_the_models_answer(checkpoint, tmp_path):
    Image.new("RGB", (120, 80), BLUE).save(tmp_path / "cat.png")
    config = VisualizeConfig(
        model=str(checkpoint),
        images=(tmp_path / "cat.png",),
        questions=("what is it?",),
        out=tmp_path / "new" / "tokens.png",
    )
    (asked,) = run(config)
    model = pumer.checkpoint.load(checkpoint)
    assert {asked.answer, asked.unreduced} <= set(model.config.label2id)
    one = np.asarray(Image.open(config.out))
    run(dataclasses.replace(config, reduction="none", out=tmp_path / "unreduced.png"))
    assert Image.open(tmp_path / "unreduced.png").height < len(one)
    two = dataclasses.replace(config, questions=("what is it?", "where is it?"), out=tmp_path / "two.png")
    assert run(two)[0].answer == asked.answer
    both = np.asarray(Image.open(two.out))
    assert np.array_equal(both[: len(one)], one) and len(both) > 1.8 * len(one)


def test_scores_are_drawn_where_the_method_has_some(checkpoint, tmp_path):
    Image.new("RGB", (120, 80), BLUE).save(tmp_path / "cat.png")
    given = {"model": str(checkpoint), "images": (tmp_path / "cat.png",), "questions": ("what is it?",)}
    plain, scored = (VisualizeConfig(**given, saliency=on, out=tmp_path / f"{on}.svg") for on in (False, True))
    run(plain), run(scored)
    without, drawn = plain.out.read_text(), scored.out.read_text()
    assert drawn.count(">layer 0<") == 1 and ">layer 0<" not in without
    with pytest.raises(pumer.InputError, match="'tome' scores no"):
        run(
            dataclasses.replace(
                scored, reduction={"method": "tome", "layers": [1], "merge_count": 2}, out=tmp_path / "x.png"
            )
        )


@pytest.mark.parametrize(("backbone", "example"), GRID, ids=tiny.label)
def test_the_lowest_scores_are_pruned(backbone, example):
    case = TINY[backbone]
    inputs = case.batch([(6, 6, 6)])
    model = pumer.patch(case.build(), example.config)
    with torch.no_grad(), pumer.trace(model) as recorded, saliency(model) as scores:
        model(**inputs)
    (told,) = recorded.forwards
    assert not any(isinstance(reducer, _Scored) for state in reductions(model) for reducer in state.reducers.values())
    for place, values in (scores[0] if scores else {}).items():
        rank, real = told.places.index(place), told.patch_cell >= 0
        image, gone = values[:, told.text_tokens :], told.pruned_at[:, told.text_tokens :]
        assert image[real & ((gone < 0) | (gone >= rank))].isfinite().all()
        assert values[:, : told.text_tokens].isnan().all()
        here, left = image[real & (gone == rank)], image[real & ((gone < 0) | (gone > rank))]
        assert len(here) == 0 or here.max() <= left.min()


@pytest.mark.parametrize(
    "config", [pumer.ToMeConfig(layers=(0, 2), merge_count=2), pumer.L2NormConfig(layers=(0, 2), prune_ratio=0.2)]
)
def test_each_forward_has_an_entry_of_its_own(config):
    case, image = TINY["vilt"], Image.new("RGB", (48, 48), BLUE)
    model = pumer.patch(case.build(), config)
    with torch.no_grad(), pumer.trace(model) as recorded, saliency(model) as scores:
        for grid in ((6, 6, 6), (6, 3, 6)):
            model(**case.batch([grid]))
    scoring = config.method != "tome"
    assert [sorted(entry) for entry in scores] == [[("fusion", 0), ("fusion", 2)] * scoring] * 2
    for entry, told in zip(scores, recorded.forwards, strict=True):
        assert all(values.shape == told.mask.shape for values in entry.values())
    assert draw(recorded, image, forward=1, saliency=scores).last
    for others in (scores[:1], [*scores, {}]):
        with pytest.raises(pumer.InputError, match=f"2 forward.* of {len(others)}"):
            draw(recorded, image, forward=1, saliency=others)


@pytest.mark.parametrize(("backbone", "example"), GRID, ids=tiny.label)
def test_who_holds_whom_is_what_the_trace_says(backbone, example):
    case = TINY[backbone]
    with torch.no_grad(), pumer.trace(model := pumer.patch(case.build(), example.config)) as recorded:
        model(**case.batch([(6, 6, 6)]))
    (told,) = recorded.forwards
    fates = [Fate(told, 0, [Image.new("RGB", (9, 9))], after) for after in range(len(told.places) + 1)]
    for number, fate in enumerate(fates):
        left = set(fate.holder) - {-1}
        assert len(left) == sum(counts[number] for counts in fate.counts.values())
    pairs = set(zip(fates[-1].holder, told.owner[0].tolist(), strict=True))
    assert len(pairs) == len({holder for holder, _ in pairs}) == len({slot for _, slot in pairs})


@pytest.mark.parametrize(("backbone", "example"), GRID, ids=tiny.label)
def test_every_method_is_drawn(backbone, example, monkeypatch):
    case, said = TINY[backbone], []
    inputs = case.batch([(6, 6, 6)])
    with torch.no_grad(), pumer.trace(model := pumer.patch(case.build(), example.config)) as recorded:
        model(**inputs)
    monkeypatch.setattr(drawing, "panel", lambda page, title, legend=(): said.append((title, legend)) or page)
    assert draw(recorded, Image.new("RGB", (48, 48), BLUE), ["word"] * 6).last
    told = recorded.forwards[0]
    assert said[0][1][0].text == "6 x 6 patches and [CLS]"
    pruned = int((told.pruned_at[0, told.text_tokens :][told.patch_cell[0] >= 0] >= 0).sum())
    owners = told.owner[0, told.text_tokens :][told.patch_cell[0] >= 0]
    if not pruned and len(owners.unique()) == len(owners):
        assert len(said) == 2 and said[1][0] == ""  # the image, and the note beside it
        return
    found = [(title, legend) for title, legend in said if title.startswith("pruned")]
    assert [title for title, _ in found] == [f"pruned: {pruned} of 36 patches"] * bool(pruned)
    assert sum(int(key.text.rpartition(": ")[2]) for _, legend in found for key in legend) == pruned
    left = len({owner for owner in owners.tolist() if owner >= 0})
    (said_left,) = [legend[0].text for title, legend in said if "->" in title]
    merged = f" merged into {left}" if left < 36 - pruned else ""
    assert said_left.removeprefix("[CLS], ") == f"{36 - pruned} patches{merged}"


def test_run_refuses_a_broken_image(checkpoint, tmp_path):
    (tmp_path / "cat.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    with pytest.raises(pumer.InputError, match=r"cat\.jpg"):
        run(
            VisualizeConfig(
                model=str(checkpoint),
                images=(tmp_path / "cat.jpg",),
                questions=("what is it?",),
                out=tmp_path / "tokens.png",
            )
        )
    assert not (tmp_path / "tokens.png").exists()


def test_captions_say_where_the_tokens_went(checkpoint, tmp_path):
    image, out = Image.new("RGB", (96, 96), BLUE), tmp_path / "x.png"
    image.paste((200, 60, 20), (0, 0, 48, 48))
    image.save(tmp_path / "cat.png")
    (asked,) = run(
        VisualizeConfig(model=str(checkpoint), images=(tmp_path / "cat.png",), questions=("what is it?",), out=out)
    )
    ((entered, _, last),) = asked.tokens
    said = texts(asked.drawing.last)
    assert f"image tokens: {entered['image']} -> {last['image']}" in said
    patches = int(next(text for text in said if text.startswith("pruned: ")).split()[1])
    assert f"[CLS], {entered['image'] - 1 - patches} patches merged into {last['image'] - 1}" in said
    assert {f"answer: {asked.answer}", f"without reduction: {asked.unreduced}"} <= set(said)
    assert f"text tokens: {entered['text']} -> " in " ".join(said)


def test_counts_that_do_not_change_are_left_out_and_none_runs_off_the_page():
    layers = tuple(range(12))
    traced = hand_made(4, 4, groups=[(0, 1)], layers=layers)
    (forward,) = traced.forwards
    forward.tokens_per_place = [(torch.tensor([4]), torch.tensor([1017 - 100 * at // 2])) for at in layers]
    drawn = draw(traced, Image.new("RGB", (8, 8), BLUE))
    said = [shape for shape in drawn.last.shapes if isinstance(shape, shapes.Label)]
    footer = " ".join(shape.text for shape in said if "->" in shape.text and "(layer" in shape.text)
    assert footer.endswith("; text tokens: 4") and footer.count("(layer") == 12
    assert not any(shape.text.startswith("pruned") for shape in said)
    pixels = np.asarray(drawn.image)
    assert (pixels[:, -shapes.SCALE * shapes.MARGIN + 2 :] == 255).all()  # the margin is empty


def test_a_swatch_looks_like_what_it_means():
    drawn = draw(hand_made(3, 3, {0: 1, 8: 3}, [(4, 5)]), photo(3, 3)[0])
    hatched = [shape for shape in drawn.last.shapes if isinstance(shape, shapes.Hatched)]
    swatches = [shape for shape in hatched if shape.width == 14]
    cells = [shape for shape in hatched if shape.width != 14]
    assert {shape.colours for shape in swatches} == {shape.colours for shape in cells}
    assert len({shape.colour for shape in hatched}) == 3  # of two layers, and of what is gone


@pytest.mark.parametrize("page", [0, 2])
def test_an_animation_keeps_the_colours_of_what_is_drawn(page):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8))
    drawn = draw(hand_made(6, 6, dict.fromkeys(range(7), 1) | {8: 3}, [(14, 15, 30)]), noise)
    with Image.open(io.BytesIO(drawn.encoded(".gif"))) as animation:
        animation.seek(page)
        seen = np.unique(np.asarray(animation.convert("RGB")).reshape(-1, 3), axis=0).astype(int)
    wanted = {colour for shape in drawn.page(page).shapes for colour in shape.colours if shape.colours}
    for colour in wanted:
        assert np.abs(seen - colour).max(axis=1).min() <= 4


def test_frames_lie_on_the_side_of_the_token():
    ring = {(row, col) for row in range(4) for col in range(4)} - {(1, 1)}
    for shape in drawing.edging(ring, 20, 20, 3, BLUE):
        row, col = (
            int((edge + extent / 2) // 20) for edge, extent in ((shape.top, shape.height), (shape.left, shape.width))
        )
        assert (row, col) in ring
    assert drawing.edging(ring - {(0, 0)}, 20, 20, 3, BLUE) != drawing.edging(ring, 20, 20, 3, BLUE)


def test_small_cells_of_a_large_token_are_filled():
    drawn = draw(hand_made(40, 40, groups=[(0, 5, 90)]), Image.new("RGB", (80, 80), BLUE)).last
    assert sum(isinstance(x, shapes.Box) and x.colour == shapes.LARGEST[0] and x.width < 14 for x in drawn.shapes) == 3


def test_a_long_question_is_bounded_and_a_bracket_leads_to_where_it_goes_on():
    many = ["word"] * 400
    page = drawing.lines([" ".join(many)], 400, most=3)
    assert len(page.shapes) == 3 and all(shapes.length(line.text, shapes.TEXT) <= 400 for line in page.shapes)
    shown_words = sum(line.text.split().count("word") for line in page.shapes)
    assert page.shapes[-1].text.endswith(f"(words left out: {400 - shown_words})")
    assert len(drawing.lines(["x" * 3000], 400, most=3).shapes) == 3
    placed = shown.chips(many[:40], 400, 1)
    (strokes,) = shown.bracket([placed[0], placed[30]], 0, BLUE, 400)
    level = [segment for segment in strokes.segments if segment[1] == segment[3]]
    assert level[0][2] == 400 and level[1][0] == 0 and level[1][2] == placed[30].middle


def test_what_was_not_read_starts_with_a_word():
    for given in (
        ["[CLS]", "un", "[SEP]", "##re", "##ad", "two"],
        ["<s>", "\u0120un", "</s>", "re", "ad", "\u0120two"],
    ):
        found = texts(draw(hand_made(2, 2, words=3), Image.new("RGB", (8, 8)), given).last)
        assert any(text.endswith("not read: two") for text in found)


def test_an_empty_answer_is_called_so():
    found = texts(draw(hand_made(2, 2), Image.new("RGB", (8, 8)), answer=" ", unreduced="").last)
    assert {"answer: (empty)", "without reduction: (empty)"} <= set(found)
