"""The result of a benchmark for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table

UNREDUCED = "unreduced"
"""Name of the model that the others are compared with."""


def tables(result: Mapping[str, Any]) -> Group:
    """Speed, memory and time split.

    Args:
        result: As `pumer.profiling.benchmark.run` returns it.
    """
    parts = [_speed_table(result), _split_table(result)]
    if "memory" in result:
        parts.insert(1, _memory_table(result))
    return Group(*parts)


def _speed_table(result: Mapping[str, Any]) -> Table:
    where = result["provenance"]
    title = f"{result['what']}\n{where['device']}, {where['threads']} threads"
    table = _table(title, "model", "batch", "ms", "images/s", "speed-up", "quartiles", "ideal")
    for point in result["speed"]["points"]:
        for name, figures in point["models"].items():
            ideal, speedup = result["plan"][name]["ideal_speedup"], figures["speedup"]
            cells = [name, str(point["batch"]), f"{1e3 * figures['seconds']['median']:.1f}"]
            cells += [f"{figures['images_per_second']:.1f}", times(speedup["median"])]
            table.add_row(*cells, f"{speedup['low']:.2f}-{speedup['high']:.2f}", f"{ideal:.2f}x")
        table.add_section()
    fastest = result.get("fastest", {})
    for name, best in fastest.items():
        ratio = best["images_per_second"] / fastest[UNREDUCED]["images_per_second"]
        cells = [name, f"best: {best['batch']}", "", f"{best['images_per_second']:.1f}", times(ratio), ""]
        table.add_row(*cells, f"{result['plan'][name]['ideal_speedup']:.2f}x")
    return table


def times(ratio: float) -> str:
    """A speed-up, or a slow-down that says so."""
    return f"{ratio:.2f}x" + (" as fast" if ratio < 1 else "")


def _memory_table(result: Mapping[str, Any]) -> Table:
    batch = result["memory"][UNREDUCED]["batch"]
    title = f"peak memory of a forward of {batch} examples, MiB"
    table = _table(title, "model", "weights", "activations, inference", "activations, autograd on")
    for name, figures in result["memory"].items():
        table.add_row(name, *(f"{figures[part] / 2**20:.0f}" for part in ("weights", "inference", "autograd")))
    return table


def _split_table(result: Mapping[str, Any]) -> Table:
    batch = max(point["batch"] for point in result["speed"]["points"])
    table = _table(f"where the time goes, batch {batch}", "model", "embedding", "reduce", "rest")
    for name, seconds in result["split"].items():
        total = sum(seconds.values())
        table.add_row(name, *(f"{100 * seconds[part] / total:.1f}%" for part in ("embedding", "reduce", "rest")))
    return table


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
