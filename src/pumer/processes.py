"""Which of several processes this is, known before any library asks; and how they part."""

import os


def is_main_process() -> bool:
    """Whether this process speaks to the user: the first of those that `torchrun` or `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"


def leave_group() -> None:
    """Take the process group apart, if there is one: a process that ends inside it is now and then aborted."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
