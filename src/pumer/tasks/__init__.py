"""Tasks by name: a new task is its file and its entry in TASKS; its metric belongs into `pumer.tasks.metrics`."""

from pumer.data.pixels import Pixels
from pumer.tasks.base import Example, Inputs, Task
from pumer.tasks.nlvr2 import NLVR2
from pumer.tasks.retrieval import Coco, Flickr30k, Retrieval
from pumer.tasks.snli_ve import SNLIVE
from pumer.tasks.vqav2 import VQAv2
from pumer.utils.errors import InputError

TASKS: dict[str, type[Task]] = {"vqav2": VQAv2, "nlvr2": NLVR2, "snli_ve": SNLIVE, "flickr30k": Flickr30k, "coco": Coco}

__all__ = ["NLVR2", "SNLIVE", "TASKS", "Coco", "Example", "Flickr30k", "Inputs", "Pixels", "Retrieval", "Task", "VQAv2"]


def task_class(name: str) -> type[Task]:
    """The task of that name; refuses one that is not there."""
    if name not in TASKS:
        raise InputError(f"task '{name}' is unknown; there are: {', '.join(TASKS)}")
    return TASKS[name]
