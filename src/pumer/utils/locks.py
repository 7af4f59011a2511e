"""One process at a time writes a folder or a file."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from filelock import FileLock, Timeout

from pumer.utils.errors import InputError
from pumer.utils.places import JobConfig
from pumer.utils.processes import is_main_process

Rest = ParamSpec("Rest")
Result = TypeVar("Result")


def exclusive(job: Callable[Concatenate[JobConfig, Rest], Result]) -> Callable[Concatenate[JobConfig, Rest], Result]:
    """A job that first checks the files and folders in its config, and that alone writes them; see `only_one`."""

    @wraps(job)
    def run(config: JobConfig, /, *args: Rest.args, **kwargs: Rest.kwargs) -> Result:
        config.check_places()
        with only_one(*config.written):
            return job(config, *args, **kwargs)

    return run


@contextmanager
def only_one(*places: str | Path) -> Iterator[None]:
    """Keep other processes from writing the same folders or files, there or not, for the length of a block.

    The operating system frees the lock of a process that dies. Of the processes that `torchrun` starts, the first one
    holds the lock for all.
    """
    with ExitStack() as held:
        for place in {Path(place).resolve() for place in places} if is_main_process() else ():
            held.enter_context(_locked(place))
        yield


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    # Beside the place, which may be replaced as a whole; inside a folder whose parent is protected, as of a mount.
    inside = place.is_dir() and not os.access(place.parent, os.W_OK)
    file = place / ".lock" if inside else place.parent / f".{place.name}.lock"
    lock = FileLock(file, timeout=0)
    made = [folder for folder in (file.parent, *file.parent.parents) if not folder.exists()]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise InputError(f"another process writes {place}; wait for it to end, or give another place") from None
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or "its file system has no locks"
        raise InputError(f"{place} cannot be written ({reason}); give another place") from error
    try:
        yield
    finally:
        file.unlink(missing_ok=True)  # while it is held: who opened it meanwhile sees that it has no name any more
        lock.release()
        for folder in made:
            with suppress(OSError):  # it holds results
                folder.rmdir()
