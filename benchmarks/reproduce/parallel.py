"""Runs the steps of a long job, see `pumer.demo.stages`, several at once."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from pumer.demo.stages import Record, Stage, finished, keys_of, perform


@dataclass(frozen=True)
class Watch:
    """Callbacks of `run_at_once`; all calls come from the thread that called it.

    Attributes:
        started: a step begins.
        ended: a step is done, or it failed.
        stop: makes all running steps end soon, because the user interrupted.
    """

    started: Callable[[Stage], None] = lambda stage: None
    ended: Callable[[Stage, Record | BaseException], None] = lambda stage, outcome: None
    stop: Callable[[], None] = lambda: None


def run_at_once(stages: Sequence[Stage], folder: Path, jobs: int, watch: Watch) -> dict[str, Exception]:
    """Run the steps that are not done yet, several at once, each as soon as those it depends on are done.

    A step that fails stops those that depend on it and no others. Steps that run alone start when no other can.

    Args:
        stages: as for `run_stages`, and with the same records.
        folder: holds one record per step.
        jobs: how many steps at once; each has a thread, so its work should be waiting for another process.
        watch: callbacks.

    Returns:
        The failures, by the step's name.
    """
    keys, done = keys_of(stages), set(finished(stages, folder))
    waiting = [stage for stage in stages if stage.name not in done]
    running: dict[Future[Record], Stage] = {}
    failures: dict[str, Exception] = {}
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while True:
                while stage := _next(waiting, list(running.values()), done, jobs):
                    waiting.remove(stage)
                    watch.started(stage)
                    running[pool.submit(perform, stage, keys[stage.name], folder)] = stage
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


def _next(waiting: Iterable[Stage], running: Sequence[Stage], done: set[str], jobs: int) -> Stage | None:
    """The step to start now."""
    if len(running) >= jobs or any(stage.alone for stage in running):
        return None
    ready = [stage for stage in waiting if done.issuperset(stage.after)]
    together = (stage for stage in ready if not stage.alone)
    return next(together, None) or (next(iter(ready), None) if not running else None)
