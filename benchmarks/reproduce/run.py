"""`python -m benchmarks reproduce`: run what is missing, and report what is there."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from benchmarks.reproduce.collect import collect_table
from benchmarks.reproduce.commands import Commands, Runner, cores
from benchmarks.reproduce.parallel import Watch, run_at_once
from benchmarks.reproduce.places import without_places
from benchmarks.reproduce.report import REPORT, goals, write
from benchmarks.reproduce.settings import ReproduceConfig, known
from benchmarks.reproduce.setup import PUMER, RULE, Setup
from benchmarks.reproduce.steps import steps
from benchmarks.reproduce.tables import Table, chosen, tables
from benchmarks.reproduce.update import measured_pairs, read_results, updated
from pumer.checkpoint import model_class
from pumer.demo.stages import Record, Stage, finished
from pumer.settings.train import TrainConfig
from pumer.utils.config import load
from pumer.utils.errors import InputError
from pumer.utils.files import read_json, write_json
from pumer.utils.locks import only_one
from pumer.utils.provenance import collect
from pumer.utils.shipped import SMALL, recipe_file

SMOKE_STEPS = "max_steps=2"
_ASKED = "asked.json"


def setup_of(config: ReproduceConfig, runner: Runner) -> Setup:
    """A reproduction for its steps."""
    here = {"world": "2x4" if config.smoke else "50x20", "full": "all"}
    galleries = config.galleries or here[config.scale]
    return Setup(
        out=config.out,
        runner=runner,
        scale=config.scale,
        data=config.data,
        recipes=config.recipes,
        starts=config.starts,
        trained=config.trained,
        galleries=None if galleries == "all" else galleries,
        settings=(*config.settings, *([SMOKE_STEPS] if config.smoke else [])),
        tiny=config.smoke,
        batch=2 if config.smoke else config.batch,
        pairs=2 if config.smoke else 20,
        threads=(max(1, cores() // config.jobs), cores()),
    )


class Reproduction:
    """The tables that were asked for, and their steps."""

    def __init__(self, config: ReproduceConfig, runner: Runner | None = None) -> None:
        """Plan.

        Args:
            config: what.
            runner: runs commands; by default as processes of their own.

        Raises:
            InputError: for names of tables and cells that do not exist, for folders that are not there, for settings
                that no training has, and for a folder for results that holds something else.
        """
        self.commands = Commands()
        config.check_places()
        self.config, self.setup = config, setup_of(config, runner or self.commands.run)
        self.known = tables(self.setup, config.seeds)
        known("table", config.only, self.known)
        self.tables: list[Table] = chosen(self.known, config.only, config.cells)
        if not any(table.rows for table in self.tables):
            raise InputError(f"{', '.join(config.only)}: no row of these tables is about {', '.join(config.cells)}")
        first = self.tables[0].rows[0].cell
        load(TrainConfig, recipe_file(self.setup.recipe(first.backbone, first.task, PUMER)), list(config.settings))
        for checkpoint in {*config.starts.values(), *config.trained.values()}:
            model_class(checkpoint)  # refused now, not when its turn comes
        self.before()
        self.steps: list[Stage] = steps(self.tables, self.setup)
        self.records = config.out / "steps"

    def done(self) -> dict[str, Record]:
        """Records of the finished steps."""
        return finished(self.steps, self.records)

    def show(self, console: Console) -> None:
        """Every step, done or missing, with the seconds it took or an estimate from those that are done."""
        done = self.done()
        estimates = estimate(self.steps, done)
        for step in self.steps:
            record, guess = done.get(step.name), estimates.get(step.name)
            missing = "missing" + ("" if guess is None else f", about {_minutes(guess)}")
            state = f"done in {_minutes(record['seconds'])}" if record else missing
            console.print(f"{state:28} {step.title}", highlight=False, soft_wrap=True)
        left = [step for step in self.steps if step.name not in done]
        known = [estimates[step.name] for step in left if step.name in estimates]
        note = f"{len(done)} of {len(self.steps)} done"
        if known:
            note += f"; {len(known)} of the {len(left)} others take about {_minutes(sum(known))}, one after the other"
        console.print(note, highlight=False)

    def run(self, console: Console) -> dict[str, Exception]:
        """Do what is missing; what failed, by step."""
        with _Progress(self, console) as progress:
            watch = Watch(progress.started, progress.ended, self.commands.stop)
            return run_at_once(self.steps, self.records, self.config.jobs, watch)

    def shown(self) -> list[Table]:
        """The tables of the report: what was asked for, now and in earlier runs in this folder."""
        before = _asked(self.config.out).get("tables", {})
        asked = {name: set(pairs) for name, pairs in before.items() if name in self.known}
        for table in self.tables:
            asked.setdefault(table.name, set()).update(table.pairs)
        return [table.of(asked[name]) for name, table in self.known.items() if name in asked]

    def remember(self) -> None:
        """Note what was asked for.

        Raises:
            InputError: when the report cannot be written because data of an earlier run is missing, and in the folder
                of a run with other settings of all trainings, whose models this one would remove.
        """
        config, shown = self.config, self.shown()
        trial = {"smoke": config.smoke, "settings": list(config.settings)}
        other = {name: value for name, value in _asked(config.out).items() if trial.get(name, value) != value}
        if other:
            told = ", ".join(f"{name}={value}, not {trial[name]}" for name, value in other.items())
            raise InputError(f"{config.out} holds a run with {told}; give another --out")
        steps(shown, self.setup)
        config.out.mkdir(parents=True, exist_ok=True)
        pairs = {table.name: sorted(table.pairs) for table in shown}
        write_json(config.out / _ASKED, {"tables": pairs, **trial})

    def before(self) -> Mapping[str, Any] | None:
        """What the folder for results has of earlier runs.

        Raises:
            InputError: when it holds something else.
        """
        return None if self.config.results is None else read_results(self.config.results, self.config.scale)

    def report(self) -> dict[str, Any]:
        """Write the report of what is finished; returns the results."""
        config, before = self.config, self.before()
        shown = self.shown()
        stages = steps(shown, self.setup)
        done = finished(stages, self.records)
        collected = [collect_table(table, done, self.setup) for table in shown]
        run = {
            "of": {table["name"]: pairs for table in collected if (pairs := measured_pairs(table))},
            "steps": {"done": len(done), "all": len(stages)},
            "machines": {"Tested on": _machines(done, "test/"), "Timed on": _machines(done, "benchmark/")},
            "commits": _commits(done),
            "rule": RULE,
            "provenance": collect(config),
        }
        title = f"The paper's tables, {'on the built-in world' if config.scale == 'world' else 'full size'}"
        results = {"title": title, "scale": config.scale, "tables": collected, "runs": [run]}
        results = without_places(results, self._places())
        write(results, config.out)
        if config.results is not None:
            order = {name: list(dict.fromkeys(row.pair for row in table.rows)) for name, table in self.known.items()}
            write(updated(before, results, order) if before else results, config.results)
        return results

    def _places(self) -> dict[Path, str]:
        """What the folders of this machine are called in the report."""
        config = self.config
        places = {config.out: "out/reproduce", SMALL["small:vilt"].parent: "src/pumer/assets"}
        places |= {config.recipes: "recipes"} if config.recipes else {}
        places |= {config.data: "data"} if config.data else {}
        return places | ({config.results: "results"} if config.results else {})


def run(config: ReproduceConfig, console: Console, collect_only: bool = False, list_only: bool = False) -> None:
    """Run, or list, or only report.

    Raises:
        InputError: for whatever the user can correct; after all other steps are done, for steps that failed.
    """
    reproduction = Reproduction(config)
    if list_only:
        reproduction.show(console)
        return
    if collect_only:
        failures: dict[str, Exception] = {}
    else:
        with only_one(config.out):
            reproduction.remember()
            failures = reproduction.run(console)
    results = reproduction.report()
    for sentence in goals(results):
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    console.print(f"report: {config.out / REPORT}", highlight=False, soft_wrap=True)
    if failures:
        name, reason = next(iter(failures.items()))
        raise InputError(f"{len(failures)} steps failed; {name}: {reason}")


def _asked(out: Path) -> dict[str, Any]:
    """What was asked for before: `tables` with their pairs of backbone and task, `smoke` and `settings`."""
    file = out / _ASKED
    return dict(read_json(file)) if file.is_file() else {}


def estimate(stages: Sequence[Stage], done: Mapping[str, Record]) -> dict[str, float]:
    """Seconds that missing steps will take, from finished ones of the same kind on the same backbone and task."""
    alike: dict[str, list[float]] = defaultdict(list)
    for name, record in done.items():
        alike[_kind(name)].append(record["seconds"])
    missing = [stage.name for stage in stages if stage.name not in done]
    return {name: statistics.median(alike[_kind(name)]) for name in missing if alike.get(_kind(name))}


def _kind(name: str) -> str:
    """Of "train/vilt/nlvr2/original/seed0" the first three."""
    return "/".join(name.split("/")[:3])


def _machines(done: Mapping[str, Record], kind: str) -> list[str]:
    """Where the steps of a kind ran."""
    where = [record["result"]["provenance"] for name, record in done.items() if name.startswith(kind)]
    return sorted({f"{ran['device']}, {ran['threads']} threads, {ran['dtype']}" for ran in where})


def _commits(done: Mapping[str, Record]) -> dict[str, int]:
    """How many steps each version of the code ran, of those that say so."""
    where = [record["result"]["provenance"]["commit"] for record in done.values() if "provenance" in record["result"]]
    return dict(Counter(str(commit)[:7] + "+changes" * ("+" in str(commit)) for commit in where).most_common())


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


class _Progress:
    """One line per running step and one for all; a line that stays for every step that ended."""

    def __init__(self, reproduction: Reproduction, console: Console) -> None:
        done = reproduction.done()
        self.total, self.ready = len(reproduction.steps), len(done)
        self.estimates = estimate(reproduction.steps, done)
        self.lines: dict[str, TaskID] = {}
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
        )
        self.bar = Progress(*columns, console=console, transient=True, refresh_per_second=2)
        self.all = self.bar.add_task("all steps", total=self.total, completed=self.ready, note=self.count)

    @property
    def count(self) -> str:
        return f"{self.ready}/{self.total}"

    def __enter__(self) -> "_Progress":
        self.bar.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self.bar.stop()

    def started(self, stage: Stage) -> None:
        guess = self.estimates.get(stage.name)
        note = "" if guess is None else f"of about {_minutes(guess)}"
        self.lines[stage.name] = self.bar.add_task(stage.title, total=None, note=note)

    def ended(self, stage: Stage, outcome: Record | BaseException) -> None:
        self.bar.remove_task(self.lines.pop(stage.name))
        if isinstance(outcome, BaseException):
            told = f"failed: {outcome}"
        else:
            self.ready, told = self.ready + 1, _minutes(outcome["seconds"])
            self.bar.update(self.all, completed=self.ready, note=self.count)
        self.bar.console.print(f"{self.count} {stage.title}: {told}", highlight=False, markup=False, soft_wrap=True)
