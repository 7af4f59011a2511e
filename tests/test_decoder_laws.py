"""Laws of reduction inside a decoder: of every method in every generative family, and of all that generate can do."""

import copy
import pickle
from dataclasses import replace
from functools import cache

import pytest
import torch
from tiny import covering
from tiny.decoder_examples import DECODER_EXAMPLES
from tiny.decoders import DECODERS, IMAGE, Sample, text
from transformers import GenerationConfig, LlamaModel, LlavaForConditionalGeneration, LlavaModel

import pumer
from pumer import InputError, NoReduction, PuMerConfig, Step
from pumer.backbones import DECODERS as FAMILIES
from pumer.reducers import METHODS

PUMER, *_ = DECODER_EXAMPLES["pumer"]
OFF = PuMerConfig(schedule=(Step(stack="decoder", layer=1),))
EXAMPLES = [(name, config) for name, configs in DECODER_EXAMPLES.items() for config in configs]
TOLERANCE = 1e-5  # logits of generate are float32, and so are the weights by which merged tokens are averaged

families = pytest.mark.parametrize("family", DECODERS)
methods = pytest.mark.parametrize(("method", "config"), EXAMPLES, ids=lambda x: x if isinstance(x, str) else "")
kinds = pytest.mark.parametrize("family", ["llava", "qwen3_vl", "smolvlm"])


@cache
def stock(family):
    return DECODERS[family].model().double().requires_grad_(False)


@pytest.fixture
def model(family):
    """The family's model, which no test leaves patched."""
    yield stock(family)
    pumer.unpatch(stock(family))


@cache
def samples(family):
    """Prompts of unequal length: with one image, with two, and without any."""
    tiny = DECODERS[family]
    return tiny.sample(1), tiny.sample(2, images=2, before=7, after=11), Sample(text(9, seed=4), ())


def batch(family, *chosen, padding="left"):
    return DECODERS[family].batch(chosen or samples(family), padding=padding)


def generated(model, inputs, tokens=3, **settings):
    """Words, and logits ``(B, tokens, vocabulary)``."""
    settings = {"do_sample": False, "output_logits": True, **settings}
    found = model.generate(**inputs, max_new_tokens=tokens, return_dict_in_generate=True, **settings)
    return found.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(found.logits, dim=1)


def check(found, expected, tolerance=TOLERANCE):
    """The same words, and nearly the same logits."""
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], atol=tolerance, rtol=0)


def test_every_method_and_every_family_is_in_the_grid():
    able = {name for name, method in METHODS.items() if "decoder" in method.stacks}
    assert able <= set(DECODER_EXAMPLES), "add an example to tests/tiny/decoder_examples.py"
    assert {stock(family).config.model_type for family in DECODERS} == set(FAMILIES), "add a builder to tests/tiny"


# ---------------------------------------------------------------- every method in every family


@cache
def untouched(family):
    """Logits of the stock model."""
    return pumer.unpatch(stock(family))(**batch(family, padding="right")).logits


@pytest.mark.parametrize(("family", "config"), covering(DECODERS, [config for _, config in EXAMPLES]))
def test_each_prompt_is_reduced_as_if_it_were_alone(family, config, model):
    before, whole = untouched(family), pumer.patch(model, config)(**batch(family, padding="right")).logits
    for n, sample in enumerate(samples(family)):
        alone, length = model(**batch(family, sample)).logits[0], len(sample.ids)
        torch.testing.assert_close(whole[n, :length], alone, atol=TOLERANCE, rtol=0)
        changed = float((before[n, length - 1] - alone[-1]).detach().abs().max())
        assert (changed > 1e-3) == (IMAGE in sample.ids and config != NoReduction()), "text is never reduced"


# ---------------------------------------------------------------- every method, in one family


@methods
@pytest.mark.parametrize("family", ["qwen3_vl"])
def test_answers_are_those_of_each_prompt_alone(method, config, family, model):
    pumer.patch(model, config)
    for settings in ({}, {"num_beams": 3}):
        whole = generated(model, batch(family), **settings)
        for n, sample in enumerate(samples(family)):
            alone = generated(model, batch(family, sample), **settings)
            assert torch.equal(alone[0][0], whole[0][n])
            if not settings:
                torch.testing.assert_close(alone[1][0], whole[1][n], atol=TOLERANCE, rtol=0)
    check(generated(model, batch(family), cache_implementation="static"), generated(model, batch(family)))


# ---------------------------------------------------------------- every family, with PuMer


@families
def test_nothing_removed_is_the_stock_model(family, model):
    inputs = batch(family)
    expected = generated(model, inputs)
    check(generated(pumer.patch(model, OFF), inputs), expected, tolerance=0)
    pumer.patch(model, PUMER)
    with pumer.disabled(model):
        check(generated(model, inputs), expected, tolerance=0)
    assert not torch.equal(generated(model, inputs)[1], expected[1])


@families
def test_patched_ten_times_and_back(family, model, tmp_path):
    def classes():
        return [type(module) for module in model.modules()], [set(vars(module)) for module in model.modules()]

    inputs, names = batch(family), list(model.state_dict())
    model.save_pretrained(tmp_path / "stock")
    expected, before = generated(model, inputs), classes()
    for _ in range(10):
        pumer.patch(model, PUMER)
    assert list(model.state_dict()) == names
    model.save_pretrained(tmp_path / "patched")
    assert pumer.unpatch(model) is model and classes() == before
    check(generated(model, inputs), expected, tolerance=0)
    for name in ("config.json", "generation_config.json"):
        assert (tmp_path / "patched" / name).read_text() == (tmp_path / "stock" / name).read_text()
    again = type(model).from_pretrained(tmp_path / "patched", dtype=torch.float64)
    check(generated(again, inputs), expected, tolerance=0)


@families
def test_padding_and_cache_change_nothing(family, model):
    inputs = batch(family)
    greedy = generated(pumer.patch(model, PUMER), inputs)
    check(generated(model, inputs, cache_implementation="static"), greedy)
    for n, sample in enumerate(samples(family)):
        alone = generated(model, batch(family, sample))
        check((alone[0][0], alone[1][0]), (greedy[0][n], greedy[1][n]))
    found = model(**batch(family), output_hidden_states=True)
    assert {tuple(states.shape[:2]) for states in found.hidden_states} == {tuple(inputs["input_ids"].shape)}
    lengths = [layer.keys.shape[2] for layer in found.past_key_values.layers]
    assert lengths[0] == inputs["input_ids"].shape[1] and lengths == sorted(lengths, reverse=True)
    assert len(set(lengths)) == 4, "one length after each of three steps"


@pytest.mark.parametrize(
    ("family", "config"), [*((family, PUMER) for family in DECODERS), ("llava", DECODER_EXAMPLES["victor"][0])]
)
def test_copies_and_pickles_answer_alike(family, config):
    model, inputs = pumer.patch(DECODERS[family].model().double(), config), batch(family)
    pickled = pickle.dumps(model)  # before its first forward: then, transformers adds hooks that cannot be pickled
    expected = generated(model, inputs, tokens=2)
    for twin in (copy.deepcopy(model), pickle.loads(pickled)):
        check(generated(twin, inputs, tokens=2), expected, tolerance=0)
        assert pumer.reduction(pumer.unpatch(twin)) is None and pumer.reduction(model) == config


class OwnLlava(LlavaForConditionalGeneration):
    """A user's subclass, as are the next ones."""


class OwnModel(LlavaModel):
    """Of images and text."""


class OwnText(LlamaModel):
    """A decoder."""


def test_subclasses_of_users_are_patched_and_come_back():
    model, inputs = DECODERS["llava"].model().double(), batch("llava")
    expected = generated(pumer.patch(model, PUMER), inputs)
    parts = pumer.unpatch(model), model.model, model.model.language_model
    own = OwnLlava, OwnModel, OwnText
    for part, cls in zip(parts, own, strict=True):
        part.__class__ = cls
    check(generated(pumer.patch(model, PUMER), inputs), expected, tolerance=0)
    assert len(model(**inputs, output_hidden_states=True).hidden_states) == 7
    pumer.unpatch(model)
    assert tuple(type(part) for part in parts) == own


# ---------------------------------------------------------------- what generate can do


@kinds
def test_sampling_follows_the_seed(family, model):
    inputs = batch(family)

    def sampled(**settings):
        torch.manual_seed(3)
        settings |= {"do_sample": True, "temperature": 0.7, "num_return_sequences": 2}
        return generated(model, inputs, tokens=4, **settings)

    before = sampled()
    assert len(before[0]) == 2 * len(samples(family))
    pumer.patch(model, OFF)
    check(sampled(), before, tolerance=0)
    pumer.patch(model, PUMER)
    after = sampled()
    check(sampled(), after, tolerance=0)
    check(sampled(cache_implementation="static"), after)


class Streamer:
    """Notes how many tokens arrive at once."""

    def __init__(self):
        self.words, self.ended = [], False

    def put(self, words):
        self.words.append(words.flatten().tolist())

    def end(self):
        self.ended = True


@pytest.mark.parametrize("family", ["llava"])
def test_streaming(family, model):
    inputs, streamer = batch(family, samples(family)[0]), Streamer()
    words, _ = generated(pumer.patch(model, PUMER), inputs, streamer=streamer)
    prompt, *rest = streamer.words
    assert prompt == inputs["input_ids"][0].tolist() and streamer.ended
    assert rest == [[word] for word in words[0].tolist()]


@kinds
def test_a_second_question_goes_on_with_the_cache(family, model):
    pumer.patch(model, PUMER)
    settings = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}

    def answers(chosen, questions):
        inputs = batch(family, *chosen)
        said = model.generate(**inputs, **settings)
        ids = torch.cat([said.sequences, torch.tensor(questions)], dim=1)
        mask = torch.nn.functional.pad(
            inputs["attention_mask"], (0, ids.shape[1] - inputs["input_ids"].shape[1]), value=1
        )
        again = model.generate(ids, attention_mask=mask, past_key_values=said.past_key_values, **settings)
        return torch.stack((*said.logits, *again.logits), dim=1)

    questions = [text(4, seed) for seed in range(3)]
    whole = answers(samples(family), questions)
    for n, (sample, question) in enumerate(zip(samples(family), questions, strict=True)):
        torch.testing.assert_close(answers([sample], [question])[0], whole[n], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", ["llava", "smolvlm"])
def test_embeddings_instead_of_words(family, model):
    inputs = batch(family)
    expected = generated(pumer.patch(model, PUMER), inputs)
    ids = inputs.pop("input_ids")
    embeddings = model.get_input_embeddings()(ids)
    found = model.generate(
        inputs_embeds=embeddings, **inputs, max_new_tokens=3, return_dict_in_generate=True, output_logits=True
    )
    check((found.sequences, torch.stack(found.logits, dim=1)), expected)


@pytest.mark.parametrize("family", ["llava"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_cache", False),
        ("prompt_lookup_num_tokens", 3),
        ("assistant_early_exit", 2),
        ("prefill_chunk_size", 8),
        ("assistant_model", None),
    ],
)
def test_what_would_choose_tokens_more_than_once_is_refused(name, value, family, model):
    value, inputs = value if value is not None else model, batch(family)
    pumer.patch(model, PUMER)
    ids, config = inputs["input_ids"], GenerationConfig(**{name: value} if name != "assistant_model" else {})
    ways = [lambda: model.generate(**inputs, **{name: value})]
    if name != "assistant_model":
        rest = {key: x for key, x in inputs.items() if key != "input_ids"}
        ways += [
            lambda: model.generate(**inputs, generation_config=config),
            lambda: model.generate(ids, config, **rest),
        ]
    for way in ways:
        with pytest.raises(InputError, match=name):
            way()


@pytest.mark.parametrize("family", ["llava"])
def test_they_are_fine_where_nothing_is_reduced(family, model):
    inputs = batch(family)
    expected = generated(model, inputs)
    with pumer.disabled(pumer.patch(model, PUMER)):
        check(generated(model, inputs, use_cache=False), expected)


@pytest.mark.parametrize("family", ["llava"])
def test_batches_of_one_paged_cache_are_refused(family, model):
    with pytest.raises(InputError, match="generate_batch"):
        pumer.patch(model, PUMER).generate_batch([[3, 4, 5]])


@pytest.mark.parametrize("family", ["llava"])
def test_a_fixed_number_of_image_tokens(family, model):
    """It changes nothing, and is checked; later prompts may have no image."""
    inputs, (image, *_) = batch(family, samples(family)[0]), samples(family)
    tokens = image.ids.count(IMAGE)
    expected = generated(pumer.patch(model, PUMER), inputs)
    pumer.patch(model, replace(PUMER, image_tokens=tokens))
    check(generated(model, inputs), expected)
    cache = model(**inputs).past_key_values
    model(input_ids=torch.tensor([text(3, seed=5)]), past_key_values=cache)
    with pytest.raises(InputError, match=rf"image_tokens is {tokens}\b"):
        model(**batch(family, samples(family)[1]))


@kinds
def test_another_attention_implementation_changes_nothing(family):
    model = pumer.patch(DECODERS[family].model(), PUMER).requires_grad_(False)
    inputs = DECODERS[family].batch(samples(family), dtype=torch.float32)  # stock eager attention needs float32
    expected = generated(model, inputs)
    model.set_attn_implementation("eager")
    check(generated(model, inputs), expected, tolerance=1e-4)


@pytest.mark.parametrize("family", ["llava"])
def test_hidden_states_that_nobody_selects_stay_out(family, model):
    def selected():
        found = model(**batch(family), output_hidden_states=[2]).hidden_states
        return [n for n, states in enumerate(found) if states is not None]

    expected = selected()
    pumer.patch(model, PUMER)
    assert selected() == expected
