"""What methods cost the small LLaVA: a table from a random one."""

import numpy as np
import pytest
import torch

from benchmarks import conversations
from benchmarks.pretrain_small import small_llava
from pumer.reducers import reduction_from
from pumer.utils.files import read_json

MODEL = {"layers": 8, "width": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    model = small_llava.small_llava(small_llava.tokenizer(), **MODEL)
    return small_llava.export(model, tmp_path_factory.mktemp("llava"))


def rows(folder, tmp_path, monkeypatch, wanted, images="3", batch="2"):
    if wanted is not None:
        monkeypatch.setattr(conversations, "wanted", lambda layers: iter(wanted))
    given = ["--model", str(folder), "--name", "tiny", "--images", images, "--batch", batch, "--results", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["conversations", *given])
    conversations.main()
    return read_json(tmp_path / "conversations-tiny-cpu.json")["rows"]


def test_a_row_for_each_kind_of_method_and_none_is_measured_again(folder, tmp_path, monkeypatch):
    wanted = [("1", conversations.UNREDUCED, None), ("1/4", "fewer pixels", 0.25)]
    wanted += [("1/4", name, conversations.reductions(0.25, 8)[name]) for name in ("pumer, merging too", "visionzip")]
    found = rows(folder, tmp_path, monkeypatch, wanted)
    assert [(row["kept"], row["method"]) for row in found] == [each[:2] for each in wanted]
    assert [row["tokens"] for row in found] == [144, 36, 37, 36]  # two ratios are rounded one after the other
    assert found[0]["first"]["difference"]["mean"] == 0 and found[0]["asked"]["mean"] == 1
    assert 2 < found[1]["fewer_macs"] == found[3]["fewer_macs"] > found[2]["fewer_macs"] > 1
    more = rows(folder, tmp_path, monkeypatch, [*wanted, ("1/4", "simignore", reduction_from("simignore"))], batch="1")
    assert more[:-1] == found  # with the provenance of their own run
    assert [row["provenance"]["config"]["batch"] for row in more] == [2, 2, 2, 2, 1]
    with pytest.raises(SystemExit, match=r"images=3, not 4.*--name"):
        rows(folder, tmp_path, monkeypatch, wanted, images="4")
    monkeypatch.setattr(conversations, "measured", None)
    with pytest.raises(TypeError):
        rows(folder, tmp_path, monkeypatch, [*wanted, ("1/4", "divprune", reduction_from("divprune"))])


@pytest.mark.slow
def test_all_rows(folder, tmp_path, monkeypatch):
    found = rows(folder, tmp_path, monkeypatch, None)
    for row in found:
        kept = {"1": 144, "1/2": 72, "1/4": 36, "1/9": 16}.get(row["kept"], row["tokens"])
        if row["method"] in ("pumer, in three layers", "pyramiddrop"):  # fewer in the end, as many on average
            assert row["tokens"] <= kept
        else:
            assert row["tokens"] == pytest.approx(kept, abs=30 if row["method"] == "fewer pixels" else 1)
        assert (row["fewer_macs"] or 2) > 1 or row["method"] == conversations.UNREDUCED


@pytest.mark.parametrize("kept", conversations.KEPT.values())
def test_methods_with_stages_have_as_many_tokens_on_average(kept):
    stage, left, counts = conversations._stage(kept, 8), 1.0, []
    for layer in range(8):
        counts.append(left)
        if layer in conversations.STAGES:
            left *= stage
    assert np.mean(counts[conversations.STAGES[0] + 1 :]) == pytest.approx(kept, abs=1e-6)


def test_an_answer_is_right_if_every_token_of_it_is():
    labels = torch.full((40, 9), -100)
    labels[:, 3:5], labels[:, 7:9] = torch.randint(0, 3, (40, 2)), torch.randint(0, 3, (40, 2))
    logits = torch.randn(40, 9, 3)
    for row in range(40):  # so that about half of the answers are right
        for column in (2, 3, 6, 7):
            if torch.rand(()) < 0.7:
                logits[row, column, labels[row, column + 1]] = 9
    likeliest = logits.argmax(2)
    found = conversations._right(logits, labels)
    for turn, columns in enumerate(((2, 3), (6, 7))):
        right = [all(likeliest[row, at] == labels[row, at + 1] for at in columns) for row in range(40)]
        assert found[turn].tolist() == right and 0 < sum(right) < 40
