"""`pumer benchmark` of an exported folder: how fast its program is on the machine at hand."""

from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from pumer.exporting.generation_runtime import ExportedGenerator, is_exported_generator
from pumer.exporting.runtime import ExportedModel
from pumer.exporting.session import Program
from pumer.profiling.timing import compare
from pumer.settings.benchmark import BenchmarkConfig
from pumer.utils.errors import InputError
from pumer.utils.files import write_json
from pumer.utils.locks import exclusive
from pumer.utils.provenance import collect

ROW = "exported"
FIRST, ANSWER = "first token", "answer"


@exclusive
def run(config: BenchmarkConfig, console: Console | None = None) -> dict[str, Any]:
    """Measure, show a table and write the result.

    Returns:
        ``what``, ``speed`` (see `pumer.profiling.timing.compare`; one model), ``provenance``.
    """
    if is_exported_generator(config.model):
        return _run_generator(config, console or Console())
    exported = ExportedModel(config.model, config.threads)
    record = exported.record
    _check(config, image_size=config.image_size if config.image_size != record["image_size"] else None)
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


def _check(config: BenchmarkConfig, **others: Any) -> None:
    """Refuse settings that an exported model does not have."""
    changed: dict[str, Any] = {"reductions": config.reductions, "compile": config.compile, "search": config.search}
    changed |= {"dtype": "" if config.dtype == "float32" else config.dtype, **others}
    if given := [f"{name}={value}" for name, value in changed.items() if value]:
        raise InputError(f"{config.model} is an exported model and takes no {', '.join(given)}; leave it out")


class _Answer(nn.Module):
    """A prompt and tokens after it, whichever they are."""

    def __init__(self, exported: ExportedGenerator, tokens: int) -> None:
        super().__init__()
        self.exported, self.tokens = exported, tokens

    def forward(self, **inputs: Tensor) -> None:
        steps = self.exported.steps(self.tokens, **inputs)
        logits = next(steps)
        for _ in range(self.tokens):
            logits = steps.send(logits.argmax(axis=1))


def _run_generator(config: BenchmarkConfig, console: Console) -> dict[str, Any]:
    """The same of a model that generates: until the first token, and for each further one."""
    exported = ExportedGenerator(config.model, config.threads)
    record = exported.record
    others = {"image_size": config.image_size, "text_length": config.text_length, "image_tokens": config.image_tokens}
    _check(config, **others)
    words = config.text_tokens or record["text_length"]
    if words > record["text_length"]:
        raise InputError(f"text_tokens={words}, but the model was exported for {record['text_length']}; give fewer")

    def make(batch: int) -> dict[str, Tensor]:
        random = torch.Generator().manual_seed(0)
        ids = torch.full((batch, words + record["image_tokens"]), record["image_token_id"])
        special = [record["image_token_id"], *record["end"]]
        known = torch.tensor([token for token in range(record["vocabulary"]) if token not in special])
        ids[:, record["image_tokens"] :] = known[torch.randint(len(known), (batch, words), generator=random)]
        return {"input_ids": ids, "pixel_values": torch.randn(batch, *record["pixel_shape"], generator=random)}

    models = {FIRST: _Answer(exported, 0), ANSWER: _Answer(exported, config.new_tokens)}
    result: dict[str, Any] = {
        "what": f"{record['source']} for {record['format']}, {record['precision']}",
        "new_tokens": config.new_tokens,
        "speed": compare(models, make, config.batch_sizes, config.pairs, config.seconds),
        "provenance": collect(config, record["precision"]),
    }
    if config.output is not None:
        write_json(config.output, result)
    table = Table("batch", "first token, ms", "further token, ms", title=result["what"])
    for point in result["speed"]["points"]:
        first, answer = (1e3 * point["models"][name]["seconds"]["median"] for name in (FIRST, ANSWER))
        table.add_row(str(point["batch"]), f"{first:.1f}", f"{(answer - first) / config.new_tokens:.2f}")
    console.print(table)
    return result


def inputs_of(exported: ExportedModel, words: int, batch: int) -> dict[str, Tensor]:
    """Random inputs of an exported model without padding; the same in every call."""
    random = torch.Generator().manual_seed(0)
    pixels = torch.randn(batch, *exported.shapes["pixel_values"], generator=random)
    ids = torch.randint(0, exported.record["vocabulary"], (batch, words), generator=random)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
