"""Every image with every caption: scores in bounded memory, kept on disk, and what each query finds among them."""

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pumer.data.images import ImageLike
from pumer.models.meter import MeterForImageAndTextRetrieval
from pumer.patching import reduction
from pumer.reducers import NoReduction, config_to_dict
from pumer.settings.common import gallery_sizes
from pumer.tasks import Example, Inputs
from pumer.tasks.base import words
from pumer.tasks.fingerprint import weights_fingerprint
from pumer.tasks.karpathy import Picture
from pumer.tasks.recall import best_of_columns, best_of_rows
from pumer.tasks.retrieval import Retrieval, pictures_of
from pumer.utils.arguments import room_for
from pumer.utils.errors import InputError
from pumer.utils.files import first_line, read_config, write_json
from pumer.utils.progress import progress_bar
from pumer.utils.tensors import numbers

logger = logging.getLogger(__name__)

SCORES = "scores.npy"
"""File of the scores in the folder that keeps them."""
ABOUT = "scores.json"

Score = Callable[[int, Any], Tensor]
"""From the position of an image in its block, and a block of captions, to their scores."""


def rank(
    model: PreTrainedModel,
    pairs: Sequence[Example],
    inputs: Inputs,
    batch_size: int = 64,
    galleries: str | None = None,
    folder: Path | None = None,
    progress: bool = False,
) -> tuple[list[Example], list[str]]:
    """What every query finds among the candidates of its gallery, by scores of all pairs of a gallery.

    Works through blocks of `batch_size` images and `batch_size` captions. METER encodes an image once, and a caption
    once per block of images. Nothing but one block is held in memory; the scores lie in a file.

    Args:
        model: a retrieval model on its device; it is put into eval mode.
        pairs: as read by the task.
        inputs: as made by `pumer.tasks.loading.make_inputs`.
        batch_size: pairs per forward pass.
        galleries: "50x20" ranks within 50 galleries of 20 images each, in file order, with all their captions; None
            within one gallery of all.
        folder: keeps `scores.npy`, float32 (images, captions of the largest gallery), so that an evaluation that was
            interrupted goes on where it was; None: a file that is gone afterwards.
        progress: show a progress bar on stderr.

    Returns:
        The queries (`Retrieval.queries`), and per query the numbers of the ten best candidates, best first, joined by
        spaces.

    Raises:
        InputError: for galleries that do not fit, a folder with scores of something else, and scores that are no
            numbers.
    """
    pairs, rooms = in_galleries(pairs, galleries)
    model.eval()
    about = {"pairs": digest_of_pairs(pairs), "galleries": galleries, **_about(model, inputs)} if folder else {}
    with _score_file(folder, shape_of(rooms), about) as scores:
        _fill(scores, model, rooms, inputs, batch_size, progress)
        return Retrieval.queries(pairs), best_candidates(rooms, scores)


@torch.inference_mode()
def score_all(
    model: PreTrainedModel, images: Sequence[ImageLike], texts: Sequence[str], inputs: Inputs, batch_size: int = 64
) -> np.ndarray:
    """The score of every image with every text, float32 (images, texts); other arguments as of `rank`."""
    scores = np.full((len(images), len(texts)), np.nan, dtype=np.float32)
    for _ in _fill_part(scores, model.eval(), images, texts, inputs, batch_size):
        pass
    return scores


def in_galleries(pairs: Sequence[Example], galleries: str | None) -> tuple[Sequence[Example], list[Sequence[Picture]]]:
    """The pairs that `galleries` (see `rank`) takes, and the images of each gallery."""
    rooms = split(pictures_of(pairs), galleries)
    return pairs[: sum(len(picture.captions) for room in rooms for picture in room)], rooms


def shape_of(rooms: Sequence[Sequence[Picture]]) -> tuple[int, int]:
    """Shape of the array that holds the scores of all galleries: images, captions of the largest gallery."""
    return sum(map(len, rooms)), max(sum(len(picture.captions) for picture in room) for room in rooms)


def best_candidates(rooms: Sequence[Sequence[Picture]], scores: np.ndarray) -> list[str]:
    """What every query finds: the numbers of the ten best candidates of its gallery, best first, joined by spaces.

    Args:
        rooms: the images of each gallery.
        scores: as `shape_of` says, the galleries one below the other, each from the first column on.

    Returns:
        One text per query, in the order of `Retrieval.queries`.

    Raises:
        InputError: when a score is missing.
    """
    by_image, by_caption = [], []
    for room, part in _parts(rooms, scores):
        lacking = next((picture for picture, row in zip(room, part, strict=True) if np.isnan(row).any()), None)
        if lacking is not None:
            raise InputError(f"image {lacking.id} lacks scores; run the evaluation that was interrupted again")
        numbers = np.array([number for picture in room for number, _ in picture.captions])
        images = np.array([picture.id for picture in room])
        by_image += [" ".join(map(str, numbers[best])) for best in best_of_rows(part)]
        by_caption += [" ".join(map(str, images[best])) for best in best_of_columns(part)]
    return by_image + by_caption


def split(pictures: Sequence[Picture], galleries: str | None) -> list[Sequence[Picture]]:
    """Pictures in galleries: "50x20" gives the first 50 times 20, in order; None one gallery of all.

    Raises:
        InputError: for another form, or when there are fewer images.
    """
    if galleries is None:
        return [pictures]
    count, size = gallery_sizes(galleries)
    if count * size > len(pictures):
        raise InputError(f"galleries={galleries} needs {count * size} images, but there are {len(pictures)}")
    return [pictures[start : start + size] for start in range(0, count * size, size)]


def _parts(rooms: Sequence[Sequence[Picture]], scores: np.ndarray) -> Iterator[tuple[Sequence[Picture], np.ndarray]]:
    """Each gallery with its part of the scores, (images, captions)."""
    start = 0
    for room in rooms:
        yield room, scores[start : start + len(room), : sum(len(picture.captions) for picture in room)]
        start += len(room)


@torch.inference_mode()
def _fill(
    scores: np.ndarray,
    model: PreTrainedModel,
    rooms: Sequence[Sequence[Picture]],
    inputs: Inputs,
    size: int,
    progress: bool,
) -> None:
    """Compute what is not a number yet."""
    parts = list(_parts(rooms, scores))
    with progress_bar(enabled=progress) as bar:
        shown = bar.add_task("pairs", total=sum(part.size for _, part in parts), note="")
        for room, part in parts:
            paths = [picture.path for picture in room]
            texts = [text for picture in room for _, text in picture.captions]
            for count in _fill_part(part, model, paths, texts, inputs, size):
                bar.advance(shown, count)


def _fill_part(
    scores: np.ndarray,
    model: PreTrainedModel,
    images: Sequence[ImageLike],
    texts: Sequence[str],
    inputs: Inputs,
    size: int,
) -> Iterator[int]:
    """The same for one array (images, texts), block by block; yields how many pairs each has."""
    for row in range(0, len(images), size):
        score: Score | None = None
        for column in range(0, len(texts), size):
            block = scores[row : row + size, column : column + size]
            if np.isnan(block).any():
                score = score or _scorer(model, images[row : row + size], inputs)
                _fill_block(block, score, _captions(model, texts[column : column + size], inputs))
            yield block.size


def _fill_block(block: np.ndarray, score: Score, captions: Any) -> None:
    for row in range(len(block)):
        block[row] = score(row, captions).float().cpu().numpy()
    numbers(torch.from_numpy(block))


def _scorer(model: PreTrainedModel, images: Sequence[ImageLike], inputs: Inputs) -> Score:
    """How to score the images of a block with captions."""
    pixels = {name: tensor.to(model.device) for name, tensor in inputs.pixels(images).items()}
    if isinstance(model, MeterForImageAndTextRetrieval):
        encoded = model.encode_image(pixels["pixel_values"])

        def score_encoded(row: int, captions: Any) -> Tensor:
            index = torch.full((len(captions.states),), row, device=model.device)
            return model(encoded_text=captions, encoded_image=encoded, image_index=index).logits[:, 0]

        return score_encoded

    def score(row: int, captions: Any) -> Tensor:
        count = len(captions["input_ids"])
        image = {name: tensor[row : row + 1].expand(count, *tensor.shape[1:]) for name, tensor in pixels.items()}
        return model(**captions, **image).logits[:, 0]

    return score


def _captions(model: PreTrainedModel, texts: Sequence[str], inputs: Inputs) -> Any:
    """A block of captions as the model wants them: encoded, where that can be done without an image."""
    tokens = {name: tensor.to(model.device) for name, tensor in words(texts, inputs).items()}
    if isinstance(model, MeterForImageAndTextRetrieval):
        return model.encode_text(tokens["input_ids"], tokens["attention_mask"])
    return tokens


@contextmanager
def _score_file(folder: Path | None, shape: tuple[int, int], about: dict[str, Any]) -> Iterator[np.ndarray]:
    """A float32 array in a file, NaN where nothing was computed yet."""
    needed = 4 * shape[0] * shape[1]
    if folder is None:
        room_for(needed, Path(tempfile.gettempdir()), "ranking", "give scores=FOLDER on another disk")
        with tempfile.TemporaryFile() as file:
            scores = np.memmap(file, dtype=np.float32, mode="w+", shape=shape)
            scores[:] = np.nan
            yield scores
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be a folder for scores ({error.strerror}); give another name") from error
    path, note = folder / SCORES, folder / ABOUT
    if not note.is_file():  # written last: without it the array may be incomplete
        room_for(needed, folder, "scores", "give scores=FOLDER on another disk")
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)[:] = np.nan
        write_json(note, about)
    elif (other := read_config(note, f"remove {folder} to begin anew")) != about:
        names = ", ".join(name for name in about if other.get(name) != about[name])
        raise InputError(f"{folder} holds scores with other {names}; give scores=ANOTHER_FOLDER, or remove it")
    read_scores(path, shape, f"remove {folder} to begin anew")  # opened for writing, a cut file would grow by zeros
    scores = np.lib.format.open_memmap(path, mode="r+")
    done = int(np.count_nonzero(~np.isnan(scores[:, 0])))
    if done:
        logger.info("%s: going on with the scores of at least %d images", folder, done)
    yield scores
    scores.flush()


def read_scores(file: Path, shape: tuple[int, int], remedy: str) -> np.ndarray:
    """An array of scores, memory-mapped to be read.

    Args:
        file: a `.npy` file.
        shape: which it must have.
        remedy: what to do if it has not, for the message.

    Raises:
        InputError: when it cannot be read, is cut off, has another shape or holds no floats.
    """
    try:
        scores: np.ndarray = np.lib.format.open_memmap(file, mode="r")
    except Exception as error:  # a broken header raises whatever Python's parser stumbles over
        raise InputError(f"{file} cannot be read as .npy file of numbers ({first_line(error)}); {remedy}") from error
    if scores.shape != shape or not np.issubdtype(scores.dtype, np.floating):
        seen = f"{scores.dtype} {scores.shape}"
        raise InputError(f"{file} must hold floats of shape {shape} (images, captions), not {seen}; {remedy}")
    return scores


def _about(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """What scores depend on beside the pairs, to refuse a folder with other scores; as it reads back from JSON."""
    about = {
        "weights": weights_fingerprint(model),
        "reduction": config_to_dict(reduction(model) or NoReduction()),
        "text_length": inputs.text_length,
        "edge": inputs.pixels.edge,
        "resize": inputs.pixels.resize,
        "blank": [inputs.pixels.blank, inputs.blank_text],
    }
    again: dict[str, Any] = json.loads(json.dumps(about))
    return again


def digest_of_pairs(pairs: Sequence[Example]) -> str:
    """Of the images and captions that scores are about, in their order."""
    lines = (f"{pair.files[0].name}\t{pair.id}\t{pair.text}" for pair in pairs)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
