"""Exported models beside PyTorch, on a small one."""

import pytest

from benchmarks import exported
from pumer import PuMerConfig
from pumer.reducers import config_to_dict


@pytest.mark.slow
def test_every_row_is_measured():
    pytest.importorskip("openvino")
    schedules = {"2": config_to_dict(PuMerConfig(layers=(2,), prune_ratio=0.1, merge_ratio=0.3, text_merge_ratio=0.2))}
    result = exported.measured("small:vilt", schedules, 2, [1, 2])
    names = [
        f"{kind}, {row}"
        for row in ("unreduced", "2")
        for kind in ("PyTorch f32", "PyTorch bf16", "OpenVINO f32", "OpenVINO bf16", "OpenVINO int8")
    ]
    assert [list(point["models"]) for point in result["speed"]["points"]] == [names, names]
    assert result["speed"]["baseline"] == exported.BASELINE and result["ideal"]["2"] > 1
