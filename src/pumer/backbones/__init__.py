"""Model families: one file each, listed in BACKBONES."""

from pumer.backbones.base import Backbone, Reduction
from pumer.backbones.meter import METER
from pumer.backbones.vilt import VILT

BACKBONES: dict[str, Backbone] = {"vilt": VILT, "meter": METER}

__all__ = ["BACKBONES", "Backbone", "Reduction"]
