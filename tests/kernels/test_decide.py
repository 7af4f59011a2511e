"""Decisions of the kernels against loops over one sample: scores, pruning, matching, output slots."""

import torch
from hypothesis import example, given
from hypothesis import strategies as st
from kernels import cases, oracle
from kernels.cases import arguments
from tiny import max_examples


def check(**given):
    """Every sample decides as the loops do, unless two values are as near as rounding."""
    case = cases.make(**given)
    code, following = case.decide()
    assert code.dtype == torch.int32 and following.dtype == torch.int64
    for b in range(len(code)):
        wanted, lengths, choice = oracle.decide(case, b)
        assert following[b].tolist() == lengths
        assert code[b].tolist() == wanted or choice.near, choice


@max_examples(160)
@given(arguments())
def test_decisions_are_those_of_the_loops(given):
    check(**given)


@max_examples(60)
@given(arguments(words=16, patches=10))
def test_ties_go_to_the_lower_rank(given):
    """Keys of -1 and 1: norms and products are exact, so nothing may differ."""
    given = given | {"coarse": True, "Dh": 16, "dtype": torch.float32}
    case = cases.make(**given)
    code, _ = case.decide()
    for b in range(len(code)):
        assert code[b].tolist() == oracle.decide(case, b)[0]


@max_examples(6)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(90, 330), st.sampled_from([1, 2]), st.booleans())
@example(seed=1, words=40, patches=660, streams=1, coarse=False)
@example(seed=2, words=32, patches=577, streams=2, coarse=True)
def test_long_streams(seed, words, patches, streams, coarse):
    check(
        seed=seed, B=1, T=words, V=patches, prune=0.3, merge=0.3, merge_text=0.2, streams=streams, coarse=coarse
    )  # fmt: skip


def test_more_words_than_one_program_asks_for():
    check(seed=3, B=1, T=70, V=9, prune=0.4, merge=0.3, merge_text=0.3)


def test_heads_that_are_no_power_of_two_wide():
    for width in (24, 48, 80, 96):
        check(seed=width, B=1, T=5, V=20, Dh=width, prune=0.3, merge=0.4, merge_text=0.4)


def test_one_block_over_a_gap_of_padded_words():
    check(seed=4, B=3, T=40, V=60, merge=0.4, whole=True)


def test_strided_inputs_decide_as_contiguous_ones():
    case = cases.make(seed=5, B=2, T=6, V=20, prune=0.3, merge=0.3, merge_text=0.3)
    wanted = case.decide()
    case.key, case.query = case.key.contiguous(), case.query.contiguous()
    case.text_key = case.key[:, :, : case.T]
    case.bias = torch.cat([case.bias, case.bias], dim=-1)[..., : case.T + case.V]
    assert all(torch.equal(a, b) for a, b in zip(wanted, case.decide(), strict=True))


def test_the_batch_does_not_matter():
    """Alone or among others, a sample is decided the same way."""
    case = cases.make(seed=6, B=3, T=6, V=150, prune=0.3, merge=0.3, merge_text=0.3)
    together, _ = case.decide()
    for b in range(3):
        alone = cases.make(seed=6, B=3, T=6, V=150, prune=0.3, merge=0.3, merge_text=0.3)
        for name in ("query", "key", "text_key", "bias", "lengths"):
            setattr(alone, name, getattr(alone, name)[b : b + 1])
        assert torch.equal(alone.decide()[0][0], together[b])


def test_a_sample_of_nan_leaves_the_others_as_they_are():
    """Overflow in one sample, as in float16: its codes are still in range, and nobody else notices."""
    case = cases.make(seed=7, B=3, T=6, V=40, prune=0.3, merge=0.3, merge_text=0.3)
    wanted, lengths = case.decide()
    case.query[1], case.key[1] = torch.nan, torch.nan
    code, following = case.decide()
    assert torch.equal(code[[0, 2]], wanted[[0, 2]]) and torch.equal(following, lengths)
    placed = code[1][code[1] != oracle.GONE]
    assert (placed >= 0).all() and (placed < 2 * (case.T + case.V)).all()


def test_parity_counted_on_slots_would_be_noticed():
    """A mutant of the loops that pairs by slots, not by ranks after pruning, disagrees with the kernels."""
    differs = 0
    for seed in range(4):
        case = cases.make(seed=seed, B=1, T=4, V=20, prune=0.3, merge=0.3)
        code, _ = case.decide()
        differs += code[0].tolist() != oracle.decide(case, 0, parity="slots")[0]
    assert differs == 4


def test_counting_padded_words_would_be_noticed():
    """A mutant that lets padded words ask disagrees with the kernels."""
    differs = 0
    for seed in range(6):
        case = cases.make(seed=seed, B=1, T=12, V=30, prune=0.5)
        case.lengths[:, 0] = 2
        case.query = case.query.nan_to_num(3.0)
        case.key = case.key.nan_to_num(0.0)
        code, _ = case.decide()
        assert code[0, 12:].tolist() == oracle.decide(case, 0)[0][12:]
        case.lengths[:, 0] = 12
        differs += code[0, 12:].tolist() != oracle.decide(case, 0)[0][12:]
    assert differs > 0
