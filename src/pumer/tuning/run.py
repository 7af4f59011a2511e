"""`pumer tune`: the schedule that loses least at a cost, for one model, one task and the machine at hand."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from pumer.checkpoint import TRAINING_RECORD, save, trained_with
from pumer.evaluation.generation import GenerativeSession, open_session
from pumer.evaluation.spread import states, versions
from pumer.evaluation.statistics import bootstrap
from pumer.evaluation.summary import sources_of
from pumer.patching import patch
from pumer.profiling.prompt_planning import MIB
from pumer.reducers import NoReduction, ReductionConfig, config_from_dict, config_to_dict
from pumer.settings.tune import TuneConfig
from pumer.tasks import Example, Retrieval
from pumer.tasks.fingerprint import weights_fingerprint
from pumer.tasks.session import Session
from pumer.tuning import card
from pumer.tuning.calibration import Calibration
from pumer.tuning.costs import MARGIN, Gauge, Table, meeting
from pumer.tuning.machine import UNREDUCED, Machine
from pumer.tuning.search import Search, best_shapes, finished, open_study
from pumer.tuning.space import PAPER, STRONGEST, Shape, Space
from pumer.utils.errors import InputError
from pumer.utils.files import write_bytes, write_json, write_text
from pumer.utils.locks import exclusive
from pumer.utils.progress import progress_bar
from pumer.utils.provenance import collect, device_name
from pumer.utils.shipped import name_of

logger = logging.getLogger(__name__)

RESULT, PLOT = "tuning.json", "pareto.png"
FINALISTS = 3
SEARCHED = 2.0
"""Where the budget is accuracy: the gain at which shapes are compared, or a little below the most that is possible."""
LADDER = (1.25, 1.5, 2.0, 2.5, 3.0)
"""Gains at which the best shape is measured for the front."""
PROBED = (0.15, 0.35)
"""Strengths at which the shapes that are tried first are planned and timed."""
GAUGE = "gauge"


@exclusive
def run(config: TuneConfig, console: Console | None = None) -> dict[str, Any]:
    """Search, measure the best, and write the model with its schedule; what is done already is not done again.

    Args:
        config: What to tune for.
        console: Where the table goes; the terminal by default.

    Returns:
        The content of ``tuning.json``. ``rows`` by the schedule's name, and which of them is ``best``: ``reduction``,
        ``loss`` (divergence in nats), ``agreement``, ``accuracy`` and its paired ``difference`` to the unreduced model,
        ``gain`` (times cheaper, median and quartiles), where time is measured ``seconds`` of a forward, ``planned``
        (MACs, or bytes of the cache, times fewer), ``estimated`` and ``met``. ``fronts``: the chosen shape and the
        paper's layers at other strengths. Beside them all ``trials``, what was asked for, ``unreduced`` (its cost in
        seconds, MACs or bytes when the search began), ``gauge`` and ``provenance``.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    tuning = _Tuning(config)
    tuning.search()
    result = tuning.result()
    tuning.write(result)
    (console or Console()).print(card.tables(result))
    return result


class _Tuning:
    """A model with its calibration examples, its study and its costs."""

    def __init__(self, config: TuneConfig) -> None:
        self.config = config
        self.session = _session(config)
        examples = self._examples()
        ((self.budget, self.amount),) = config.budget.given.items()
        if self.budget == "memory" and not isinstance(self.session, GenerativeSession):
            raise InputError(
                "budget.memory is for the cache of models that generate; the peak of a forward is its first layers', "
                "which no reduction shortens: give budget.speedup"
            )
        counted: Any = "cache" if self.budget == "memory" else "macs"
        self.timed = config.cost == "time" and counted == "macs"
        self.machine = Machine.of(self.session, examples, config.timed_batch, counted)
        self.space = Space.of(self.session.model, self.machine.path.tokens, config.methods)
        self.seeds = self.space.seeds(self.session.task.name)
        self.study = open_study(config.out, self._key(examples))
        self.gauge, self.unreduced, self.planned = self._gauge()
        self.target = self._target()
        self.calibration = Calibration(self.session, examples, config.batch_size)
        self.sources = sources_of(self.calibration.examples)
        self.before = self._scores(NoReduction())

    def _examples(self) -> list[Example]:
        config, session = self.config, self.session
        if session.root is None:
            raise InputError(f"{name_of(config.model)} has no record of its training data; give data.root=FOLDER")
        if isinstance(session.task, Retrieval):
            raise InputError(f"task {session.task.name} ranks candidates; tune a model of vqav2, nlvr2 or snli_ve")
        examples = session.task.read(session.root, config.data.split)[-config.examples :]
        if not examples[0].answers:
            raise InputError(f"split {config.data.split} has no public answers; give data.split=train")
        return examples

    def _key(self, examples: Sequence[Example]) -> dict[str, Any]:
        """What the trials depend on; the error about another tuning names the first that differs."""
        config = self.config
        read = json.dumps([[each.id, each.text, each.answers, *_images(each)] for each in examples])
        names = (
            "cost",
            "examples",
            "batch_size",
            "timed_batch",
            "pairs",
            "threads",
            "seed",
            "image_size",
            "text_length",
        )
        return {
            "task": self.session.task.name,
            "device": device_name() if config.cost == "time" else "any",  # kept times are of one machine
            "dtype": str(self.session.model.dtype),
            "versions": ", ".join(versions()),
            **{f"budget.{name}": value for name, value in config.budget.given.items()},
            **{name: getattr(config, name) for name in (*names, "resize", "prompt", "max_new_tokens")},
            "methods": list(self.space.methods),
            "data.split": config.data.split,
            "calibration": hashlib.sha256(read.encode()).hexdigest()[:16],
            "weights": weights_fingerprint(self.session.model)[:16],
        }

    # Cost

    def _gauge(self) -> tuple[Gauge, float, float]:
        """How cost is known before it is measured, and the unreduced model's: as measured, and as planned."""
        kept = self.study.user_attrs.get(GAUGE)
        if kept is None:
            kept = self._probed()
            self.study.set_user_attr(GAUGE, kept)
        table = Table(kept["weights"], kept["constant"])
        parts = (kept[name] for name in ("follows", "each", "token"))
        return Gauge(self.machine.path, table, *parts), kept["unreduced"], kept["planned"]

    def _probed(self) -> dict[str, Any]:
        logger.info("planning%s a few schedules", " and timing" * self.timed)
        probes = [self.space.config(shape, strength) for shape in self.seeds.values() for strength in PROBED]
        found = []
        for config in (NoReduction(), *probes):
            values, whole = self.machine.planned(config)
            found.append((list(self.machine.path.rows(config)), values, whole))
        gauge, planned, error = Gauge(self.machine.path, Table.fit(found)), found[0][2], 0.0
        unreduced = planned
        if self.timed:
            named = {str(number): config for number, config in enumerate(probes)}
            measured = self.machine.timed(named, self.config.pairs)
            shares = [(config, 1 / measured[name]["speedup"]["median"]) for name, config in named.items()]
            gauge, unreduced = gauge.fitted(shares), measured[UNREDUCED]["seconds"]["median"]
            error = gauge.error(shares)
        kept = asdict(gauge.table) | {name: getattr(gauge, name) for name in ("follows", "each", "token")}
        return kept | {"unreduced": unreduced, "planned": planned, "error": error}

    def _target(self) -> float:
        """The gain that every trial has to reach."""
        if self.budget == "accuracy_drop":
            return max(1.0, min(SEARCHED, 0.9 * self._most()))
        if self.budget == "speedup":
            return self.amount
        own, unit = (self.unreduced / MIB, "MiB") if self.budget == "memory" else (1e3 * self.unreduced, "ms")
        if own <= self.amount:
            given = f"budget.{self.budget}={self.amount}"
            raise InputError(f"{given}, but the unreduced model takes {own:.4g} {unit} already; give less")
        return own / self.amount

    def _most(self) -> float:
        """The gain, as estimated, of the shape that is tried first and gains most."""
        return max(self._strongest(shape) for shape in self.seeds.values())

    def _strongest(self, shape: Shape) -> float:
        return self.gauge(self.space.config(shape, STRONGEST))

    def _gains(self, configs: Mapping[str, ReductionConfig]) -> dict[str, dict[str, Any]]:
        """By name ``gain`` and, where time is measured, ``seconds``, in turn with the unreduced model.

        Each has ``median``, ``low`` and ``high``.
        """
        if not self.timed:
            fewer = {name: self._fewer(config) for name, config in configs.items()}
            return {name: {"gain": dict.fromkeys(("median", "low", "high"), gain)} for name, gain in fewer.items()}
        measured = self.machine.timed(configs, self.config.pairs) if configs else {}
        return {name: {"gain": measured[name]["speedup"], "seconds": measured[name]["seconds"]} for name in configs}

    def _share(self, measured: Mapping[str, Any]) -> float:
        """What a measured schedule reaches of the budget; 1 or more meets it."""
        if self.budget == "latency_ms":
            return float(self.amount / (1e3 * measured["seconds"]["median"]))
        return float(measured["gain"]["median"] / self.target)

    def _reached(self, configs: Mapping[str, ReductionConfig], spare: float) -> dict[str, float]:
        """What schedules, measured now, reach of a budget that is ``spare`` times stricter."""
        return {name: self._share(measured) / spare for name, measured in self._gains(configs).items()}

    def _fewer(self, config: ReductionConfig) -> float:
        """How many times less a schedule costs as planned."""
        return self.planned / self.machine.planned(config)[1]

    # Loss

    def _loss(self, config: ReductionConfig, number: int) -> dict[str, float]:
        """Means over a batch: divergence, share of answers that stay, and accuracy where it is known at once."""
        change, start = self.calibration.change(config, number), sum(self.calibration.sizes[:number])
        found = {"loss": float(change.divergence.double().mean()), "agreement": float(change.same.double().mean())}
        if change.answers:
            asked = self.calibration.examples[start : start + len(change.answers)]
            found["accuracy"] = float(self.session.task.scores(asked, change.answers).mean())
        return found

    def _scores(self, config: ReductionConfig, known: Sequence[str] = ()) -> list[float]:
        """Scores of all calibration examples, of answers that are known or are asked for."""
        answers = known or self.calibration.answers(config)
        found: list[float] = self.session.task.scores(self.calibration.examples, answers).tolist()
        return found

    def _measured(self, config: ReductionConfig) -> dict[str, Any]:
        """What a schedule changes on all calibration examples."""
        sizes, batches = self.calibration.sizes, range(len(self.calibration.sizes))
        changes = [self.calibration.change(config, number) for number in batches]
        known = [answer for change in changes for answer in change.answers]
        scores = self._scores(config, known)
        difference = [after - before for after, before in zip(scores, self.before, strict=True)]
        return {
            "reduction": config_to_dict(config),
            "loss": sum(float(each.divergence.double().sum()) for each in changes) / sum(sizes),
            "agreement": sum(int(each.same.sum()) for each in changes) / sum(sizes),
            "accuracy": sum(scores) / len(scores),
            "difference": bootstrap(difference, self.sources),
        }

    # The search and what it found

    def search(self) -> None:
        """Try schedules until time is up."""
        config = self.config
        with progress_bar() as bar:
            shown = bar.add_task("tune", total=config.trials, note="")

            def tick(done: int, best: float) -> None:
                bar.update(shown, completed=done, note=f"best divergence {best:.4f}")

            schedule = partial(self._at, gain=self.target)
            found = Search(self.space, self.seeds, schedule, self._loss, self.calibration.sizes, config.seed)
            found.run(self.study, config.trials, 60 * config.minutes, tick)
        if not finished(self.study):
            raise InputError(
                f"no schedule that was tried reaches budget.{self.budget}={self.amount}; those tried first reach "
                f"{self._most():.2f}x at most: give a weaker budget, or more trials"
            )

    def result(self) -> dict[str, Any]:
        """Measure the best shapes, and those of the paper's layers beside them."""
        paper, shapes = self.seeds.get(PAPER), dict[str, Shape]()
        for trial in best_shapes(self.study, FINALISTS):
            shapes[PAPER if trial.params == paper else f"trial {trial.number}"] = dict(trial.params)
        if paper is not None:
            shapes.setdefault(PAPER, paper)
        logger.info("measuring %d schedules", len(shapes))
        rows = self._finalists(shapes)
        best = self._best(rows)
        fronts = {name: self._front(shapes[name], rows[name]) for name in dict.fromkeys((best, PAPER)) if name in rows}
        kept = self.study.user_attrs[GAUGE]
        return {
            "what": name_of(self.config.model),
            "task": self.session.task.name,
            "budget": {self.budget: self.amount},
            "cost": "cache" if self.budget == "memory" else self.config.cost,
            "target": None if self.budget == "accuracy_drop" else self.target,
            "unreduced": {"cost": self.unreduced, "accuracy": sum(self.before) / len(self.before)},
            "calibration": {"split": self.config.data.split, "examples": len(self.before)},
            "example": {"text_tokens": self.machine.path.text, "image_tokens": list(self.machine.path.images)},
            "best": best,
            "rows": rows,
            "fronts": fronts,
            "gauge": {name: kept[name] for name in ("follows", "each", "token", "error")},
            "trials": [_trial(trial) for trial in self.study.get_trials(deepcopy=False)],
            "provenance": collect(self.config, str(self.session.model.dtype).removeprefix("torch.")),
        }

    def _finalists(self, shapes: Mapping[str, Shape]) -> dict[str, dict[str, Any]]:
        """Shapes at the strength that meets the budget when it is measured; those that cannot are left out.

        The measurements that choose schedules are not those that are reported: of several that scatter, the one that
        is chosen by is too good.
        """
        if self.budget == "accuracy_drop":
            weak = {name: config for name, shape in shapes.items() if (config := self._affordable(shape)) is not None}
            first = self._gains(weak)
            chosen = {name: weak[name] for name in sorted(weak, key=lambda name: -first[name]["gain"]["median"])}
        else:
            aiming = {name: partial(self._at, shape) for name, shape in shapes.items()}
            spare = MARGIN if self.timed else 1.0
            chosen = meeting(aiming, partial(self._reached, spare=spare), spare * self.target)
        rows = {}
        for name, measured in self._gains(chosen).items():
            config = chosen[name]
            planned = self._fewer(config) if self.timed else measured["gain"]["median"]
            about = {"planned": planned, "estimated": self.gauge(config)}
            about["met"] = self.budget == "accuracy_drop" or self._share(measured) >= 1
            rows[name] = self._measured(config) | measured | about
        for name in shapes.keys() - rows.keys():
            logger.warning("%s cannot meet the budget, and is left out", name)
        return rows

    def _at(self, shape: Shape, gain: float) -> ReductionConfig | None:
        return self.space.at(shape, gain, self.gauge)

    def _affordable(self, shape: Shape) -> ReductionConfig | None:
        """The strongest schedule of a shape, to a fiftieth, that loses no more accuracy than allowed."""
        low, high, found = 1.0, self._strongest(shape), None
        while high / low > 1.02:
            middle = (low * high) ** 0.5
            config = self._at(shape, middle)
            if config is not None and sum(self.before) - sum(self._scores(config)) <= self.amount * len(self.before):
                low, found = middle, config
            else:
                high = middle
        return found

    def _best(self, rows: Mapping[str, Mapping[str, Any]]) -> str:
        if not rows:
            raise InputError(f"no schedule that was tried meets budget.{self.budget}={self.amount}; give a weaker one")
        if self.budget == "accuracy_drop":
            return next(iter(rows))
        met = [name for name in rows if rows[name]["met"]]
        if not met:
            logger.warning("no schedule reached the budget when it was measured; the nearest is kept")
            return max(rows, key=lambda name: rows[name]["gain"]["median"])
        return min(met, key=lambda name: rows[name]["loss"])

    def _front(self, shape: Shape, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """A shape at other strengths; gains are estimated, and corrected by how far off the estimate was for `row`."""
        factor, found = row["gain"]["median"] / row["estimated"], []
        for aim in LADDER:
            config = self._at(shape, aim / factor)
            if config is not None:
                found.append(self._measured(config) | {"estimated": self.gauge(config) * factor})
        return found

    def write(self, result: Mapping[str, Any]) -> None:
        """Write the model with the best schedule, its card, the plot and the result."""
        out, session = self.config.out, self.session
        recorded = trained_with(self.config.model)
        patch(session.model, config_from_dict(result["rows"][result["best"]]["reduction"]))
        save(session.model, out)
        session.processor.save_pretrained(out)
        settings = recorded | {
            "task": session.task.name,
            "data": recorded.get("data", {}) | {"root": str(session.root)},
        }
        given = {"text_length": self.config.text_length, "resize": self.config.resize}
        settings |= {name: value for name, value in given.items() if value is not None}
        write_json(out / TRAINING_RECORD, {"tuned_from": result["what"], "config": settings})
        write_bytes(out / PLOT, card.plot(result))
        write_text(out / "README.md", card.card(result))
        write_json(out / RESULT, result)


def _session(config: TuneConfig) -> Session | GenerativeSession:
    found = open_session(
        config.model,
        config.task,
        prompt=config.prompt,
        max_new_tokens=config.max_new_tokens,
        root=config.data.root,
        text_length=config.text_length,
        resize=config.resize,
        image_size=config.image_size,
        reduction="none",
    )
    assert isinstance(found, Session | GenerativeSession)  # no exported model: `TuneConfig.check_places`
    return found


def _images(example: Example) -> list[tuple[str, int, int]]:
    """Name, size and time of an example's image files."""
    return [(Path(file).name, size, time) for file, size, time in states(example.files)]


def _trial(trial: Any) -> dict[str, Any]:
    """A trial as plain data."""
    return {"number": trial.number, "state": trial.state.name.lower(), "shape": trial.params, **trial.user_attrs}
