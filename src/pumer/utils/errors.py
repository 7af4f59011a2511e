"""User errors: unusable input, too much of it, and a system that refuses."""

import difflib
import errno
import os
import re
from collections.abc import Collection, Sequence


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


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few of many names, as text for a message."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of torch means that a device, or the machine, lacks the memory that was asked for."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_PROTECTED = {errno.EACCES, errno.EPERM, errno.EROFS}
_OTHERS = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO, errno.ESTALE, errno.EMFILE}
_NUMBER = re.compile(r"(?:\[Errno |os error |Os \{ code: )(\d+)", re.IGNORECASE)


def refused_by_system(error: Exception, place: str) -> str | None:
    """One line about a full disk, or about a file that is protected or cannot be read; None for every other error.

    The error may also be another library's with the system's number in its text, or come from a data-loading process.
    """
    if isinstance(error, OSError) and error.errno is not None:
        number, file = error.errno, error.filename
    else:
        found = _NUMBER.search(str(error))
        number = int(found[1]) if found else -1
        named = re.search(r"Errno \d+\] [^'\n]*'([^'\n]+)'", str(error))
        file = named and named[1]
    if number not in _FULL | _PROTECTED | _OTHERS:
        return None
    remedies = ["make room"] * (number in _FULL) + ["change its permissions"] * (number in _PROTECTED)
    return f"{file or place}: {os.strerror(number)}; {', or '.join([*remedies, 'give another place'])}"
