"""Scenes: determinism, boxes, held-out combinations, layouts."""

import hashlib

import numpy as np
import pytest

from pumer.world import scenes


def scene(index: int, split: str = "train", **layout: int) -> scenes.Scene:
    config = scenes.SceneConfig(**layout)
    return scenes.make_scene(scenes.generator(0, split, index), config, held_out=split == "heldout")


def test_a_scene_follows_from_seed_split_and_index() -> None:
    assert scene(3) == scene(3)
    assert scene(3) != scene(4)
    assert scene(3) != scene(3, "val")
    assert (scenes.render(scene(3)) == scenes.render(scene(3))).all()


def test_pixels_are_the_same_on_every_machine() -> None:
    pictures = b"".join(scenes.render(scene(index)).tobytes() for index in range(4))
    assert hashlib.sha256(pictures).hexdigest()[:16] == "efd607b312dc4b47"


def test_pictures_are_uint8_of_the_asked_size() -> None:
    picture = scenes.render(scene(0))
    assert picture.shape == (96, 96, 3)
    assert picture.dtype == np.uint8


@pytest.mark.parametrize("layout", [{}, {"grid": 4, "min_objects": 12, "max_objects": 16}, {"image_size": 128}])
def test_objects_stay_inside_and_apart(layout: dict[str, int]) -> None:
    for index in range(20):
        made = scene(index, **layout)
        taken = np.zeros((made.config.image_size,) * 2, int)
        for item in made.objects:
            left, top, right, bottom = item.box
            assert 0 <= left < right <= made.config.image_size
            assert 0 <= top < bottom <= made.config.image_size
            taken[top:bottom, left:right] += 1
        assert taken.max() == 1
        assert made.config.min_objects <= len(made.objects) <= made.config.max_objects


def test_held_out_combinations_appear_in_their_split_only() -> None:
    def shown(split: str) -> list[bool]:
        items = [item for index in range(150) for item in scene(index, split).objects]
        return [(item.colour, item.shape) in scenes.HELD_OUT for item in items]

    assert not any(shown("train"))
    assert not any(shown("pretrain"))
    for index in range(30):
        first, second = scene(index, "heldout").objects[:2]
        assert {(first.colour, first.shape), (second.colour, second.shape)} <= scenes.HELD_OUT


def test_every_object_is_drawn_in_its_box_in_its_colour() -> None:
    made = scene(1)
    picture = scenes.render(made).astype(int)
    for item in made.objects:
        left, top, right, bottom = item.box
        paint = scenes._RGB[item.colour]
        close = (abs(picture[top:bottom, left:right] - paint) < 40).all(-1)
        assert close.mean() > 0.1
        assert scenes.COLOURS[item.colour]


def test_patches_of_an_object_lie_in_its_box() -> None:
    for index in range(20):
        made = scene(index)
        owner = scenes.patch_objects(made)
        assert owner.shape == (12, 12)
        for number, item in enumerate(made.objects):
            rows, columns = np.nonzero(owner == number)
            assert len(rows) >= 1
            left, top, right, bottom = item.box
            assert left // 8 <= columns.min() <= columns.max() <= (right - 1) // 8
            assert top // 8 <= rows.min() <= rows.max() <= (bottom - 1) // 8


@pytest.mark.parametrize(
    "layout", [{"grid": 7}, {"min_objects": 1}, {"max_objects": 10}, {"min_objects": 6, "max_objects": 5}]
)
def test_layouts_that_cannot_be_drawn_are_refused(layout: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="="):
        scenes.SceneConfig(**layout)
