import io

import pytest
from rich.console import Console

from pumer.demo.stages import Stage, run_stages
from pumer.utils.errors import InputError


class Job:
    """Two steps, of which the second depends on the first; `calls` lists (step, whether its folder was there)."""

    def __init__(self, folder):
        self.folder, self.calls, self.fail, self.output = folder, [], False, io.StringIO()

    def step(self, name, value):
        folder = self.folder / f"work-{name}"
        self.calls.append((name, folder.exists()))
        folder.mkdir(exist_ok=True)
        if self.fail and name == "b":
            raise KeyboardInterrupt
        return {"value": value}

    def run(self, first=1, second=1):
        folders = [self.folder / f"work-{name}" for name in "ab"]
        stages = [
            Stage("a", "first", {"x": first}, lambda: self.step("a", first), folder=folders[0]),
            Stage("b", "second", second, lambda: self.step("b", second), ["a"], folders[1]),
        ]
        return run_stages(stages, self.folder, Console(file=self.output))


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path)


def test_a_finished_step_is_not_done_again_and_keeps_its_result(job):
    assert job.run() == job.run() == {"a": {"value": 1}, "b": {"value": 1}}
    assert job.calls == [("a", False), ("b", False)]
    assert job.output.getvalue().count("done before") == 2


def test_an_interrupted_step_is_continued(job):
    job.fail = True
    with pytest.raises(KeyboardInterrupt):
        job.run()
    job.fail = False
    job.run()
    assert job.calls == [("a", False), ("b", False), ("b", True)]


def test_other_settings_start_the_step_and_what_depends_on_it_anew(job):
    job.run()
    job.calls.clear()
    assert job.run(second=2)["b"] == {"value": 2}
    assert job.calls == [("b", False)]
    job.calls.clear()
    job.run(first=2, second=2)
    assert job.calls == [("a", False), ("b", False)]


@pytest.mark.parametrize("content", ["[]", "{", '{"key": 3, "done": true}'])
def test_a_broken_record_is_named_or_its_step_done_again(job, content):
    job.run()
    job.calls.clear()
    (job.folder / "b.json").write_text(content)
    if content.endswith("true}"):
        assert job.run()["b"] == {"value": 1}
        assert [name for name, _ in job.calls] == ["b"]
    else:
        with pytest.raises(InputError, match=r"b\.json"):
            job.run()
