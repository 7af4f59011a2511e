"""Fewer tokens inside vision-language transformers: PuMer and what goes beyond it.

Names are imported when they are first used, so that the command line starts without loading torch.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # typing's own takes a while to import, and the command line is to start at once
if TYPE_CHECKING:
    from typing import Any

    from pumer.checkpoint import load as load
    from pumer.checkpoint import save as save
    from pumer.compiling.buckets import Buckets as Buckets
    from pumer.compiling.compile import compile as compile
    from pumer.evaluation.predict import Predictor as Predictor
    from pumer.exporting.export import export as export
    from pumer.exporting.generation_runtime import ExportedGenerator as ExportedGenerator
    from pumer.exporting.runtime import ExportedModel as ExportedModel
    from pumer.patching import disabled as disabled
    from pumer.patching import patch as patch
    from pumer.patching import patched as patched
    from pumer.patching import reduction as reduction
    from pumer.patching import unpatch as unpatch
    from pumer.profiling.planning import Plan as Plan
    from pumer.profiling.planning import plan as plan
    from pumer.profiling.prompt_planning import PromptPlan as PromptPlan
    from pumer.profiling.prompt_planning import plan_prompt as plan_prompt
    from pumer.prompts import read_prompts as read_prompts
    from pumer.prompts import shorten as shorten
    from pumer.prompts import shortened as shortened
    from pumer.prompts import write_prompts as write_prompts
    from pumer.reducers import AttentionReceivedConfig as AttentionReceivedConfig
    from pumer.reducers import CDPrunerConfig as CDPrunerConfig
    from pumer.reducers import ClsPruningConfig as ClsPruningConfig
    from pumer.reducers import DARTConfig as DARTConfig
    from pumer.reducers import DivPruneConfig as DivPruneConfig
    from pumer.reducers import DynamicViTConfig as DynamicViTConfig
    from pumer.reducers import EViTConfig as EViTConfig
    from pumer.reducers import EVSConfig as EVSConfig
    from pumer.reducers import FastVConfig as FastVConfig
    from pumer.reducers import ILLaVAConfig as ILLaVAConfig
    from pumer.reducers import InteractionConfig as InteractionConfig
    from pumer.reducers import L2NormConfig as L2NormConfig
    from pumer.reducers import NoReduction as NoReduction
    from pumer.reducers import PoolingConfig as PoolingConfig
    from pumer.reducers import PoolingPromptConfig as PoolingPromptConfig
    from pumer.reducers import PruMergeConfig as PruMergeConfig
    from pumer.reducers import PuMerConfig as PuMerConfig
    from pumer.reducers import PyramidDropConfig as PyramidDropConfig
    from pumer.reducers import RandomPromptConfig as RandomPromptConfig
    from pumer.reducers import RandomPruningConfig as RandomPruningConfig
    from pumer.reducers import ReleasedPuMerConfig as ReleasedPuMerConfig
    from pumer.reducers import SimIgnoreConfig as SimIgnoreConfig
    from pumer.reducers import SparseVLMConfig as SparseVLMConfig
    from pumer.reducers import Step as Step
    from pumer.reducers import ToMeConfig as ToMeConfig
    from pumer.reducers import VictorConfig as VictorConfig
    from pumer.reducers import VisionZipConfig as VisionZipConfig
    from pumer.reducers import VisPrunerConfig as VisPrunerConfig
    from pumer.resolution import fewer_pixels as fewer_pixels
    from pumer.utils.errors import InputError as InputError
    from pumer.visualization.tracing import ForwardTrace as ForwardTrace
    from pumer.visualization.tracing import Trace as Trace
    from pumer.visualization.tracing import trace as trace
    from pumer.visualization.visualize import draw as draw

_MODULES = {
    "compiling.buckets": ("Buckets",),
    "checkpoint": ("load", "save"),
    "compiling.compile": ("compile",),
    "evaluation.predict": ("Predictor",),
    "exporting.export": ("export",),
    "exporting.generation_runtime": ("ExportedGenerator",),
    "exporting.runtime": ("ExportedModel",),
    "utils.errors": ("InputError",),
    "patching": ("disabled", "patch", "patched", "reduction", "unpatch"),
    "profiling.planning": ("Plan", "plan"),
    "profiling.prompt_planning": ("PromptPlan", "plan_prompt"),
    "prompts": ("read_prompts", "shorten", "shortened", "write_prompts"),
    "reducers": (
        "AttentionReceivedConfig",
        "CDPrunerConfig",
        "ClsPruningConfig",
        "DARTConfig",
        "DivPruneConfig",
        "DynamicViTConfig",
        "EViTConfig",
        "EVSConfig",
        "FastVConfig",
        "ILLaVAConfig",
        "InteractionConfig",
        "L2NormConfig",
        "NoReduction",
        "PoolingConfig",
        "PoolingPromptConfig",
        "PruMergeConfig",
        "PuMerConfig",
        "PyramidDropConfig",
        "RandomPromptConfig",
        "RandomPruningConfig",
        "ReleasedPuMerConfig",
        "SimIgnoreConfig",
        "SparseVLMConfig",
        "Step",
        "ToMeConfig",
        "VictorConfig",
        "VisionZipConfig",
        "VisPrunerConfig",
    ),
    "resolution": ("fewer_pixels",),
    "visualization.tracing": ("ForwardTrace", "Trace", "trace"),
    "visualization.visualize": ("draw",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_HOMES)


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
