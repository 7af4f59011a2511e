"""The search: Optuna's study in a file, every trial at the same cost, cut short where it falls behind."""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from pumer.reducers import ReductionConfig, config_to_dict
from pumer.settings.tune import STUDY
from pumer.tuning.space import Shape, Space
from pumer.utils.errors import InputError
from pumer.utils.files import write_bytes

NAME = "pumer tune"
KEY, SEED = "key", "seed_name"
STARTUP = 12
"""Trials before the search learns from them."""
MOST = 5
"""Suggestions, for each trial that is asked for: shapes may be unable to meet a budget, or give the same schedule."""
KEPT, LEAST = 50.0, 8
"""A trial goes on if it is among so many percent of those that came to the end, once there are so many of them."""

Loss = Callable[[ReductionConfig, int], Mapping[str, float]]
"""From a schedule and the number of a batch to `loss` and whatever else is measured, means over the batch."""


def open_study(folder: Path, key: Mapping[str, Any]) -> Any:
    """The study in a folder; a new one, or the one that an earlier run with the same key has begun.

    Args:
        folder: Is made if it is not there.
        key: What trials depend on.

    Raises:
        InputError: If Optuna is missing, and for a study with another key; it names what differs.
    """
    optuna = _optuna()
    folder.mkdir(parents=True, exist_ok=True)
    journal = import_module("optuna.storages.journal")
    file = folder / STUDY
    _cut(file)
    try:
        storage = optuna.storages.JournalStorage(journal.JournalFileBackend(str(file), lock_obj=_NoLock()))
        study = _study(optuna, storage)
        before = study.user_attrs.get(KEY, key)
        differing = [name for name, value in key.items() if before.get(name) != value]
        if differing and not finished(study):  # nothing is lost
            optuna.delete_study(study_name=NAME, storage=storage)
            study, differing = _study(optuna, storage), []
    except OSError:
        raise
    except Exception as error:  # broken files are not checked: anything can come up
        raise InputError(f"{file} is no record of a tuning; remove it, or give another folder") from error
    if differing:
        name = differing[0]
        raise InputError(
            f"{folder} holds a tuning with {name} {before.get(name)}, not {key[name]}; give another folder, or the "
            "same settings"
        )
    study.set_user_attr(KEY, dict(key))
    return study


def _study(optuna: Any, storage: Any) -> Any:
    pruner = optuna.pruners.PercentilePruner(KEPT, n_startup_trials=LEAST, n_min_trials=LEAST)
    return optuna.create_study(storage=storage, study_name=NAME, load_if_exists=True, pruner=pruner)


@dataclass(frozen=True)
class Search:
    """Tries schedules; a trial that was interrupted is run again.

    What is tried next follows from the trials before alone, so that a search that was interrupted ends as one that was
    not.

    Attributes:
        space: What is suggested.
        seeds: Shapes that are tried first, by name.
        schedule_of: From a shape to a schedule that meets the budget, or None.
        loss: What is minimised.
        sizes: Examples of each batch.
        seed: Of the search.
    """

    space: Space
    seeds: Mapping[str, Shape]
    schedule_of: Callable[[Shape], ReductionConfig | None]
    loss: Loss
    sizes: Sequence[int]
    seed: int = 0

    def run(
        self, study: Any, trials: int, seconds: float, tick: Callable[[int, float], None] = lambda *_: None
    ) -> None:
        """Go on until there are enough trials, or time is up.

        Args:
            study: Of `open_study`.
            trials: Schedules that shall be measured, those of earlier runs counted.
            seconds: No trial starts once all together took so many.
            tick: Called after every trial with the number of measured ones and the best loss.
        """
        optuna = _optuna()
        named = {trial.user_attrs.get(SEED) for trial in study.get_trials(deepcopy=False)}
        for name, shape in self.seeds.items():
            if name not in named:
                study.enqueue_trial(dict(shape), user_attrs={SEED: name})
        while True:
            known = study.get_trials(deepcopy=False)
            over = [trial for trial in known if trial.state.is_finished()]
            taken = [trial.user_attrs["seconds"] for trial in over if "seconds" in trial.user_attrs]
            best = finished(study)
            tick(len(taken), best[0].value if best else float("nan"))
            if len(taken) >= trials or len(over) >= MOST * trials or sum(taken) >= seconds:
                return
            study.sampler = _sampler(optuna, self.seed + len(over))
            begun = [trial for trial in known if trial.state == optuna.trial.TrialState.RUNNING]
            trial = optuna.trial.Trial(study, begun[0]._trial_id) if begun else study.ask()
            value = self._measure(study, trial)
            state = optuna.trial.TrialState.PRUNED if value is None else optuna.trial.TrialState.COMPLETE
            study.tell(trial, value, state=state)

    def _measure(self, study: Any, trial: Any) -> float | None:
        """The loss of a trial; None where it was not measured to the end."""
        started, config = time.monotonic(), self.schedule_of(self.space.suggest(trial))
        if config is None:
            trial.set_user_attr("unable", True)
            return None
        reduction = config_to_dict(config)
        trial.set_user_attr("reduction", reduction)
        if (same := _measured(study, reduction)) is not None:
            known = {name: value for name, value in same.user_attrs.items() if name not in ("seconds", SEED)}
            for name, value in (known | {"repeats": same.number}).items():
                trial.set_user_attr(name, value)
            for step, value in same.intermediate_values.items():
                _report(trial, value, step)
            return same.value if same.state.name == "COMPLETE" else None
        totals: dict[str, float] = {}
        means: dict[str, float] = {}
        seen, looked, whole = 0, 0, sum(self.sizes)
        for number, size in enumerate(self.sizes):
            for name, mean in self.loss(config, number).items():
                totals[name] = totals.get(name, 0.0) + mean * size
            seen += size
            if seen < min(2 * looked, whole):
                continue
            looked, means = seen, {name: total / seen for name, total in totals.items()}
            _report(trial, means["loss"], seen)
            if seen < whole and trial.should_prune():
                break
        for name, value in (means | {"examples": seen, "seconds": time.monotonic() - started}).items():
            trial.set_user_attr(name, value)
        return means["loss"] if seen == whole else None


def _report(trial: Any, value: float, step: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an interrupted trial reports again what it reported before
        trial.report(value, step=step)


def _measured(study: Any, reduction: Mapping[str, Any]) -> Any:
    """A finished trial of the same schedule; None if there is none."""
    known = (trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished())
    return next((trial for trial in known if trial.user_attrs.get("reduction") == reduction), None)


def finished(study: Any) -> list[Any]:
    """The trials that saw all examples, the best first."""
    state = _optuna().trial.TrialState
    whole = study.get_trials(deepcopy=False, states=(state.COMPLETE,))
    return sorted(whole, key=lambda trial: (trial.value, trial.number))


def best_shapes(study: Any, most: int) -> list[Any]:
    """The best trials whose schedules differ, at most so many."""
    found: dict[str, Any] = {}
    for trial in finished(study):
        found.setdefault(str(trial.user_attrs["reduction"]), trial)
    return list(found.values())[:most]


class _NoLock:
    """In place of Optuna's lock, which a killed process would leave behind: the folder is locked already."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _cut(file: Path) -> None:
    """Remove a last line that was not written to its end."""
    if file.is_file() and not (content := file.read_bytes()).endswith(b"\n"):
        write_bytes(file, content[: content.rfind(b"\n") + 1])


def _sampler(optuna: Any, seed: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that grouping is experimental
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, n_startup_trials=STARTUP)


def _optuna() -> Any:
    try:
        optuna = import_module("optuna")
    except ImportError as error:
        raise InputError("pumer tune needs optuna; install it: pip install 'pumer[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
