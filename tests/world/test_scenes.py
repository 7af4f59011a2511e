"""Scenes: determinism, boxes, clutter, held-out combinations, layouts."""

import hashlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from pumer.world import scenes

WIDE = {"max_objects": 18, "clutter": 8, "wide": True}


def scene(index: int, split: str = "train", **layout: int) -> scenes.Scene:
    config = scenes.SceneConfig(**layout)
    return scenes.make_scene(scenes.generator(0, split, index), config, held_out=split == "heldout")


def test_a_scene_follows_from_seed_split_and_index() -> None:
    assert scene(3) == scene(3)
    assert scene(3) != scene(4)
    assert scene(3) != scene(3, "val")
    assert (scenes.render(scene(3)) == scenes.render(scene(3))).all()


@pytest.mark.parametrize(("layout", "digest"), [({}, "a99854fee834be68"), (WIDE, "0507e736957f5865")])
def test_pixels_are_the_same_on_every_machine(layout: dict[str, int], digest: str) -> None:
    images = b"".join(scenes.render(scene(index, **layout)).tobytes() for index in range(4))
    assert hashlib.sha256(images).hexdigest()[:16] == digest


def test_the_wide_layout_shows_every_value_and_the_narrow_one_its_own() -> None:
    for layout in (scenes.NARROW, scenes.WIDE):
        rngs = (scenes.generator(0, "train", index) for index in range(150))
        items = [item for rng in rngs for item in scenes.make_scene(rng, layout).objects]
        for name, count in layout.values.items():
            assert {getattr(item, name) for item in items} == set(range(count))


def test_images_are_uint8_of_the_configured_size() -> None:
    image = scenes.render(scene(0))
    assert image.shape == (96, 96, 3)
    assert image.dtype == np.uint8


@pytest.mark.parametrize(
    "layout", [{}, WIDE, {"min_objects": 5, "max_objects": 21}, {"image_size": 256, "clutter": 20}]
)
def test_objects_and_clutter_stay_inside_and_apart(layout: dict[str, int]) -> None:
    for index in range(100):
        made = scene(index, **layout)
        size = made.config.image_size
        taken = np.zeros((size, size), int)
        boxes = [item.box for item in made.objects]
        boxes += [(speck.x, speck.y, speck.x + speck.width, speck.y + speck.height) for speck in made.clutter]
        for left, top, right, bottom in boxes:
            assert 0 <= left < right <= size
            assert 0 <= top < bottom <= size
            taken[top:bottom, left:right] += 1
        assert taken.max() == 1
        assert made.config.min_objects <= len(made.objects) <= made.config.max_objects
        assert len(made.clutter) <= made.config.clutter


def test_objects_lie_in_their_part_and_large_ones_have_it_to_themselves() -> None:
    counts, large = Counter(), Counter()
    for index in range(200):
        made = scene(index)
        parts = Counter(item.part for item in made.objects)
        for item in made.objects:
            row, column = divmod(item.part, 3)
            left, top, right, bottom = item.box
            assert 32 * column <= left < right <= 32 * column + 32
            assert 32 * row <= top < bottom <= 32 * row + 32
            assert (26 <= item.side <= 28 and parts[item.part] == 1) if item.size else 13 <= item.side <= 14
        counts[len(made.objects)] += 1
        large[sum(item.size for item in made.objects)] += 1
    assert set(counts) == {12, 13, 14, 15}
    assert set(large) == {3, 4, 5}
    assert min(*counts.values(), *large.values()) > 30


def test_clutter_is_fainter_than_any_object() -> None:
    made = [scene(index) for index in range(40)]
    assert any(one.clutter for one in made)
    for one in made:
        bare, image = (scenes.render(each).astype(int) for each in (replace(one, clutter=()), one))
        changed = (bare != image).any(-1)
        assert changed.sum() <= sum(speck.width * speck.height for speck in one.clutter)
        for speck in one.clutter:
            shown = image[speck.y : speck.y + speck.height, speck.x : speck.x + speck.width].mean((0, 1))
            assert abs(shown - scenes.PIXELS[speck.colour]).max() > 20


@pytest.mark.parametrize("layout", [{}, WIDE])
def test_held_out_combinations_appear_in_their_split_only(layout: dict[str, int]) -> None:
    config = scenes.SceneConfig(**layout)

    def shown(split: str) -> list[bool]:
        items = [item for index in range(150) for item in scene(index, split, **layout).objects]
        return [item.colour == config.held_out(item.shape) for item in items]

    assert not any(shown("train"))
    assert not any(shown("pretrain"))
    for index in range(30):
        for item in scene(index, "heldout", **layout).objects[:2]:
            assert item.colour == config.held_out(item.shape)


def test_every_object_is_drawn_in_its_box_in_its_colour() -> None:
    made = scene(1)
    image = scenes.render(made).astype(int)
    for item in made.objects:
        left, top, right, bottom = item.box
        paint = scenes.PIXELS[item.colour]
        close = (abs(image[top:bottom, left:right] - paint) < 40).all(-1)
        assert close.mean() > 0.1
        assert scenes.COLOURS[item.colour]


@pytest.mark.parametrize(
    "layout",
    [
        {"image_size": 95},
        {"image_size": 257},
        {"min_objects": 4},
        {"max_objects": 22},
        {"min_objects": 15, "max_objects": 14},
        {"clutter": -1},
    ],
)
def test_layouts_that_cannot_be_drawn_are_refused(layout: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="="):
        scenes.SceneConfig(**layout)
