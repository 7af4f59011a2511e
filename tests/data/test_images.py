import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViltImageProcessorPil

from pumer.data.images import read_image
from pumer.tasks import Pixels
from pumer.utils.errors import InputError


@pytest.fixture
def processor():
    return ViltImageProcessorPil(size={"shortest_edge": 32}, size_divisor=8, image_mean=[0.5] * 3, image_std=[0.25] * 3)


@pytest.fixture
def files(tmp_path):
    sizes = [(40, 30), (30, 47), (33, 33)]
    paths = []
    for number, (width, height) in enumerate(sizes):
        array = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(array).save(paths[-1])
    return paths


def test_aspect_equals_the_image_processor(processor, files):
    ours = Pixels(processor, "aspect")(files)
    theirs = processor([read_image(path) for path in files], return_tensors="pt")
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
    assert torch.equal(ours["pixel_mask"], theirs["pixel_mask"])


def test_square_is_a_bilinear_square(processor, files):
    pixels = Pixels(processor, "square")(files)
    assert pixels["pixel_values"].shape == (3, 3, 32, 32)
    assert pixels["pixel_mask"].all()
    resized = read_image(files[0]).resize((32, 32), Image.Resampling.BILINEAR)
    expected = (torch.tensor(np.asarray(resized)).permute(2, 0, 1) / 255 - 0.5) / 0.25
    assert torch.allclose(pixels["pixel_values"][0], expected, atol=1e-6)


def test_blank_shows_nothing_of_the_image(processor, files):
    pixels = Pixels(processor, "aspect", blank=True)(files)
    values = pixels["pixel_values"]
    assert values.shape == (3, 3, 32, 32)
    assert (values == values[0, 0, 0, 0]).all()


def test_cache_drops_the_least_recently_used(processor, files):
    pixels = Pixels(processor, "square", cache_bytes=2 * 3 * 32 * 32)
    first = pixels(files)["pixel_values"]
    assert list(pixels._cache) == files[1:]
    for path in files:
        path.unlink()
    assert torch.equal(pixels(files[1:])["pixel_values"], first[1:])
    with pytest.raises(InputError, match=r"0\.png does not exist"):
        pixels(files[:1])


def test_narrow_images_keep_a_patch(processor, tmp_path):
    sizes = [(2000, 2), (2, 2000), (1, 1), (20000, 20), (40, 3)]
    paths = [tmp_path / f"{number}.png" for number in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        Image.new("RGB", size, (200, 0, 0)).save(path)
    shapes = [Pixels(processor, "aspect")([path])["pixel_values"].shape[2:] for path in paths]
    assert shapes == [(8, 48), (48, 8), (32, 32), (8, 48), (8, 48)]
    assert Pixels(processor, "square")(paths)["pixel_values"].shape == (5, 3, 32, 32)


@pytest.mark.parametrize(("width", "height"), [(40, 10), (10, 40), (20, 20), (400, 1)])
def test_padded_images_keep_their_shape_in_the_middle_of_grey(processor, width, height):
    image = Image.new("RGB", (width, height), (200, 0, 0))
    pixels = Pixels(processor, "pad")
    seen = pixels.resized(image)
    wide, high = (max(1, round(32 * side / max(width, height))) for side in (width, height))
    left, top = (32 - wide) // 2, (32 - high) // 2
    expected = np.full((3, 32, 32), 127)
    expected[:, top : top + high, left : left + wide] = np.array([200, 0, 0])[:, None, None]
    assert np.array_equal(seen, expected)
    assert np.array_equal(pixels.resized(pixels.smaller(image)), seen)
    assert pixels.framed(image).size == (max(width, height),) * 2
    assert Pixels(processor, "square").framed(image) is image


def test_squeezing_is_mentioned_once(processor, caplog):
    pixels = Pixels(processor, "square")
    for size in ((20, 20), (30, 20), (90, 30), (30, 90)):
        pixels.resized(Image.new("RGB", size))
    assert [record.message.count("90 x 30") for record in caplog.records] == [1]
    assert "resize=pad" in caplog.text


def test_other_resize_is_refused(processor):
    with pytest.raises(InputError, match="square, pad, aspect"):
        Pixels(processor, "crop")
