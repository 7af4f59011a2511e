"""Answers to what outgrows one machine: shards of Parquet or WebDataset and folders of images, on a Ray cluster.

Ray Data streams the rows through copies of the model, batch by batch, in order, and starts a copy whose process died
again. Each shard gets a Parquet file, written as a whole when its last row is answered, with the columns `answer` and
`error` beside the shard's own; of images the place is kept, not the content. A file names what its answers depend on,
so that the same command goes on with the shards that have none.
"""

import json
import logging
import math
import os
import pickle
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import escape
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow
import torch
from PIL import Image
from pyarrow import parquet

from pumer.data.images import decode, read_image
from pumer.evaluation.predict import ANSWER, Predictor, asked_columns
from pumer.serving.cluster import cluster
from pumer.serving.shards import ERROR, IMAGES, MODEL, SHARD, Shard, all_shards, check_answered, keep, rows_answered
from pumer.settings.predict import PredictConfig
from pumer.tasks import Example
from pumer.utils.errors import InputError, some
from pumer.utils.files import first_line
from pumer.utils.locks import exclusive
from pumer.utils.progress import progress_bar
from pumer.utils.provenance import collect

logger = logging.getLogger(__name__)

FILES = "__files__"
"""Column of the files of a WebDataset sample."""
_SHOWN = re.compile(rf"(image\d*\.)?({'|'.join(ending[1:] for ending in IMAGES)})")
_TEXTS = ("json", "txt")
"""Files of a WebDataset sample: images as in KEY.jpg and KEY.image1.jpg, and where its question is."""
_SAID = re.compile(r"^(?:\w+\.)*(InputError|OutOfMemoryError): (.*)$", re.MULTILINE)
"""What an error in a process of Ray's says, at the end of a traceback."""


@exclusive
def run(config: PredictConfig) -> int:
    """Write a model's answers, a file for each shard; returns how many rows are answered, by earlier runs too.

    Args:
        config: with `questions` that name shards, or a `question` about a folder of images.

    Raises:
        InputError: for shards that cannot be read, and answers of something else that are there already; for rows that
            cannot be answered unless they are recorded; for a model that does not load; where Ray is missing, a cluster
            does not answer or has no room for the replicas, and where processes of it keep dying.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError("torchrun starts several processes, but a Ray cluster shares the work; start pumer alone")
    shards = list(all_shards(config))
    for shard in shards:
        for aside in shard.out.parent.glob(f".{escape(shard.out.name)}.????????"):  # of a run that was killed
            aside.unlink()
    answered = {shard.name: rows for shard in shards if (rows := rows_answered(shard, config)) is not None}
    left = [shard for shard in shards if shard.name not in answered]
    if answered:
        logger.info("going on with the answers to %d of %d shards", len(answered), len(shards))
    if not left:
        return sum(answered.values())
    with cluster(config.address, objects=None):
        return sum(answered.values()) + _answer(config, left, len(answered))


def _answer(config: PredictConfig, shards: Sequence[Shard], before: int) -> int:
    """Answer shards on the cluster at hand, of which `before` are answered already; returns the number of rows."""
    import ray
    from ray.data import ActorPoolStrategy, DataContext
    from ray.data.exceptions import ExecutionTimeoutError

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    with DataContext.current(context):
        room = _room(config.replicas)
        rows = _read(shards, config).repartition(target_num_rows_per_block=config.batch_size, strict=True)
        given = {name: getattr(config, name) for name in MODEL}
        if Path(config.model).exists():
            given["model"] = os.path.abspath(config.model)
        samples = shards[0].name.endswith(".tar")
        answers = rows.map_batches(
            _Replica,
            fn_constructor_args=(given, config.question, Path(os.path.abspath(config.images)), samples),
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=room.pop("replicas")),
            **room,
        )
        left = {shard.name: shard for shard in shards}
        try:
            return _write(config, answers.iter_batches(batch_size=None, batch_format="pyarrow"), left, before)
        except (ray.exceptions.RayError, ExecutionTimeoutError) as error:
            raise _reason(error, list(left)) from error


def _room(replicas: int | None) -> dict[str, Any]:
    """How many replicas there shall be, and the CPUs and GPUs of each, which leave a CPU to what reads the shards."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    cores, cards = sum(node["CPU"] for node in nodes), int(sum(node.get("GPU", 0) for node in nodes))
    count, most = replicas or cards or len(nodes), cards or max(1, int(cores))
    if count > most:
        raise InputError(f"replicas={count} do not fit {cores:g} cores and {cards} GPUs; give {most} or fewer")
    if cards:
        share = min((node["CPU"] - 1) / node["GPU"] for node in nodes if node.get("GPU"))
    else:
        share = min((cores - 1) / count, max(node["CPU"] for node in nodes) - 1)
    whole = math.floor(share) if share >= 1 else math.floor(share * 100) / 100  # as Ray takes them
    return {"replicas": count, "num_cpus": whole, "num_gpus": 1 if cards else 0}


def _read(shards: Sequence[Shard], config: PredictConfig) -> Any:
    """The rows of shards as a data set of Ray's, in order, with the column `SHARD`."""
    from pyarrow.fs import LocalFileSystem
    from ray import data

    if config.questions is None:
        tables = []
        for shard in shards:
            names = [str(path.relative_to(config.images)) for path in shard.images]
            tables.append(pyarrow.table({"image": names, SHARD: [shard.name] * len(names)}))
        return data.from_arrow(tables)
    paths, common = [shard.name for shard in shards], {"include_paths": True, "num_cpus": 0.5}
    if paths[0].endswith(".tar"):
        return data.read_webdataset(paths, decoder=_packed, filesystem=LocalFileSystem(), **common)
    return data.read_parquet(paths, partitioning=None, filesystem=LocalFileSystem(), **common)


def _packed(sample: dict[str, Any]) -> dict[str, Any]:
    """A WebDataset sample in two columns, whatever files it has."""
    files = {name: content for name, content in sample.items() if name in _TEXTS or _SHOWN.fullmatch(name.lower())}
    return {"key": sample["__key__"], FILES: pickle.dumps(files)}


class _Replica:
    """A copy of the model in a process of Ray's: rows in, rows with `ANSWER` and `ERROR` out."""

    def __init__(
        self, model: Mapping[str, Any], question: str | None = None, images: Path = Path(), samples: bool = False
    ) -> None:
        """Load the model.

        Args:
            model: settings of `Predictor`.
            question: asked in place of those in the rows.
            images: folder of the images that rows name.
            samples: whether the rows are WebDataset samples, as `_packed` makes them; nothing else is unpickled.
        """
        self.predictor = Predictor(**model)
        self.predictor.answers([])  # refuses a model for retrieval
        self.question, self.images, self.samples = question, images, samples
        self.threads = ThreadPoolExecutor(torch.get_num_threads())

    def __call__(self, rows: pyarrow.Table) -> pyarrow.Table:
        """Answer a batch."""
        kept, images, texts = (_samples if self.samples else _columns)(rows)
        if self.question is not None:
            texts = [self.question] * len(rows)
        if self.question is not None or self.samples:
            asked = [text if isinstance(text, str) else None for text in texts]
            kept = kept.append_column("question", pyarrow.array(asked, pyarrow.string()))
        examples = list(self.threads.map(self._example, images, texts))
        usable = [each for each in examples if isinstance(each, Example)]
        answers = iter(self.predictor.answers(usable, max(1, len(usable))))
        given = [next(answers) if isinstance(each, Example) else None for each in examples]
        errors = [None if isinstance(each, Example) else each for each in examples]
        for name, values in ((ANSWER, given), (ERROR, errors)):
            kept = kept.append_column(name, pyarrow.array(values, pyarrow.string()))
        return kept

    def _example(self, images: Sequence[Any], text: Any) -> Example | str:
        """An example to be answered, or why it cannot be."""
        try:
            if not isinstance(text, str):
                raise InputError("has no question")
            example = Example(0, tuple(_opened(image, self.images) for image in images), text)
            self.predictor.session.check(example)
            return example
        except InputError as error:
            return str(error)


def _columns(rows: pyarrow.Table) -> tuple[pyarrow.Table, list[tuple[Any, ...]], list[Any]]:
    """The columns to keep, the images and the questions of rows of Parquet, or of a list of image files."""
    names, text = asked_columns(rows.column_names)
    images = list(zip(*(rows.column(name).to_pylist() for name in names), strict=True))
    kept = rows
    for name in names:
        at, column = kept.column_names.index(name), rows.column(name)
        if pyarrow.types.is_struct(column.type):
            places = [value and value.get("path") for value in column.to_pylist()]
            kept = kept.set_column(at, name, pyarrow.array(places, pyarrow.string()))
        elif not (pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)):
            kept = kept.remove_column(at)
    return kept, images, [None] * len(rows) if text is None else rows.column(text).to_pylist()


def _samples(rows: pyarrow.Table) -> tuple[pyarrow.Table, list[tuple[Any, ...]], list[Any]]:
    """The same of WebDataset samples: KEY.jpg, or KEY.image1.jpg and KEY.image2.jpg; KEY.txt, or KEY.json."""
    images, texts, notes = [], [], []
    for files in map(pickle.loads, rows.column(FILES).to_pylist()):
        images.append(tuple(files[name] for name in sorted(files) if name not in _TEXTS))
        note = files.get("json", b"").decode(errors="replace")
        text = files["txt"].decode(errors="replace") if "txt" in files else None
        try:
            content = json.loads(note) if text is None else {}
        except (ValueError, RecursionError):
            content = {}
        name = asked_columns(list(content))[1] if isinstance(content, dict) else None
        texts.append(text if name is None else content[name])
        notes.append(note or None)
    kept = rows.drop_columns(FILES).append_column("json", pyarrow.array(notes, pyarrow.string()))
    return kept, images, texts


def _opened(image: Any, folder: Path) -> Image.Image:
    """An image of a row: the content of a file, the name of one, or datasets' pair of both."""
    if isinstance(image, Mapping):
        image = image.get("path") if image.get("bytes") is None else image["bytes"]
    if isinstance(image, str):
        return read_image(folder / image)
    if not isinstance(image, bytes):
        raise InputError("has no image")
    try:
        return decode(image)
    except InputError as error:
        raise InputError(f"image {error}") from error


def _write(config: PredictConfig, batches: Iterable[pyarrow.Table], shards: dict[str, Shard], before: int) -> int:
    """Write the answers to shards, given in their order, as they come in; returns the number of rows."""
    about = {name: value for name, value in collect(config).items() if name in ("command", "versions", "commit")}
    answered, failed, total = 0, 0, before + len(shards)
    with progress_bar() as bar:
        shown = bar.add_task("predict shards", total=total, completed=before, note="")

        def pieces(name: str, found: Iterable[tuple[str, pyarrow.Table]]) -> Iterator[pyarrow.Table]:
            rows = 0
            for _, table in found:
                if config.on_error == "stop":
                    check_answered(shards[name], table, rows)
                rows += len(table)
                bar.update(shown, note=f"{answered + rows} answers")
                yield table

        for name, found in groupby(_by_shard(batches), key=itemgetter(0)):
            table, shard = pyarrow.concat_tables(pieces(name, found)), shards[name]
            if shard.rows not in (None, len(table)):
                raise InputError(f"{name} holds {shard.rows} rows, but Ray read {len(table)}; did the file change?")
            failed += keep(shard, table, about)
            del shards[name]
            answered += len(table)
            bar.update(shown, completed=total - len(shards))
    if lost := [name for name, shard in shards.items() if shard.rows]:
        raise InputError(f"Ray read no rows of {some(lost)}; did the files change?")
    if shards:
        logger.warning("%d shards hold no rows: %s", len(shards), some(list(shards)))
    for shard in shards.values():
        keep(shard, _without_rows(shard, config.question is not None), about)
    if failed:
        logger.warning("%d of %d rows have no answer, for the reason in the column %s", failed, answered, ERROR)
    return answered


def _without_rows(shard: Shard, asked: bool) -> pyarrow.Table:
    """The answers to a shard that holds no rows."""
    if shard.name.endswith(".tar"):
        kept, names = pyarrow.table({}), ["key", "json", "question"]
    else:
        kept, names = _columns(parquet.ParquetFile(shard.name).read())[0], ["question"] * asked
    for name in (*names, ANSWER, ERROR):
        kept = kept.append_column(name, pyarrow.array([], pyarrow.string()))
    return kept


def _reason(error: Exception, shards: Iterable[str]) -> Exception:
    """The line about an error in a process of Ray's, which reports it inside a traceback; a defect stays as it is."""
    import ray

    said = str(error)
    if found := _SAID.findall(said):
        kind, line = found[-1]
        return InputError(line if kind == "InputError" else f"{line.removesuffix('.')}; lower batch_size")
    if type(error).__name__ == "ExecutionTimeoutError":
        return InputError("the cluster did nothing for half an hour; see whether others use it, or lower batch_size")
    if isinstance(error, ray.exceptions.RayActorError | ray.exceptions.OutOfMemoryError):
        return InputError(f"processes with the model died ({first_line(error)}); lower batch_size or replicas")
    if isinstance(error, ray.exceptions.UserCodeException) or not isinstance(error, ray.exceptions.RayTaskError):
        return error
    shard = next((name for name in shards if name in said or _is_broken_tar(name)), "a shard")
    return InputError(f"{shard} cannot be read ({first_line(error.cause)}); replace or remove it")


def _is_broken_tar(name: str) -> bool:
    """Whether reading a tar file through ends in an error, as Ray does not report which one."""
    try:
        if name.endswith(".tar"):
            with tarfile.open(name, "r|*") as file:
                for _ in file:
                    pass
    except (OSError, tarfile.TarError):
        return True
    return False


def _by_shard(batches: Iterable[pyarrow.Table]) -> Iterator[tuple[str, pyarrow.Table]]:
    """The rows of each shard in each batch, with the shard's name in place of its column."""
    for batch in batches:
        start = 0
        for name, run in groupby(batch.column(SHARD).to_pylist()):
            length = sum(1 for _ in run)
            yield name, batch.slice(start, length).drop_columns(SHARD)
            start += length
