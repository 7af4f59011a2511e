"""Answers of a trained model: to an official split, to a list of questions about image files, and from Python."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pumer import evaluate
from pumer.arguments import at_least, writable
from pumer.checkpoint import ensure_patched, load, load_processor, trained_with
from pumer.compiling import compile as compiled
from pumer.errors import InputError
from pumer.evaluate import EvaluateConfig, EvaluationData, check_class, labels_of
from pumer.image_size import set_image_size
from pumer.jobs import best_device, make_inputs, task_class, text_length_of
from pumer.ranking import score_all
from pumer.tasks import Example, Retrieval
from pumer.tasks.images import Resize
from pumer.utils.files import write_text

_TEXTS = ("question", "text", "sentence")


@dataclass(frozen=True)
class PredictionData:
    """Where the examples of an official split are.

    Attributes:
        root: data folder; by default the one the model was trained on.
    """

    root: Path | None = None


@dataclass(frozen=True)
class PredictConfig:
    """Settings of `pumer predict`. Settings left at null are those of the model's own training.

    Attributes:
        model: folder or hub name.
        out: file to write: of a split the official result file, of a list the list with a column `answer`.
        task: name in `pumer.tasks.TASKS`.
        data: where the split is.
        split: "train", "val" or "test" of the task's official files.
        limit: only so many examples, spread evenly over the split.
        questions: instead of a split, a CSV file with the columns `question` and `image`, or `image1` and `image2`
            for a task on pairs.
        images: folder of the images that `questions` names.
        batch_size: examples per forward pass.
        image_size: see `pumer.evaluate.EvaluateConfig`.
        workers: processes that read images.
        galleries: for retrieval, see `pumer.evaluate.EvaluateConfig`.
        scores: for retrieval, see `pumer.evaluate.EvaluateConfig`.
        compile: answer `questions` with the model as `pumer.compile` makes it: faster for many of them.
    """

    model: str
    out: Path
    task: str | None = None
    data: PredictionData = field(default_factory=PredictionData)
    split: str = "test"
    limit: int | None = None
    questions: Path | None = None
    images: Path = Path(".")
    batch_size: int = 64
    image_size: int | None = None
    workers: int = 0
    galleries: str | None = None
    scores: Path | None = None
    compile: bool = False


class Predictor:
    """A trained model that answers.

    Example:
        >>> from pumer.predict import Predictor  # doctest: +SKIP
        >>> predictor = Predictor("out/vqav2-pumer")  # doctest: +SKIP
        >>> predictor("cat.jpg", "what is on the sofa?")  # doctest: +SKIP
        'cat'

    A model for retrieval scores images against texts instead:
        >>> Predictor("out/flickr30k-pumer").scores(["cat.jpg", "dog.jpg"], ["a cat"]).argmax(axis=0)  # doctest: +SKIP
        array([0])
    """

    def __init__(
        self,
        model: str | Path,
        task: str | None = None,
        text_length: int | None = None,
        resize: Resize | None = None,
        image_size: int | None = None,
        compile: bool = False,
    ) -> None:
        """Load a model, patched as it was saved, with the settings of its training.

        Args:
            model: folder or hub name.
            task: name in `pumer.tasks.TASKS`; by default the one it was trained on, else "vqav2".
            text_length: questions are cut to this many tokens; by default as in its training.
            resize: see `pumer.tasks.Pixels`; by default as in its training.
            image_size: see `pumer.evaluate.EvaluateConfig`.
            compile: answer with the model as `pumer.compile` makes it.

        Raises:
            InputError: for a missing or broken model, or one of another task.
        """
        trained = trained_with(model)
        task_type = task_class(task or trained.get("task", "vqav2"))
        self.model = load(model)
        check_class(str(model), self.model, task_type)
        ensure_patched(self.model).to(best_device())
        self.task = task_type(labels_of(self.model))
        length = text_length_of(self.model, text_length or trained.get("text_length"))
        resize = resize or trained.get("resize", "square")
        processor = load_processor(model)
        set_image_size(image_size, self.model, processor)
        self.inputs = make_inputs(processor, length, resize, trained.get("blank", "none"))
        self._answering = compiled(self.model) if compile else self.model
        self.image_count = getattr(task_type, "image_count", 1)

    def __call__(self, images: str | Path | Sequence[str | Path], text: str) -> str:
        """The answer to one question or sentence.

        Args:
            images: an image file; two of them for a task on pairs.
            text: the question or sentence.

        Raises:
            InputError: for another number of images, and images that cannot be read.
        """
        files = (images,) if isinstance(images, str | Path) else images
        if not isinstance(files, Sequence) or not all(isinstance(file, str | Path) for file in files):
            raise InputError(f"images must be the names of image files, not {type(images).__name__}")
        return self.answers([Example(0, tuple(Path(file) for file in files), text)])[0]

    def answers(
        self, examples: Sequence[Example], batch_size: int = 64, workers: int = 0, progress: bool = False
    ) -> list[str]:
        """The answers to many examples, in order; arguments as of `pumer.evaluate.predict`."""
        if isinstance(self.task, Retrieval):
            raise InputError(
                f"a model for {self.task.name} gives no answers; from Python, Predictor(...).scores(images, texts) "
                "ranks any images and texts, and `pumer predict MODEL data.root=FOLDER` those of a split"
            )
        for example in examples:
            self.check(example)
        return evaluate.predict(self._answering, self.task, examples, self.inputs, batch_size, workers, progress)

    def scores(
        self, images: Sequence[str | Path], texts: Sequence[str], batch_size: int = 64
    ) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """How well every image fits every text, by a model for retrieval; METER encodes each of them once.

        Args:
            images: image files.
            texts: captions.
            batch_size: pairs per forward pass.

        Returns:
            Scores (images, texts): of a column, the highest is the image found for the text; of a row, the highest is
            the text found for the image.

        Raises:
            InputError: for a model of another task, and images that cannot be read.
        """
        if not isinstance(self.task, Retrieval):
            raise InputError(f"a model for {self.task.name} does not rank images and texts; call it with a question")
        return score_all(self.model, [Path(image) for image in images], texts, self.inputs, batch_size)

    def check(self, example: Example) -> None:
        """Refuse an example with another number of images than the task looks at at once."""
        if len(example.images) != self.image_count:
            raise InputError(
                f"task {self.task.name} looks at {self.image_count} image(s) at once, not {len(example.images)}"
            )


def run(config: PredictConfig) -> int:
    """Write a model's answers to a file.

    Returns:
        How many examples were answered.

    Raises:
        InputError: for whatever the user can correct.
    """
    at_least(1, batch_size=config.batch_size, image_size=config.image_size)
    at_least(0, workers=config.workers)
    writable(config.out)
    if config.questions is not None:
        of_a_split = {"data.root": config.data.root, "limit": config.limit, "galleries": config.galleries}
        given = [name for name, value in (of_a_split | {"scores": config.scores}).items() if value is not None]
        if given:
            raise InputError(f"{', '.join(given)} would be of a split, whose place questions take; leave one out")
        return _answer_list(config, config.questions)
    if config.compile:
        raise InputError("compile is for questions=FILE, not for a split; leave it out")
    data = EvaluationData(config.data.root, train=None)
    result = evaluate.run(
        EvaluateConfig(
            config.model,
            config.task,
            data,
            config.split,
            config.limit,
            batch_size=config.batch_size,
            image_size=config.image_size,
            workers=config.workers,
            submission=config.out,
            galleries=config.galleries,
            scores=config.scores,
        )
    )
    return int(result["answered"])


def _answer_list(config: PredictConfig, questions: Path) -> int:
    """Answer the rows of a CSV file."""
    rows, columns = _read_csv(questions)
    pictures = sorted(name for name in columns if re.fullmatch(r"image\d*", name))
    text = next((name for name in _TEXTS if name in columns), None)
    if not pictures or text is None:
        raise InputError(f"{questions} must have the columns image (or image1, image2) and question, not {columns}")
    predictor = Predictor(config.model, config.task, image_size=config.image_size, compile=config.compile)
    examples = [
        Example(number, tuple(config.images / row[name] for name in pictures), row[text])
        for number, row in enumerate(rows)
    ]
    answers = predictor.answers(examples, config.batch_size, config.workers, progress=True)
    written = io.StringIO()
    writer = csv.DictWriter(written, [name for name in columns if name != "answer"] + ["answer"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "answer": answer} for row, answer in zip(rows, answers, strict=True))
    write_text(config.out, written.getvalue())
    return len(rows)


def _read_csv(path: Path) -> tuple[list[dict[str, str]], list[str]]:
    """The rows of a CSV file with a heading, and its columns."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), list(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}); give a CSV file in UTF-8") from error
    if not columns:
        raise InputError(f"{path} has no heading; its first line must name the columns, as in image,question")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise InputError(f"{path}: line {number} has not {len(columns)} values, as the heading has")
    if not rows:
        raise InputError(f"{path} holds no questions below its heading")
    return rows, columns
