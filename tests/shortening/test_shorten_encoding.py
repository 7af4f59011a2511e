"""What methods see of an image: features, words, places, and what the vision encoder shows, against plain loops."""

import copy
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from shortening.families import batch, each_of, families, images_of, model_of, samples
from tiny.decoders import DECODERS, IMAGE, IMAGE_START, PATCH, SIDE, WORDS, Sample, text
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer

import pumer
from pumer import InputError, PuMerConfig, Step
from pumer.backbones.encoding import Shown
from pumer.prompts import shorten
from pumer.reducers.shortening.base import Choice, ShorteningConfig
from pumer.reducers.shortening.visionzip import VisionZipConfig
from pumer.utils.config import config

ACROSS = SIDE // PATCH
WHOLE = ("llava_next", "llava_onevision")
"""Families whose images are shown as a whole and, larger, in tiles side by side."""
SHOWING = ("llava", "llava_next", "llava_onevision", "smolvlm", "idefics3", "internvl")
CLS = ("llava", "llava_next", "internvl")
SEEN = []


@config
class Spy(ShorteningConfig):
    """Keeps all, and what it was given."""

    method: ClassVar[str] = "spy"

    def choose(self, image):
        SEEN.append(image)
        n = len(image.features)
        return Choice.of(torch.arange(n), n)


def seen(family, *chosen):
    SEEN.clear()
    shorten(model_of(family), batch(family, *chosen), Spy())
    return list(SEEN)


@families
def test_features_and_words(family):
    found, chosen = seen(family, *samples(family)), samples(family)
    expected = [(sample, features) for sample in chosen if sample.images for _, features in images_of(family, sample)]
    for image, (sample, features) in zip(found, expected, strict=True):
        torch.testing.assert_close(image.features, features, atol=1e-12, rtol=0)
        words = [i for i in sample.ids if i in WORDS or (i != IMAGE and family not in ("qwen2_5_vl", "qwen3_vl"))]
        if family not in ("qwen2_vl", "glm4v"):  # whose configs name some of the ids around images
            assert torch.equal(image.text, model_of(family).get_input_embeddings()(torch.tensor(words)))
        assert image.cell.shape == (len(features), 3) and len(image.cell.unique(dim=0)) >= len(features) - 9


def sample_without_padding(family):
    """An image whose tiles show nothing but the image."""
    if family not in WHOLE:
        return samples(family)[0]
    found = (DECODERS[family].sample(seed) for seed in range(50))
    return next(sample for sample in found if sample.images[0].size == (2 * SIDE, 2 * SIDE))


def places(family, cell):
    """Places of the patches of one token, as pairs of a tile and a patch of it, by where the token stands."""
    tile, row, column = cell
    if -1 in (row, column):
        return []
    if family in WHOLE and tile == 1:  # tiles of the larger image stand side by side
        return [(1 + row // ACROSS * 2 + column // ACROSS, row % ACROSS * ACROSS + column % ACROSS)]
    if family in ("smolvlm", "idefics3", "internvl"):
        return [(tile, (2 * row + y) * ACROSS + 2 * column + x) for y in (0, 1) for x in (0, 1)]
    return [(tile, row * ACROSS + column)]


@each_of(*SHOWING)
def test_what_the_vision_encoder_shows(family):
    """The states that leave its second to last layer, and keys and probabilities in it, of the patches of a token."""
    model, sample = model_of(family).model, sample_without_padding(family)
    (image,) = seen(family, sample)
    pixels = sample.images[0].pixels.double()
    layers = []
    encoder = getattr(model, "vision_tower", None) or model.vision_model

    def see(part, args, output):
        layers.append((part, args[0], output))

    hooks = [part.register_forward_hook(see) for part in layered(encoder)]
    encoder(pixels)
    for hook in hooks:
        hook.remove()
    layer, entering, leaving = layers[-2]
    first = family in CLS
    attention = layer.attention if family == "internvl" else layer.self_attn
    normed = layer.layernorm_before(entering) if family == "internvl" else layer.layer_norm1(entering)
    for token, cell in enumerate(image.cell.tolist()):
        at = places(family, cell)
        state, key, received = torch.zeros(32), torch.zeros(8), torch.zeros(())
        for tile, patch in at:
            state = state + leaving[tile, patch + first] / len(at)
            for head in range(4):
                part = slice(8 * head, 8 * head + 8)
                keys = attention.k_proj(normed[tile])[:, part]
                queries = attention.q_proj(normed[tile])[:, part]
                rows = (queries @ keys.T / 8**0.5).softmax(dim=-1)
                asked = rows[0] if first else rows.mean(dim=0)
                key = key + keys[patch + first] / len(at) / 4
                received = received + asked[patch + first] / len(at) / 4
        torch.testing.assert_close(image.states()[token], state.double(), atol=1e-10, rtol=0)
        torch.testing.assert_close(image.key()[token], key.double(), atol=1e-10, rtol=0)
        torch.testing.assert_close(image.attention()[token], received.double(), atol=1e-10, rtol=0)


def layered(encoder):
    return [part for part in encoder.modules() if type(part).__name__.endswith(("EncoderLayer", "VisionLayer"))]


@each_of("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "mistral3")
def test_the_substitute_where_an_encoder_shows_nothing(family):
    for image in seen(family, samples(family)[1]):
        assert torch.equal(image.states(), image.features) and torch.equal(image.key(), image.features)
        for x, found in zip(image.features, image.attention(), strict=True):
            cosines = [torch.nn.functional.cosine_similarity(x, y, dim=0) for y in image.features]
            torch.testing.assert_close(found, torch.stack(cosines).mean(), atol=1e-10, rtol=0)


@pytest.mark.parametrize("real", [[50, 50], [50, 37], [40, 3]])
def test_rows_are_spread_over_the_real_patches(real):
    """32 of 50 patches ask; those that are not real neither ask nor answer."""
    settings = SimpleNamespace(
        hidden_size=8,
        num_attention_heads=2,
        attention_dropout=0.0,
        layer_norm_eps=1e-6,
        intermediate_size=8,
        hidden_act="gelu",
        _attn_implementation="eager",
    )
    torch.manual_seed(0)
    layer, states = SiglipEncoderLayer(settings).double(), torch.randn(2, 50, 8, dtype=torch.float64)
    there = torch.arange(50) < torch.tensor(real)[:, None]
    mask = None if there.all() else torch.zeros(2, 1, 1, 50).double().masked_fill(~there[:, None, None], -1e300)
    shown = Shown(layer, states, states, mask, lambda values: values.flatten(0, 1), False)
    found, normed = shown.attention.view(2, 50), layer.layer_norm1(states)
    for tile, count in enumerate(real):
        asking = [i * count // 32 for i in range(32)]
        query, key = layer.self_attn.q_proj(normed[tile]), layer.self_attn.k_proj(normed[tile])
        expected = torch.zeros(50, dtype=torch.float64)
        for head in (slice(0, 4), slice(4, 8)):
            for row in asking:
                expected[:count] += (query[row, head] @ key[:count, head].T / 2).softmax(dim=0).detach() / 64
        torch.testing.assert_close(found[tile], expected, atol=1e-12, rtol=0)


def test_merged_patches_show_nothing():
    stock = model_of("llava")
    settings = copy.deepcopy(stock.config)
    settings.vision_config.num_hidden_layers = 4
    model = type(stock)._from_config(settings).double().eval()
    inputs, method = batch("llava"), VisionZipConfig(prune_ratio=0.5)
    for layer in (2, 3):
        late = PuMerConfig(schedule=(Step(stack="vision", layer=layer, merge_ratio=0.3),), before=method)
        pumer.patch(model, late).generate(**inputs, max_new_tokens=1)
    early = PuMerConfig(schedule=(Step(stack="vision", layer=1, merge_ratio=0.3),), before=method)
    with pytest.raises(InputError, match="merges patches"):
        pumer.patch(model, early).generate(**inputs, max_new_tokens=1)


def test_where_nobody_knows_the_places_a_run_of_tokens_is_an_image():
    """Tiles of SmolVLM in rows of unequal length, which no processor writes."""
    drawn = [image for seed in range(9) for image in DECODERS["smolvlm"].sample(seed).images if len(image.pixels) == 4]
    after = {161: text(2, 3), 159: text(5, 3)}
    ids = [i for mark in (160, 161, 162, 159) for i in (IMAGE_START, mark, *[IMAGE] * 4, *after.get(mark, ()))]
    images = seen("smolvlm", Sample(ids, (drawn[0],)))
    assert [len(image.features) for image in images] == [4] * 4
    assert all((image.cell == -1).all() for image in images)
