"""The checkpoints of a run on disk: a folder under its own name is complete, whenever the run was killed."""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import TrainerState
from transformers.trainer_pt_utils import safe_globals
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from pumer.utils.errors import InputError, out_of_memory

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
ANEW = "give resume=false to begin anew"
_SHARDED = "global_step*"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model*", _SHARDED)
_ALTERNATIVES = (
    _WEIGHTS,
    ("optimizer.pt", "optimizer.bin", "optimizer_*", _SHARDED),
    ("scheduler.pt", _SHARDED),
    ("rng_state.pth", "rng_state_*.pth"),
)
"""What training goes on from. The first of a line is that of one process or of equal ones, the others are those of
FSDP and DeepSpeed."""
_SCALER = ("scaler.pt", _SHARDED)
_SETTINGS = "training_args.bin"
"""Written by transformers, and never read here."""


def checkpoint_folder(output: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return output / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was made."""
    return int(checkpoint.name.rpartition("-")[2])


def checkpoints(output: Path) -> list[Path]:
    """The checkpoints in a run's folder, oldest first."""
    found = (path for path in output.glob("*") if re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-\d+", path.name))
    return sorted(found, key=step_of)


def last_checkpoint(output: Path) -> Path | None:
    """The newest checkpoint; see `check_whole`."""
    return next(reversed(checkpoints(output)), None)


def check_whole(checkpoint: Path, scaled: bool = False, best: bool = False) -> None:
    """Refuse a checkpoint that training cannot go on from; reads no weights.

    A run's own checkpoints are whole: they are renamed to their place. This one may have been copied, cut or changed.

    Args:
        checkpoint: Its folder.
        scaled: Whether the loss is scaled, as in float16.
        best: Whether the run gives back its best model in the end, whose weights must be there too.

    Raises:
        InputError: Naming the file that is missing or cannot be read, and the way out.
    """
    remedy = way_out(checkpoint)
    with refused(checkpoint / STATE_FILE, remedy):
        kept = _best_step(checkpoint)
    for names in (*_ALTERNATIVES, *([_SCALER] if scaled else [])):
        if not _there(checkpoint, names):
            raise InputError(f"{checkpoint / names[0]} is missing; {remedy}")
    for file in sorted(checkpoint.iterdir()):
        with refused(file, remedy):
            _read(file)
    ranks = {int(file.stem.rpartition("_")[2]) for file in checkpoint.glob("rng_state_*.pth")}
    if lost := set(range(len(ranks))) - ranks:
        raise InputError(f"{checkpoint / f'rng_state_{min(lost)}.pth'} is missing; {remedy}")
    before, now = max(1, len(ranks)), int(os.environ.get("WORLD_SIZE", "1"))
    if before != now:
        logger.warning("%s is of %d processes, and there are %d: dropout is drawn anew", checkpoint, before, now)
    if best and kept:
        check_weights(checkpoint_folder(checkpoint.parent, kept))


def check_weights(best: Path) -> None:
    """Refuse to go on where the weights of the best checkpoint, which a run gives back in the end, are lost.

    Args:
        best: Its folder.

    Raises:
        InputError: Naming the file.
    """
    found = _there(best, _WEIGHTS)
    if not found:
        raise InputError(f"{best / _WEIGHTS[0]} is missing, the best model so far; {ANEW}")
    for file in found:
        with refused(file, ANEW):
            _read(file)


@contextmanager
def refused(what: str | Path, remedy: str) -> Iterator[None]:
    """Turn whatever reading a broken checkpoint raises inside a `with` block into one line.

    Args:
        what: A file, or what is read of a checkpoint.
        remedy: What to do.

    Raises:
        InputError: With both. What torch and safetensors say is left out: their advice is not for the user.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{what}: {error}; {remedy}") from error
    except Exception as error:  # broken files are not checked: anything can come up
        if isinstance(error, RuntimeError) and out_of_memory(error):
            raise
        raise InputError(f"{what} is broken, or of another run; {remedy}") from error


def way_out(checkpoint: str | Path | None) -> str:
    """What to do about a broken checkpoint."""
    broken = Path(checkpoint or "")
    older = [folder.name for folder in checkpoints(broken.parent) if folder.name != broken.name]
    return f"remove {broken} to go on from {older[-1]}, or {ANEW}" if older else ANEW


def _best_step(checkpoint: Path) -> int:
    """The step of the best checkpoint so far, or 0."""
    state = TrainerState.load_from_json(str(checkpoint / STATE_FILE))
    if state.global_step != step_of(checkpoint):
        raise InputError(f"it is of step {state.global_step}, not {step_of(checkpoint)}")
    return int(state.best_global_step or 0)


def _there(checkpoint: Path, names: tuple[str, ...]) -> list[Path]:
    """The files and folders of these names."""
    return [path for name in names for path in checkpoint.glob(name)]


def _read(file: Path) -> None:
    """Look into a file of a checkpoint: broken ones raise."""
    if file.name == _SETTINGS:
        return
    if file.suffix in (".pt", ".pth", ".bin"):
        with safe_globals():
            torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    elif file.suffix == ".safetensors":
        with safe_open(file, framework="pt"):
            pass
    elif file.name.endswith(".index.json"):
        for shard in set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values()):
            if not (file.parent / shard).is_file():
                raise InputError(f"{shard} is missing")


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
