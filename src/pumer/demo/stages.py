"""Steps of a long job that are done once: what is finished is kept, keyed by everything it depends on."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from pumer.utils.files import read_config, write_json

Record = Mapping[str, Any]
"""What is kept of a step: `key`, `done`, and once it is done `seconds` and `result`."""


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
        alone: no other step runs beside it, for it measures time.
    """

    name: str
    title: str
    settings: Any
    work: Callable[[], Any]
    after: Sequence[str] = ()
    folder: Path | None = None
    alone: bool = False


@dataclass(frozen=True)
class Watch:
    """Who is told what happens in `run_at_once`; all calls come from the thread that called it.

    Attributes:
        started: a step begins.
        ended: it is done, after so many seconds, or it failed.
        stop: makes all running steps end soon, for the user interrupted.
    """

    started: Callable[[Stage], None] = lambda stage: None
    ended: Callable[[Stage, Record | BaseException], None] = lambda stage, outcome: None
    stop: Callable[[], None] = lambda: None


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
    keys, before = _keys(stages), finished(stages, folder)
    results: dict[str, Any] = {}
    for number, stage in enumerate(stages, start=1):
        note = " [dim](done before)[/dim]" if stage.name in before else ""
        console.print(f"{number:2}/{len(stages)} {stage.title}{note}", highlight=False)
        record = before.get(stage.name) or _perform(stage, keys[stage.name], folder)
        results[stage.name] = record["result"]
    return results


def run_at_once(stages: Sequence[Stage], folder: Path, jobs: int, watch: Watch) -> dict[str, Exception]:
    """Run the steps that are not done yet, several at once, each as soon as those it depends on are done.

    A step that fails does not keep others from running, but for those that depend on it. Steps that run alone come
    when nothing else can be started.

    Args:
        stages: as for `run_stages`, and with the same records.
        folder: holds one record per step.
        jobs: how many steps at once; each has a thread, so its work should be waiting for another process.
        watch: is told what happens.

    Returns:
        What went wrong, by the step's name.
    """
    keys, done = _keys(stages), set(finished(stages, folder))
    waiting = [stage for stage in stages if stage.name not in done]
    running: dict[Future[Record], Stage] = {}
    failures: dict[str, Exception] = {}
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while True:
                while stage := _next(waiting, list(running.values()), done, jobs):
                    waiting.remove(stage)
                    watch.started(stage)
                    running[pool.submit(_perform, stage, keys[stage.name], folder)] = stage
                if not running:
                    return failures
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    stage = running.pop(future)
                    failure = future.exception()
                    if failure is None:
                        done.add(stage.name)
                    elif isinstance(failure, Exception):
                        failures[stage.name] = failure
                    else:
                        raise failure
                    watch.ended(stage, failure or future.result())
        except BaseException:
            watch.stop()
            raise


def finished(stages: Sequence[Stage], folder: Path) -> dict[str, Record]:
    """The records of the steps that are done, by name."""
    keys = _keys(stages)
    records = {stage.name: _record(stage, folder) for stage in stages}
    whole = {name: kept for name, kept in records.items() if kept.get("done") is True and "result" in kept}
    return {name: kept for name, kept in whole.items() if kept.get("key") == keys[name]}


def _next(waiting: Iterable[Stage], running: Sequence[Stage], done: set[str], jobs: int) -> Stage | None:
    """The step to start now."""
    if len(running) >= jobs or any(stage.alone for stage in running):
        return None
    ready = [stage for stage in waiting if done.issuperset(stage.after)]
    together = (stage for stage in ready if not stage.alone)
    return next(together, None) or (next(iter(ready), None) if not running else None)


def _perform(stage: Stage, key: str, folder: Path) -> Record:
    """Do a step, or what an interrupted attempt with the same settings left to do."""
    if _record(stage, folder).get("key") != key and stage.folder is not None:
        shutil.rmtree(stage.folder, ignore_errors=True)
    path, started = _path(stage, folder), time.monotonic()
    write_json(path, {"key": key, "done": False})
    result = stage.work()
    seconds = round(time.monotonic() - started, 1)
    write_json(path, {"key": key, "done": True, "seconds": seconds, "result": result})
    return _record(stage, folder)


def _path(stage: Stage, folder: Path) -> Path:
    return folder / f"{stage.name}.json"


def _record(stage: Stage, folder: Path) -> Record:
    path = _path(stage, folder)
    return read_config(path, "remove it: the step is done again") if path.is_file() else {}


def _keys(stages: Sequence[Stage]) -> dict[str, str]:
    """A digest of each step's settings and of the steps it depends on."""
    keys: dict[str, str] = {}
    for stage in stages:
        content = json.dumps([stage.settings, [keys[name] for name in stage.after]], sort_keys=True)
        keys[stage.name] = hashlib.sha256(content.encode()).hexdigest()[:16]
    return keys
