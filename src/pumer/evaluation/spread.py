"""Work spread over the processes that `torchrun` starts, and answers that are kept until the result is written."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from shutil import rmtree
from typing import Any, TypeVar, cast
from uuid import uuid4

import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous
from transformers.utils import cached_file

from pumer.data.storage import RECORD, SHARDS, storage_of
from pumer.evaluation.generation import GenerativeSession
from pumer.tasks import Example
from pumer.tasks.session import Session
from pumer.utils.errors import InputError
from pumer.utils.processes import is_first_to_report, leave_group

Value = TypeVar("Value")

_LONGEST = timedelta(days=1)
"""How long a process may wait for the last piece of another one; gloo sees at once that a process is gone."""
_jobs = count()


class Processes:
    """The processes that share one job, of which the first is the main one; by default one process alone.

    All call the same methods in the same order.

    Raises:
        InputError: by every method, where another process ended in the middle of the job.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None, group: Any = None) -> None:
        self.main, self.size, self._store, self._group, self._calls = rank == 0, size, store, group, count()

    def take(self, pieces: int) -> Iterator[int]:
        """Numbers of the pieces of work that fall to this process; each is taken by one process, as it gets ready.

        A number is also how many pieces were taken before.
        """
        if self._store is None:
            yield from range(pieces)
            return
        name = f"pieces {next(self._calls)}"
        while True:
            with _while_others_live():
                number = int(self._store.add(name, 1)) - 1
            if number >= pieces:
                return
            yield number

    def of_main(self, function: Callable[[], Value]) -> Value:
        """What the main process alone gets from a function; the others wait for it."""
        if self.size == 1:
            return function()
        value = [function() if self.main else None]
        with _while_others_live():
            distributed.broadcast_object_list(value, src=0, group=self._group)
        return cast(Value, value[0])

    def joined(self, part: Mapping[int, Value]) -> dict[int, Value]:
        """The parts of all processes in one, when the last of them has come here."""
        parts: list[Any] = [part] * self.size
        if self.size > 1:
            with _while_others_live():
                distributed.all_gather_object(parts, part, group=self._group)
        return {key: value for each in parts for key, value in each.items()}

    def wait(self) -> None:
        """Go on when all processes have come here."""
        self.joined({})


ALONE = Processes()


@contextmanager
def _while_others_live() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise InputError("another process ended before the work was done; the same command goes on with it") from error


@contextmanager
def together() -> Iterator[Processes]:
    """The processes of this run, for one job; each has a device of its own, as far as there are enough."""
    number = next(_jobs)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    if torch.accelerator.is_available():
        local = int(os.environ.get("LOCAL_RANK", "0"))
        torch.accelerator.set_device_index(local % torch.accelerator.device_count())
    in_group = distributed.is_initialized()
    with _while_others_live():
        shared, rank, size = next(rendezvous("env://"))
        store = distributed.PrefixStore(f"pumer job {number}", shared)
        if not in_group:
            distributed.init_process_group("gloo", store=store, rank=rank, world_size=size)
        # Words and answers are exchanged, not tensors: gloo needs no GPU, and sees that a process is gone.
        group = distributed.new_group(backend="gloo", timeout=_LONGEST)
    try:
        yield Processes(rank, size, store, group)
    except BaseException:
        is_first_to_report()  # before the others see that this one is gone
        raise
    finally:
        if not in_group:
            leave_group()


@dataclass(frozen=True)
class Parts:
    """The answers to finished batches, in a folder beside the result until that is written.

    Every process appends to a file of its own, a line per batch; a line that was cut off by a kill counts for nothing.
    Files of other examples, models or settings than the `key` stands for are not looked at.
    """

    folder: Path
    key: str

    def read(self) -> dict[int, list[str]]:
        """The answers of finished batches, by the number of the batch."""
        found: dict[int, list[str]] = {}
        for file in sorted(self.folder.glob(f"{self.key}-*.jsonl")):
            for line in file.read_bytes().splitlines():
                with suppress(ValueError):  # it was cut off
                    number, answers = json.loads(line)
                    found[number] = answers
        return found

    @contextmanager
    def writer(self) -> Iterator[Callable[[int, list[str]], None]]:
        """A function that keeps the answers to a batch."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{self.key}-{uuid4().hex[:8]}.jsonl").open("w", encoding="ascii") as file:

            def write(number: int, answers: list[str]) -> None:
                file.write(f"{json.dumps([number, answers])}\n")
                file.flush()

            yield write


def parts_beside(results: Sequence[Path | None]) -> Path | None:
    """The folder for unfinished work beside the first result that is written; None where none is."""
    file = next((path for path in results if path is not None), None)
    return file and file.with_name(f".{file.name}.parts")


def remove_parts(folder: Path | None) -> None:
    """Remove the folder of unfinished work, when the result is written."""
    if folder is not None:
        rmtree(folder, ignore_errors=True)


def fingerprint(session: Session | GenerativeSession, examples: Sequence[Example], batch_size: int) -> str:
    """A hash over all that the answers to batches of examples depend on.

    Of the files that hold images and weights, names, sizes and times count.
    """
    about: dict[str, Any] = {
        "versions": versions(),
        "device": session.model.device.type,
        "model": [session.name, str(session.model.dtype)],
        "reduction": session.reduction,
        "labels": session.task.labels,
        "task": session.task.name,
        "processor": session.processor.to_json_string(),
        "words": sorted(session.processor.tokenizer.get_vocab().items()),
        "batch_size": batch_size,
        "examples": [[example.id, example.text, *map(str, example.files)] for example in examples],
        "files": states(_files(examples)),
        "model files": model_states(session.name),
    }
    if isinstance(session, GenerativeSession):
        about |= {"prompt": session.prompt, "max_new_tokens": session.max_new_tokens}
    else:
        inputs, pixels = session.inputs, session.inputs.pixels
        about |= {"texts": [inputs.text_length, inputs.blank_text, inputs.fixed_length]}
        about |= {"pixels": [pixels.edge, pixels.resize, pixels.blank]}
        about |= {"compiled": session.forward is not session.model}
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]


def versions() -> list[str]:
    """The versions of the libraries that answers depend on, of those that are installed."""
    found = []
    for name in ("pumer", "torch", "transformers", "openvino", "onnxruntime"):
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return found


def model_states(name: str) -> list[tuple[str, int, int]]:
    """The `states` of the files in a model's folder, which stand for its weights."""
    folder = Path(name)
    if not folder.is_dir():  # on the hub: the folder of the commit in force
        folder = Path(str(cached_file(name, "config.json"))).parent
    return states(file for file in folder.glob("[!.]*") if file.is_file())


def _files(examples: Sequence[Example]) -> set[Path]:
    """The files that hold the images of examples."""
    files = {file for example in examples for file in example.files}
    stored = {storage.root for folder in {file.parent for file in files} if (storage := storage_of(folder / "image"))}
    return files | {file for root in stored for file in (root / RECORD, *(root / SHARDS).glob("*.arrow"))}


def states(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Size and time of files; one that is missing is reported when it is read."""
    found = []
    for file in sorted(files):
        with suppress(OSError):
            about = file.stat()
            found.append((str(file), about.st_size, about.st_mtime_ns))
    return found
