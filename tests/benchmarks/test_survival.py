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


@pytest.mark.parametrize(("kind", "code"), [("interrupt", -2), ("kill", -9)])
def test_a_run_is_disturbed_within_its_time(kind, code, monkeypatch, tmp_path):
    moments = survival.random.Random(0)
    monkeypatch.setattr(moments, "uniform", lambda low, high: 0.01)
    ended, _ = survival._disturb(["list"], kind, moments, seconds=1.0, largest=1)
    assert ended in (code, 130)
