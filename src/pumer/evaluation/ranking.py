"""Every image with every caption: scores in bounded memory, kept on disk, and what each query finds among them."""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pumer.data.images import ImageLike
from pumer.evaluation.spread import ALONE, Processes
from pumer.settings.common import gallery_sizes
from pumer.tasks import Example
from pumer.tasks.base import tokenize
from pumer.tasks.fingerprint import weights_fingerprint
from pumer.tasks.metrics import best_of_columns, best_of_rows
from pumer.tasks.retrieval import CaptionedImage, Retrieval, images_of
from pumer.tasks.session import Session
from pumer.utils.errors import InputError
from pumer.utils.files import first_line, read_config, write_json
from pumer.utils.places import room_for
from pumer.utils.progress import progress_bar
from pumer.utils.tensors import numbers

logger = logging.getLogger(__name__)

SCORES = "scores.npy"
"""File of the scores in the folder that keeps them."""
ABOUT = "scores.json"

Score = Callable[[Sequence[str]], Iterable[Tensor]]
"""From B captions to their scores (B,) with each image of a block, one after the other."""


class CandidateSets:
    """Images with their captions, in sets: an image searches the captions of its set, a caption the images.

    Attributes:
        galleries: "50x20" makes 50 sets of 20 images from the first 1000; None one set of all.
        pairs: the images and captions that are in a set, in file order.
        queries: every image, then every caption, see `Retrieval.queries`.
        shape: of the array that holds all scores: images, captions of the largest set.
    """

    def __init__(self, pairs: Sequence[Example], galleries: str | None = None) -> None:
        images = images_of(pairs)
        count, size = (1, len(images)) if galleries is None else gallery_sizes(galleries)
        if count * size > len(images):
            raise InputError(f"galleries={galleries} needs {count * size} images, but there are {len(images)}")
        self.galleries = galleries
        self.sets = [images[start : start + size] for start in range(0, count * size, size)]
        captions = [sum(len(image.captions) for image in each) for each in self.sets]
        self.pairs = pairs[: sum(captions)]
        self.queries = Retrieval.queries(self.pairs)
        self.shape = count * size, max(captions)

    def parts(self, scores: np.ndarray) -> Iterator[tuple[list[CaptionedImage], list[tuple[int, str]], np.ndarray]]:
        """Images, captions (number, text) and scores (images, captions) of each set; the latter are a view."""
        start = 0
        for images in self.sets:
            captions = [caption for image in images for caption in image.captions]
            yield images, captions, scores[start : start + len(images), : len(captions)]
            start += len(images)

    def best(self, scores: np.ndarray) -> list[str]:
        """The numbers of the ten best candidates of every query, best first, joined by spaces.

        The scores have `shape`, the sets one below the other, each from the first column on; none may be missing.
        """
        by_image, by_caption = [], []
        for images, captions, part in self.parts(scores):
            lacking = next((image for image, row in zip(images, part, strict=True) if np.isnan(row).any()), None)
            if lacking is not None:
                raise InputError(f"image {lacking.id} lacks scores; run the evaluation that was interrupted again")
            of_caption, of_image = np.array([number for number, _ in captions]), np.array([each.id for each in images])
            by_image += [" ".join(map(str, of_caption[best])) for best in best_of_rows(part)]
            by_caption += [" ".join(map(str, of_image[best])) for best in best_of_columns(part)]
        return by_image + by_caption

    def candidates(self) -> Iterator[set[str]]:
        """The numbers that each query may find."""
        for images in self.sets:
            yield from [{str(number) for image in images for number, _ in image.captions}] * len(images)
        for images in self.sets:
            yield from [{str(image.id) for image in images}] * sum(len(image.captions) for image in images)

    @property
    def digest(self) -> str:
        """Of the images and captions, in their order."""
        lines = (f"{pair.files[0].name}\t{pair.id}\t{pair.text}" for pair in self.pairs)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@torch.inference_mode()
def rank(
    session: Session,
    sets: CandidateSets,
    batch_size: int = 64,
    folder: Path | None = None,
    progress: bool = False,
    processes: Processes = ALONE,
) -> list[str]:
    """What every query finds, by the scores of all pairs of a set; see `CandidateSets.best`.

    Works through blocks of `batch_size` images and `batch_size` captions. A model that encodes images and texts apart
    (METER) encodes an image once, and a caption once per block of images. Nothing but one block is held in memory; the
    scores (float32, `sets.shape`) lie in `folder`, so that an evaluation that was interrupted goes on where it was, or
    with None in a file that is gone afterwards. Several `processes` share the blocks of images and the file.
    """
    with _score_file(folder, session, sets, processes) as scores, progress_bar(enabled=progress) as bar:
        blocks = [
            (part[row : row + batch_size], [image.path for image in images[row : row + batch_size]], captions)
            for images, captions, part in sets.parts(scores)
            for row in range(0, len(images), batch_size)
        ]
        left = processes.of_main(lambda: [at for at, (block, *_) in enumerate(blocks) if np.isnan(block).any()])
        sizes = [blocks[at][0].size for at in left]
        shown = bar.add_task("pairs", total=sum(sizes), note="")
        for number in processes.take(len(left)):
            block, paths, captions = blocks[left[number]]
            bar.update(shown, completed=sum(sizes[:number]))
            for size in _fill(block, session, paths, [text for _, text in captions], batch_size):
                bar.advance(shown, size)
        processes.wait()
        return processes.of_main(lambda: sets.best(scores))


@torch.inference_mode()
def score_all(session: Session, images: Sequence[ImageLike], texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
    """The score of every image with every text, float32 (images, texts); other arguments as of `rank`."""
    scores = np.full((len(images), len(texts)), np.nan, dtype=np.float32)
    for _ in _fill(scores, session, images, texts, batch_size):
        pass
    return scores


def _fill(
    scores: np.ndarray, session: Session, images: Sequence[ImageLike], texts: Sequence[str], size: int
) -> Iterator[int]:
    """Compute, block by block, the scores (images, texts) that are NaN; yields how many pairs each block has."""
    session.model.eval()
    for row in range(0, len(images), size):
        score: Score | None = None
        for column in range(0, len(texts), size):
            block = scores[row : row + size, column : column + size]
            if np.isnan(block).any():
                score = score or _scorer(session, images[row : row + size])
                _fill_block(block, score, texts[column : column + size])
            yield block.size


def _fill_block(block: np.ndarray, score: Score, texts: Sequence[str]) -> None:
    for row, scores in zip(block, score(texts), strict=False):
        row[:] = scores.float().cpu().numpy()
    numbers(torch.from_numpy(block))


def _scorer(session: Session, images: Sequence[ImageLike]) -> Score:
    """How captions are scored with the images of a block."""
    model: Any = session.model
    inputs, apart = session.inputs, session.separable

    def on_device(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(model.device) for name, tensor in tensors.items()}

    pixels = on_device(inputs.pixels(images))
    encoded: Any = model.encode_image(pixels["pixel_values"]) if apart else None

    def score(texts: Sequence[str]) -> Iterator[Tensor]:
        text = on_device(tokenize(texts, inputs))
        if apart:
            text = {"encoded_text": model.encode_text(text["input_ids"], text["attention_mask"])}
        for row in range(len(images)):
            if apart:
                image = {"encoded_image": encoded.select([row] * len(texts))}
            else:
                image = {name: x[row : row + 1].expand(len(texts), *x.shape[1:]) for name, x in pixels.items()}
            yield model(**text, **image).logits[:, 0]

    return score


@contextmanager
def _score_file(
    folder: Path | None, session: Session, sets: CandidateSets, processes: Processes
) -> Iterator[np.memmap[Any, Any]]:
    """A float32 array in a file, NaN where nothing was computed yet; in a folder beside what the scores depend on.

    All processes map the same file, which the main one makes.
    """
    if folder is None:
        file = processes.of_main(lambda: _temporary_file(sets.shape))
        try:
            scores = _mapped(file)
            processes.wait()  # all have opened it
        finally:
            if processes.main:
                file.unlink()
    else:
        processes.of_main(lambda: _prepare_folder(folder, session, sets))
        scores = _mapped(folder / SCORES)
    yield scores
    scores.flush()


def _mapped(file: Path) -> np.memmap[Any, Any]:
    """The array in a file that the first process made."""
    try:
        scores: np.memmap[Any, Any] = np.lib.format.open_memmap(file, mode="r+")
    except FileNotFoundError as error:
        remedy = "give scores=FOLDER in a place that all machines share"
        raise InputError(f"{file} of the first process is not on this machine; {remedy}") from error
    return scores


def _temporary_file(shape: tuple[int, int]) -> Path:
    """A file of NaN that is to be removed."""
    needed = 4 * shape[0] * shape[1]
    room_for(needed, Path(tempfile.gettempdir()), "ranking", "give scores=FOLDER on another disk")
    number, name = tempfile.mkstemp(suffix=".npy")
    os.close(number)
    np.lib.format.open_memmap(name, mode="w+", dtype=np.float32, shape=shape)[:] = np.nan
    return Path(name)


def _prepare_folder(folder: Path, session: Session, sets: CandidateSets) -> None:
    """Make the array in a folder, or check that the one that is there holds scores of the same."""
    shape, needed = sets.shape, 4 * sets.shape[0] * sets.shape[1]
    folder.mkdir(parents=True, exist_ok=True)
    path, note, inputs = folder / SCORES, folder / ABOUT, session.inputs
    about: dict[str, Any] = {
        "pairs": sets.digest,
        "galleries": sets.galleries,
        "weights": weights_fingerprint(session.model),
        "reduction": session.reduction,
        "text_length": inputs.text_length,
        "edge": inputs.pixels.edge,
        "resize": inputs.pixels.resize,
        "blank": [inputs.pixels.blank, inputs.blank_text],
    }
    about = json.loads(json.dumps(about))  # as it reads back
    if not note.is_file():  # written last: without it the array may be incomplete
        room_for(needed, folder, "scores", "give scores=FOLDER on another disk")
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)[:] = np.nan
        write_json(note, about)
    elif (other := read_config(note, f"remove {folder} to begin anew")) != about:
        names = ", ".join(name for name in about if other.get(name) != about[name])
        raise InputError(f"{folder} holds scores with other {names}; give scores=ANOTHER_FOLDER, or remove it")
    # opened for writing, a cut file would grow by zeros
    scores = read_scores(path, shape, f"remove {folder} to begin anew")
    if done := int(np.count_nonzero(~np.isnan(scores[:, 0]))):
        logger.info("%s: going on with the scores of at least %d images", folder, done)


def read_scores(file: Path, shape: tuple[int, int], remedy: str) -> np.ndarray:
    """The scores in a `.npy` file, memory-mapped; a broken file, and one of another shape or type, is refused."""
    try:
        scores: np.ndarray = np.lib.format.open_memmap(file, mode="r")
    except Exception as error:  # a broken header raises whatever Python's parser stumbles over
        raise InputError(f"{file} cannot be read as .npy file of numbers ({first_line(error)}); {remedy}") from error
    if scores.shape != shape or not np.issubdtype(scores.dtype, np.floating):
        seen = f"{scores.dtype} {scores.shape}"
        raise InputError(f"{file} must hold floats of shape {shape} (images, captions), not {seen}; {remedy}")
    return scores
