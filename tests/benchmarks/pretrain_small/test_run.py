"""The pre-training job: it trains, survives being killed, resumes, goes on from checkpoints and writes a plain one."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, ViltForQuestionAnswering

from benchmarks.pretrain_small.pool import Source
from benchmarks.pretrain_small.run import _begin, _restore, _state, accuracy, export, run
from benchmarks.pretrain_small.settings import PretrainConfig
from benchmarks.pretrain_small.small import small_meter, small_vilt
from benchmarks.pretrain_small.tokenizer import SPECIAL, _assemble, train_tokenizer
from benchmarks.pretrain_small.trainee_meter import MeterTrainee
from benchmarks.pretrain_small.trainee_vilt import ViltTrainee
from pumer.checkpoint import HEADS_FILE
from pumer.utils.errors import InputError

_CONFIG = PretrainConfig(
    minutes=0.02, workers=1, batch_size=4, layers=2, places=(0,), patches=20, save_minutes=0.001, compile=False
)


@pytest.mark.slow
def test_it_goes_on_after_kill_9_and_writes_a_checkpoint(tmp_path: Path) -> None:
    long = replace(_CONFIG, out=str(tmp_path), minutes=60.0)
    imports = "from pathlib import PosixPath\nfrom benchmarks.pretrain_small.run import *\n"
    command = f"{imports}if __name__ == '__main__': run({long!r})"
    script = tmp_path / "go.py"
    script.write_text(command)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen([sys.executable, script], start_new_session=True, env=environment)
    deadline = time.monotonic() + 300
    while not (tmp_path / "stage0-worker0.pt").exists() or not (tmp_path / "stage0.pt").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = torch.load(tmp_path / "stage0.pt", weights_only=True)["clock"]
    folder = run(replace(_CONFIG, out=str(tmp_path), minutes=before[0].item() / 60 + 0.02))  # steps may have been slow
    after = torch.load(tmp_path / "stage1.pt", weights_only=True)["clock"]
    assert (after > before).all()
    model = ViltForQuestionAnswering.from_pretrained(folder)
    assert model.config.num_hidden_layers == 2
    assert not any("dense_norm" in name or name.startswith("role") for name in model.state_dict())
    assert AutoTokenizer.from_pretrained(folder)("red ring")["input_ids"][0] == 2


def test_accuracy_is_told_by_kind() -> None:
    scores = accuracy(ViltTrainee(small_vilt(2)).eval(), Source(train_tokenizer(), captions=0.0, tasks=0.0), 64)
    assert set(scores) == {"all", "attribute", "position", "counting", "existence", "comparison", "relation"}
    assert 0 <= scores["all"] <= 1


@pytest.mark.parametrize("model", ["vilt", "meter"])
def test_it_goes_on_from_a_checkpoint_with_words_by_their_spelling(model: str, tmp_path: Path) -> None:
    """The checkpoint lacks a word, has one too many, and the others in another order."""
    ours = train_tokenizer().get_vocab()
    words = sorted((set(ours) - {*SPECIAL, "triangle"}) | {"unheard"}, reverse=True)
    theirs = {word: index for index, word in enumerate([*SPECIAL, *words])}
    torch.manual_seed(0)
    if model == "vilt":
        before = ViltTrainee(small_vilt(2, vocabulary=len(theirs)))
    else:
        before = MeterTrainee(small_meter(1, vocabulary=len(theirs)))
    folder = export(before, tmp_path / "before", _assemble(theirs))
    assert torch.equal(load_file(folder / HEADS_FILE)["itm_score.fc.weight"], before.match.weight)
    begun = _begin(replace(_CONFIG, model=model, pairs=1, start=str(folder)), 0, None)
    old, new = before.model.state_dict(), begun.model.state_dict()
    embeddings = [name for name in new if name.endswith("word_embeddings.weight")]
    assert len(embeddings) == 1
    for word, index in ours.items():
        row = new[embeddings[0]][index]
        if word == "triangle":
            assert not (old[embeddings[0]] == row).all(1).any()
        else:
            assert torch.equal(row, old[embeddings[0]][theirs[word]])
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in new if name not in embeddings)


def test_a_broken_state_is_named(tmp_path):
    state = _state(tmp_path, 0)
    state.write_bytes(b"broken")
    with pytest.raises(InputError, match=f"{state} is no state"):
        _restore(state, MeterTrainee(small_meter(pairs=1)), torch.zeros(2))
    with pytest.raises(InputError, match=r"workers.* not 0"):
        PretrainConfig(workers=0)
