"""Tasks by name."""

from pumer.tasks.base import Example, Inputs, Task
from pumer.tasks.images import Pixels
from pumer.tasks.nlvr2 import NLVR2
from pumer.tasks.retrieval import Coco, Flickr30k, Retrieval
from pumer.tasks.snli_ve import SNLIVE
from pumer.tasks.vqav2 import VQAv2

TASKS: dict[str, type[Task]] = {"vqav2": VQAv2, "nlvr2": NLVR2, "snli_ve": SNLIVE, "flickr30k": Flickr30k, "coco": Coco}

__all__ = ["NLVR2", "SNLIVE", "TASKS", "Coco", "Example", "Flickr30k", "Inputs", "Pixels", "Retrieval", "Task", "VQAv2"]
