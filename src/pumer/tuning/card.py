"""What a tuning found: tables for the terminal, the plot of the front, and the card of the model."""

import io
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich import box
from rich.table import Table

_BUDGETS = {
    "speedup": "{:g} times as fast as the unreduced model",
    "latency_ms": "{:g} ms for a forward",
    "memory": "{:g} MiB for the cache of a prompt",
    "accuracy_drop": "at most {:g} of accuracy lost, as fast as that allows",
}
AXES = {
    "time": "times as fast as unreduced, on this machine",
    "macs": "times fewer MACs",
    "cache": "times smaller cache",
}
"""What the gain of a result is, by its ``cost``."""
_GAINS = {"time": "speed-up", "macs": "fewer MACs", "cache": "smaller"}
"""The same as the heading of a column."""
_SIGNS = {"prune_ratio": "prune", "merge_ratio": "merge", "text_merge_ratio": "words"}


def tables(result: Mapping[str, Any]) -> Table:
    """The best schedules beside the paper's layers, for the terminal.

    Args:
        result: The content of ``tuning.json``, see `pumer.tuning.run.run`.

    Returns:
        Of each schedule the gain (a ratio to the unreduced model; of time with quartiles), the divergence in nats that
        the search minimises, the share of answers that change and the accuracy lost in points with its 95% interval;
        "best" and "missed" are marked.
    """
    narrow: Any = {"box": box.SIMPLE_HEAD, "pad_edge": False, "padding": (0, 1, 0, 0)}  # for 80 columns
    title = f"{result['what']}: {budget(result)}\nbest: {described(result['rows'][result['best']]['reduction'])}"
    table = Table("schedule", title=title, title_justify="left", **narrow)
    spread = ["quartiles"] * (result["cost"] == "time")
    for heading in (_GAINS[result["cost"]], *spread, "divergence", "changed", "accuracy lost", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    table.caption = f"the least divergence is the best; {result['calibration']['examples']} calibration examples"
    for name, row in ordered(result):
        marks = " ".join([*["best"] * (name == result["best"]), *["missed"] * (not row["met"])])
        gain = row["gain"]
        cells = [
            f"{gain['median']:.2f}x",
            *(f"{gain['low']:.2f}-{gain['high']:.2f}" for _ in spread),
            f"{row['loss']:.4f}",
            f"{100 * (1 - row['agreement']):.1f}%",
        ]
        table.add_row(name, *cells, _lost(row), marks)
    return table


def ordered(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The rows of a result: the best, then those with the smallest divergence."""
    rows: Mapping[str, Any] = result["rows"]
    return sorted(rows.items(), key=lambda item: (item[0] != result["best"], item[1]["loss"]))


def budget(result: Mapping[str, Any]) -> str:
    """The budget in words."""
    ((name, amount),) = result["budget"].items()
    counted = name == "speedup" and result["cost"] == "macs"
    return f"{amount:g} times fewer MACs than the unreduced model" if counted else _BUDGETS[name].format(amount)


def described(reduction: Mapping[str, Any]) -> str:
    """A reduction in a line: "pumer: layers 0-4 merge 0.2; layers 5, 8 merge 0.2, prune 0.1"."""
    if "schedule" not in reduction:
        given = [f"layers {_ranges(reduction['layers'])}"] if reduction.get("layers") else []
        amounts = ("prune_ratio", "merge_ratio", "merge_count")
        given += [f"{name} {reduction[name]:g}" for name in amounts if reduction.get(name)]
        return f"{reduction['method']}: {', '.join(given)}"
    parts = []
    for (stack, removed), steps in groupby(reduction["schedule"], key=_amounts):
        place = "vision layers" if stack == "vision" else "layers"
        parts.append(f"{place} {_ranges([step['layer'] for step in steps])} {removed}")
    return f"{reduction['method']}: {'; '.join(parts)}"


def _amounts(step: Mapping[str, Any]) -> tuple[str, str]:
    given = [f"{sign} {step[name]:.3g}" for name, sign in _SIGNS.items() if step.get(name)]
    return step["stack"], ", ".join(given) or "nothing"


def _ranges(layers: Sequence[int]) -> str:
    """Layers, neighbours as "0-4"."""
    found: list[list[int]] = []
    for layer in layers:
        if found and layer == found[-1][-1] + 1:
            found[-1].append(layer)
        else:
            found.append([layer])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in found)


def _lost(row: Mapping[str, Any]) -> str:
    """The accuracy that is lost, in points, with its interval."""
    mean, low, high = (-100 * row["difference"][name] + 0.0 for name in ("mean", "high", "low"))
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def plot(result: Mapping[str, Any]) -> bytes:
    """The front: gain (a ratio to the unreduced model) against the share of answers that change, in percent.

    Args:
        result: The content of ``tuning.json``, see `pumer.tuning.run.run`.

    Returns:
        A PNG image.
    """
    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    best = result["rows"][result["best"]]
    tried = [trial for trial in result["trials"] if trial["state"] == "complete"]
    gain = best["gain"]["median"] if result["target"] is None else result["target"]
    axes.scatter(
        [gain] * len(tried),
        [_changed(trial) for trial in tried],
        s=250,
        marker="_",  # wider than other points, which stand on the same line
        color="0.55",
        linewidths=1,
        label="trials, cost estimated",
        zorder=1,
    )
    for name, style in zip(result["fronts"], ("o-", "s--"), strict=False):
        points, shape = result["fronts"][name], "chosen shape" if name == result["best"] else name
        gains = [each["estimated"] for each in points]
        axes.plot(gains, list(map(_changed, points)), style, ms=4, label=f"{shape}, weaker and stronger")
    others = [row for name, row in result["rows"].items() if name != result["best"]]
    if others:
        gains, changes = [row["gain"]["median"] for row in others], list(map(_changed, others))
        axes.scatter(gains, changes, s=18, color="0.4", label="others of the best, cost measured", zorder=3)
    axes.scatter(
        best["gain"]["median"], _changed(best), s=130, marker="*", color="C3", label="chosen, cost measured", zorder=4
    )
    axes.set(
        xlabel=AXES[result["cost"]],
        ylabel="answers that change, %",
        title=f"{Path(result['what']).name}, {result['task']}",
    )
    axes.set_ylim(bottom=0)
    for points in (*axes.collections, *axes.lines):
        points.set_clip_on(False)  # those at 0% are whole
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _changed(row: Mapping[str, Any]) -> float:
    return 100 * (1 - float(row["agreement"]))


def card(result: Mapping[str, Any]) -> str:
    """``README.md`` of a tuned model: where it is from, the best schedules as measured, the front.

    Args:
        result: The content of ``tuning.json``, see `pumer.tuning.run.run`.

    Returns:
        Markdown with the front matter of the Hugging Face hub.
    """
    return "\n".join([*_origin(result), *_measured(result), *_front(result)])


def _origin(result: Mapping[str, Any]) -> list[str]:
    made, best = result["provenance"], result["rows"][result["best"]]
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    return [
        "---",
        "library_name: pumer",
        f"tags: [pumer, token-pruning, token-merging, {result['task']}]",
        "---",
        "",
        f"# {result['what']}, {budget(result)}",
        "",
        f"Made by `{made['command']}` on {made['date']}: {made['device']}, {made['threads']} threads, {made['dtype']}",
        f"({versions}). The weights are unchanged; `reduction.json` is the schedule:",
        "",
        f"> {described(best['reduction'])}",
        "",
    ]


def _measured(result: Mapping[str, Any]) -> list[str]:
    split, count = result["calibration"]["split"], result["calibration"]["examples"]
    seen = "The model was trained on that split, unless a part was left out: the loss may be larger elsewhere."
    gained = {"time": "speed-up, measured", "macs": "MACs, times fewer", "cache": "cache, times smaller"}
    counted = "cache" if result["cost"] == "cache" else "MACs"
    lines = [
        "## Measured",
        "",
        f"On the last {count} examples of the split `{split}` of {result['task']}, which the search has seen:",
        "they are no test. Report `pumer evaluate` on a split that was not used here.",
        "Do not report results on this split." if split.startswith("val") else seen,
        f"Accuracy of the unreduced model on them: {100 * result['unreduced']['accuracy']:.1f} %.",
        "",
        f"| schedule | | {gained[result['cost']]} (quartiles) | {counted}, times fewer | {_LOSSES} |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in ordered(result):
        gain, chosen = row["gain"], " (chosen)" * (name == result["best"])
        spread = f"{gain['median']:.2f} ({gain['low']:.2f}-{gain['high']:.2f}) | {row['planned']:.2f}"
        lines.append(f"| {name}{chosen} | {described(row['reduction'])} | {spread} | {_losses(row)} |")
    about = "Divergence is the Kullback-Leibler divergence of the answers' distribution from the unreduced model's;"
    return [*lines, "", about, "the search minimises it.", ""]


def _front(result: Mapping[str, Any]) -> list[str]:
    states = [trial["state"] for trial in result["trials"]]
    return [
        "## The front",
        "",
        "![gain against the share of answers that change](pareto.png)",
        "",
        "The chosen shape at other strengths; its gain is estimated from the measured one.",
        "",
        f"| gain | schedule | {_LOSSES} |",
        "|---|---|---|---|---|",
        *(
            f"| {row['estimated']:.2f} | {described(row['reduction'])} | {_losses(row)} |"
            for row in result["fronts"][result["best"]]
        ),
        "",
        f"{len(states)} schedules were suggested and {states.count('complete')} measured on all examples; the others",
        "fell behind before, or cannot meet the budget. All are in `tuning.json`.",
        "",
    ]


_LOSSES = "divergence, nats | answers changed, % | accuracy lost, points (95 %)"


def _losses(row: Mapping[str, Any]) -> str:
    return f"{row['loss']:.4f} | {_changed(row):.1f} | {_lost(row)}"
