"""The checkpoints of a run on disk: a folder under its own name is complete, whenever the run was killed."""

import json
import os
import shutil
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

STATE_FILE = "trainer_state.json"


def checkpoint_folder(output: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return output / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was made."""
    return int(checkpoint.name.rpartition("-")[2])


def checkpoints(output: Path) -> list[Path]:
    """The checkpoints in a run's folder, oldest first."""
    return sorted(output.glob(f"{PREFIX_CHECKPOINT_DIR}-*[0-9]"), key=step_of)


def last_checkpoint(output: Path) -> Path | None:
    """The newest complete checkpoint; folders that something else left half-written are passed over."""
    for folder in reversed(checkpoints(output)):
        try:
            json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return folder
    return None


def put(folder: Path, final: Path) -> None:
    """Rename a finished folder to its place, after its files have reached the disk; what is there goes beside it.

    Args:
        folder: on the same file system as `final`.
        final: its name from then on.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            _reach_disk(path)
    if final.exists():
        final.replace(folder.with_name(f"{folder.name}.replaced"))
    folder.replace(final)
    _reach_disk(final.parent)


def rotate(output: Path, keep: int, best: str | None, aside: Path) -> None:
    """Remove all checkpoints but the newest.

    Args:
        output: the run's folder.
        keep: so many stay.
        best: folder of the best checkpoint, which stays as well.
        aside: folder on the same file system that they are moved to first, so that none is ever half there.
    """
    for old in checkpoints(output)[:-keep]:
        if best is None or old != Path(best):
            aside.mkdir(exist_ok=True)
            old.replace(aside / old.name)
    shutil.rmtree(aside, ignore_errors=True)


def _reach_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
