"""The pre-training job: it trains, survives being killed, resumes where it was, and writes a plain checkpoint."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoTokenizer, ViltForQuestionAnswering

from pumer.world.pool import Source
from pumer.world.pretrain import PretrainConfig, accuracy, run
from pumer.world.small import small_vilt
from pumer.world.tokenizer import train_tokenizer
from pumer.world.trainee_vilt import ViltTrainee

_CONFIG = PretrainConfig(
    minutes=0.02, workers=1, batch_size=4, layers=2, places=(0,), patches=20, save_minutes=0.001, compile=False
)


def test_it_goes_on_after_kill_9_and_writes_a_checkpoint(tmp_path: Path) -> None:
    long = replace(_CONFIG, out=str(tmp_path), minutes=60.0)
    command = f"from pumer.world.pretrain import *\nif __name__ == '__main__': run({long!r})"
    script = tmp_path / "go.py"
    script.write_text(command)
    process = subprocess.Popen([sys.executable, script], start_new_session=True)
    deadline = time.monotonic() + 120
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
    scores = accuracy(ViltTrainee(small_vilt(2)).eval(), Source(train_tokenizer(), captions=0.0), 64)
    assert set(scores) == {"all", "attribute", "position", "counting", "existence", "comparison", "relation"}
    assert 0 <= scores["all"] <= 1
