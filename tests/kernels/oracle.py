"""One reduction as loops over one sample at a time: what the kernels must agree with. Plain torch, in float64."""

from dataclasses import dataclass, field

import torch

GONE = 2**30
NEAR = 4e-6 if torch.cuda.is_available() else 1e-6  # a GPU's exponential is less exact


@dataclass
class Choice:
    """By how much, relatively, the best that was left out was below the worst that was taken, for each choice."""

    margins: list[float] = field(default_factory=list)

    def between(self, taken, left, scale=1.0):
        """Remember two values of which the first won."""
        self.margins.append((taken - left) / scale)

    @property
    def near(self):
        """Whether rounding can choose differently. Not for exact ties: there the rank decides."""
        return any(0 < abs(margin) < NEAR for margin in self.margins)


def scores(query, key, bias, words):
    """Sum over heads and the first ``words`` rows of the softmax over all keys; ``(M,)``."""
    H, _, Dh = query.shape
    total = torch.zeros(key.shape[1], dtype=torch.float64)
    for h in range(H):
        for t in range(words):
            logits = key[h].double() @ query[h, t].double() * Dh**-0.5
            if bias is not None:
                logits = torch.where(bias.isneginf(), -torch.inf, logits + bias.double())
            total += logits.softmax(0)
    return total


def best(values, count, choice):
    """Indices of the ``count`` largest, ties to the lower one."""
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    taken, left = order[:count], order[count:]
    if taken and left:
        choice.between(values[taken[-1]], values[left[0]])
    return taken


def match(features, merges, choice, parity=lambda rank: rank % 2):
    """Merges as a dict from rank to rank: even ones but 0 propose, odd ones receive."""
    n = len(features)
    normed = torch.nn.functional.normalize(features.double(), dim=-1)
    similarity = (normed @ normed.T).tolist()
    odd = [r for r in range(n) if parity(r) == 1]
    proposals = []
    for r in range(1, n):
        if parity(r) == 0 and odd and merges:
            first = max(odd, key=lambda o: (similarity[r][o], -o))
            others = [similarity[r][o] for o in odd if o != first]
            proposals.append((r, first, similarity[r][first], max(others, default=-2.0)))
    taken = best([p[2] for p in proposals], merges, choice)
    for i in taken:
        choice.between(proposals[i][2], proposals[i][3])
    return {proposals[i][0]: proposals[i][1] for i in taken}


def place(slots, stays, merged, out):
    """Codes of ``slots`` input slots: ``stays`` are the slots of the kept ranks, ``merged`` a dict of ranks."""
    code = [GONE] * slots
    position = {}
    for rank in range(len(stays)):
        if rank not in merged:
            position[rank] = out + len(position)
    for rank, slot in enumerate(stays):
        code[slot] = 2 * position[merged[rank]] + 1 if rank in merged else 2 * position[rank]
    return code


def decide(case, b, parity=lambda rank: rank % 2):
    """Codes ``(T + V,)``, following lengths, and what was chosen between, of sample ``b``."""
    T, V = case.T, case.V
    read, seen = case.lengths[b].tolist()
    choice = Choice()
    if case.whole:
        n = read + seen
        slots = [r if r < read else T + r - read for r in range(n)]
        _, merges, left = case.table[n].tolist()
        merged = match(case.key[b].float().mean(0)[slots], merges if case.merge else 0, choice, parity)
        return place(T + V, slots, merged, 0), [0, left], choice
    _, text_merges, text_left = case.table[read].tolist()
    kept, merges, left = case.table[T + 1 + seen].tolist()
    text = {}
    if case.merge_text:
        text = match(case.text_key[b].float().mean(0)[:read], text_merges, choice)
    stays = list(range(seen))
    if case.prune and seen:
        M = case.key.shape[2]
        bias = None if case.bias is None else case.bias[b, 0, 0].float()
        score = scores(case.query[b], case.key[b], bias, read)[M - V :][:seen].tolist()
        score[0] = float("inf")
        order = sorted(range(seen), key=lambda i: (-score[i], i))
        stays = sorted(order[:kept])
        if 1 < kept < seen:
            choice.between(score[order[kept - 1]], score[order[kept]], max(score[order[kept - 1]], 1e-30))
    features = case.key[b].float().mean(0)[case.key.shape[2] - V :][stays]
    ranks = (lambda rank: stays[rank] % 2) if parity == "slots" else lambda rank: rank % 2
    image = match(features, merges if case.merge else 0, choice, ranks)
    return place(T, list(range(read)), text, 0) + place(V, stays, image, case.Kt), [text_left, left], choice


def apply(states, size, weight, code, slots, proportional):
    """States, sizes, sums of weights and bias of one sample's ``slots`` output slots, in float64."""
    out = torch.zeros(slots, states.shape[1], dtype=torch.float64)
    new_size, whole = torch.zeros(slots, dtype=torch.float64), torch.zeros(slots, dtype=torch.float64)
    bias = torch.full((slots,), -torch.inf, dtype=torch.float64)
    for k in range(slots):
        members = [n for n, c in enumerate(code) if c in (2 * k, 2 * k + 1)]
        if members:
            whole[k] = sum(weight[n].double() for n in members)
            new_size[k] = sum(size[n].double() for n in members)
            out[k] = sum(states[n].double() * weight[n].double() / whole[k] for n in members)
            bias[k] = new_size[k].log() if proportional else 0.0
    return out, new_size, whole, bias
