"""Answers of a trained model: to an official split, to a list of questions about image files, and from Python."""

import csv
import io
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from pumer.data.images import ImageLike, read_image
from pumer.evaluation import evaluate
from pumer.evaluation.generation import open_session
from pumer.evaluation.ranking import score_all
from pumer.evaluation.spread import ALONE, Processes, parts_beside, remove_parts, together
from pumer.settings.common import LARGEST_BATCH, Resize
from pumer.settings.evaluate import EvaluateConfig, EvaluationData
from pumer.settings.predict import PredictConfig
from pumer.tasks import Example, Retrieval
from pumer.tasks.session import Session
from pumer.utils.errors import InputError, some
from pumer.utils.files import read_csv, write_text
from pumer.utils.locks import exclusive

logger = logging.getLogger(__name__)

_TEXTS = ("question", "text", "sentence")
ANSWER = "answer"


class Predictor:
    """A trained model that answers, or one that generates, such as LLaVA.

    Example:
        >>> predictor = pumer.Predictor("out/vqav2-pumer")  # doctest: +SKIP
        >>> predictor("cat.jpg", "what is on the sofa?")  # doctest: +SKIP
        'cat'
        >>> predictor(PIL.Image.open("cat.jpg"), ["what is it?", "is it asleep?"])  # doctest: +SKIP
        ['cat', 'yes']

    Images are file names, PIL images or arrays, see `pumer.data.images.read_image`.

    A model for retrieval scores images against texts instead:
        >>> pumer.Predictor("out/flickr30k-pumer").scores(images, captions).argmax(axis=0)  # doctest: +SKIP
        array([0, 1])
    """

    def __init__(
        self,
        model: str | Path,
        task: str | None = None,
        text_length: int | None = None,
        resize: Resize | None = None,
        image_size: int | None = None,
        reduction: Mapping[str, Any] | str | None = None,
        compile: bool = False,
        prompt: str | None = None,
        max_new_tokens: int | None = None,
        max_pixels: int | None = None,
    ) -> None:
        """Load a model, patched as it was saved, with the settings of its training.

        Args:
            model: folder or hub name.
            task: name in `pumer.tasks.TASKS`; by default the one it was trained on, else "vqav2".
            text_length: questions are cut to this many tokens; by default as in its training.
            resize: see `pumer.tasks.Pixels`; by default as in its training.
            image_size: pixels along a side of the images; by default the model's own.
            reduction: replaces the saved one: a mapping with `method`, or "none"; by default as it was saved.
            compile: answer with the model as `pumer.compile` makes it.
            prompt: what a model that generates is asked, with ``{question}`` where the question goes; by default the
                question and a request for a short answer.
            max_new_tokens: that an answer may have, of a model that generates; by default 16.
            max_pixels: that the vision encoder of a model that generates gets of an image, see `pumer.fewer_pixels`; by
                default as many as its processor gives.

        Raises:
            InputError: for a missing or broken model, or one of another task, and for settings of a model of another
                kind: those from `text_length` to `compile` are not for one that generates.
        """
        self.session = open_session(
            model,
            task,
            text_length=text_length,
            resize=resize,
            image_size=image_size,
            reduction=reduction,
            compile=compile,
            prompt=prompt,
            max_new_tokens=max_new_tokens,
            max_pixels=max_pixels,
        )
        self.model, self.task = self.session.model, self.session.task
        self.inputs = self.session.inputs if isinstance(self.session, Session) else None

    @overload
    def __call__(self, images: ImageLike | Sequence[ImageLike], text: str) -> str: ...

    @overload
    def __call__(self, images: ImageLike | Sequence[ImageLike], text: list[str] | tuple[str, ...]) -> list[str]: ...

    def __call__(
        self, images: ImageLike | Sequence[ImageLike], text: str | list[str] | tuple[str, ...]
    ) -> str | list[str]:
        """The answer to a question or sentence, or the answers to several about the same image.

        Args:
            images: an image; a list of two for a task on pairs.
            text: the question or sentence, or a list of them, which gets a list of answers.

        Raises:
            InputError: for another number of images, images that cannot be read, and texts that are not text.
        """
        shown, asked = _shown(images), _asked([text] if isinstance(text, str) else text)
        answers = self.answers([Example(number, shown, each) for number, each in enumerate(asked)])
        return answers[0] if isinstance(text, str) else answers

    def answers(
        self,
        examples: Sequence[Example],
        batch_size: int = 64,
        workers: int = 0,
        progress: bool = False,
        processes: Processes = ALONE,
        parts: Path | None = None,
    ) -> list[str]:
        """The answers to many examples, in order; arguments as of `pumer.evaluation.evaluate.predict`."""
        if isinstance(self.task, Retrieval):
            ways = "Predictor(...).scores ranks images and texts, `pumer predict MODEL data.root=FOLDER` a split"
            raise InputError(f"a model for {self.task.name} gives no answers; from Python, {ways}")
        _check_batch(batch_size)
        for example in examples:
            self.session.check(example)
        empty = [str(example.id) for example in examples if not example.text.strip()]
        if empty:
            logger.warning("%d questions are empty and answered from the image alone: %s", len(empty), some(empty))
        return evaluate.predict(self.session, examples, batch_size, workers, progress, processes, parts)

    def scores(
        self, images: Sequence[ImageLike], texts: Sequence[str], batch_size: int = 64
    ) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """How well every image fits every text, by a model for retrieval; METER encodes each of them once.

        Returns:
            Scores (images, texts): the highest of a column is the image found for the text, the highest of a row the
            text found for the image.

        Raises:
            InputError: for a model of another task, and images that cannot be read.
        """
        if not isinstance(self.task, Retrieval) or not isinstance(self.session, Session):
            raise InputError(f"a model for {self.task.name} does not rank images and texts; call it with a question")
        _check_batch(batch_size)
        for name, given in (("images", images), ("texts", texts)):
            if isinstance(given, ImageLike):
                raise InputError(f"{name} must be a list of {name}, not one {type(given).__name__}; put it in a list")
        return score_all(self.session, _shown(images), _asked(texts), batch_size)


def _check_batch(batch_size: int) -> None:
    if not 1 <= batch_size <= LARGEST_BATCH:
        raise InputError(f"batch_size must lie in [1, {LARGEST_BATCH}], not {batch_size}")


def _shown(images: ImageLike | Sequence[ImageLike]) -> tuple[ImageLike, ...]:
    """Files by their `Path`, to be read when their turn comes; other images read now, so that a bad one is named."""
    given = (images,) if isinstance(images, ImageLike) else images
    if not isinstance(given, Sequence) or isinstance(given, bytes):
        raise InputError(f"images must be one image or a list of them, not {type(images).__name__}")
    return tuple(Path(image) if isinstance(image, str | Path) else read_image(image) for image in given)


def _asked(texts: Sequence[str]) -> list[str]:
    """A list of texts, checked to be one."""
    odd = [text for text in texts if not isinstance(text, str)] if isinstance(texts, list | tuple) else [texts]
    if odd:
        raise InputError(f"a question must be a text, or several of them a list of texts, not {type(odd[0]).__name__}")
    return list(texts)


def run(config: PredictConfig) -> int:
    """Write a model's answers to a file; returns how many examples were answered.

    Processes that `torchrun` started share the work, and the first one writes.
    """
    if config.questions is not None:
        return _answer_list(config, config.questions)
    config.check_places()
    names = ["model", "task", "split", "limit", "batch_size", "image_size", "workers", "force"]
    names += ["galleries", "scores", "prompt", "max_new_tokens", "max_pixels", "reduction"]
    of_split = EvaluateConfig(
        data=EvaluationData(root=config.data.root, train=None),
        submission=config.file,
        **{name: getattr(config, name) for name in names},
    )
    return int(evaluate.run(of_split)["answered"])


@exclusive
def _answer_list(config: PredictConfig, questions: Path) -> int:
    """Answer the rows of a CSV file."""
    with together() as processes:
        return _answer_rows(config, questions, processes)


def _answer_rows(config: PredictConfig, questions: Path, processes: Processes) -> int:
    """Answer the rows in one of several processes, or alone."""
    columns, rows = _read_csv(questions)
    images, text = asked_columns(columns)
    if not images or text is None:
        raise InputError(f"{questions} must have the columns image (or image1, image2) and question, not {columns}")
    for line, row in rows:
        if blank := next((name for name in images if not row[name].strip()), None):
            raise InputError(f"{questions}: line {line} has no {blank}; give the name of a file in {config.images}")
    given = ("image_size", "compile", "prompt", "max_new_tokens", "max_pixels")
    predictor = Predictor(config.model, config.task, **{name: getattr(config, name) for name in given})
    examples = [
        Example(f"line {line}", tuple(config.images / row[name] for name in images), row[text]) for line, row in rows
    ]
    parts = parts_beside([config.file])
    answers = predictor.answers(examples, config.batch_size, config.workers, True, processes, parts)
    written = io.StringIO()
    writer = csv.DictWriter(written, [*columns, ANSWER], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, ANSWER: answer} for (_, row), answer in zip(rows, answers, strict=True))
    if processes.main:
        write_text(config.file, written.getvalue())
        remove_parts(parts)
    return len(rows)


def asked_columns(columns: Sequence[str]) -> tuple[list[str], str | None]:
    """Which columns of a table hold the images, in order, and which one the question; None where there is none."""
    images = sorted(name for name in columns if re.fullmatch(r"image\d*", name))
    return images, next((name for name in _TEXTS if name in columns), None)


def _read_csv(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The columns of a CSV file with a heading, and its rows with the numbers of their lines."""
    lines = read_csv(path, "give a CSV file whose first line names the columns, as in image,question")
    if not lines:
        raise InputError(f"{path} has no heading; its first line must name the columns, as in image,question")
    (_, columns), *rows = lines
    twice = next((name for name in columns if columns.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path} has {columns.count(twice)} columns '{twice}'; give each a name of its own")
    if ANSWER in columns:
        raise InputError(f"{path} has a column '{ANSWER}' already, where the answers would go; rename it")
    for number, row in rows:
        if len(row) != len(columns):
            raise InputError(f"{path}: line {number} has {len(row)} values, not {len(columns)} as the heading has")
    if not rows:
        raise InputError(f"{path} holds no questions below its heading")
    return columns, [(number, dict(zip(columns, row, strict=True))) for number, row in rows]
