"""What holds for every method that shortens prompts."""

from dataclasses import replace

import pytest
import torch
from shortening.images import image_tokens, in_dtype

from pumer.reducers.shortening.base import RatioShorteningConfig
from pumer.reducers.shortening.cdpruner import CDPrunerConfig
from pumer.reducers.shortening.divprune import DivPruneConfig
from pumer.reducers.shortening.evs import EVSConfig
from pumer.reducers.shortening.pooling_prompt import PoolingPromptConfig
from pumer.reducers.shortening.prumerge import PruMergeConfig
from pumer.reducers.shortening.random_prompt import RandomPromptConfig
from pumer.reducers.shortening.simignore import SimIgnoreConfig
from pumer.reducers.shortening.visionzip import VisionZipConfig
from pumer.reducers.shortening.vispruner import VisPrunerConfig

BY_RATIO = [
    *(DivPruneConfig, CDPrunerConfig, VisionZipConfig, VisPrunerConfig),
    *(SimIgnoreConfig, EVSConfig, RandomPromptConfig),
]
CONFIGS = [*(cls(prune_ratio=0.6) for cls in BY_RATIO), PruMergeConfig(even_tokens=2), PoolingPromptConfig()]
EVERY = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.method)


@pytest.mark.parametrize("cls", BY_RATIO, ids=lambda cls: cls.method)
@pytest.mark.parametrize("n", [1, 2, 17])
def test_ratio_0_keeps_everything(cls, n):
    image = image_tokens(n, n)
    choice = cls().choose(image)
    assert choice.index.tolist() == choice.group.tolist() == list(range(n))
    assert choice.features is None or torch.equal(choice.features, image.features)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_type_of_number(config, dtype):
    image = in_dtype(image_tokens(30, 0, columns=3), dtype)
    choice = config.choose(image)
    assert choice.index.tolist() == sorted(set(choice.index.tolist()))
    assert torch.equal(choice.group[choice.index], choice.index), "what stays is its own group"
    assert set(choice.group.tolist()) <= {-1, *choice.index.tolist()}
    assert choice.features is None or (choice.features.dtype, len(choice.features)) == (dtype, len(choice.index))
    if isinstance(config, RatioShorteningConfig):
        assert len(choice.index) == config.kept(30) == 12


@EVERY
def test_half_precision_decides_as_its_values_in_float32_do(config):
    image = image_tokens(30, 1, columns=3)
    half = config.choose(in_dtype(image, torch.bfloat16))
    full = config.choose(in_dtype(image, torch.float32, through=torch.bfloat16))
    assert torch.equal(half.group, full.group)
    if half.features is not None:
        assert torch.equal(half.features, full.features.bfloat16())


@EVERY
@pytest.mark.parametrize("where", [slice(None), slice(4, 7), slice(29, 30)])
def test_broken_tokens_break_nothing(config, where):
    image = image_tokens(30, 2, columns=3)
    for x in (image.features, image.states(), image.key(), image.attention()):
        x[where] = torch.nan
    choice = config.choose(image)
    assert choice.index.tolist() == sorted(set(choice.index.tolist())) != []
    if isinstance(config, RatioShorteningConfig):
        assert len(choice.index) == 12


@EVERY
def test_nothing_it_looks_at_is_changed(config):
    image, again = image_tokens(30, 3, columns=3), image_tokens(30, 3, columns=3)
    first = config.choose(image)
    for name in ("features", "text", "cell"):
        assert torch.equal(getattr(image, name), getattr(again, name))
    for name in ("states", "key", "attention"):
        assert torch.equal(getattr(image, name)(), getattr(again, name)())
    assert torch.equal(first.group, config.choose(again).group)


@EVERY
def test_features_can_be_learned(config):
    """As in training, where the projector has gradients; what is merged hands them on."""
    image = image_tokens(30, 5, columns=3)
    expected = config.choose(image)
    learned = replace(image, features=image.features.clone().requires_grad_())
    choice = config.choose(learned)
    assert torch.equal(choice.group, expected.group)
    if choice.features is not None:
        choice.features.sum().backward()
        assert learned.features.grad.any(dim=1).sum() >= len(choice.index)


@EVERY
def test_only_some_look_at_the_encoder(config):
    """What the vision encoder shows costs its queries and keys: only those ask that need it."""
    image, asked = image_tokens(30, 4, columns=3), []

    def watched(name):
        return lambda: (asked.append(name), getattr(image, name)())[1]

    config.choose(replace(image, **{name: watched(name) for name in ("states", "key", "attention")}))
    needs = {
        "visionzip": {"attention", "key"},
        "prumerge": {"attention", "key"},
        "vispruner": {"attention", "states"},
    }
    assert set(asked) == needs.get(config.method, set()) and len(asked) == len(set(asked))


@EVERY
def test_no_layer_is_changed(config):
    assert config.reducers() == {} and config.stacks == ("prompt",)
