"""User errors: unusable input, too much of it, and a system that refuses."""

import difflib
import errno
import os
import re
from collections.abc import Collection


class InputError(ValueError):
    """What the user gave cannot be used.

    The message is one line: the value seen, the values allowed, what to do. The command line prints it and
    exits with code 2, as for `out_of_memory` and `refused_by_system`; every other exception is a defect and keeps its
    traceback.
    """


def unknown(what: str, name: object, names: Collection[str]) -> str:
    """The message about a name that does not exist, with the nearest one and those that do."""
    nearest = difflib.get_close_matches(str(name), names, n=1)
    hint = f"did you mean '{nearest[0]}'? " if nearest else ""
    return f"{what} {name!r} is unknown; {hint}there are: {', '.join(names)}"


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of torch means that a device, or the machine, lacks the memory that was asked for."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


_REFUSALS = {
    number
    for name in (
        *("ENOSPC", "EDQUOT", "EFBIG", "EACCES", "EPERM", "EROFS", "ENAMETOOLONG"),
        *("ENOTDIR", "EISDIR", "ELOOP", "EIO", "ESTALE", "EMFILE"),
    )
    if (number := getattr(errno, name, None)) is not None
}
_FULL = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EFBIG")}
_PROTECTED = {getattr(errno, name, None) for name in ("EACCES", "EPERM", "EROFS")}
_NUMBER = re.compile(r"(?:\[Errno |os error |Os \{ code: )(\d+)", re.IGNORECASE)


def refused_by_system(error: Exception, place: str) -> str | None:
    """One line about a full disk, or about a file that is protected or cannot be read.

    Args:
        error: an OSError, or one of another library that carries the system's number in its text, as do those that
            arrive from a data-loading process.
        place: what was being written, where the error names no file.

    Returns:
        The line; None for every other error.
    """
    if isinstance(error, OSError) and error.errno is not None:
        number, file = error.errno, error.filename
    else:
        found = _NUMBER.search(str(error))
        number = int(found[1]) if found else -1
        named = re.search(r"Errno \d+\] [^'\n]*'([^'\n]+)'", str(error))
        file = named and named[1]
    if number not in _REFUSALS:
        return None
    remedies = ["make room"] * (number in _FULL) + ["change its permissions"] * (number in _PROTECTED)
    return f"{file or place}: {os.strerror(number)}; {', or '.join([*remedies, 'give another place'])}"
