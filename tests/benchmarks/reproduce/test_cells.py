import pytest

from benchmarks.reproduce.cells import Cell, reduced

PRUNED = {"method": "random", "layers": [2], "prune_ratio": 0.5}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Cell("vilt", "coco"), Cell("meter", "coco")),
        (Cell("vilt", "coco"), Cell("vilt", "nlvr2")),
        (Cell("vilt", "coco"), Cell("vilt", "coco", seed=1)),
        (Cell("vilt", "coco"), Cell("vilt", "coco", blank="text")),
        (Cell("vilt", "coco", blank="image"), Cell("vilt", "coco", blank="text")),
        (Cell("vilt", "coco"), Cell("vilt", "coco", image_size=64)),
        (reduced("vilt", "coco", PRUNED), reduced("vilt", "coco", PRUNED | {"prune_ratio": 0.4})),
        (reduced("vilt", "coco", PRUNED), reduced("vilt", "coco", PRUNED).untuned),
        (reduced("vilt", "coco", PRUNED), Cell("vilt", "coco", reduced("vilt", "coco", PRUNED).reduction)),
    ],
)
def test_different_cells_have_different_names(one, other):
    assert one != other
    assert one.name != other.name


def test_a_reduction_is_the_same_in_any_order():
    assert reduced("vilt", "coco", PRUNED) == reduced("vilt", "coco", dict(reversed(PRUNED.items())))
    assert reduced("vilt", "coco", PRUNED).settings == PRUNED


def test_what_a_cell_comes_from():
    cell = reduced("meter", "vqav2", PRUNED, seed=2)
    assert cell.original == cell.base == Cell("meter", "vqav2", seed=2)
    assert cell.untuned.weights == cell.original
    assert cell.weights == cell
    assert cell.architecture == reduced("meter", "vqav2", PRUNED).untuned


def test_a_reduced_model_for_smaller_pictures_comes_from_an_unreduced_one_for_them():
    small = Cell("meter", "vqav2", reduced("meter", "vqav2", PRUNED).reduction, teacher=True, image_size=80)
    assert small.base == Cell("meter", "vqav2", image_size=80)
    assert small.base.base == small.original == Cell("meter", "vqav2")
