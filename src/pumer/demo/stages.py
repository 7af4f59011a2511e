"""Steps of a long job that are done once: finished ones are kept, keyed by everything they depend on."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from pumer.utils.files import read_config, write_json

Record = Mapping[str, Any]
"""The file of a step: `key`, `done`, and once it is done `seconds` and `result`."""


@dataclass(frozen=True)
class Stage:
    """One step of a job; its `name` is unique, its `title` is shown, and its `work` makes its result, plain data.

    Attributes:
        settings: plain data; a step is done again when it, or a step that it depends on, changes.
        after: names of earlier steps that this one depends on.
        folder: removed before the step starts anew; an interrupted attempt with the same settings finds it as it was.
        alone: no other step runs beside it, because it measures time.
    """

    name: str
    title: str
    settings: Any
    work: Callable[[], Any]
    after: Sequence[str] = ()
    folder: Path | None = None
    alone: bool = False


def run_stages(stages: Sequence[Stage], folder: Path, console: Console) -> dict[str, Any]:
    """Run the steps in order, except those that are done already; returns their results by name.

    A step's record is written into the folder before it starts and again when it is finished, so that an interrupted
    run continues with the step it was in.
    """
    keys, before = keys_of(stages), finished(stages, folder)
    results: dict[str, Any] = {}
    for number, stage in enumerate(stages, start=1):
        note = " [dim](done before)[/dim]" if stage.name in before else ""
        console.print(f"{number:2}/{len(stages)} {stage.title}{note}", highlight=False)
        record = before.get(stage.name) or perform(stage, keys[stage.name], folder)
        results[stage.name] = record["result"]
    return results


def finished(stages: Sequence[Stage], folder: Path) -> dict[str, Record]:
    """The records of the steps that are done, by name."""
    keys = keys_of(stages)
    records = {stage.name: _record(stage, folder) for stage in stages}
    whole = {name: record for name, record in records.items() if record.get("done") is True and "result" in record}
    return {name: record for name, record in whole.items() if record.get("key") == keys[name]}


def perform(stage: Stage, key: str, folder: Path) -> Record:
    """Do a step, or what an interrupted attempt with the same key left to do."""
    if _record(stage, folder).get("key") != key and stage.folder is not None:
        shutil.rmtree(stage.folder, ignore_errors=True)
    path, started = folder / f"{stage.name}.json", time.monotonic()
    write_json(path, {"key": key, "done": False})
    result = stage.work()
    seconds = round(time.monotonic() - started, 1)
    write_json(path, {"key": key, "done": True, "seconds": seconds, "result": result})
    return _record(stage, folder)


def keys_of(stages: Sequence[Stage]) -> dict[str, str]:
    """A digest of each step's settings and of the steps it depends on, by name."""
    keys: dict[str, str] = {}
    for stage in stages:
        content = json.dumps([stage.settings, [keys[name] for name in stage.after]], sort_keys=True)
        keys[stage.name] = hashlib.sha256(content.encode()).hexdigest()[:16]
    return keys


def _record(stage: Stage, folder: Path) -> Record:
    path = folder / f"{stage.name}.json"
    return read_config(path, "remove it: the step is done again") if path.is_file() else {}
