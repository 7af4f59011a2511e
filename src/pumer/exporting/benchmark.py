"""`pumer benchmark` of an exported folder: how fast its program is on the machine at hand."""

from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pumer.exporting.runtime import ExportedModel
from pumer.exporting.session import Program
from pumer.profiling.timing import compare
from pumer.settings.benchmark import BenchmarkConfig
from pumer.utils.errors import InputError
from pumer.utils.files import write_json
from pumer.utils.locks import exclusive
from pumer.utils.provenance import collect

ROW = "exported"


@exclusive
def run(config: BenchmarkConfig, console: Console | None = None) -> dict[str, Any]:
    """Measure, show a table and write the result.

    Returns:
        ``what``, ``speed`` (see `pumer.profiling.timing.compare`; one model), ``provenance``.
    """
    exported = ExportedModel(config.model, config.threads)
    record = exported.record
    changed: dict[str, Any] = {"reductions": config.reductions, "compile": config.compile, "search": config.search}
    changed |= {"dtype": "" if config.dtype == "float32" else config.dtype}
    changed |= {"image_size": config.image_size if config.image_size != record["image_size"] else None}
    if given := [f"{name}={value}" for name, value in changed.items() if value]:
        raise InputError(f"{config.model} is an exported model and takes no {', '.join(given)}; leave it out")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    make = partial(inputs_of, exported, config.text_length or exported.text_lengths[-1])
    result: dict[str, Any] = {
        "what": f"{record['source']} for {record['format']}, {record['precision']}",
        "speed": compare({ROW: Program(exported)}, make, config.batch_sizes, config.pairs, config.seconds),
        "provenance": collect(config, record["precision"]),
    }
    if config.output is not None:
        write_json(config.output, result)
    table = Table("batch", "ms", "images/s", title=result["what"])
    for point in result["speed"]["points"]:
        timed = point["models"][ROW]
        table.add_row(
            str(point["batch"]), f"{1e3 * timed['seconds']['median']:.1f}", f"{timed['images_per_second']:.1f}"
        )
    (console or Console()).print(table)
    return result


def inputs_of(exported: ExportedModel, words: int, batch: int) -> dict[str, Tensor]:
    """Random inputs of an exported model without padding; the same in every call."""
    random = torch.Generator().manual_seed(0)
    pixels = torch.randn(batch, *exported.shapes["pixel_values"], generator=random)
    ids = torch.randint(0, exported.record["vocabulary"], (batch, words), generator=random)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
