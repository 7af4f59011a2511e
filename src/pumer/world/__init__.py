"""The built-in world: scenes, sentences, data sets in official formats, and the small models that know it."""

from pumer.world.small import checkpoint_dir, small_processor, small_vilt
from pumer.world.writer import WorldConfig, write_vqav2

__all__ = ["WorldConfig", "checkpoint_dir", "small_processor", "small_vilt", "write_vqav2"]
