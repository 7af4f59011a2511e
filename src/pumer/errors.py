"""The one exception a user's own input can cause."""


class InputError(ValueError):
    """What the user gave cannot be used.

    The message is one line: the value seen, the values allowed, the way out. The command line prints it and
    exits with code 2; every other exception is a defect and keeps its traceback.
    """
