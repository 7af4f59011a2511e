import sys
from pathlib import Path

import pytest
import torch
from by_hand import cosine, random_cues
from tiny import GRIDS, TINY, answer

import pumer
from pumer.reducers import METHODS

SCRIPT = Path(__file__).parents[2] / "examples" / "add_a_method.py"


@pytest.fixture(autouse=True)
def _unregistered():
    yield
    METHODS.pop("distinct", None)


@pytest.mark.parametrize("one_stream", [True, False])
def test_scores_of_one_example_at_a_time(script, one_stream):
    lengths = [(4, 9), (6, 5), (2, 12)]
    cues = random_cues(lengths, spare=2, seed=0, one_stream=one_stream)
    config = script.DistinctConfig(layers=(0,), prune_ratio=0.3)
    score = config.score(cues)
    for sample, (_, real) in enumerate(lengths):
        keys = cues.image_key[sample, :, :real].mean(dim=0)
        average = sum(keys) / real
        expected = [-cosine(key, average) for key in keys]
        torch.testing.assert_close(score[sample, :real], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("backbone", TINY)
def test_a_patched_model_answers_alike_in_any_batch_and_saves_its_method(script, backbone, tmp_path):
    case = TINY[backbone]
    model = pumer.patch(case.build(), case.fit(script.DistinctConfig(layers=(0, 2), prune_ratio=0.3)))
    alone = case.batch(GRIDS[1:2], seed=1)
    with torch.no_grad():
        torch.testing.assert_close(answer(model, case.batch(GRIDS))[1:2], answer(model, alone), atol=1e-5, rtol=1e-5)
    pumer.save(model, tmp_path)
    assert pumer.reduction(pumer.load(tmp_path)) == pumer.reduction(model)


def test_it_is_evaluated_beside_random_pruning(script, tiny_vilt, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["add_a_method", "--model", str(tiny_vilt), "--limit", "6"])
    script.main()
    lines = capsys.readouterr().out.split("\n")
    assert [line.partition(":")[0] for line in lines if line] == ["none", "distinct", "random"]
