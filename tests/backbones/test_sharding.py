"""FSDP casts what goes into a layer, and copies every dataclass among it."""

import pytest
import torch
from tiny import GRIDS, TINY
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.multiprocessing import spawn

import pumer
from pumer.backbones.layers import SplitLayer


@pytest.mark.parametrize("backbone", TINY)
def test_a_reduced_model_runs_in_mixed_precision(backbone, tmp_path):
    """In a process of its own: what is sharded keeps the group's thread, which would crash a later test."""
    spawn(sharded, (backbone, f"file://{tmp_path / 'store'}"))


def sharded(_, backbone, store):
    init_process_group("gloo", init_method=store, rank=0, world_size=1)
    case, policy = TINY[backbone], MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    config = pumer.PuMerConfig(layers=(0,), prune_ratio=0.2, merge_ratio=0.2, text_merge_ratio=0.2)
    model, inputs = pumer.patch(case.build(), config), case.batch(GRIDS)
    with torch.no_grad():
        whole = model.to(torch.bfloat16)(**inputs).logits
    model = model.float()
    for layer in [module for module in model.modules() if isinstance(module, SplitLayer)]:
        fully_shard(layer, mp_policy=policy)
    logits = fully_shard(model, mp_policy=policy)(**inputs).logits
    assert logits.dtype == torch.bfloat16 and logits.shape == whole.shape and logits.isfinite().all()
    destroy_process_group()
