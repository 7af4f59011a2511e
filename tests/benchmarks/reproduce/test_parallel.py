import io
import threading

import pytest
from rich.console import Console

from benchmarks.reproduce.parallel import Watch, run_at_once
from pumer.demo.stages import Stage, finished, run_stages


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

    ended = []
    watch = Watch(ended=lambda stage, outcome: ended.append((stage.name, isinstance(outcome, Exception))))
    failures = run_at_once(graph(work), tmp_path, 2, watch)
    assert [str(failure) for failure in failures.values()] == ["broken"]
    assert sorted(ended) == [("a", False), ("b", True), ("c", False), ("e", False)]
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
