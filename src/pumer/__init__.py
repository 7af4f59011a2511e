"""Fewer tokens inside vision-language transformers: PuMer and what goes beyond it."""

from pumer.checkpoint import load, save
from pumer.errors import InputError
from pumer.patching import disabled, patch, patched, reduction, unpatch
from pumer.planning import Plan, plan
from pumer.reducers import NoReduction, PuMerConfig, ReleasedPuMerConfig, Step
from pumer.tracing import ForwardTrace, Trace, trace
from pumer.visualize import draw

__all__ = [
    "ForwardTrace",
    "InputError",
    "NoReduction",
    "Plan",
    "PuMerConfig",
    "ReleasedPuMerConfig",
    "Step",
    "Trace",
    "disabled",
    "draw",
    "load",
    "patch",
    "patched",
    "plan",
    "reduction",
    "save",
    "trace",
    "unpatch",
]
