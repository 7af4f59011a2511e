"""Shards of rows, each answered into a file of its own: finding them, and what is answered already."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from pumer.checkpoint import reading
from pumer.evaluation.predict import ANSWER, asked_columns
from pumer.evaluation.spread import model_states, states, versions
from pumer.settings.predict import PredictConfig
from pumer.utils.errors import InputError
from pumer.utils.files import first_line, new_file

ERROR, SHARD = "error", "path"
"""Columns: why a row has no answer; which shard it is of, as Ray calls it."""
ABOUT = b"pumer"
"""Key of an answered file's metadata: what its answers depend on, and where they come from."""
PART = 1000
"""Images of a folder that are answered into one file."""
IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Files that are images, by their endings."""
MODEL = ("model", "task", "image_size", "reduction", "compile", "prompt", "max_new_tokens", "max_pixels")
"""Settings that open a model."""


@dataclass(frozen=True)
class Shard:
    """Rows that are answered into one file.

    Attributes:
        name: the absolute path; of a folder of images the number of the part.
        out: the file of the answers.
        key: a hash over all that they depend on.
        rows: how many there are; None where only reading them shows it.
        images: files of a part of a folder of images.
    """

    name: str
    out: Path
    key: str
    rows: int | None = None
    images: tuple[Path, ...] = ()


def all_shards(config: PredictConfig) -> Iterator[Shard]:
    """All shards in order, checked as far as their headings show it."""
    with reading(f"config.json of {config.model} cannot be read"):
        about: dict[str, Any] = {name: str(getattr(config, name)) for name in (*MODEL, "question")}
        about |= {"images": os.path.abspath(config.images), "versions": versions(), "files": model_states(config.model)}

    def key(files: Iterable[Path]) -> str:
        return hashlib.sha256(json.dumps([about, states(files)], sort_keys=True).encode()).hexdigest()[:32]

    if config.questions is None:
        found = (path for path in config.images.rglob("*") if path.suffix.lower() in IMAGES)
        images = sorted(path for path in found if path.is_file())
        if not images:
            raise InputError(f"images {config.images}: the folder holds no files in {', '.join(IMAGES)}")
        for start in range(0, len(images), PART):
            part, name = tuple(images[start : start + PART]), f"{start // PART:06}"
            yield Shard(name, config.file / f"{name}.parquet", key(part), len(part), part)
    schema = None
    for path, out in config.shards().items():
        if "?" in str(path):
            raise InputError(f"{path} has a ? in its name, which Ray does not read; rename it")
        if path.suffix == ".tar":
            yield Shard(str(path), out, key([path]))
            continue
        try:
            file = parquet.ParquetFile(path)
        except (OSError, pyarrow.ArrowException) as error:
            raise InputError(f"{path} is no Parquet file ({first_line(error)}); replace or remove it") from error
        schema = schema or file.schema_arrow
        _check_columns(path, file.schema_arrow, schema, config.question)
        yield Shard(str(path), out, key([path]), file.metadata.num_rows)


def _check_columns(path: Path, schema: pyarrow.Schema, first: pyarrow.Schema, question: str | None) -> None:
    """Refuse a Parquet shard without the columns that are needed, or with others than the first shard."""
    images, text = asked_columns(schema.names)
    if not images or (text is None and question is None):
        wanted = "image (or image1, image2)" + ("" if question else " and question, or --question given,")
        raise InputError(f"{path} must have the columns {wanted} not {schema.names}")
    if text is not None and question is not None:
        raise InputError(f"{path} has a column '{text}' already; leave --question out")
    for name in (ANSWER, ERROR, SHARD):
        if name in schema.names:
            raise InputError(f"{path} has a column '{name}', which is made here; rename it")
    if not schema.equals(first):
        raise InputError(f"{path} has other columns, or columns of other types, than the first shard; give it apart")


def rows_answered(shard: Shard, config: PredictConfig) -> int | None:
    """The rows that the file of a shard's answers holds; None where it must be written.

    A file of an earlier run that recorded rows without an answer is written again by a run that stops at them.
    """
    if not shard.out.exists():
        return None
    try:
        found = parquet.ParquetFile(shard.out).metadata
        about = json.loads((found.metadata or {}).get(ABOUT, b"{}"))
    except (OSError, ValueError, pyarrow.ArrowException):
        about = {}
    if about.get("key") == shard.key:
        return None if about.get("failed") and config.on_error == "stop" else int(found.num_rows)
    if not config.force:
        reason = "other data, or of another model or other settings; give another folder, or --force to replace it"
        raise InputError(f"{shard.out} holds answers to {reason}")
    return None


def keep(shard: Shard, table: pyarrow.Table, about: Mapping[str, Any]) -> int:
    """Write the file of a shard's answers, with what they depend on; returns how many rows have no answer."""
    failed = len(table) - int(table.column(ERROR).null_count)
    noted = json.dumps({"key": shard.key, "failed": failed, **about}).encode()
    with new_file(shard.out) as aside:
        parquet.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), ABOUT: noted}), aside)
    return failed


def check_answered(shard: Shard, table: pyarrow.Table, start: int) -> None:
    """Refuse rows of a shard, from number `start` on, of which one has no answer."""
    errors = table.column(ERROR).to_pylist()
    row = next((row for row, error in enumerate(errors) if error is not None), None)
    if row is None:
        return
    if shard.images:
        raise InputError(f"{errors[row]}; or go on with on_error=record")
    name = f"sample {table.column('key')[row]}" if shard.rows is None else f"row {start + row}"
    raise InputError(f"{shard.name}: {name}: {errors[row]}; mend it, or go on with on_error=record")
