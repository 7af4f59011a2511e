"""The built-in world: scenes, sentences, data sets in official formats, and the small models that know it."""

from pumer.settings.data import QuestionsConfig, WorldConfig
from pumer.world.small import checkpoint_dir, small_processor, small_vilt
from pumer.world.write import write_world
from pumer.world.writer import write_vqav2

__all__ = [
    "QuestionsConfig",
    "WorldConfig",
    "checkpoint_dir",
    "small_processor",
    "small_vilt",
    "write_vqav2",
    "write_world",
]
