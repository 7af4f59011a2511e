"""Model families: one file each, listed in BACKBONES."""

from pumer.backbones.base import Backbone, Reduction
from pumer.backbones.vilt import VILT

BACKBONES: dict[str, Backbone] = {"vilt": VILT}

__all__ = ["BACKBONES", "Backbone", "Reduction"]
