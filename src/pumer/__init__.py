"""Fewer tokens inside vision-language transformers: PuMer and what goes beyond it."""

from pumer.errors import InputError
from pumer.patching import disabled, patch, patched, reduction, unpatch
from pumer.reducers import NoReduction, PuMerConfig, ReleasedPuMerConfig, Step

__all__ = [
    "InputError",
    "NoReduction",
    "PuMerConfig",
    "ReleasedPuMerConfig",
    "Step",
    "disabled",
    "patch",
    "patched",
    "reduction",
    "unpatch",
]
