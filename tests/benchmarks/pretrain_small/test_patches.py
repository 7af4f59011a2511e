"""Labels of patches agree with the scene."""

import numpy as np

from benchmarks.pretrain_small.patches import DENSE, dense_labels, patch_objects
from pumer.world import scenes, sentences


def drawn(index: int, split: str = "train") -> scenes.Scene:
    return scenes.make_scene(scenes.generator(0, split, index))


def test_patches_of_an_object_lie_in_its_box() -> None:
    for index in range(20):
        made = drawn(index)
        owner = patch_objects(made)
        assert owner.shape == (12, 12)
        for number, item in enumerate(made.objects):
            rows, columns = np.nonzero(owner == number)
            assert len(rows) >= 1
            left, top, right, bottom = item.box
            assert left // 8 <= columns.min() <= columns.max() <= (right - 1) // 8
            assert top // 8 <= rows.min() <= rows.max() <= (bottom - 1) // 8


def test_dense_labels_say_what_a_patch_shows() -> None:
    scene = drawn(0, "pretrain")
    owner = patch_objects(scene).reshape(-1).astype(np.int64)
    labels = dense_labels(scene, owner)
    assert labels.shape == (144, len(DENSE))
    assert (labels[owner < 0] == 0).all()
    for index, item in enumerate(scene.objects):
        shown = labels[owner == index]
        assert (shown[:, 0] == item.shape + 1).all()
        assert (shown[:, 1] == item.colour + 1).all()
        assert (shown[:, 4] == sentences.POSITIONS.index(sentences.position(scene, item)) + 1).all()
        assert shown[:, 5].sum() == 1
