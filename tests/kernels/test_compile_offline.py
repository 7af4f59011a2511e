"""Every kernel compiles for an H100 without a GPU: what the interpreter passes, the compiler may refuse."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pumer.kernels import flash

QUICK = ("vilt", "long:fp32", "small:ones")
"""One stream and two, both sizes of numbers, and all integers that may be constants."""
SLOW = ("meter-40", "whole", "thin-heads", "small:pruned", "small:text", "longest")


def figures(*shapes, cache):
    """What ptxas says, by shape and kernel."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(cache)}
    script = Path(__file__).with_name("compile_offline.py")
    done = subprocess.run([sys.executable, str(script), *shapes], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("shapes", [QUICK, pytest.param(SLOW, marks=pytest.mark.slow)], ids=["quick", "slow"])
def test_no_spills_and_little_shared_memory(shapes, tmp_path):
    """2,940 tokens at the end: there it need only compile."""
    found = figures(*shapes, cache=tmp_path)
    assert len(found) == 8 * len(shapes)
    for figure in found:
        if figure["shape"] != "longest":
            assert figure["spilled"] == 0 and figure["shared"] <= 48 * 1024, figure
        if figure["shape"] == "vilt" and figure["kernel"] != "apply_kernel":  # a cold kernel waits for its code
            assert figure["code"] <= 32 * 1024, figure


@pytest.mark.parametrize(
    ("shape", "configurations"),
    [("attention-128", 2), pytest.param("attention", len(flash.CONFIGURATIONS), marks=pytest.mark.slow)],
)
def test_every_configuration_of_attention_fits_a_multiprocessor(shape, configurations, tmp_path):
    found = figures(shape, cache=tmp_path)
    assert len(found) == configurations
    for figure in found:
        assert figure["spilled"] == 0 and figure["shared"] <= 200 * 1024 and figure["mma"] > 0, figure
