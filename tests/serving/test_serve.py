"""What `pumer serve` asks of a cluster, and what it says where replicas do not start; without Ray."""

import math

import pytest

from pumer.serving.serve import _reason, _share
from pumer.utils.errors import InputError


@pytest.mark.parametrize("gpus", [1, 2, 3, 8])
@pytest.mark.parametrize("replicas", [1, 2, 3, 5, 7, 8, 24])
def test_all_replicas_find_a_place_on_the_gpus(replicas, gpus):
    share = _share(replicas, {"CPU": 24.0, "GPU": float(gpus)}, 1)
    assert share["num_cpus"] == 24 // replicas
    units = round(share["num_gpus"] * 10_000)  # as Ray counts
    assert units / 10_000 == share["num_gpus"] and 0 < units <= 10_000
    assert gpus * (10_000 // units) >= replicas
    assert share["num_gpus"] == 1 or math.ceil(replicas / gpus) > 1


def test_without_gpus_and_with_too_few_cores():
    assert _share(3, {"CPU": 8.0}, 1) == {"num_cpus": 2, "num_gpus": 0}
    assert _share(3, {"CPU": 8.0}, 2) == {"num_cpus": 1, "num_gpus": 0}
    with pytest.raises(InputError, match=r"replicas=9 .* 8"):
        _share(9, {"CPU": 8.0}, 1)


def test_the_last_error_of_a_traceback_is_said():
    said = (
        "Deploying application pumer-1 failed: The deployment failed to start 3 times in a row. Error:\n"
        "Traceback (most recent call last):\n  File x, line 3\nValueError: first\n\nDuring handling\n"
        "torch.OutOfMemoryError: CUDA out of memory. Tried\n"
    )
    line = _reason(RuntimeError(said), "out/m")
    assert "out/m" in line and "OutOfMemoryError: CUDA out of memory" in line and "\n" not in line
    assert "nothing more" in _reason(RuntimeError("nothing more\nthan this"), "out/m")
