"""Example configs of every method that reduces inside a decoder, for tiny models of six layers."""

from pumer import (
    AttentionReceivedConfig,
    L2NormConfig,
    NoReduction,
    PoolingConfig,
    PuMerConfig,
    RandomPruningConfig,
    Step,
    ToMeConfig,
)
from pumer.reducers import ReductionConfig
from pumer.reducers.dart import DARTConfig
from pumer.reducers.fastv import FastVConfig
from pumer.reducers.illava import ILLaVAConfig
from pumer.reducers.interaction import InteractionConfig
from pumer.reducers.pyramiddrop import PyramidDropConfig
from pumer.reducers.sparsevlm import SparseVLMConfig
from pumer.reducers.victor import VictorConfig

DECODER_EXAMPLES: dict[str, tuple[ReductionConfig, ...]] = {
    "none": (NoReduction(),),
    "pumer": (
        PuMerConfig(
            schedule=(
                Step(stack="decoder", layer=0, prune_ratio=0.2, merge_ratio=0.3),
                Step(stack="decoder", layer=1, merge_ratio=0.3),
                Step(stack="decoder", layer=3, prune_ratio=0.4, merge_ratio=0.1),
            )
        ),
        PuMerConfig(layers=(1, 3), stack="decoder", prune_ratio=0.9),
    ),
    "tome": (ToMeConfig(layers=(0, 2), stack="decoder", merge_count=3),),
    "attention-received": (AttentionReceivedConfig(layers=(1, 3), stack="decoder", prune_ratio=0.4),),
    "l2norm": (L2NormConfig(layers=(1, 3), stack="decoder", prune_ratio=0.4),),
    "random": (RandomPruningConfig(layers=(1, 3), stack="decoder", prune_ratio=0.4),),
    "pooling": (PoolingConfig(layers=(0, 2), stack="decoder", merge_ratio=0.3),),
    "fastv": (FastVConfig(layers=(1,), prune_ratio=0.5),),
    "pyramiddrop": (PyramidDropConfig(layers=(1, 3), prune_ratio=0.5),),
    "sparsevlm": (
        SparseVLMConfig(layers=(1, 3), prune_ratio=0.5),
        SparseVLMConfig(layers=(1,), prune_ratio=0.8, recycle_ratio=0.9),
    ),
    "dart": (DARTConfig(layers=(1,), prune_ratio=0.5),),
    "illava": (ILLaVAConfig(layers=(2,), prune_ratio=0.3),),
    "interaction": (InteractionConfig(layers=(0, 2), prune_ratio=0.5, midpoint=1),),
    "victor": (VictorConfig(layers=(1,), registers=3),),
}
"""By method; the first one is what most tests take."""
