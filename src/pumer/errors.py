"""User errors: unusable input, too much of it, and a system that refuses."""

import errno
import os
import re


class InputError(ValueError):
    """What the user gave cannot be used.

    The message is one line: the value seen, the values allowed, the way out. The command line prints it and
    exits with code 2, as for `out_of_memory` and `refused_by_system`; every other exception is a defect and keeps its
    traceback.
    """


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of torch's says that a device, or the machine, has not as much memory as was asked for."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


_REFUSALS = {
    number
    for name in (
        *("ENOSPC", "EDQUOT", "EFBIG", "EACCES", "EPERM", "EROFS", "ENAMETOOLONG"),
        *("ENOTDIR", "EISDIR", "ELOOP", "EIO", "ESTALE", "EMFILE"),
    )
    if (number := getattr(errno, name, None)) is not None
}
_NUMBER = re.compile(r"(?:\[Errno |os error |Os \{ code: )(\d+)", re.IGNORECASE)


def refused_by_system(error: Exception) -> tuple[str, str | None] | None:
    """What the operating system said when it refused to read or write: a full disk, a protected or unreadable file.

    Args:
        error: an OSError, or one of another library that carries the system's number in its text, as do those that
            arrive from a data-loading process.

    Returns:
        The reason and the file, None where that is not known; None for every other error.
    """
    if isinstance(error, OSError) and error.errno in _REFUSALS:
        return os.strerror(error.errno or 0), None if error.filename is None else str(error.filename)
    for number in map(int, _NUMBER.findall(str(error))):
        if number in _REFUSALS:
            file = re.search(r"Errno \d+\] [^'\n]*'([^'\n]+)'", str(error))
            return os.strerror(number), file and file[1]
    return None
