"""The built-in world: scenes, sentences, and data sets in the official formats."""

from pumer.settings.data import QuestionsConfig, WorldConfig
from pumer.world.write import write_world
from pumer.world.writer import write_vqav2

__all__ = ["QuestionsConfig", "WorldConfig", "write_vqav2", "write_world"]
