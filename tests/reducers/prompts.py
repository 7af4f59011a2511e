"""Prompts in which text and image interleave: random cues of them, and what a loop says of one sample."""

import torch
from by_hand import cosine, probabilities_by_hand
from hypothesis import strategies as st

from pumer.reducers.cues import Cues
from pumer.tokens import Segments, Tokens

TOKEN = st.tuples(st.sampled_from([0, 1, 2]), st.sampled_from([False, False, False, True]))
"""A segment, and whether the token is protected: text is 0, the two images are 1 and 2."""
PROMPTS = st.lists(st.lists(TOKEN, min_size=1, max_size=18), min_size=1, max_size=3)
DECODER_PROMPTS = st.lists(
    st.lists(st.tuples(st.sampled_from([0, 1, 2]), st.just(False)), min_size=1, max_size=18), min_size=1, max_size=3
)
"""As a decoder sees them: nothing is protected."""


def prompt_cues(prompts, seed, left, spare=2, causal=False, heads=2, known=False):
    """Random cues of prompts in compact streams, padded by noise on the left or on the right.

    Args:
        prompts: Of each sample the tokens, see `TOKEN`.
        seed: Of the random numbers.
        left: Where the padding is.
        spare: Padding of the longest.
        causal: Whether they are those of a decoder: it frees slots on the left, wherever the padding was.
        heads: Of the queries; the keys have two.
        known: Whether the host knows how many tokens are text and image.
    """
    random, N = torch.Generator().manual_seed(seed), max(map(len, prompts)) + spare

    def normal(*shape):
        return torch.randn(len(prompts), *shape, dtype=torch.float64, generator=random)

    mask, segment = torch.zeros(len(prompts), N, dtype=torch.bool), torch.randint(0, 3, (len(prompts), N))
    protected = torch.rand(len(prompts), N) < 0.5
    for b, prompt in enumerate(prompts):
        here = slice(N - len(prompt), N) if left else slice(0, len(prompt))
        mask[b, here] = True
        segment[b, here], protected[b, here] = torch.tensor(prompt, dtype=torch.int64).unbind(dim=1)
    most = [max(sum((kind > 0) == image for kind, _ in prompt) for prompt in prompts) for image in (False, True)]
    guarded = [
        max(sum((kind > 0) == image and held for kind, held in prompt) for prompt in prompts) for image in (False, True)
    ]
    size = torch.randint(1, 4, mask.shape, generator=random).float() * mask
    bias = size.double().log()[:, None, None]
    lengths = tuple((sum(kind == 0 for kind, _ in p), sum(kind > 0 for kind, _ in p)) for p in prompts)
    segments = Segments.of(
        segment, protected.bool(), mask, tuple(most), tuple(guarded), left or causal, lengths if known else None
    )
    assert torch.equal(segments.protected, protected.bool() & mask)
    tokens = Tokens(
        (normal(N, 5),),
        size,
        (bias,),
        most[0],
        lambda: torch.where(mask, torch.arange(N), -1),
        segments=segments,
    )
    return Cues(tokens, normal(2, N, 6), normal(heads, N, 6), bias, causal=causal)


def slots_of(cues, sample, image):
    """Where the real text tokens of a sample stand, or those of the image."""
    tokens = cues.tokens
    return [
        i
        for i, (real, kind) in enumerate(zip(tokens.mask[sample], tokens.segments.segment[sample], strict=True))
        if real and (kind > 0) == image
    ]


def held_by(cues, sample):
    return set(cues.tokens.segments.protected[sample].nonzero()[:, 0].tolist())


def attention_by_hand(cues, sample, rows):
    """``(H, rows, real tokens)`` and where these stand: what tokens in these slots attend to.

    A decoder's see those up to their own slot alone, and sizes do not count there.
    """
    real = cues.tokens.mask[sample].nonzero()[:, 0].tolist()
    query, key = cues.query[sample], cues.key[sample]
    key = torch.stack([key[head * len(key) // len(query)] for head in range(len(query))])
    if not cues.causal:
        return probabilities_by_hand(query[:, rows], key[:, real], cues.tokens.size[sample, real]), real
    found = torch.zeros(len(query), len(rows), len(real), dtype=torch.float64)
    for i, row in enumerate(rows):
        seen = [slot for slot in real if slot <= row]
        found[:, i, : len(seen)] = probabilities_by_hand(query[:, [row]], key[:, seen], torch.ones(len(seen)))[:, 0]
    return found, real


def kept_by_hand(image, score, count, held):
    """Image slots that stay: what is protected, then the best, in their order."""
    count = max(count, sum(i in held for i in image))
    return sorted(sorted(image, key=lambda i: (i not in held, -score[i], i))[:count])


def merged_by_hand(slots, key, count, held):
    """Which slot goes into which: even ranks propose to odd ones, what is protected does neither."""
    key = key.mean(dim=0)
    receivers = [slot for slot in slots[1::2] if slot not in held]
    edges = []
    for slot in slots[::2]:
        if slot not in held and receivers:
            best = max(receivers, key=lambda other: (cosine(key[slot], key[other]), -other))
            edges.append((-cosine(key[slot], key[best]), slot, best))
    return {slot: into for _, slot, into in sorted(edges)[:count]}


def check(cues, decision, sample, pruned, into):
    """One decision, applied to everything, does to a sample what a loop says: who is pruned, and who goes into whom."""
    tokens, reduced = cues.tokens, cues.tokens.reduce(decision)
    N = tokens.size.shape[1]
    real = tokens.mask[sample].nonzero()[:, 0].tolist()
    stand = [i for i in real if i not in pruned and i not in into]
    first = decision.outputs - len(stand) if tokens.segments.free_first else 0
    at = {slot: first + rank for rank, slot in enumerate(stand)}
    expected = [at.get(into.get(i, i), -1) if i in real and i not in pruned else -1 for i in range(N)]
    assert decision.destination[sample].tolist() == expected
    assert decision.mask[sample].nonzero()[:, 0].tolist() == list(at.values())
    assert reduced.source[sample].tolist() == expected
    position = torch.arange(100, 100 + N).expand_as(tokens.size)
    turned = torch.stack([position.sin(), position.cos()], dim=2)
    back = reduced.expand(reduced.states)[sample]
    for slot, k in at.items():
        group = [slot, *(i for i, goes in into.items() if goes == slot)]
        weight = (tokens.size if decision.weight is None else decision.weight)[sample, group].double()
        mean = (weight[:, None] * tokens.states[sample, group]).sum(dim=0) / weight.sum()
        torch.testing.assert_close(reduced.states[sample, k], mean, atol=1e-6, rtol=1e-6)
        assert float(reduced.size[sample, k]) == float(tokens.size[sample, group].sum())
        assert int(decision.select(position)[sample, k]) == 100 + slot, "a position is that of the token that stands"
        assert torch.equal(decision.select(turned)[sample, k], turned[sample, slot])
        assert int(reduced.segments.segment[sample, k]) == int(tokens.segments.segment[sample, slot])
        assert bool(reduced.segments.protected[sample, k]) == bool(tokens.segments.protected[sample, slot])
        for i in group:
            assert torch.equal(back[i], reduced.states[sample, k])
    gone = [i for i in range(N) if expected[i] < 0]
    assert not back[gone].any()
    free = sorted(set(range(decision.outputs)) - set(at.values()))
    assert not reduced.mask[sample, free].any() and not reduced.segments.protected[sample, free].any()
    image = int(sum(tokens.segments.segment[sample, slot] > 0 for slot in at))
    assert reduced.lengths[sample].tolist() == [len(stand) - image, image] == decision.lengths[sample].tolist()
    assert held_by(cues, sample) <= set(at), "what is protected stays, alone"
    return reduced
