"""Reduction methods: one file each, listed in METHODS."""

from collections.abc import Mapping
from typing import Any

from pumer.reducers.attention_received import AttentionReceivedConfig
from pumer.reducers.base import NoReduction, Reducer, ReductionConfig
from pumer.reducers.cls_pruning import ClsPruningConfig, EViTConfig
from pumer.reducers.dart import DARTConfig
from pumer.reducers.dynamicvit import DynamicViTConfig
from pumer.reducers.fastv import FastVConfig
from pumer.reducers.illava import ILLaVAConfig
from pumer.reducers.interaction import InteractionConfig
from pumer.reducers.l2norm import L2NormConfig
from pumer.reducers.pooling import PoolingConfig
from pumer.reducers.pumer import PuMerConfig, Step
from pumer.reducers.pumer_released import ReleasedPuMerConfig
from pumer.reducers.pyramiddrop import PyramidDropConfig
from pumer.reducers.random_pruning import RandomPruningConfig
from pumer.reducers.shortening.cdpruner import CDPrunerConfig
from pumer.reducers.shortening.divprune import DivPruneConfig
from pumer.reducers.shortening.evs import EVSConfig
from pumer.reducers.shortening.pooling_prompt import PoolingPromptConfig
from pumer.reducers.shortening.prumerge import PruMergeConfig
from pumer.reducers.shortening.random_prompt import RandomPromptConfig
from pumer.reducers.shortening.simignore import SimIgnoreConfig
from pumer.reducers.shortening.visionzip import VisionZipConfig
from pumer.reducers.shortening.vispruner import VisPrunerConfig
from pumer.reducers.sparsevlm import SparseVLMConfig
from pumer.reducers.tome import ToMeConfig
from pumer.reducers.victor import VictorConfig
from pumer.utils.config import from_dict, to_dict
from pumer.utils.errors import InputError
from pumer.utils.limits import check_reduction

METHODS: dict[str, type[ReductionConfig]] = {
    "none": NoReduction,
    "pumer": PuMerConfig,
    "pumer-released": ReleasedPuMerConfig,
    "tome": ToMeConfig,
    "dynamicvit": DynamicViTConfig,
    "evit": EViTConfig,
    "cls": ClsPruningConfig,
    "attention-received": AttentionReceivedConfig,
    "l2norm": L2NormConfig,
    "random": RandomPruningConfig,
    "pooling": PoolingConfig,
    "fastv": FastVConfig,
    "pyramiddrop": PyramidDropConfig,
    "sparsevlm": SparseVLMConfig,
    "dart": DARTConfig,
    "illava": ILLaVAConfig,
    "interaction": InteractionConfig,
    "victor": VictorConfig,
    "divprune": DivPruneConfig,
    "cdpruner": CDPrunerConfig,
    "visionzip": VisionZipConfig,
    "prumerge": PruMergeConfig,
    "vispruner": VisPrunerConfig,
    "simignore": SimIgnoreConfig,
    "evs": EVSConfig,
    "random-prompt": RandomPromptConfig,
    "pooling-prompt": PoolingPromptConfig,
}


def config_from_dict(mapping: Mapping[str, Any]) -> ReductionConfig:
    """Build a config from plain data, as in a recipe or in ``reduction.json``.

    Args:
        mapping: ``method``, the fields of that method's config, and optionally ``version``; ``before`` is a mapping of
            the same form.

    Raises:
        InputError: For an unknown method, version, key or value; it names it. For layers without any amount, which
            would remove nothing.
    """
    if not isinstance(mapping, Mapping):
        raise InputError(f"a reduction must be a mapping with the key 'method', not {mapping!r}")
    check_reduction(mapping)
    values = dict(mapping)
    method = values.pop("method", None)
    if not isinstance(method, str) or method not in METHODS:
        raise InputError(f"reduction method {method!r} is unknown; there are {', '.join(METHODS)}")
    cls = METHODS[method]
    version = values.pop("version", cls.version)
    if version != cls.version:
        raise InputError(
            f"version {version!r} of reduction method '{method}' is unknown; this pumer reads version {cls.version}"
        )
    if values.get("before") is not None:
        values["before"] = config_from_dict(values["before"])
    try:
        config = from_dict(cls, values, where=f"reduction '{method}'")
    except InputError as error:
        if values:
            raise
        typed = ", ".join(
            f"{name}: {list(value) if isinstance(value, tuple) else value}" for name, value in example(method).items()
        )
        raise InputError(f"method {method} needs settings, as in 'reduction={{{typed}}}' ({error})") from error
    steps = values.get("schedule") or ([values] if values.get("layers") else [])
    if cls.amounts and steps and not any(set(cls.amounts) & set(step) for step in steps):
        amounts = ", ".join(cls.amounts)
        raise InputError(f"reduction '{method}' names layers but not how much they remove; give {amounts}")
    return config


_AMOUNTS = {"prune_ratio": 0.3, "merge_ratio": 0.3, "merge_count": 13}
_ONCE = ("fastv", "victor")
"""Methods that reduce in one layer."""


def example(method: str) -> dict[str, Any]:
    """Settings of a method that can be tried, as plain data: not the best, and not those of its paper."""
    cls = METHODS[method]
    layers = {"layers": [2] if method in _ONCE else [2, 5, 8]} if "layers" in cls.__dataclass_fields__ else {}
    return {"method": method} | layers | {name: x for name, x in _AMOUNTS.items() if name in cls.amounts}


def reduction_from(value: Mapping[str, Any] | str) -> ReductionConfig:
    """The `reduction` setting of a job: a mapping with ``method``, or the name of a method without settings."""
    return config_from_dict({"method": value} if isinstance(value, str) else value)


def config_to_dict(config: ReductionConfig) -> dict[str, Any]:
    """A config as plain data: method, version and all fields; what is for prompts alone only where it is given."""
    plain = {"method": config.method, "version": config.version, **to_dict(config)}
    if config.image_tokens is None:
        del plain["image_tokens"]
    del plain["before"]
    return plain if config.before is None else {**plain, "before": config_to_dict(config.before)}


__all__ = [
    "METHODS",
    "AttentionReceivedConfig",
    "CDPrunerConfig",
    "ClsPruningConfig",
    "DARTConfig",
    "DivPruneConfig",
    "DynamicViTConfig",
    "EVSConfig",
    "EViTConfig",
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
    "Reducer",
    "ReductionConfig",
    "ReleasedPuMerConfig",
    "SimIgnoreConfig",
    "SparseVLMConfig",
    "Step",
    "ToMeConfig",
    "VictorConfig",
    "VisPrunerConfig",
    "VisionZipConfig",
    "config_from_dict",
    "config_to_dict",
    "reduction_from",
]
