"""Fewer tokens inside vision-language transformers: PuMer and what goes beyond it.

Names are imported when they are first used, so that the command line starts without loading torch.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # typing's own takes a while to import, and the command line is to start at once
if TYPE_CHECKING:
    from typing import Any

    from pumer.buckets import Buckets
    from pumer.checkpoint import load, save
    from pumer.compiling import compile
    from pumer.errors import InputError
    from pumer.patching import disabled, patch, patched, reduction, unpatch
    from pumer.planning import Plan, plan
    from pumer.reducers import (
        ClsPruningConfig,
        DynamicViTConfig,
        EViTConfig,
        NoReduction,
        PoolingConfig,
        PuMerConfig,
        RandomPruningConfig,
        ReleasedPuMerConfig,
        Step,
        ToMeConfig,
    )
    from pumer.tracing import ForwardTrace, Trace, trace
    from pumer.visualize import draw

__all__ = [
    "Buckets",
    "ClsPruningConfig",
    "DynamicViTConfig",
    "EViTConfig",
    "ForwardTrace",
    "InputError",
    "NoReduction",
    "Plan",
    "PoolingConfig",
    "PuMerConfig",
    "RandomPruningConfig",
    "ReleasedPuMerConfig",
    "Step",
    "ToMeConfig",
    "Trace",
    "compile",
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

_MODULES = {
    "buckets": ("Buckets",),
    "checkpoint": ("load", "save"),
    "compiling": ("compile",),
    "errors": ("InputError",),
    "patching": ("disabled", "patch", "patched", "reduction", "unpatch"),
    "planning": ("Plan", "plan"),
    "reducers": (
        "ClsPruningConfig",
        "DynamicViTConfig",
        "EViTConfig",
        "NoReduction",
        "PoolingConfig",
        "PuMerConfig",
        "RandomPruningConfig",
        "ReleasedPuMerConfig",
        "Step",
        "ToMeConfig",
    ),
    "tracing": ("ForwardTrace", "Trace", "trace"),
    "visualize": ("draw",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pumer' has no attribute {name!r}")
    value = getattr(import_module(f"pumer.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
