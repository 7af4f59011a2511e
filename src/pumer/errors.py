"""What a user can cause: unusable input, and too much of it."""


class InputError(ValueError):
    """What the user gave cannot be used.

    The message is one line: the value seen, the values allowed, the way out. The command line prints it and
    exits with code 2; every other exception but `out_of_memory` is a defect and keeps its traceback.
    """


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of torch's says that a device, or the machine, has not as much memory as was asked for."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
