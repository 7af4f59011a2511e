"""FSDP casts what goes into a layer, and copies every dataclass among it."""

import pytest
import torch
from tiny import GRIDS, TINY
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

import pumer
from pumer.backbones.layers import SplitLayer


@pytest.fixture
def _alone(tmp_path):
    """A group of one process."""
    init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    destroy_process_group()


@pytest.mark.parametrize("backbone", TINY)
@pytest.mark.usefixtures("_alone")
def test_a_reduced_model_runs_in_mixed_precision(backbone):
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
