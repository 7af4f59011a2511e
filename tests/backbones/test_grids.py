"""Where image tokens stand: found anew by changing pixels and looking which token feels it."""

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from tiny.decoders import DECODERS, IMAGE, IMAGE_END, IMAGE_START, PATCH, ROW_END, SIDE, VIDEO, Image, Sample, text
from torch import nn
from transformers.image_processing_utils import select_best_resolution

import pumer
from pumer import PuMerConfig, Step
from pumer.backbones.grids import Tile

CONFIG = PuMerConfig(schedule=(Step(stack="decoder", layer=0, prune_ratio=0.3, merge_ratio=0.3),))
TILED = ("smolvlm", "idefics3")
ONE_TOKEN = {"llava": PATCH, "mistral3": PATCH, "internvl": 2 * PATCH, "smolvlm": 2 * PATCH, "idefics3": 2 * PATCH}
"""Pixels along the side of a token."""
RESOLUTIONS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]

families = pytest.mark.parametrize("family", DECODERS)


@cache
def model_of(family):
    return pumer.patch(DECODERS[family].model().double().requires_grad_(False), CONFIG)


def marked(sample):
    """The same prompt with ids around tiles as a processor writes them: their row and column, or that it is all."""
    images, ids = [], []
    for image in sample.images:
        *parts, whole = ([IMAGE_START, mark, *[IMAGE] * 4] for mark in [*range(160, 159 + len(image.pixels)), 159])
        images.append(replace(image, ids=[*(i for part in parts for i in part), *whole, IMAGE_START]))
        ids += images[-1].ids
    return Sample([*text(3, 0), *ids, *text(4, 1)], tuple(images))


def samples_of(family, seeds=((1, 1), (2, 1), (4, 2))):
    found = [DECODERS[family].sample(seed, images, before=2 + seed) for seed, images in seeds]
    return [marked(sample) for sample in found] if family in TILED else found


def traced(call, model, **inputs):
    with torch.no_grad(), pumer.trace(model) as trace:
        call(**inputs)
    (forward,) = trace.forwards
    return forward


def generated(model, inputs, **settings):
    return traced(model.generate, model, **inputs, max_new_tokens=2, do_sample=False, **settings)


def embedded(model, inputs):
    """``(B, N, D)`` of text and image, as the decoder gets it."""
    root = model.model
    decoder, seen = getattr(root, "language_model", None) or root.text_model, []
    hook = decoder.register_forward_pre_hook(lambda _, __, given: seen.append(given["inputs_embeds"]), with_kwargs=True)
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    return seen[0]


def silenced(family):
    """A model whose vision encoder has no attention: a token feels nothing but its own pixels."""
    model = copy.deepcopy(model_of(family))
    for name, module in model.model.named_modules():
        last = name.rpartition(".")[2]
        ours = "vision" in name or "visual" in name
        if ours and "att" in name and last in ("out_proj", "o_proj", "proj", "projection_layer"):
            for parameter in module.parameters():
                nn.init.zeros_(parameter)
    return model


def blocks(family, image):
    """Each token's pixels as an index into the image's pixels, and the (tile, row, column) that it should have."""
    if image.pixels.ndim == 2:  # patches in the order in which four of them become one token
        across = image.size[2] // 2
        for token in range(len(image.pixels) // 4):
            yield (slice(4 * token, 4 * token + 4),), (0, token // across, token % across)
    elif family in ("llava_next", "llava_onevision"):
        yield from tiled(image)
    else:
        side = ONE_TOKEN[family.removesuffix("_qwen3")]
        tiles = range(len(image.pixels)) if image.pixels.ndim == 4 else [None]
        for tile in tiles:
            for row in range(image.pixels.shape[-2] // side):
                for column in range(image.pixels.shape[-1] // side):
                    first = () if tile is None else (tile,)
                    yield (*first, slice(None), *square(row, column, side)), (tile or 0, row, column)


def square(row, column, side=PATCH):
    return slice(row * side, row * side + side), slice(column * side, column * side + side)


def tiled(image):
    """Of LLaVA-NeXT: the overview, then tiles whose padding is cut off; what is cut off should be nowhere."""
    count = SIDE // PATCH
    for row in range(count):
        for column in range(count):
            yield (0, slice(None), *square(row, column)), (0, row, column)
    if len(image.pixels) == 1:
        return
    height, width = image.size
    rows, columns = (pixels // PATCH for pixels in select_best_resolution(image.size, RESOLUTIONS))
    top = left = 0
    if width / height > columns / rows:
        top = (rows - int(round(height * columns / width, 7))) // 2
    else:
        left = (columns - int(round(width * rows / height, 7))) // 2
    for row in range(rows):
        for column in range(columns):
            tile = 1 + row // count * (columns // count) + column // count
            inside = top <= row < rows - top and left <= column < columns - left
            cell = (1, row - top, column - left) if inside else None
            yield (tile, slice(None), *square(row % count, column % count)), cell


def images_in(family, samples):
    """Each image with its prompt, its number there, and from an index into its pixels to that of the batch's."""
    image_at = rows_at = 0
    for prompt, sample in enumerate(samples):
        tile_at = 0
        for number, image in enumerate(sample.images):
            if family in TILED:
                yield prompt, number, image, partial(_shifted, (prompt,), tile_at)
            elif family.startswith("llava_") or family == "mistral3":
                yield prompt, number, image, partial(_shifted, (image_at,), 0)
            else:
                yield prompt, number, image, partial(_shifted, (), rows_at)
            image_at, rows_at, tile_at = image_at + 1, rows_at + len(image.pixels), tile_at + len(image.pixels)


def _shifted(before, start, index):
    first, *rest = index
    if start:
        first = slice(first.start + start, first.stop + start) if isinstance(first, slice) else first + start
    return (*before, first, *rest)


@families
def test_a_token_stands_where_its_pixels_are(family):
    model, samples = silenced(family), samples_of(family)
    inputs = DECODERS[family].batch(samples)
    told, before = generated(model, inputs), embedded(model, inputs)
    for prompt, number, image, index_of in images_in(family, samples):
        for index, expected in list(blocks(family, image))[:: 1 + len(image.ids) // 12]:
            pixels = inputs["pixel_values"].clone()
            pixels[index_of(index)] += 1
            felt = (embedded(model, inputs | {"pixel_values": pixels}) != before).any(dim=-1)
            there = torch.zeros_like(felt)
            if expected is not None:
                tile, row, column = expected
                cell = row * told.images[prompt][number][tile].columns + column
                ours = (told.image[prompt] == number) & (told.tile[prompt] == tile)
                there[prompt] = ours & (told.patch_cell[prompt] == cell)
            assert int(there.sum()) == (expected is not None)
            assert torch.equal(felt, there), (prompt, number, expected)


@families
def test_text_is_in_no_image_and_ends_of_rows_have_no_cell(family):
    model, samples = model_of(family), samples_of(family)
    inputs = DECODERS[family].batch(samples)
    told = generated(model, inputs)
    placeholder = inputs["input_ids"] == IMAGE
    assert torch.equal(told.image >= 0, placeholder) and torch.equal(told.tile >= 0, placeholder)
    for prompt, images in enumerate(told.images):
        assert len(images) == len(samples[prompt].images)
        for number, tiles in enumerate(images):
            ours = told.image[prompt] == number
            for rank, tile in enumerate(tiles):
                cells = told.patch_cell[prompt, ours & (told.tile[prompt] == rank)].tolist()
                ends = tile.rows * tile.row_ends + tile.ends
                assert cells.count(-1) == ends and cells[-1] == (-1 if ends else len(cells) - 1)
                assert [cell for cell in cells if cell >= 0] == list(range(tile.rows * tile.columns))
    assert not told.grid.any()


@families
def test_a_forward_beams_and_the_other_padding_show_the_same(family):
    model, samples = model_of(family), samples_of(family)
    inputs = DECODERS[family].batch(samples)
    told, forward = generated(model, inputs), traced(model, model, **inputs)
    beams = generated(model, inputs, num_beams=2)
    right = traced(model, model, **DECODERS[family].batch(samples, padding="right"))
    assert told.images == forward.images == right.images and beams.images == tuple(
        images for images in told.images for _ in range(2)
    )
    for name in ("image", "tile", "patch_cell"):
        expected = getattr(told, name)
        assert torch.equal(getattr(forward, name), expected)
        assert torch.equal(getattr(beams, name), expected.repeat_interleave(2, dim=0))
        for row, other, real, sample in zip(expected, getattr(right, name), told.mask, samples, strict=True):
            assert torch.equal(other[: len(sample.ids)], row[real])


@pytest.mark.parametrize("family", ["llava", "internvl", "idefics3"])
def test_a_prompt_of_embeddings_shows_it_without_ids_too_or_claims_nothing(family):
    model, inputs = model_of(family), DECODERS[family].batch(samples_of(family))
    expected = traced(model, model, **inputs)
    inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids"))
    told = traced(model, model, **inputs)
    if family == "idefics3":  # whose tiles are told apart by ids
        assert told.images is None and (told.image == -1).all()
    else:
        assert told.images == expected.images and torch.equal(told.patch_cell, expected.patch_cell)


@pytest.mark.parametrize("family", ["llava", "internvl"])
def test_neighbouring_images(family):
    images = [DECODERS[family].sample(seed).images[0] for seed in (1, 2)]
    if family == "llava":  # nothing stands between them
        images = [replace(image, ids=[i for i in image.ids if i == IMAGE]) for image in images]
    sample = Sample([3, *images[0].ids, *images[1].ids, 4], tuple(images))
    told = generated(model_of(family), DECODERS[family].batch([sample]))
    numbers = [number for number in told.image[0].tolist() if number >= 0]
    assert numbers == [number for number, image in enumerate(images) for i in image.ids if i == IMAGE]


@pytest.mark.parametrize(("rows", "columns"), [(1, 3), (3, 1), (2, 3), (1, 1)])
@pytest.mark.parametrize("breaks", [1, 2])
def test_rows_of_parts_are_seen_from_what_stands_between_them(rows, columns, breaks):
    ids = []
    for row in range(rows):
        for column in range(columns):
            ids += [IMAGE_START, 160 + 6 * row + column, *[IMAGE] * 4]
        ids += [ROW_END] * breaks
    ids += [ROW_END, IMAGE_START, 159, *[IMAGE] * 4, IMAGE_START]
    pixels = torch.randn(rows * columns + 1, 3, SIDE, SIDE)
    image = Image(ids, pixels, (SIDE, SIDE))
    told = generated(model_of("idefics3"), DECODERS["idefics3"].batch([Sample([3, *ids, 4, *ids, 5], (image, image))]))
    assert told.images == (((*(Tile(2, 2, "part", across=columns),) * (rows * columns), Tile(2, 2)),) * 2,)


def test_nothing_is_claimed_of_parts_in_uneven_rows():
    part = [IMAGE_START, 160, *[IMAGE] * 4]
    ids = [3, *part, *part, ROW_END, *part, ROW_END, IMAGE_START, 159, *[IMAGE] * 4, IMAGE_START, 5]
    for at, place in enumerate([i for i, token in enumerate(ids) if token == 160]):
        ids[place] += at
    image = Image([], torch.randn(4, 3, SIDE, SIDE), (SIDE, SIDE))
    assert generated(model_of("idefics3"), DECODERS["idefics3"].batch([Sample(ids, (image,))])).images is None


def test_parts_of_an_image_are_told_from_the_whole():
    told = generated(model_of("smolvlm"), DECODERS["smolvlm"].batch(samples_of("smolvlm")))
    for images, sample in zip(told.images, samples_of("smolvlm"), strict=True):
        expected = [["part"] * (len(image.pixels) - 1) + ["image"] for image in sample.images]
        assert [[tile.shows for tile in tiles] for tiles in images] == expected


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_frames_of_a_video_beside_an_image(family):
    image = DECODERS[family].sample(1).images[0]
    ids = [3, IMAGE_START, *[VIDEO] * 12, IMAGE_END, 5, *image.ids, 4]
    inputs = DECODERS[family].batch([Sample(ids, (image,))] * 2)
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int() + 2 * (inputs["input_ids"] == VIDEO).int()
    inputs["pixel_values_videos"] = torch.randn(2 * 48, image.pixels.shape[1], dtype=torch.float64)
    inputs["video_grid_thw"] = torch.tensor([[2, 4, 6]] * 2)
    model = model_of(family)
    for told in (generated(model, inputs), traced(model, model, **inputs)):
        frames, still = told.images[1]
        assert frames == (Tile(2, 3, "frame"),) * 2 and len(still) == 1
        video = inputs["input_ids"][1] == VIDEO
        assert told.image[1, video].tolist() == [0] * 12 and told.tile[1, video].tolist() == [0] * 6 + [1] * 6
        assert told.patch_cell[1, video].tolist() == [*range(6), *range(6)]
        assert set(told.image[1, inputs["input_ids"][1] == IMAGE].tolist()) == {1}


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen3_vl", "mistral3", "smolvlm"])
def test_nothing_is_claimed_of_images_that_were_encoded_before(family):
    model, inputs = model_of(family), DECODERS[family].batch(samples_of(family))
    names = ("pixel_values", "image_sizes", "image_grid_thw", "pixel_attention_mask")
    given = {name: inputs.pop(name) for name in names if name in inputs}
    output = model.model.get_image_features(**given, return_dict=True)
    told = traced(model, model, **inputs, mm_encoder_outputs={"image": output}, **_grid(given))
    assert told.images is None
    assert all((x == -1).all() for x in (told.image, told.tile, told.patch_cell))


def _grid(given):
    return {name: x for name, x in given.items() if name == "image_grid_thw"}  # which positions are counted by


def test_threads_do_not_mix_up_their_images():
    model = model_of("qwen2_5_vl")
    batches = [DECODERS["qwen2_5_vl"].batch([DECODERS["qwen2_5_vl"].sample(seed)]) for seed in range(6)]
    expected = [generated(model, inputs).images for inputs in batches]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda inputs: generated(model, inputs).images, batches)) == expected
    assert len(set(expected)) > 2
