"""The result files of `gpu.py` as one compact table of plain text."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.rows import LIMIT, TRANSFORMERS, UNREDUCED

MOST_LINES, MOST_CHARACTERS = 100, 10_000
SHORT = {"bfloat16": "bf16", "float32": "fp32", "bfloat16 autocast": "bf16 autocast", TRANSFORMERS: "hf"}
TITLES = {
    "vilt": "ViLT inference: x against unreduced in the same mode, achieved/limit",
    "meter": "METER inference: the same",
    "inductor": "ViLT inference, inductor: the same",
    "training": "ViLT training step in bf16 autocast: x against unreduced",
    "memory": "peak memory of inference beyond weights and inputs: MiB, ms",
    "reduction": "launches and host syncs of a forward; launches and kernel time of a reduction",
}


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Everything that was measured.

    Args:
        results: By part, as the files have it.

    Returns:
        At most `MOST_LINES` lines and fewer than `MOST_CHARACTERS` characters.
    """
    lines: list[str] = []
    reasons: dict[str, int] = {}
    first = ""
    for name, result in results.items():
        where = result["provenance"]
        source = f"{where['device']}, commit {(where['commit'] or 'unknown')[:9]}"
        if not lines:
            first = source
            versions = ", ".join(f"{package} {version}" for package, version in where["versions"].items())
            lines.append(f"{source}; {versions}")
        title = TITLES.get(name, name) + (f" [{result['stopped']}]" if result["stopped"] else "")
        lines += ["", title + ("" if source == first else f" [an earlier run: {source}]")]
        lines += aligned(PARTS[name](result["points"], reasons))
    if reasons:
        lines += ["", "failed:"]
        lines += [f" [{number}] {why[:110]}" for why, number in list(reasons.items())[:12]]
    text = "\n".join(line.rstrip() for line in lines[:MOST_LINES])
    return text[: MOST_CHARACTERS - 2] + "\n"


def heading(point: Mapping[str, Any]) -> str:
    """What a point is about."""
    return " ".join(str(point[key]) for key in ("model", "dtype", "mode", "batch") if key in point)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Cells in columns, the first two to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number < 2 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _inference(points: Sequence[Mapping[str, Any]], reasons: dict[str, int]) -> list[list[str]]:
    """A line for each point, a column for each schedule with its limit."""
    shown = dict.fromkeys(name for point in points for name in (*point["models"], *point["failed"]))
    names = [name for name in shown if not name.startswith(LIMIT) and name != UNREDUCED]
    rows = [["", "", "batch", "ms", "images/s", *(_short(name) for name in names)]]
    if points:
        ideals = [points[0]["ideal"].get(name) for name in names]
        rows.append(["MACs", "", "", "", "", *("" if each is None else f"{each:.2f}" for each in ideals)])
    dtypes = list(dict.fromkeys(point["dtype"] for point in points))
    for point in sorted(points, key=lambda point: (dtypes.index(point["dtype"]), point["batch"])):
        cells = [_cell(point, name, reasons) for name in names]
        base = point["models"].get(UNREDUCED)
        figures = [_failed(point, UNREDUCED, reasons), ""]
        if base is not None:
            figures = [f"{1e3 * base['seconds']['median']:.2f}", f"{base['images_per_second']:.0f}"]
        rows.append([_short(point["dtype"]), point["mode"], str(point["batch"]), *figures, *cells])
    return rows


def _cell(point: Mapping[str, Any], name: str, reasons: dict[str, int]) -> str:
    own, limit = (_speed_up(point, each, reasons) for each in (name, LIMIT + name))
    return own if limit == "" else f"{own}/{limit}"


def _speed_up(point: Mapping[str, Any], name: str, reasons: dict[str, int]) -> str:
    figures = point["models"].get(name)
    if figures is None:
        return _failed(point, name, reasons)
    return (
        f"{figures['speedup']['median']:.2f}" if "speedup" in figures else f"{1e3 * figures['seconds']['median']:.2f}ms"
    )


def _failed(point: Mapping[str, Any], name: str, reasons: dict[str, int]) -> str:
    """The number of the reason why a row failed; nothing if it was not tried."""
    why = point["failed"].get(name)
    return "" if why is None else f"[{reasons.setdefault(why, len(reasons) + 1)}]"


def _training(points: Sequence[Mapping[str, Any]], reasons: dict[str, int]) -> list[list[str]]:
    """A line for each row, two columns for each group."""
    groups = dict.fromkeys(group for point in points for group in point["groups"])
    rows = [["", "batch", *(cell for group in groups for cell in ("ms", group))]]
    for point in points:
        for name in dict.fromkeys(name for group in groups for name in point["groups"][group]["models"]):
            line = [_short(name), str(point["batch"])]
            for group in groups:
                found = {**point["groups"][group], "failed": {}}
                figures = found["models"].get(name)
                ms = "" if figures is None else f"{1e3 * figures['seconds']['median']:.1f}"
                line += [ms, _speed_up(found, name, reasons)]
            rows.append(line)
        rows += [[name, _failed(point, name, reasons), *[""] * 2 * len(groups)] for name in point["failed"]]
    return rows


def _memory(points: Sequence[Mapping[str, Any]], reasons: dict[str, int]) -> list[list[str]]:
    """A line for each model and number format."""
    rows = [["", "", "batch", "unreduced", "in slices", "reduced", "in slices"]]
    for point in points:
        cells = []
        for name in point["names"]:
            found = point["rows"].get(name)
            mib_and_ms = "" if found is None else f"{found['activations'] / 2**20:.0f}, {1e3 * found['seconds']:.2f}"
            cells.append(mib_and_ms or _failed(point, name, reasons))
        rows.append([point["model"], _short(point["dtype"]), str(point["batch"]), *cells])
    return rows


def _reduction(points: Sequence[Mapping[str, Any]], reasons: dict[str, int]) -> list[list[str]]:
    """Per forward launches, and syncs by the trace and by torch's check; per reduction launches and kernel time."""
    names = (UNREDUCED, "limit", "plain", "fused")
    per_forward = [f"launches {name}" for name in names]
    rows = [["", "batch", *per_forward, "syncs", "check", "a reduction: plain", "us", "fused", "us"]]
    for point in points:
        found = point["rows"]
        line = [point["model"], str(point["batch"])]
        line += [f"{found[name]['launches']:.0f}" if name in found else _failed(point, name, reasons) for name in names]
        fused = found.get("fused")
        line += ["", ""] if fused is None else [f"{fused['syncs']:.0f}", _check(fused["sync_error"], reasons)]
        for name in ("plain", "fused"):
            each = found.get(name)
            line += (
                ["", ""]
                if each is None
                else [f"{each['reduction_launches']:.1f}", f"{1e6 * each['reduction_seconds']:.1f}"]
            )
        rows.append(line)
    return rows


def _check(why: str | None, reasons: dict[str, int]) -> str:
    return "none" if why is None else f"[{reasons.setdefault(why, len(reasons) + 1)}]"


def _short(name: str) -> str:
    """A name without the layers, where the ratios tell one row from another."""
    if name.startswith(LIMIT):
        return LIMIT + _short(name.removeprefix(LIMIT))
    return SHORT.get(name) or name.split("; ")[-1]


PARTS = {
    "vilt": _inference,
    "meter": _inference,
    "training": _training,
    "memory": _memory,
    "reduction": _reduction,
    "inductor": _inference,
}
