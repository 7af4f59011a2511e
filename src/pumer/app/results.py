"""Result files that hold speed and accuracy of the same model, as points of a plot; no file lends the other either."""

import io
import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from pumer.reducers import METHODS, config_to_dict, reduction_from
from pumer.tuning.card import AXES
from pumer.utils.errors import InputError
from pumer.utils.files import read_json

logger = logging.getLogger(__name__)

HERE = Path("benchmarks/results")
"""Where results are looked for, if no folder is given and there is this one, as in a clone of the repository."""
ACCENT = "#4f6bed"
FEWEST = 4
"""Points of a table of many models that are worth a plot."""
MOST_BYTES = 16 * 2**20
"""Larger files are no result files."""
_LARGEST = 1e9
"""Gains are below it."""
Spread = Mapping[str, float]
"""``median`` or ``mean``, ``low`` and ``high``."""


@dataclass(frozen=True)
class Point:
    """A model that was timed and tested; `InputError` for a name or a spread that is none.

    Attributes:
        name: of its reduction.
        gain: times as fast as unreduced: the median, and its quartiles.
        accuracy: the mean, and its 95% interval.
    """

    name: str
    gain: Spread
    accuracy: Spread

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise InputError(f"the name of a reduction is {self.name!r:.80}, not text")
        _check_spread("gain", self.gain, "median")
        _check_spread("accuracy", self.accuracy, "mean")


@dataclass(frozen=True)
class Curve:
    """Points that may be compared: one model and task, one machine, one batch size.

    Attributes:
        title: which model and task.
        about: how it was measured.
        axis: what the gain is.
        points: the unreduced model first.
    """

    title: str
    about: str
    axis: str
    points: tuple[Point, ...]

    @property
    def front(self) -> list[Point]:
        """The points that no other one beats in both, from the slowest on."""
        best, found = -1.0, []
        for point in sorted(self.points, key=lambda one: (-one.gain["median"], -one.accuracy["mean"])):
            if point.accuracy["mean"] > best:
                best = point.accuracy["mean"]
                found.append(point)
        return found[::-1]


_FASTER = "times as fast as unreduced"
Found = list[tuple[Path, Mapping[str, Any]]]
"""The content of result files, by their places in the folder."""
_COMPARED = ("model", "split", "image_size", "reduction")
"""Settings of an evaluation that are compared apart."""
_FILES = ("output", "per_example", "against", "submission", "scores", "force")
_WITHOUT_EFFECT = ("train", "batch_size", "workers", *_FILES)
"""Settings of an evaluation that change no answer."""


def curves(folder: Path) -> dict[str, Curve]:
    """What the result files of a folder, and of its folders, hold that can be plotted; malformed ones are left out.

    Args:
        folder: Is searched for JSON files; what is left out of a result file is logged as a warning.

    Returns:
        By title and place of the files, those with the most points first.
    """
    files: Found = []
    for path in sorted(folder.rglob("*.json")):
        try:
            content = read_json(path) if path.stat().st_size <= MOST_BYTES else None
        except (InputError, OSError) as error:
            logger.warning("left out: %s", error)
            continue
        if isinstance(content, Mapping):
            files.append((path.relative_to(folder), content))
    found: dict[str, Curve] = {}
    for path, content in files:
        with _leaving_out(path):
            made = [*_tuned(content), *_demonstrated(content), *_reproduced(content)]
            found |= {f"{curve.title} ({path})": curve for curve in made}
    found |= {f"{curve.title} ({places})": curve for curve, places in _joined(files)}
    return dict(sorted(found.items(), key=lambda each: -len(each[1].points)))


@contextmanager
def _leaving_out(path: Path) -> Iterator[None]:
    """Go on after a malformed result, which is named, and after files that are of another kind."""
    try:
        yield
    except InputError as error:
        logger.warning("left out: %s: %s", path, error)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        pass  # another file with such keys


def _check_spread(what: str, spread: Any, middle: str) -> None:
    """Refuse what a plot cannot show."""
    found: list[Any] = [spread.get(end) for end in ("low", middle, "high")] if isinstance(spread, Mapping) else []
    if not found or not all(type(x) in (int, float) and abs(x) < _LARGEST for x in found) or found != sorted(found):
        raise InputError(f"{what} is {spread!r:.80}; it must hold numbers low, {middle} and high, in rising order")


def _tuned(content: Mapping[str, Any]) -> Iterator[Curve]:
    """Of `pumer tune`."""
    if not {"rows", "unreduced", "calibration", "gauge"} <= content.keys():
        return
    whole = content["unreduced"]["accuracy"]
    points = [Point("unreduced", _exactly(1.0), _exactly(whole))]
    for name, row in content["rows"].items():
        lost, best = row["difference"], " (chosen)" * (name == content["best"])
        points.append(Point(name + best, row["gain"], {end: whole + lost[end] for end in ("mean", "low", "high")}))
    seen = content["calibration"]
    about = f"on the {seen['examples']} examples of {seen['split']} that it was tuned on, which are no test; intervals "
    about += "are of the difference to the unreduced model"
    axis = _FASTER if content["cost"] == "time" else AXES[content["cost"]]
    yield Curve(f"{content['what']}, {content['task']}", f"{about}; {_machine(content)}", axis, tuple(points))


def _demonstrated(content: Mapping[str, Any]) -> Iterator[Curve]:
    """Of `pumer demo`: a plot for each batch size."""
    if not {"rows", "questions", "title"} <= content.keys():
        return
    rows = [row for row in content["rows"] if row.get("speed")]
    for at, speed in enumerate(rows[0]["speed"]):
        points = (Point(row["name"], _gain(row, at, "original"), row["accuracy"]) for row in rows)
        about = f"on {content['questions']} questions of the built-in world; {_machine(content)}"
        yield Curve(f"{content['title']}, batch {speed['batch']}", about, _FASTER, tuple(points))


def _reproduced(content: Mapping[str, Any]) -> Iterator[Curve]:
    """Of `python -m benchmarks reproduce`: tables of many models of one kind on one task."""
    for table in content.get("tables", ()):
        cells = [row for row in table["rows"] if "tuned" in row and "accuracy" in (row["tuned"] or {})]
        for where in dict.fromkeys(row["where"] for row in cells):
            own = [row for row in cells if row["where"] == where]
            timed = [row for row in own if row["cost"]]
            measured = {(row["cost"]["batch"], row["cost"]["device"], row["cost"]["threads"]) for row in timed}
            first = [row for row in own if not row["changed"]]
            if len(timed) < FEWEST or len(measured) > 1 or len(first) != 1:
                continue
            ((batch, device, threads),) = measured
            points = [Point(first[0]["model"], _exactly(1.0), first[0]["tuned"]["accuracy"])]
            points += [Point(row["model"], row["cost"]["throughput"], row["tuned"]["accuracy"]) for row in timed]
            about = f"on {first[0]['tuned']['questions']} questions; batch {batch}, {_on(device, threads)}"
            yield Curve(f"{where}: {table['title']}", about, _FASTER, tuple(points))


def _joined(files: Found) -> Iterator[tuple[Curve, str]]:
    """Of `pumer benchmark` and `pumer evaluate`: the same model with the same reduction at the same image size.

    Evaluations belong together if they ask the same questions with the same settings, and hide no input of the model.
    """
    tested: dict[tuple[str, ...], dict[str, tuple[Path, Mapping[str, Any]]]] = defaultdict(dict)
    for path, content in files:
        with _leaving_out(path):
            config, key = content["config"], _key(content["reduction"])
            if config.get("blank") in ("image", "text"):
                continue
            _check_spread("accuracy", content["accuracy"], "mean")
            asked = f"{content['questions']} questions of {content['split']}{_settings(config)}"
            found = tested[content["model"], str(config["image_size"]), asked]
            found[key] = path, content["accuracy"]
            if config["reduction"] is None and content["reduction"]["method"] != "none":
                found["reduced"] = path, content["accuracy"]
    for path, content in files:
        with _leaving_out(path):
            config = content["provenance"]["config"]
            given = config["reductions"] or {}
            keys = {"unreduced": _key("none")} | {name: _key(value) for name, value in given.items() if _usable(value)}
            keys |= {} if given else {"reduced": "reduced"}
            for (model, size, asked), found in tested.items():
                rows = [row for row in content["rows"] if keys.get(row["name"]) in found]
                if (model, size) != (config["model"], str(config["image_size"])) or len(rows) < 2:
                    continue
                for at, speed in enumerate(rows[0]["speed"]):
                    measured = ((row["name"], _gain(row, at, "unreduced")) for row in rows)
                    points = tuple(Point(name, gain, found[keys[name]][1]) for name, gain in measured)
                    places = [path, *dict.fromkeys(found[keys[row["name"]]][0] for row in rows)]
                    title, about = f"{model}, batch {speed['batch']}", f"on {asked}; {_machine(content)}"
                    yield Curve(title, about, _FASTER, points), ", ".join(map(str, places))


def _settings(config: Mapping[str, Any]) -> str:
    """The settings of an evaluation that change its answers, where they are not the model's own."""
    given = {**config, **(config.get("data") or {})}
    others = {"data", *_COMPARED, *_WITHOUT_EFFECT}
    return "".join(f", {name}={x}" for name, x in sorted(given.items()) if x is not None and name not in others)


def _usable(reduction: Any) -> bool:
    """Whether a reduction of a benchmark is one that a model can have, unlike those that only measure limits."""
    return not isinstance(reduction, Mapping) or reduction.get("method") in METHODS


def _key(reduction: Any) -> str:
    return json.dumps(config_to_dict(reduction_from(reduction)), sort_keys=True)


def _gain(row: Mapping[str, Any], at: int, baseline: str) -> Any:
    """The speed-up of a row at one of its batch sizes; that of the baseline is 1."""
    return _exactly(1.0) if row["name"] == baseline else row["speed"][at].get("speedup")


def _exactly(value: float) -> Spread:
    return dict.fromkeys(("median", "mean", "low", "high"), value)


def _machine(content: Mapping[str, Any]) -> str:
    made = content["provenance"]
    return _on(made["device"], made["threads"])


def _on(device: str, threads: int) -> str:
    return f"{device}, {threads} thread{'s' * (threads != 1)}"


def plot(curve: Curve) -> str:
    """Accuracy against the gain as SVG, in the colour of the text around it; the front is a line."""
    fonts: Any = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9, "svg.hashsalt": "pumer"}
    with rc_context(fonts):
        figure = Figure(figsize=(5, 3.7), layout="constrained")
        axes = figure.add_subplot()
        for point in curve.points:
            _draw(axes, point, on_front=point in curve.front)
        front = [(point.gain["median"], 100 * point.accuracy["mean"]) for point in curve.front]
        axes.plot(*zip(*front, strict=True), color=ACCENT, linewidth=1.5, zorder=2)
        axes.set(xlabel=curve.axis, ylabel="accuracy, %")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#000000", alpha=0.12, linewidth=0.6)
        content = io.StringIO()
        figure.savefig(
            content, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    drawn = content.getvalue()
    return drawn[drawn.index("<svg") :].replace("#000000", "currentColor")


def _draw(axes: Any, point: Point, on_front: bool) -> None:
    x, y = point.gain["median"], 100 * point.accuracy["mean"]
    spread = [[x - point.gain["low"]], [point.gain["high"] - x]]
    interval = [[y - 100 * point.accuracy["low"]], [100 * point.accuracy["high"] - y]]
    colour = ACCENT if on_front else "#888888"
    style = {"color": colour, "elinewidth": 0.8, "markersize": 5, "zorder": 3 if on_front else 1}
    axes.errorbar(x, y, xerr=spread, yerr=interval, fmt="o", **style)


def table(curve: Curve) -> str:
    """The points as rows of HTML, those on the front marked."""
    rows = []
    for point in sorted(curve.points, key=lambda one: one.gain["median"]):
        gain, accuracy = point.gain, point.accuracy
        low, high = 100 * accuracy["low"], 100 * accuracy["high"]
        cells = f"<td>{gain['median']:.2f} <small>[{gain['low']:.2f}, {gain['high']:.2f}]</small></td>"
        cells += f"<td>{100 * accuracy['mean']:.1f} <small>[{low:.1f}, {high:.1f}]</small></td>"
        mark = ' class="front"' if point in curve.front else ""
        rows.append(f"<tr{mark}><td>{escape(point.name)}</td>{cells}</tr>")
    heads = f"<th>reduction</th><th>{escape(curve.axis)} [quartiles]</th><th>accuracy, % [95%]</th>"
    head, body = f"<thead><tr>{heads}</tr></thead>", f"<tbody>{''.join(rows)}</tbody>"
    return f'<table class="points">{head}{body}</table>'
