import io
import threading

import pytest
from rich.console import Console

from pumer.demo.stages import Stage, Watch, finished, run_at_once, run_stages
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


def graph(work=lambda name: name, **settings):
    """a -> b, a -> c, {b, c} -> d, and e by itself; `work` of each gets its name."""
    needs = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"], "e": []}
    return [Stage(name, name, settings.get(name), lambda name=name: work(name), needs[name]) for name in needs]


@pytest.mark.parametrize("jobs", [1, 2, 4])
def test_several_at_once_give_what_one_after_the_other_gives(jobs, tmp_path):
    order = []
    serial = run_stages(graph(), tmp_path / "serial", Console(file=io.StringIO()))
    assert run_at_once(graph(order.append), tmp_path / "order", jobs, Watch()) == {}
    assert all(order.index(before) < order.index(after) for before, after in ("ab", "ac", "bd", "cd"))
    assert run_at_once(graph(), tmp_path / "parallel", jobs, Watch()) == {}
    records = finished(graph(), tmp_path / "parallel")
    assert {name: record["result"] for name, record in records.items()} == serial


def test_steps_do_run_at_once(tmp_path):
    meeting = threading.Barrier(2, timeout=60)
    stages = [Stage(name, name, None, meeting.wait) for name in "ab"]
    assert run_at_once(stages, tmp_path, 2, Watch()) == {}


def test_a_step_that_runs_alone_comes_last_and_has_no_company(tmp_path):
    running, company = set(), []
    begun = threading.Lock()

    def work(name):
        with begun:
            running.add(name)
            company.append((name, frozenset(running)))
        with begun:
            running.discard(name)

    stages = [Stage(name, name, None, lambda name=name: work(name), alone=name in "ad") for name in "abcd"]
    assert run_at_once(stages, tmp_path, 3, Watch()) == {}
    assert company[2:] == [("a", {"a"}), ("d", {"d"})]


def test_another_setting_does_that_step_and_what_depends_on_it_again(tmp_path):
    run_at_once(graph(), tmp_path, 2, Watch())
    again = []
    run_at_once(graph(again.append, b=1), tmp_path, 2, Watch())
    assert again == ["b", "d"]
    assert finished(graph(), tmp_path).keys() == {"a", "c", "e"}
    assert finished(graph(b=1), tmp_path).keys() == set("abcde")


def test_a_failure_keeps_only_its_dependants_from_running(tmp_path):
    def work(name):
        if name == "b":
            raise ValueError("broken")

    told = []
    watch = Watch(ended=lambda stage, outcome: told.append((stage.name, isinstance(outcome, Exception))))
    failures = run_at_once(graph(work), tmp_path, 2, watch)
    assert [str(failure) for failure in failures.values()] == ["broken"]
    assert sorted(told) == [("a", False), ("b", True), ("c", False), ("e", False)]
    assert run_at_once(graph(), tmp_path, 2, Watch()) == {}  # and the next run goes on
    assert finished(graph(), tmp_path).keys() == set("abcde")


def test_an_interruption_stops_what_runs_and_is_passed_on(tmp_path):
    stopped = threading.Event()

    def work(name):
        if name == "e":
            raise KeyboardInterrupt
        assert stopped.wait(60)

    with pytest.raises(KeyboardInterrupt):
        run_at_once(graph(work), tmp_path, 2, Watch(stop=stopped.set))
    assert "e" not in finished(graph(), tmp_path)


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
