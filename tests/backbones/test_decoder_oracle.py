"""Reduction inside a decoder against a plain loop: one conversation at a time, all of its tokens at once, no cache.

The loop runs transformers' own layers on the rows that are left, each time with a full causal matrix. The patched model
reads the same conversations as a padded batch, prompt by prompt and then token by token, through its cache.
"""

from contextlib import nullcontext
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reducers.prompts import kept_by_hand, merged_by_hand
from tiny import max_examples
from tiny.decoders import DECODERS, IMAGE, VOCABULARY, Sample, text
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import pumer
from pumer import PuMerConfig, Step
from pumer.backbones import DECODERS as FAMILIES
from pumer.backbones import prefixes
from pumer.backbones import prompt as module

PRUNE = PuMerConfig(schedule=(Step(stack="decoder", layer=1, prune_ratio=0.6),))
MERGE = PuMerConfig(schedule=(Step(stack="decoder", layer=0, merge_ratio=0.4),))
BOTH = PuMerConfig(
    schedule=(
        Step(stack="decoder", layer=0, prune_ratio=0.2, merge_ratio=0.3),
        Step(stack="decoder", layer=1, merge_ratio=0.3),
        Step(stack="decoder", layer=3, prune_ratio=0.4, merge_ratio=0.1),
    )
)
TOLERANCE = 1e-5  # averages are weighted in float32, and logits are of the order of 1


@dataclass(frozen=True)
class Conversation:
    """What one user and the model say in turn.

    Attributes:
        prompts: One or more, each followed by as many words.
        answers: Those words.
    """

    prompts: tuple[Sample, ...]
    answers: tuple[list[int], ...]

    @property
    def whole(self) -> Sample:
        """As one sequence."""
        ids = [i for prompt, said in zip(self.prompts, self.answers, strict=True) for i in (*prompt.ids, *said)]
        return Sample(ids, tuple(image for prompt in self.prompts for image in prompt.images))

    @property
    def turns(self) -> list[range]:
        """Where each prompt stands in that."""
        found, start = [], 0
        for prompt, said in zip(self.prompts, self.answers, strict=True):
            found.append(range(start, start + len(prompt.ids)))
            start += len(prompt.ids) + len(said)
        return found


def conversations(family: str, images: tuple[tuple[int, ...], ...] = ((1, 1), (2, 0), (0, 1))) -> list[Conversation]:
    """Of unequal lengths, with so many images in each prompt."""
    tiny, found = DECODERS[family], []
    for n, counts in enumerate(images):
        prompts = [
            tiny.sample(10 * n + turn, images=count, before=3 + n, after=9 - 3 * n) for turn, count in enumerate(counts)
        ]
        answers = [text(3, seed=50 + n + turn) for turn, _ in enumerate(counts)]
        found.append(Conversation(tuple(prompts), tuple(answers)))
    return found


# ---------------------------------------------------------------- the loop


@dataclass
class Expected:
    """What the loop found for one conversation.

    Attributes:
        logits: Of each token that is left, by its place in the conversation.
        held: Which tokens each of these stands for.
        positions: ``(3 or 1, N)`` of all tokens.
        states: Of the tokens that are left after each layer.
    """

    logits: dict[int, Tensor]
    held: dict[int, list[int]]
    positions: Tensor
    states: list[dict[int, Tensor]]


SEEN: list[tuple[Tensor, Tensor]] = []


def plain_attention(module, query, key, value, mask, scaling, **_):
    """Softmax of all rows over all columns; notes queries and keys."""
    SEEN.append((query[0].detach(), key[0].detach()))
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    rows = (query @ key.transpose(2, 3) * scaling).masked_fill(~mask, -torch.inf).softmax(dim=-1)
    return (rows @ value).transpose(1, 2), rows


ALL_ATTENTION_FUNCTIONS.register("plain", plain_attention)


def by_hand(family: str, model, conversation: Conversation, config: PuMerConfig, untouched=()) -> Expected:
    """Run an unpatched model's layers on one conversation, and reduce its prompts, but for some, after layers."""
    whole, steps = conversation.whole, {step.layer: step for step in config.schedule}
    entering, rope, positions = entry(family, model, whole)
    states, features = entering["inputs_embeds"][0], dense_features(entering)
    text_model = getattr(model.model, FAMILIES[model.config.model_type].decoder)
    held, size = {i: [i] for i in range(len(whole.ids))}, [1.0] * len(whole.ids)
    text_model.config._attn_implementation, after = "plain", []
    for number, layer in enumerate(text_model.layers):
        rows = list(held)  # the tokens that are left, in order
        mask = torch.ones(len(rows), len(rows), dtype=torch.bool).tril()[None, None]
        SEEN.clear()
        states = layer(
            states[None], attention_mask=mask, position_embeddings=tuple(part[..., rows, :] for part in rope)
        )[0]
        if number in steps:
            for turn in (turn for n, turn in enumerate(conversation.turns) if n not in untouched):
                held, size, states = reduced(steps[number], turn, whole, held, size, states, *SEEN[0], rows)
        after.append(dict(zip(held, states, strict=True)))
        if number < len(features):
            added = [torch.stack([features[number][i] for i in group]).mean(dim=0) for group in held.values()]
            states = states + torch.stack(added)
    text_model.config._attn_implementation = "sdpa"
    logits = model.lm_head(text_model.norm(states))
    return Expected(dict(zip(held, logits, strict=True)), held, positions, after)


def entry(family, model, whole):
    """What the stock text model is called with, cosines and sines, and the positions of all tokens."""
    text_model, caught = getattr(model.model, FAMILIES[model.config.model_type].decoder), {}
    hooks = [
        text_model.register_forward_pre_hook(lambda _, args, kwargs: caught.update(kwargs), with_kwargs=True),
        text_model.rotary_emb.register_forward_hook(
            lambda _, args, kwargs, rope: caught.update(rope=rope, at=kwargs.get("position_ids", args[-1])),
            with_kwargs=True,
        ),
    ]
    model(**DECODERS[family].batch([whole]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return caught, caught["rope"], caught["at"].flatten(0, -2)


def dense_features(entering):
    """Of each of the first layers, what is added to each token after it."""
    image, found = entering.get("visual_pos_masks"), []
    for features in entering.get("deepstack_visual_embeds") or []:
        dense = torch.zeros(image.shape[1], features.shape[1], dtype=features.dtype)
        dense[image[0]] = features
        found.append(dense)
    return found


def reduced(step, turn, whole, held, size, states, query, key, rows):
    """Prune and merge the image tokens of one prompt; all that is by token, without what is gone."""
    at = {token: row for row, token in enumerate(rows)}  # in queries and keys
    here = [token for token in held if token in turn]
    image = [token for token in here if whole.ids[token] == IMAGE]
    asking = [token for token in here if whole.ids[token] != IMAGE][-64:]
    if not image:
        return held, size, states
    score = dict.fromkeys(image, 0.0)
    for token in asking:
        seen = [other for other in here if other <= token]  # of this prompt alone
        for head, asks in enumerate(query):
            keys = key[head * len(key) // len(query), [at[other] for other in seen]]
            row = (keys @ asks[at[token]] * len(asks[0]) ** -0.5).softmax(dim=0)
            for other, share in zip(seen, row.tolist(), strict=True):
                if other in score:
                    score[other] += share
    kept = kept_by_hand(image, score, step.kept(len(image)), set()) if step.prune_ratio else image
    into = merged_by_hand(kept, key[:, [at.get(i, 0) for i in range(len(whole.ids))]], step.merges(len(image)), set())
    left, now = dict(zip(held, states, strict=True)), dict(zip(held, size, strict=True))
    groups = {token: [token] for token in held if token not in into and (token not in image or token in kept)}
    for token, target in into.items():
        groups[target].append(token)
    weight = {token: sum(now[i] for i in group) for token, group in groups.items()}
    means = [sum(now[i] * left[i] for i in group) / weight[token] for token, group in groups.items()]
    members = {token: [i for other in group for i in held[other]] for token, group in groups.items()}
    return members, list(weight.values()), torch.stack(means)


# ---------------------------------------------------------------- the patched model


@dataclass(frozen=True)
class Talk:
    """How the patched model reads the conversations.

    Attributes:
        padding: Of each prompt, "left" or "right".
        static: Whether the cache is.
        step: Words of an answer that it reads at once.
        whole: Prompts that are not reduced.
    """

    padding: str = "left"
    static: bool = False
    step: int = 1
    whole: tuple[int, ...] = ()


def talk(family, model, said: list[Conversation], expected: list[Expected], how: Talk) -> float:
    """The largest difference of any logit of any token to what the loop found."""
    tiny, most, start = DECODERS[family], 0.0, [0] * len(said)
    width = sum(max(len(c.prompts[n].ids) + len(c.answers[n]) for c in said) for n in range(len(said[0].prompts)))
    cache = StaticCache(model.config.get_text_config(), max_cache_len=width) if how.static else DynamicCache()
    mask = torch.zeros(len(said), 0, dtype=torch.int64)
    for turn in range(len(said[0].prompts)):
        prompts = [conversation.prompts[turn] for conversation in said]
        pieces = [tiny.batch(prompts, padding=how.padding)]
        answers = torch.tensor([conversation.answers[turn] for conversation in said])
        pieces += [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in answers.split(how.step, dim=1)]
        for inputs in pieces:
            real = inputs["attention_mask"].bool()
            mask = torch.cat([mask, inputs.pop("attention_mask")], dim=1)
            places = [list(range(first, first + int(row.sum()))) for first, row in zip(start, real, strict=True)]
            at = torch.zeros(len(expected[0].positions), *real.shape, dtype=torch.int64)
            for b, place in enumerate(places):
                at[:, b, real[b]] = expected[b].positions[:, place]
            at = at[0] if len(at) == 1 else at
            with pumer.disabled(model) if turn in how.whole else nullcontext():
                logits = model(**inputs, attention_mask=mask, position_ids=at, past_key_values=cache).logits
            for b, place in enumerate(places):
                most = max(most, largest_difference(dict(zip(place, logits[b, real[b]], strict=True)), expected[b]))
                start[b] += len(place)
    return most


def largest_difference(logits, expected) -> float:
    """Of tokens that are merged away, the output is that of the token they went into; of pruned ones of the one before.

    Where nothing stays before a pruned token it is zero.
    """
    holder = {i: token for token, group in expected.held.items() for i in group}
    found, shown = {}, torch.zeros_like(next(iter(logits.values())))
    for i in sorted(logits):
        found[i] = shown = expected.logits[holder[i]] if i in holder else shown
    return max(float((logits[i] - found[i]).abs().max()) for i in logits)


def difference(family, config, said=None, how=None) -> float:
    """Of the patched model to the loop."""
    model, said, how = DECODERS[family].model().double(), said or conversations(family), how or Talk()
    with torch.no_grad():
        expected = [by_hand(family, model, conversation, config, how.whole) for conversation in said]
        return talk(family, pumer.patch(model, config), said, expected, how)


@pytest.mark.parametrize("family", DECODERS)
def test_two_prompts_with_images_and_answers(family):
    images = ((1, 0), (2, 0), (0, 1)) if family == "llava_onevision" else ((1, 1), (2, 0), (0, 1))
    assert difference(family, BOTH, conversations(family, images)) < TOLERANCE  # that one's tokens depend on the others


@pytest.mark.parametrize(
    "how", [Talk(padding="right"), Talk(static=True), Talk(padding="right", static=True), Talk(step=3)], ids=str
)
@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_padding_cache_and_pace_change_nothing(family, how):
    assert difference(family, BOTH, how=how) < TOLERANCE


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_what_is_only_pruned_or_only_merged(family):
    assert difference(family, PRUNE) < 1e-9
    assert difference(family, MERGE) < TOLERANCE


@pytest.mark.parametrize(
    "images", [((1,),), ((1, 1, 0),), ((0, 2), (0, 1)), ((1, 0), (1, 0)), ((0, 0), (2, 0)), ((0, 1), (1, 1))], ids=str
)
def test_whichever_prompts_have_images(images):
    assert difference("mistral3", BOTH, conversations("mistral3", images)) < TOLERANCE


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_gradients_are_those_of_the_loop(family):
    model, prompt = DECODERS[family].model().double(), DECODERS[family].sample(1)
    found = by_hand(family, model, Conversation((prompt,), ([],)), BOTH)
    weight = torch.randn(len(prompt.ids), VOCABULARY, dtype=torch.float64)
    sum((weight[token] * logits).sum() for token, logits in found.logits.items()).backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    logits = pumer.patch(model, BOTH)(**DECODERS[family].batch([prompt])).logits[0]
    (weight * logits)[list(found.logits)].sum().backward()
    for name, parameter in model.named_parameters():
        if expected[name] is not None:
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-4, rtol=1e-5)
    assert sum(bool(gradient.any()) for gradient in expected.values() if gradient is not None) > 60


def test_hidden_states_are_those_after_each_layer():
    model, prompt = DECODERS["llava"].model().double(), DECODERS["llava"].sample(1)
    with torch.no_grad():
        expected = by_hand("llava", model, Conversation((prompt,), ([],)), BOTH)
        inputs = DECODERS["llava"].batch([prompt, DECODERS["llava"].sample(2, before=9)])
        hidden = pumer.patch(model, BOTH)(**inputs, output_hidden_states=True).hidden_states
    padding = inputs["input_ids"].shape[1] - len(prompt.ids)
    for found, states in zip(hidden[1:-1], expected.states[:-1], strict=True):  # the last one is normalised
        for token, state in states.items():
            torch.testing.assert_close(found[0, padding + token], state, atol=TOLERANCE, rtol=0)


RATIO = st.floats(0, 0.95)
STEPS = st.dictionaries(st.integers(0, 4), st.tuples(RATIO, RATIO), min_size=1, max_size=4)
IMAGES = st.integers(1, 2).flatmap(
    lambda turns: st.lists(st.tuples(*[st.integers(0, 2)] * turns), min_size=1, max_size=3)
)
HOW = st.builds(Talk, st.sampled_from(["left", "right"]), st.booleans(), st.integers(1, 3))


@max_examples(15)
@given(st.sampled_from(["llava", "qwen2_5_vl", "qwen3_vl", "smolvlm"]), STEPS, IMAGES, HOW)
def test_any_schedule(family, steps, images, how):
    schedule = [
        Step(stack="decoder", layer=layer, prune_ratio=prune, merge_ratio=merge)
        for layer, (prune, merge) in steps.items()
    ]
    assert difference(family, PuMerConfig(schedule=tuple(schedule)), conversations(family, images), how) < TOLERANCE


@pytest.mark.parametrize("whole", [(0,), (1,), (0, 2)], ids=str)
def test_prompts_that_are_read_while_the_reduction_is_off(whole):
    said = conversations("qwen2_vl", ((1, 1, 1), (0, 1, 0), (1, 0, 2)))
    assert difference("qwen2_vl", BOTH, said, Talk(whole=whole)) < TOLERANCE


def test_the_loop_without_reductions_is_the_stock_model():
    model, (said, *_) = DECODERS["qwen3_vl"].model().double(), conversations("qwen3_vl")
    none = PuMerConfig(schedule=(Step(stack="decoder", layer=0),))
    with torch.no_grad():
        found = by_hand("qwen3_vl", model, said, none)
        logits = model(**DECODERS["qwen3_vl"].batch([said.whole])).logits[0]
    torch.testing.assert_close(torch.stack(list(found.logits.values())), logits, rtol=0, atol=1e-9)


# ---------------------------------------------------------------- faults that the loop must notice


def _padding_is_seen_later(patch):
    columns = prefixes.Prefix.columns
    patch(prefixes.Prefix, "columns", lambda self, *args: columns(replace(self, mask=None), *args))


def _free_slots_are_seen(patch):
    prompt_mask = module.Prompt._prompt_mask

    def all_real(self, stretch, *args):
        stretch.mask = None
        return prompt_mask(self, stretch, *args)

    patch(module.Prompt, "_prompt_mask", all_real)


def _positions_are_those_of_the_last_tokens(patch):
    patch(module, "_picked", lambda rope, index: rope[..., -index.shape[1] :, :])


def _positions_are_compacted(patch):
    patch(module, "_picked", lambda rope, index: rope[..., : index.shape[1], :])


def _later_columns_are_shifted(patch):
    extended = module.Prompt._extended

    def shifted(*args):
        prefix = extended(*args)
        return replace(prefix, shift=prefix.shift - 1)

    patch(module.Prompt, "_extended", shifted)
    patch(module, "drop_stale", lambda cache: None)  # which would find it


def _earlier_padding_is_forgotten(patch):
    extended = module.Prompt._extended
    patch(
        module.Prompt,
        "_extended",
        lambda self, before, *args: extended(self, before and replace(before, mask=None), *args),
    )


def _keys_are_those_of_the_oldest_tokens(patch):
    patch(module, "newest_keys", lambda key, length, layer, cache: key[:, :, :length])


def _padding_is_looked_up_in_the_first_prompt(patch):
    begin = module.Prompt._begin

    def began(self, *args):
        past, self._past = self._past, 0
        begin(self, *args)
        self._past = past

    patch(module.Prompt, "_begin", began)


def _features_are_not_averaged(patch):
    def picked(self, dense, layer):
        for before in sorted(self._decisions):
            dense = self._decisions[before][1].select(dense) if before <= layer else dense
        return dense

    patch(module.Prompt, "carried", picked)


def _features_are_those_of_the_first_tokens(patch):
    patch(module.Prompt, "carried", lambda self, dense, _: dense[:, : self._stretches[-1].tokens.size.shape[1]])


def _output_is_not_put_back(patch):
    def cut(self, states, layer):
        return states[:, torch.arange(self._length).clamp(max=states.shape[1] - 1)]

    patch(module.Prompt, "_expanded", cut)


FAULTS = {
    _padding_is_seen_later: "llava",
    _free_slots_are_seen: "llava",
    _positions_are_those_of_the_last_tokens: "qwen2_5_vl",
    _positions_are_compacted: "mistral3",
    _later_columns_are_shifted: "llava",
    _earlier_padding_is_forgotten: "llava",
    _keys_are_those_of_the_oldest_tokens: "llava",
    _padding_is_looked_up_in_the_first_prompt: "llava",
    _features_are_not_averaged: "qwen3_vl",
    _features_are_those_of_the_first_tokens: "qwen3_vl",
    _output_is_not_put_back: "llava",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_noticed(fault, monkeypatch):
    fault(monkeypatch.setattr)
    assert difference(FAULTS[fault], BOTH) > 1e-3
