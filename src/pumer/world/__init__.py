"""The built-in world: scenes, sentences, and data sets in the official formats."""

from pumer.settings.data import QuestionsConfig, WorldConfig
from pumer.world.write import write_vqav2, write_world

__all__ = ["QuestionsConfig", "WorldConfig", "write_vqav2", "write_world"]
