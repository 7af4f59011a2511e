"""The benchmark of interruptions: how outputs and messages of runs are compared."""

import pytest

from benchmarks import survival


def command(*kept):
    return survival.Command(lambda out: ["train", f"output={out}"], kept)


@pytest.mark.parametrize(
    ("content", "different"),
    [('{"accuracy": 1, "seconds": 9}', []), ('{"accuracy": 2, "seconds": 3}', ["run.json"]), (None, ["run.json"])],
)
def test_outputs_are_compared_without_what_changes_from_run_to_run(tmp_path, content, different):
    for name, text in (("whole", '{"accuracy": 1, "seconds": 3}'), ("again", content)):
        (tmp_path / name).mkdir()
        if text is not None:
            (tmp_path / name / "run.json").write_text(text)
    assert survival._different(command("*.json"), tmp_path / "whole", tmp_path / "again") == different
    assert survival._different(command("*.csv"), tmp_path / "whole", tmp_path / "again") == ["none of ('*.csv',)"]


def test_the_message_is_the_error_or_the_last_line():
    assert survival._messages("warning: x\rerror: disk full\n50%\n") == ["error: disk full"]
    assert survival._messages("one\n\ntwo\n") == ["two"]


def test_a_run_is_killed_within_its_time(monkeypatch):
    moments = survival.random.Random(0)
    monkeypatch.setattr(moments, "uniform", lambda low, high: 0.0)
    assert survival._disturb(["list"], "kill", moments, seconds=1.0, largest=1) == (-9, "")
