"""Tasks by name."""

from pumer.tasks.base import Example, Inputs, Task
from pumer.tasks.images import Pixels
from pumer.tasks.vqav2 import VQAv2

TASKS: dict[str, type[Task]] = {"vqav2": VQAv2}

__all__ = ["TASKS", "Example", "Inputs", "Pixels", "Task", "VQAv2"]
