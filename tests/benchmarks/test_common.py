"""What scripts of results share."""

import pytest

from benchmarks.common import difference


def test_differences_are_paired_by_example():
    ours = [{"id": number, "source": number // 2, "score": score} for number, score in enumerate((1.0, 0.0, 0.5, 1.0))]
    others = [{"id": number, "score": 0.5} for number in (3, 1, 0, 2)]
    others[0]["score"] = 0.0
    assert difference(ours, others)["mean"] == pytest.approx((0.5 - 0.5 + 0.0 + 1.0) / 4)
