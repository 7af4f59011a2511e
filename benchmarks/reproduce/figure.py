"""Figure 5: accuracy against throughput of all methods, fine-tuned and not."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.reproduce.equal_speed import LEADING, front

matplotlib.rcParams["svg.hashsalt"] = "pumer"  # the same figures make the same file
matplotlib.rcParams["svg.fonttype"] = "none"
_MARKERS = "osD^vP*Xph<>"
_TITLES = {"tuned": "fine-tuned", "untuned": "not fine-tuned"}


def draw(rows: Sequence[Mapping[str, Any]], kind: str = "svg") -> bytes | None:
    """A plot of all rows whose accuracy and throughput are known.

    Args:
        rows: of Figure 5's table, as `benchmarks.reproduce.collect` makes them.
        kind: "svg" or "png".

    Returns:
        The image; None where there is nothing to draw yet.
    """
    original = next((row for row in rows if not row["changed"]), None)
    shown = [row for row in rows if row["cost"] and (row["tuned"] or row["untuned"])]
    if not shown:
        return None
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True)  # what is not fine-tuned needs a scale of its own
    series = list(dict.fromkeys(row["series"] for row in rows if row["series"]))
    for axes, part in zip(panels, _TITLES, strict=True):
        for place, name in enumerate(series):
            _line(axes, [row for row in shown if row["series"] == name and row[part]], part, name, place)
        if original and original["tuned"]:
            accuracy = 100 * original["tuned"]["accuracy"]["mean"]
            axes.axhline(accuracy, color="0.6", linewidth=1, linestyle=":", zorder=0)
            axes.plot([1], [accuracy], marker="o", color="0.35", linestyle="none", label="original")
        axes.set_title(_TITLES[part])
        axes.set_xlabel("throughput, times the original's")
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
    panels[0].set_ylabel("accuracy %")
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False)
    image = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {}
    figure.savefig(image, format=kind, dpi=150, metadata=metadata)
    return image.getvalue()


def _line(axes: Axes, rows: Sequence[Mapping[str, Any]], part: str, name: str, place: int) -> None:
    """One method: a line through its best settings, bare points where another setting is faster and more accurate."""
    best = front(rows, lambda row: (row["cost"]["throughput"]["median"], row[part]["accuracy"]["mean"]))
    _points(axes, [row for row in rows if row not in best], part, name, place, linestyle="none")
    _points(axes, best, part, name, place, label=name)


def _points(axes: Axes, rows: Sequence[Mapping[str, Any]], part: str, name: str, place: int, **more: Any) -> None:
    """Bars are 95% intervals of accuracy, and quartiles of throughput."""
    if not rows:
        return
    speeds = [row["cost"]["throughput"] for row in rows]
    accuracies = [{key: 100 * value for key, value in row[part]["accuracy"].items()} for row in rows]
    leading = name == LEADING
    axes.errorbar(
        [speed["median"] for speed in speeds],
        [accuracy["mean"] for accuracy in accuracies],
        xerr=_bars(speeds, "median"),
        yerr=_bars(accuracies, "mean"),
        marker=_MARKERS[place % len(_MARKERS)],
        color="black" if leading else f"C{place}",
        linewidth=2.2 if leading else 1.2,
        markersize=7 if leading else 5,
        elinewidth=0.8,
        zorder=3 if leading else 2,
        **more,
    )


def _bars(values: Sequence[Mapping[str, float]], middle: str) -> list[list[float]]:
    below = [value[middle] - value["low"] for value in values]
    return [below, [value["high"] - value[middle] for value in values]]
