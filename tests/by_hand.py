"""Algorithm 1 for one example as plain loops: the reference of several tests; random cues, and decisions as groups."""

from dataclasses import replace
from math import exp, log

import torch
from torch import Tensor

from pumer.reducers.base import ROWS
from pumer.reducers.cues import Cues
from pumer.tokens import Tokens


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def merge_by_hand(keys, ranks, count):
    """Groups of input slots that stand at each output slot, target first; ``ranks`` lists input slots in order."""
    edges = []
    for rank in range(2, len(ranks), 2):
        similar = [(cosine(keys[ranks[rank]], keys[ranks[odd]]), odd) for odd in range(1, len(ranks), 2)]
        best, odd = max(similar, key=lambda edge: (edge[0], -edge[1]))
        edges.append((best, rank, odd))
    edges.sort(key=lambda edge: (-edge[0], edge[1]))
    into = {rank: odd for _, rank, odd in edges[:count]}
    stays = [rank for rank in range(len(ranks)) if rank not in into]
    return [[ranks[stay], *sorted(ranks[r] for r, odd in into.items() if odd == stay)] for stay in stays]


def decide_by_hand(step, text_keys, image_keys, rows):
    """Algorithm 1 for one example without padding: groups of text and of image slots.

    Args: keys ``(H, n, Dh)``; rows ``(H, T, V)``.
    """
    T, V = rows.shape[1:]
    saliency = [sum(float(rows[h, t, v]) for h in range(len(rows)) for t in range(T)) / T for v in range(V)]
    pruned = min(round(step.prune_ratio * V), V - 1)
    kept = sorted([0, *sorted(range(1, V), key=lambda v: (-saliency[v], v))[: V - pruned - 1]])
    if not step.prune_ratio:
        kept = list(range(V))
    image_merges = min(round(step.merge_ratio * V), (len(kept) - 1) // 2)
    text_merges = min(round(step.text_merge_ratio * T), (T - 1) // 2)
    text = merge_by_hand(text_keys.mean(dim=0), list(range(T)), text_merges)
    return text, merge_by_hand(image_keys.mean(dim=0), kept, image_merges)


def probabilities_by_hand(query, key, size):
    """Softmax of one example: queries ``(H, Q, Dh)``, keys ``(H, n, Dh)``, how often each counts, to ``(H, Q, n)``."""
    rows = torch.zeros(*query.shape[:2], key.shape[1], dtype=torch.float64)
    for h, (queries, keys) in enumerate(zip(query.tolist(), key.tolist(), strict=True)):
        for q, asking in enumerate(queries):
            logits = [sum(a * b for a, b in zip(asking, asked, strict=True)) / len(asking) ** 0.5 for asked in keys]
            weights = [exp(logit + log(n)) for logit, n in zip(logits, size.tolist(), strict=True)]
            rows[h, q] = torch.tensor([weight / sum(weights) for weight in weights], dtype=torch.float64)
    return rows


def random_cues(lengths, spare, seed, one_stream=False):
    """All cues of samples with these words and image tokens, at random; padding is noise that matters if it is seen.

    Args:
        lengths: Real words and image tokens of each sample.
        spare: Padding of the longest.
        seed: Of the random numbers.
        one_stream: Whether words and patches are one sequence.
    """
    random = torch.Generator().manual_seed(seed)
    B, T, V = len(lengths), max(t for t, _ in lengths) + spare, max(v for _, v in lengths) + spare

    def normal(*shape):
        return torch.randn(B, *shape, dtype=torch.float64, generator=random)

    texts, images = torch.tensor(lengths).unbind(dim=1)
    mask = torch.cat([torch.arange(T) < texts[:, None], torch.arange(V) < images[:, None]], dim=1)
    size = torch.randint(1, 4, (B, T + V), generator=random).float() * mask
    key, query, cls_query, states = normal(2, T + V, 6), normal(2, T, 6), normal(2, 1, 6), normal(T + V, 5)
    for b, (words, patches) in enumerate(lengths):
        query[b, :, words:] *= 9  # what padded words ask for must not matter
        for first, real, slots in ((0, words, T), (T, patches, V)):  # the best partner there is, if it were a token
            key[b, :, first + real : first + slots] = key[b, :, first + min(2, real - 1), None]
    bias = size.double().log()[:, None, None]
    text_key, image_key = key.split([T, V], dim=2)
    streams, biases, own_key = (states,), (bias,), None
    if one_stream:
        query, cls_query = torch.cat([query, cls_query, normal(2, V - 1, 6)], dim=2), None
    else:
        streams, biases = states.split([T, V], dim=1), bias.split([T, V], dim=-1)
        key, bias, own_key = image_key, biases[1], text_key
    tokens = Tokens(streams, size, biases, T, lambda: torch.where(mask, torch.arange(T + V), -1))
    return Cues(tokens, key, query, bias, own_key=own_key, cls_query=cls_query)


def handed_out(cues, needs):
    """The cues that an adapter hands out to a reducer with these needs."""
    return replace(
        cues,
        key=cues.key if needs & {"keys", *ROWS} else None,
        own_key=cues.own_key if needs & {"keys", *ROWS} else None,
        query=cues.query if needs & ROWS else None,
        cls_query=cues.cls_query if "cls_row" in needs else None,
    )


def image_columns(cues, sample, query):
    """Attention probabilities ``(H, Q, V)`` of queries ``(H, Q, Dh)``, for the real image tokens of one sample."""
    (slots, _), (T, V) = cues.tokens.slots, cues.tokens.lengths[sample].tolist()
    words, first = range(T if cues.one_stream else 0), slots if cues.one_stream else 0
    key = cues.key[sample][:, [*words, *range(first, first + V)]]
    size = cues.tokens.size[sample, [*words, *range(slots, slots + V)]]
    return probabilities_by_hand(query, key, size)[:, :, len(words) :]


def groups(decision, sample, T):
    """What stands at each real output slot of one sample, target first, as groups of words and groups of image tokens.

    Args:
        decision: About ``T`` words, and image tokens, which are counted from 0 again.
        sample: Which one.
        T: Slots of the text before the decision.
    """
    found, destination = [], decision.destination[sample].tolist()
    for slot, (first, real) in enumerate(
        zip(decision.index[sample].tolist(), decision.mask[sample].tolist(), strict=True)
    ):
        if real:
            held = [i for i, goes in enumerate(destination) if goes == slot]
            assert first in held and all((i < T) == (slot < decision.slots[0]) for i in held), "text stays text"
            found.append([first, *(i for i in held if i != first)])
    assert sum(map(len, found)) == sum(goes >= 0 for goes in destination), "nothing goes to a free slot"
    words = int(decision.lengths[sample, 0])
    return found[:words], [[i - T for i in group] for group in found[words:]]
