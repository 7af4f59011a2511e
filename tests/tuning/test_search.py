"""The search: against all shapes of a small space, interrupted anywhere, and with a record that is not its own."""

from itertools import product

import pytest

from pumer import L2NormConfig
from pumer.settings.tune import STUDY
from pumer.tuning.search import Search, finished, open_study
from pumer.tuning.space import METHOD, Space
from pumer.utils.errors import InputError

SPACE = Space("vilt", "fusion", tuple(range(6)), (), 20, ("l2norm",))
SIZES = (4, 4, 2)
SEEDS = SPACE.seeds("vqav2")


def schedule(shape):
    config = SPACE.config(shape, 0.2)
    return None if len(config.layers) > 4 else config


def loss(config, number):
    """Least where layers 2 and 4 reduce; the first batches show less of it than the last."""
    wrong = len(set(config.layers) ^ {2, 4}) + 0.1 * sum(config.layers) / 6
    return {"loss": wrong + 0.01 * number, "agreement": 1 - wrong / 10}


def run(folder, trials=25, loss=loss, seconds=1e9):
    study = open_study(folder, {"budget.speedup": 2.0})
    Search(SPACE, SEEDS, schedule, loss, SIZES).run(study, trials, seconds)
    return study


def told(study):
    """What does not depend on time."""
    trials = study.get_trials(deepcopy=False)
    return [(t.number, t.state.name, t.params, t.values, t.intermediate_values) for t in trials]


def test_the_best_of_all_shapes_is_found(tmp_path):
    numbers = product(range(6), range(1, 7), range(1, 4))
    shapes = [{METHOD: "l2norm", "l2norm.first": f, "l2norm.steps": n, "l2norm.stride": s} for f, n, s in numbers]
    able = [config for shape in shapes if (config := schedule(shape)) is not None]
    least = min(sum(loss(config, at)["loss"] * size for at, size in enumerate(SIZES)) / sum(SIZES) for config in able)
    study = run(tmp_path)
    best = finished(study)[0]
    assert best.value == pytest.approx(least)
    assert SPACE.config(best.params, 0.2) == L2NormConfig(layers=(2, 4), prune_ratio=0.2)
    assert best.user_attrs["examples"] == sum(SIZES)
    states = [state for _, state, *_ in told(study)]
    assert states.count("PRUNED") > 5


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A search that was not interrupted, of more trials than it takes to learn from them."""
    return told(run(tmp_path_factory.mktemp("whole"), 16))


@pytest.mark.parametrize("calls", [0, 1, 20])
def test_an_interrupted_search_ends_as_one_that_was_not(tmp_path, whole, calls):
    left = [calls]

    def stopping(config, number):
        left[0] -= 1
        if left[0] < 0:
            raise Stopped
        return loss(config, number)

    with pytest.raises(Stopped):
        run(tmp_path, 16, stopping)
    journal = tmp_path / STUDY
    journal.write_bytes(journal.read_bytes() + b'{"op_code": 5, "worker')  # killed while it wrote
    assert told(run(tmp_path, 16)) == whole


def test_more_trials_go_on_from_those_before(tmp_path, whole):
    run(tmp_path, 8)
    assert told(run(tmp_path, 16)) == whole


def test_no_trial_starts_when_time_is_up(tmp_path):
    assert {trial.state.name for trial in run(tmp_path, seconds=0).get_trials()} == {"WAITING"}


def test_the_record_of_other_settings_is_refused_once_it_holds_something(tmp_path):
    open_study(tmp_path, {"budget.speedup": 3.0, "examples": 8})
    run(tmp_path, 4)
    with pytest.raises(InputError, match=r"budget.speedup 2.0, not 3.0"):
        open_study(tmp_path, {"budget.speedup": 3.0})
    assert len(finished(run(tmp_path, 4))) == 4


def test_a_schedule_is_measured_once(tmp_path):
    asked = []
    study = run(tmp_path, 20, lambda config, number: asked.append((config, number)) or loss(config, number))
    assert len(asked) == len(set(asked))
    repeated = [trial for trial in study.get_trials() if "repeats" in trial.user_attrs]
    assert repeated
    for trial in repeated:
        same = study.get_trials()[trial.user_attrs["repeats"]]
        assert trial.user_attrs["agreement"] == same.user_attrs["agreement"]
        assert (trial.value, trial.state, trial.intermediate_values) == (
            same.value,
            same.state,
            same.intermediate_values,
        )


@pytest.mark.parametrize("content", [b"hello\n", b'{"op_code": 99}\n', b"\xff\xfe\n", b"[]\n"])
def test_a_file_that_is_no_record_is_refused(tmp_path, content):
    (tmp_path / STUDY).write_bytes(content)
    with pytest.raises(InputError, match=STUDY):
        open_study(tmp_path, {"examples": 8})
