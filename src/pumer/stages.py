"""Steps of a long job that are done once: what is finished is kept, keyed by everything it depends on."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from pumer.checkpoint import read_json, write_json


@dataclass(frozen=True)
class Stage:
    """One step.

    Attributes:
        name: unique; names the step's record.
        title: what the terminal shows.
        settings: plain data; a step is done again when it, or a step that it depends on, changes.
        work: makes the step's result, plain data.
        after: names of earlier steps that this one depends on.
        folder: removed before the step starts anew; an interrupted attempt with the same settings finds it as it was.
    """

    name: str
    title: str
    settings: Any
    work: Callable[[], Any]
    after: Sequence[str] = ()
    folder: Path | None = None


def run_stages(stages: Sequence[Stage], folder: Path, console: Console) -> dict[str, Any]:
    """Run the steps in order, those that are done already excepted.

    A step's record is written before it starts and again when it is finished, so that an interrupted run continues
    with the step it was in.

    Args:
        stages: the steps; one that others depend on stands before them.
        folder: holds one record per step.
        console: one line per step.

    Returns:
        The steps' results by name.
    """
    keys: dict[str, str] = {}
    results: dict[str, Any] = {}
    for number, stage in enumerate(stages, start=1):
        keys[stage.name] = _key(stage, keys)
        record, key = folder / f"{stage.name}.json", keys[stage.name]
        before = read_json(record) if record.is_file() else {}
        known = before.get("key") == key
        done = known and before["done"]
        note = " [dim](done before)[/dim]" if done else ""
        console.print(f"{number:2}/{len(stages)} {stage.title}{note}", highlight=False)
        if not done:
            if not known and stage.folder is not None:
                shutil.rmtree(stage.folder, ignore_errors=True)
            write_json(record, {"key": key, "done": False})
            started = time.monotonic()
            result = stage.work()
            seconds = round(time.monotonic() - started, 1)
            write_json(record, {"key": key, "done": True, "seconds": seconds, "result": result})
        results[stage.name] = read_json(record)["result"]
    return results


def _key(stage: Stage, keys: Mapping[str, str]) -> str:
    """A digest of a step's settings and of the steps it depends on."""
    content = json.dumps([stage.settings, [keys[name] for name in stage.after]], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
