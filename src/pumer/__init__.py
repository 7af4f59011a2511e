"""Fewer tokens inside vision-language transformers: PuMer and what goes beyond it.

Names are imported when they are first used, so that the command line starts without loading torch.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # typing's own takes a while to import, and the command line is to start at once
if TYPE_CHECKING:
    from typing import Any

    from pumer.checkpoint import load, save
    from pumer.compiling.buckets import Buckets
    from pumer.compiling.compile import compile
    from pumer.evaluation.predict import Predictor
    from pumer.patching import disabled, patch, patched, reduction, unpatch
    from pumer.profiling.planning import Plan, plan
    from pumer.reducers import (
        AttentionReceivedConfig,
        ClsPruningConfig,
        DynamicViTConfig,
        EViTConfig,
        L2NormConfig,
        NoReduction,
        PoolingConfig,
        PuMerConfig,
        RandomPruningConfig,
        ReleasedPuMerConfig,
        Step,
        ToMeConfig,
    )
    from pumer.utils.errors import InputError
    from pumer.visualization.tracing import ForwardTrace, Trace, trace
    from pumer.visualization.visualize import draw

__all__ = [
    "AttentionReceivedConfig",
    "Buckets",
    "ClsPruningConfig",
    "DynamicViTConfig",
    "EViTConfig",
    "ForwardTrace",
    "InputError",
    "L2NormConfig",
    "NoReduction",
    "Plan",
    "PoolingConfig",
    "Predictor",
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
    "compiling.buckets": ("Buckets",),
    "checkpoint": ("load", "save"),
    "compiling.compile": ("compile",),
    "evaluation.predict": ("Predictor",),
    "utils.errors": ("InputError",),
    "patching": ("disabled", "patch", "patched", "reduction", "unpatch"),
    "profiling.planning": ("Plan", "plan"),
    "reducers": (
        "AttentionReceivedConfig",
        "ClsPruningConfig",
        "DynamicViTConfig",
        "EViTConfig",
        "L2NormConfig",
        "NoReduction",
        "PoolingConfig",
        "PuMerConfig",
        "RandomPruningConfig",
        "ReleasedPuMerConfig",
        "Step",
        "ToMeConfig",
    ),
    "visualization.tracing": ("ForwardTrace", "Trace", "trace"),
    "visualization.visualize": ("draw",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = import_module("importlib.metadata").version("pumer")
    elif name in _HOMES:
        value = getattr(import_module(f"pumer.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module 'pumer' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
