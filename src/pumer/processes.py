"""Which of several processes this is, known before any library asks."""

import os


def is_main_process() -> bool:
    """Whether this process speaks to the user: the first of those that `torchrun` or `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"
