"""Every method that shortens prompts in every generative family: a prompt is shortened as if it were alone."""

import pytest
import torch
from shortening.families import HALF, able, batch, model_of, samples
from tiny import covering
from tiny.decoders import DECODERS

from pumer.prompts import shorten
from pumer.reducers.shortening.cdpruner import CDPrunerConfig
from pumer.reducers.shortening.pooling_prompt import PoolingPromptConfig
from pumer.reducers.shortening.prumerge import PruMergeConfig
from pumer.reducers.shortening.random_prompt import RandomPromptConfig
from pumer.reducers.shortening.simignore import SimIgnoreConfig
from pumer.reducers.shortening.visionzip import VisionZipConfig
from pumer.reducers.shortening.vispruner import VisPrunerConfig

METHODS = [
    HALF,
    CDPrunerConfig(prune_ratio=0.6),
    PoolingPromptConfig(),
    PruMergeConfig(),
    RandomPromptConfig(prune_ratio=0.5),
    SimIgnoreConfig(prune_ratio=0.4),
    VisionZipConfig(prune_ratio=0.5),
    VisPrunerConfig(prune_ratio=0.5),
]


@pytest.mark.parametrize(("family", "config"), covering(able(*DECODERS), METHODS))
def test_each_prompt_is_shortened_as_if_it_were_alone(family, config):
    model, whole = model_of(family), shorten(model_of(family), batch(family), config)
    logits = model(**whole).logits
    for n, sample in enumerate(samples(family)):
        short = shorten(model, batch(family, sample), config)
        alone, length = model(**short).logits[0], short["attention_mask"].shape[1]
        torch.testing.assert_close(logits[n, -length:], alone, atol=1e-10, rtol=0)
        assert whole["attention_mask"][n].tolist() == [0] * (logits.shape[1] - length) + [1] * length
        assert (length < len(sample.ids)) == bool(sample.images)
