"""`pumer.shorten`: what is left of prompts in every generative family, against the stock model that masks the rest."""

from dataclasses import replace

import pytest
import torch
from shortening.families import (
    GRID,
    HALF,
    OLD,
    WITH_BEAMS,
    batch,
    check,
    each_of,
    families,
    generated,
    ids_left,
    images_of,
    model_of,
    samples,
)
from tiny.decoders import DECODERS, IMAGE, IMAGE_END, IMAGE_START, SIDE, VIDEO, Sample, text

import pumer
from pumer import FastVConfig, InputError, PuMerConfig
from pumer.prompts import shorten
from pumer.reducers.shortening.base import ImageTokens
from pumer.reducers.shortening.divprune import DivPruneConfig
from pumer.reducers.shortening.evs import EVSConfig
from pumer.reducers.shortening.pooling_prompt import PoolingPromptConfig


def dropped(family, sample, config):
    """Places of the image tokens that go; the method sees nothing but features."""
    gone = []
    for places, features in images_of(family, sample) if sample.images else ():
        kept = config.choose(ImageTokens(features, None, None, None, None, None)).index.tolist()
        gone += [place for rank, place in enumerate(places) if rank not in kept]
    return gone


# ---------------------------------------------------------------- against the stock model


@families
def test_a_shortened_prompt_is_one_whose_dropped_tokens_nobody_sees(family):
    """Against the stock model with the same positions and those tokens masked, in the prompt and in what follows."""
    model = model_of(family)
    for sample in samples(family):
        inputs, gone = batch(family, sample), dropped(family, sample, HALF)
        kept = [place for place in range(len(sample.ids)) if place not in gone]
        seen = inputs["attention_mask"].clone()
        seen[0, gone] = 0
        masked = {**inputs, "attention_mask": seen, "position_ids": positions(family, inputs)}
        short = shorten(model, inputs, HALF)
        if sample.images:
            assert ids_left(family, inputs, HALF).tolist() == [[sample.ids[place] for place in kept]]
            assert torch.equal(short["position_ids"], masked["position_ids"][..., kept])
        expected = model(**masked).logits[:, kept]
        torch.testing.assert_close(model(**short).logits, expected, atol=1e-10, rtol=0)
        check(generated(model, shorten(model, inputs, HALF)), generated(model, masked))


def positions(family, inputs):
    """``(1, N)``, or four rows, of which the first counts all tokens, as generate makes them."""
    plain = torch.arange(inputs["input_ids"].shape[1])[None]
    if "image_grid_thw" not in inputs:
        return plain if family not in GRID else plain.expand(4, 1, -1)
    found, _ = model_of(family).model.get_rope_index(**{k: x for k, x in inputs.items() if k != "pixel_values"})
    return torch.cat([plain[None], found])


@families
def test_nothing_dropped_is_the_stock_model(family):
    model, inputs = model_of(family), batch(family)
    none = DivPruneConfig(prune_ratio=0)
    check(generated(model, shorten(model, inputs, none)), generated(model, inputs), tolerance=0)
    short = shorten(model, inputs, none)
    assert torch.equal(ids_left(family, inputs, none), inputs["input_ids"])
    assert torch.equal(short["attention_mask"], inputs["attention_mask"])


@families
def test_lengths_are_those_of_the_plan(family):
    for ratio in (0.25, 0.9):
        config = DivPruneConfig(prune_ratio=ratio)
        short = shorten(model_of(family), batch(family), config)
        for n, sample in enumerate(samples(family)):
            counts = [image.ids.count(IMAGE) for image in sample.images]
            left = [count - max(min(round(ratio * count), count - 1), 0) for count in counts]
            assert (ids_left(family, batch(family), config)[n] == IMAGE).sum() == sum(left)
            assert short["attention_mask"][n].sum() == len(sample.ids) - sum(counts) + sum(left)


# ---------------------------------------------------------------- what generate can do with it


@each_of(*WITH_BEAMS)
def test_any_cache_and_beams(family):
    model = model_of(family)
    plain = generated(model, shorten(model, batch(family), HALF))
    check(generated(model, shorten(model, batch(family), HALF), cache_implementation="static"), plain)
    for chosen in (samples(family), samples(family)[:1]):  # with padding and without
        inputs = batch(family, *chosen)
        without = generated(model, shorten(model, {**inputs, "use_cache": False}, HALF))
        check(without, generated(model, shorten(model, inputs, HALF)))
    beams, _ = generated(model, shorten(model, batch(family), HALF), num_beams=3)
    for n, sample in enumerate(samples(family)):
        alone, _ = generated(model, shorten(model, batch(family, sample), HALF), num_beams=3)
        assert torch.equal(alone[0], beams[n])


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
def test_samples_with_the_same_seed_are_the_same(family):
    model, found = model_of(family), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        short = shorten(model, batch(family), HALF)
        found.append(generated(model, short, do_sample=True, num_return_sequences=4, tokens=5)[0])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@each_of(*GRID)
def test_a_later_turn_counts_on_from_the_whole_prompt(family):
    model, more = model_of(family), torch.tensor([text(4, 5)] * 2)
    inputs = batch(family, *samples(family)[:2])
    found = []
    for config in (DivPruneConfig(), HALF):
        prompt = shorten(model, inputs, config)
        cache = model.generate(**prompt, max_new_tokens=1, return_dict_in_generate=True).past_key_values
        before = prompt["position_ids"][1:, :, -1].amax(dim=0)
        length = cache.get_seq_length()
        mask = torch.cat([prompt["attention_mask"], torch.ones_like(more)], dim=1)
        new = model._prepare_position_ids_for_generation(more, {"attention_mask": mask, "past_key_values": cache})
        assert length == prompt["attention_mask"].shape[1]
        found.append(new[0, :, -4:] - before[:, None])
    assert torch.equal(found[0], found[1])
    assert found[0].tolist() == [[1, 2, 3, 4]] * 2


# ---------------------------------------------------------------- training


@families
@pytest.mark.parametrize("padding", ["left", "right"])
def test_labels_are_shortened_alike(family, padding):
    model, inputs = model_of(family), batch(family, padding=padding)
    short = shorten(model, {**inputs, "labels": labels(inputs)}, HALF)
    free = short["attention_mask"] == 0
    assert free.any() and free[:, 0 if padding == "left" else -1].any()
    assert (short["labels"][free] == -100).all() and (ids_left(family, inputs, HALF)[free] == 0).all()
    assert not free[:, -1 if padding == "left" else 0].any()
    loss, count = model(**short).loss, 0
    total = torch.zeros((), dtype=torch.float64)
    for sample in samples(family):
        alone = batch(family, sample)
        one = shorten(model, {**alone, "labels": labels(alone)}, HALF)
        answered = int((one["labels"][:, 1:] != -100).sum())
        total, count = total + model(**one).loss.double() * answered, count + answered
    torch.testing.assert_close(loss.double(), total / count, atol=1e-6, rtol=0)


def labels(inputs):
    """The prompt's own words, but the first: where padding comes before it, stock models take that as a question."""
    ids, rank = inputs["input_ids"], inputs["attention_mask"].cumsum(dim=1)
    return ids.masked_fill((ids == IMAGE) | (rank < 2) | (inputs["attention_mask"] == 0), -100)


@each_of("llava", "qwen3_vl", "internvl")
@pytest.mark.parametrize("config", [HALF, PoolingPromptConfig()], ids=lambda config: config.method)
def test_gradients_reach_the_vision_encoder(family, config):
    model = DECODERS[family].model().double().train()
    inputs = batch(family)
    model(**shorten(model, {**inputs, "labels": labels(inputs)}, config)).loss.backward()
    vision = getattr(model.model, "visual", None) or model.model.vision_tower
    assert sum(float(x.grad.abs().sum()) for x in vision.parameters() if x.grad is not None) > 0


# ---------------------------------------------------------------- videos


def video_batch(family, frames=2):
    """A video of ``frames`` frames beside an image, and a text: prompts of Qwen-VL and GLM-V."""
    image = DECODERS[family].sample(1).images[0]
    ids = [3, IMAGE_START, *[VIDEO] * 6 * frames, IMAGE_END, 5, *image.ids, 4]
    inputs = batch(family, Sample(ids, (image,)), Sample(text(8, 3), ()))
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int() + 2 * (inputs["input_ids"] == VIDEO).int()
    pixels = torch.randn(24 * frames, image.pixels.shape[1], dtype=torch.float64, generator=torch.manual_seed(0))
    return {**inputs, "pixel_values_videos": pixels, "video_grid_thw": torch.tensor([[frames, 4, 6]])}


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("ratio", [0, 0.5])
def test_a_video_is_shortened_as_a_whole_beside_an_image(family, ratio):
    model, inputs, config = model_of(family), video_batch(family), DivPruneConfig(prune_ratio=ratio)
    short = shorten(model, inputs, config)
    for token in (IMAGE, VIDEO):
        count = int((inputs["input_ids"] == token).sum())
        assert (ids_left(family, inputs, config) == token).sum() == count - round(ratio * count)
    found = generated(model, short)
    if ratio == 0:
        check(found, generated(model, inputs), tolerance=0)
    check(generated(model, shorten(model, inputs, config), cache_implementation="static"), found)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_frames_are_told_from_one_another(family):
    """The frames of a video are alike but for one token, which stays, as all of the first frame does."""
    inputs = video_batch(family)
    patches = inputs["pixel_values_videos"]
    patches[24:] = patches[:24]
    patches[24 + 8 : 24 + 12] += 1  # the third token of the second frame
    config = EVSConfig(prune_ratio=0.4)
    short, ids = shorten(model_of(family), inputs, config), ids_left(family, inputs, config)
    at = (inputs["input_ids"][0] == VIDEO).nonzero()[:, 0]
    left = inputs["input_ids"].shape[1] - ids.shape[1]
    assert left == 5 and (ids[0] == VIDEO).sum() == 7
    assert (ids[0] == IMAGE).sum() == (inputs["input_ids"][0] == IMAGE).sum()
    kept = {*short["position_ids"][0, 0].tolist()}
    assert [place for place in at.tolist() if place in kept] == [*at[:6].tolist(), int(at[8])]


@pytest.mark.skipif(OLD, reason="this transformers adds the end of a video to its features elsewhere")
@pytest.mark.parametrize("config", [DivPruneConfig(), HALF], ids=lambda config: str(config.prune_ratio))
def test_a_video_of_llava_onevision(config):
    model = model_of("llava_onevision")
    ids = torch.tensor([[3, *[VIDEO] * 13, 4, 5, 6], [7, *[VIDEO] * 13, 8, 9, 10]])  # 3 frames of 4 tokens, and the end
    pixels = torch.randn(2, 3, 3, SIDE, SIDE, dtype=torch.float64, generator=torch.manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values_videos": pixels}
    whole = generated(model, shorten(model, inputs, config))
    if config.prune_ratio == 0:
        check(whole, generated(model, inputs), tolerance=0)
    for n in range(2):
        one = {"input_ids": ids[n : n + 1], "pixel_values_videos": pixels[n : n + 1]}
        words, logits = generated(model, shorten(model, one, config))
        check((words[0], logits[0]), (whole[0][n], whole[1][n]))
    beams = generated(model, shorten(model, inputs, config), num_beams=2)[0]
    alone = generated(model, shorten(model, one, config), num_beams=2)[0]
    assert torch.equal(beams[1], alone[0])


# ---------------------------------------------------------------- what is passed on, and what is refused


def test_inputs_without_an_image_are_returned_as_they_are():
    inputs = batch("llava", Sample(text(9, seed=4), ()))
    short = shorten(model_of("llava"), inputs, HALF)
    assert short is not inputs and short == inputs


def test_other_inputs_are_passed_on_and_the_given_ones_stay():
    inputs = {**batch("qwen2_5_vl"), "max_new_tokens": 2, "streamer": None}
    names = dict(inputs)
    short = shorten(model_of("qwen2_5_vl"), inputs, HALF)
    assert short["max_new_tokens"] == 2 and short["streamer"] is None
    assert "pixel_values" not in short and "image_grid_thw" not in short
    assert short["mm_token_type_ids"].shape == short["attention_mask"].shape
    assert inputs == names


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"input_ids": None}, "input_ids"),
        ({"attention_mask": torch.ones(3, 1, 5, 5)}, "attention_mask"),
        ({"attention_mask": None}, "attention_mask"),
        ({"input_ids": torch.full((3, 4), 5), "attention_mask": None}, "0 image tokens"),
    ],
)
def test_what_does_not_fit_is_refused(change, named):
    with pytest.raises(InputError, match=named):
        shorten(model_of("llava"), {**batch("llava"), **change}, HALF)


def test_a_cache_that_is_not_empty_is_refused():
    model = model_of("llava")
    cache = model(**batch("llava")).past_key_values
    with pytest.raises(InputError, match="past_key_values"):
        shorten(model, {**batch("llava"), "past_key_values": cache}, HALF)


def test_positions_of_qwen_need_the_types_of_tokens():
    inputs = batch("qwen2_5_vl")
    del inputs["mm_token_type_ids"]
    with pytest.raises(InputError, match="mm_token_type_ids"):
        shorten(model_of("qwen2_5_vl"), inputs, HALF)


def test_other_models_and_methods_are_refused():
    with pytest.raises(InputError, match="LlamaModel"):
        shorten(model_of("llava").model.language_model, batch("llava"), HALF)
    with pytest.raises(InputError, match="PuMerConfig"):
        shorten(model_of("llava"), batch("llava"), PuMerConfig(layers=(1,), prune_ratio=0.1))
    assert pumer.reduction(model_of("llava")) is None


@pytest.mark.skipif(not OLD, reason="of an older transformers")
def test_what_an_older_transformers_has_no_way_for():
    with pytest.raises(InputError, match="Qwen3VLModel"):
        shorten(model_of("qwen3_vl"), batch("qwen3_vl"), HALF)
    both = replace(FastVConfig(layers=(1,), prune_ratio=0.5), before=HALF)
    with pumer.patched(model_of("llava"), both) as model, pytest.raises(InputError, match="LlavaModel"):
        model.generate(**batch("llava"), max_new_tokens=1)
