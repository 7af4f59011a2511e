"""Tasks by name."""

from pumer.tasks.base import Example, Inputs, Task
from pumer.tasks.images import Pixels
from pumer.tasks.retrieval import Coco, Flickr30k, Retrieval
from pumer.tasks.vqav2 import VQAv2

TASKS: dict[str, type[Task]] = {"vqav2": VQAv2, "flickr30k": Flickr30k, "coco": Coco}

__all__ = ["TASKS", "Coco", "Example", "Flickr30k", "Inputs", "Pixels", "Retrieval", "Task", "VQAv2"]
