"""RandAugment: what each operation does, by its definition, and that nothing but the key decides."""

import numpy as np
import pytest
from PIL import Image

from pumer.checkpoint import load_processor
from pumer.data.augmentation import LARGEST, OPERATIONS, rand_augment
from pumer.settings.common import AugmentConfig
from pumer.tasks import NLVR2, VQAv2
from pumer.tasks.loading import Collator, Examples, make_inputs
from pumer.utils.errors import InputError

PICTURE = np.random.default_rng(0).integers(0, 256, (3, 24, 32), dtype=np.uint8)


def operate(name, strength, image=PICTURE):
    image = Image.fromarray(image.transpose(1, 2, 0))
    return np.asarray(OPERATIONS[name][0](image, strength)).transpose(2, 0, 1)


def moved(image, rows, columns):
    """Where the image is after it moved up by rows and to the left by columns; black elsewhere."""
    out = np.zeros_like(image)
    _, height, width = image.shape
    for y in range(height):
        for x in range(width):
            if 0 <= y + rows < height and 0 <= x + columns < width:
                out[:, y, x] = image[:, y + rows, x + columns]
    return out


def test_shifts():
    assert np.array_equal(operate("translate_x", 5 / 24), moved(PICTURE, 0, 5))
    assert np.array_equal(operate("translate_x", -5 / 24), moved(PICTURE, 0, -5))
    assert np.array_equal(operate("translate_y", 3 / 24), moved(PICTURE, 3, 0))


def test_shears_move_each_line_by_its_distance():
    sheared = operate("shear_x", 0.25)
    for y in range(24):  # the nearest pixel to where the middle of each comes from
        shift = int(0.25 * (y + 0.5) + 0.5)
        assert np.array_equal(sheared[:, y, : 32 - shift], PICTURE[:, y, shift:])
    assert np.array_equal(
        operate("shear_y", 0.25), operate("shear_x", 0.25, PICTURE.transpose(0, 2, 1)).transpose(0, 2, 1)
    )


def test_rotation():
    assert np.array_equal(operate("rotate", 180), PICTURE[:, ::-1, ::-1])


def test_operations_on_values():
    values = PICTURE.astype(int)
    assert np.array_equal(operate("posterize", 1.2), values & 0b10000000)
    assert np.array_equal(operate("posterize", 3.9), values & 0b11100000)
    assert np.array_equal(operate("solarize", 76.8), np.where(values < 76, values, 255 - values))
    assert np.array_equal(operate("solarize_add", 33.0), np.where(values < 128, values + 33, values))
    assert np.abs(operate("brightness", 0.64) - values * 0.64).max() <= 1
    low, high = values.min(axis=(1, 2), keepdims=True), values.max(axis=(1, 2), keepdims=True)
    assert np.abs(operate("autocontrast", 0) - (values - low) * 255 / (high - low)).max() <= 1
    grey = values[0] * 0.299 + values[1] * 0.587 + values[2] * 0.114
    assert np.abs(operate("color", 0.64) - (grey + (values - grey) * 0.64)).max() <= 2
    mean = int(grey.mean() + 0.5)
    assert np.abs(operate("contrast", 0.64) - (mean + (values - mean) * 0.64)).max() <= 2
    flat = np.full_like(PICTURE, 100)
    assert np.array_equal(operate("sharpness", 0.64, flat), flat)
    assert np.ptp(operate("equalize", 0).astype(int)) > 240


def test_operations_are_vilts():
    assert len(OPERATIONS) == 14
    assert not {"invert", "cutout", "flip"} & OPERATIONS.keys()
    at_9 = {name: low + (high - low) * 9 / LARGEST for name, (_, low, high, _) in OPERATIONS.items()}
    expected = {"rotate": 9, "posterize": 1.2, "solarize": 76.8, "solarize_add": 33, "color": 0.64, "shear_x": 0.09}
    assert at_9 | expected == pytest.approx(at_9)


def test_the_key_alone_decides():
    config = AugmentConfig()
    one = rand_augment(PICTURE, config, (0, 1, 2, 0))
    assert one.shape == PICTURE.shape
    assert one.dtype == np.uint8
    assert np.array_equal(one, rand_augment(PICTURE, config, (0, 1, 2, 0)))
    others = [rand_augment(PICTURE, config, key) for key in ((1, 1, 2, 0), (0, 2, 2, 0), (0, 1, 3, 0), (0, 1, 2, 1))]
    assert all(not np.array_equal(one, other) for other in others)


def test_every_operation_is_drawn_and_goes_both_ways():
    config = AugmentConfig(operations=1)
    drawn = {rand_augment(PICTURE, config, (0, 0, index, 0)).tobytes() for index in range(200)}
    both = sum(2 if mirrored else 1 for *_, mirrored in OPERATIONS.values())
    assert len(drawn) == both


@pytest.mark.parametrize("values", [{"operations": 0}, {"magnitude": 31}, {"magnitude": -1}])
def test_values_without_a_meaning_are_refused(values):
    with pytest.raises(InputError, match=next(iter(values))):
        AugmentConfig(**values)


def test_training_sees_edited_images_and_evaluation_does_not(tiny_vilt, tiny_vqa):
    task = VQAv2(VQAv2.vocabulary(tiny_vqa, 1))
    read = task.read(tiny_vqa, "train")
    plain, collate = (Collator(task, make_inputs(load_processor(tiny_vilt), 12), a, 7) for a in (None, AugmentConfig()))
    training, evaluation = Examples(read, task), Examples(read)
    held_out = Examples(read, task, training=False)  # of the same training, as its evaluations see them

    def pixels(collator, examples):
        return collator([examples[index] for index in range(8)])["inputs"]["pixel_values"]

    original = pixels(plain, training)
    assert pixels(collate, evaluation).equal(original)
    assert pixels(collate, held_out).equal(original)
    first = pixels(collate, training)
    assert not first.equal(original)
    assert first.equal(pixels(collate, training))
    assert collate([training[3]])["inputs"]["pixel_values"].equal(first[3:4])  # whatever it is batched with
    training.epoch = 1
    assert not pixels(collate, training).equal(first)


def test_both_images_of_a_pair_are_edited_apart(tiny_vilt, tiny_nlvr2):
    task = NLVR2(NLVR2.fixed_labels)
    examples = Examples(task.read(tiny_nlvr2, "train"), task)
    collate = Collator(task, make_inputs(load_processor(tiny_vilt), 12), AugmentConfig())
    seen: list[tuple[int, ...]] = []
    edit, collate._edit = collate._edit, lambda items, position, image: seen.append(position) or image
    collate([examples[0], examples[1]])
    assert seen == [0, 1, 2, 3]
    images = [edit([examples[0], examples[1]], position, PICTURE) for position in range(4)]
    assert len({image.tobytes() for image in images}) == 4
    assert np.array_equal(images[2], edit([examples[1]], 0, PICTURE))


def test_grey_images_stay_grey(tiny_vilt, tiny_vqa):
    task = VQAv2(VQAv2.vocabulary(tiny_vqa, 1))
    inputs = make_inputs(load_processor(tiny_vilt), 12, blank="image")
    batch = Collator(task, inputs, AugmentConfig())([Examples(task.read(tiny_vqa, "train"), task)[0]])
    assert batch["inputs"]["pixel_values"].unique().numel() == 1
