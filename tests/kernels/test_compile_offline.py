"""Every kernel compiles for an H100 without a GPU: what the interpreter passes, the compiler may refuse."""

import json
import os
import subprocess
import sys
from pathlib import Path

SHAPES = ("vilt", "meter-40", "long", "long:fp32", "whole", "wide-heads:fp32", "thin-heads")


def figures(*shapes, cache):
    """What ptxas says, by shape and kernel."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(cache)}
    script = Path(__file__).with_name("compile_offline.py")
    done = subprocess.run([sys.executable, str(script), *shapes], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_no_spills_and_little_shared_memory_up_to_1064_tokens(tmp_path):
    found = figures(*SHAPES, cache=tmp_path)
    assert len(found) == 5 * len(SHAPES)
    for figure in found:
        assert figure["spilled"] == 0 and figure["shared"] <= 48 * 1024, figure


def test_2940_tokens_compile(tmp_path):
    assert len(figures("longest", cache=tmp_path)) == 5
