"""What every benchmark begins and ends with: the device, the result file, the tables on the terminal."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table

from pumer.settings.benchmark import BenchmarkConfig
from pumer.utils.files import write_json
from pumer.utils.provenance import collect, device_name
from pumer.utils.tensors import best_device


def chosen_device(config: BenchmarkConfig) -> torch.device:
    """The device to measure on; its threads are set."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    return best_device() if config.device == "auto" else torch.device(config.device)


def finished(
    result: Mapping[str, Any],
    config: BenchmarkConfig,
    device: torch.device,
    tables: Callable[[Mapping[str, Any]], RenderableType],
    console: Console | None,
) -> dict[str, Any]:
    """The result with its provenance, written where the config wants it, and shown."""
    where = device_name() if device.type == "cuda" or not torch.cuda.is_available() else "cpu"
    whole = {**result, "provenance": collect(config, config.dtype) | {"device": where}}
    if config.output is not None:
        write_json(config.output, whole)
    (console or Console()).print(tables(whole))
    return whole


def narrow_table(title: str, *columns: str) -> Table:
    """A table of models for a terminal of 80 columns."""
    narrow: Any = {"box": box.SIMPLE_HEAD, "pad_edge": False, "padding": (0, 1, 0, 0)}
    table = Table("model", title=title, title_justify="left", **narrow)
    table.columns[0].no_wrap = True
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
