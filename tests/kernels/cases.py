"""Random inputs of one reduction, and the kernels run on them."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from pumer import kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""Where the kernels run; on a CPU that is in Triton's interpreter."""


@dataclass
class Case:
    """Arguments of `kernels.decide` and what a test needs besides."""

    query: torch.Tensor | None
    key: torch.Tensor
    text_key: torch.Tensor | None
    bias: torch.Tensor | None
    lengths: torch.Tensor
    table: torch.Tensor
    T: int
    V: int
    Kt: int
    Kv: int
    prune: bool
    merge_text: bool
    merge: bool
    whole: bool = False

    def arguments(self, device=DEVICE):
        """Of `kernels.decide`."""
        tensors = (self.query, self.key, self.text_key, self.bias, self.lengths, self.table)
        tensors = (None if x is None else x.to(device) for x in tensors)
        return (
            *tensors, self.T, self.V, self.Kt, self.Kv, self.prune, self.merge_text, self.merge, self.whole
        )  # fmt: skip

    def decide(self):
        """Codes and following lengths, on the CPU."""
        code, following = kernels.decide(*self.arguments())
        return code.cpu(), following.cpu()

    def apply(self, code, following, first, second, size, weight, proportional=True, bias_dtype=torch.float32):
        """Outputs of `kernels.apply`, on the CPU."""
        tensors = (None if x is None else x.to(DEVICE) for x in (first, second, size, weight, code, following))
        return [y.cpu() for y in kernels.apply(*tensors, self.Kt, self.Kv, proportional, bias_dtype)]

    def states(self, seed, D=24, dtype=torch.float32, weighted=False):
        """Random states, sizes and weights (or None) of the tokens, NaN in the states of padding."""
        random = torch.Generator().manual_seed(seed)
        B, N = len(self.lengths), self.T + self.V
        x = torch.randn(B, N, D, generator=random).to(dtype)
        size = torch.randint(1, 5, (B, N), generator=random).float()
        weight = torch.rand(B, N, generator=random) + 0.1 if weighted else None
        for b, (read, seen) in enumerate(self.lengths.tolist()):
            x[b, read : self.T] = torch.nan
            x[b, self.T + seen :] = torch.nan
        return x, size, weight


def counts(n, prune, merge):
    """Kept, merges and left of ``n`` tokens."""
    kept = n - max(min(round(prune * n), n - 1), 0)
    merges = max(min(round(merge * n), (kept - 1) // 2), 0)
    return kept, merges, kept - merges


def make(
    seed, B, T, V, H=2, Dh=16, prune=0.0, merge=0.0, merge_text=0.0, dtype=torch.float32, coarse=False, bias=True,
    streams=1, whole=False, full=False,
):  # fmt: skip
    """A case: random lengths unless ``full``, keys of -1 and 1 if ``coarse`` (exact norms, and many ties)."""
    random = torch.Generator().manual_seed(seed)

    def normal(n):
        # as projections are: (B, n, H * Dh) in memory
        return torch.randn(B, n, H * Dh, generator=random).view(B, n, H, Dh).transpose(1, 2)

    M = T + V if streams == 1 else V
    key, query = normal(M), normal(T)
    text_key = key[:, :, :T] if streams == 1 else normal(T)
    if coarse:  # the same in every head: their mean is exact
        one = torch.randint(0, 2, (B, 1, M, Dh), generator=random) * 2.0 - 1.0
        key = one.expand(B, H, M, Dh).contiguous()
        text_key = key[:, :, :T]
        if streams == 2:
            text_key = (torch.randint(0, 2, (B, 1, T, Dh), generator=random) * 2.0 - 1).expand(B, H, T, Dh).contiguous()
        query = query.new_zeros(query.shape)  # all scores are equal but for the bias
    read = torch.randint(min(T, 1), T + 1, (B,), generator=random)
    seen = torch.randint(1, V + 1, (B,), generator=random)
    if full:
        read, seen = torch.full_like(read, T), torch.full_like(seen, V)
    lengths = torch.stack([read, seen], 1)
    hidden = None
    if bias or not full:
        mask = torch.cat([torch.arange(T) < read[:, None], torch.arange(V) < seen[:, None]], 1)
        size = torch.randint(1, 4, (B, T + V), generator=random).float()
        hidden = size.log().masked_fill(~mask, -torch.inf)[:, None, None, T + V - M :].to(dtype)
    key, query, text_key = (x.to(dtype, copy=True) for x in (key, query, text_key))
    for b in range(B):  # what stands in padding must not matter
        if hidden is not None:
            key[b, :, M - V + seen[b] :] = torch.nan
            if streams == 1:
                key[b, :, read[b] : T] = torch.nan
        query[b, :, read[b] :] = torch.nan
        text_key[b, :, read[b] :] = torch.nan
    prunes, merges, merges_text = prune > 0 and T > 0 and not whole, merge > 0, merge_text > 0 and T > 0 and not whole
    if whole:
        table = [(n, *counts(n, 0, merge)[1:]) for n in range(T + V + 1)]
        Kt, Kv = 0, max(row[2] for row in table)
    else:
        text = [counts(n, 0, merge_text) for n in range(T + 1)]
        image = [counts(n, prune if prunes else 0.0, merge) for n in range(V + 1)]
        table, Kt, Kv = text + image, max(row[2] for row in text), max(row[2] for row in image)
    return Case(
        query if prunes else None, key, text_key if merges_text else None, hidden, lengths,
        torch.tensor(table, dtype=torch.int32), T, V, Kt, Kv, prunes, merges_text, merges, whole,
    )  # fmt: skip


RATIOS = st.sampled_from([0.0, 0.0, 0.1, 0.3, 0.5, 0.9])


@st.composite
def arguments(draw, words=12, patches=30):
    """Arguments of `make`, small."""
    streams = draw(st.sampled_from([1, 1, 2]))
    return {
        "seed": draw(st.integers(0, 2**31)),
        "B": draw(st.sampled_from([1, 1, 2])),
        "T": draw(st.integers(0, words)),
        "V": draw(st.integers(1, patches)),
        "H": draw(st.integers(1, 3)),
        "Dh": draw(st.sampled_from([16, 16, 24, 64])),
        "prune": draw(RATIOS),
        "merge": draw(RATIOS),
        "merge_text": draw(RATIOS),
        "dtype": draw(st.sampled_from([torch.float32, torch.float16])),
        "coarse": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "full": draw(st.integers(0, 3)) == 0,
        "streams": streams,
        "whole": streams == 1 and draw(st.integers(0, 4)) == 0,
    }
