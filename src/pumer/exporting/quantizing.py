"""Programs in 8-bit integers: NNCF quantises OpenVINO's after training, calibrated on examples of the model's task."""

import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pumer.exporting.runners import without_reports
from pumer.exporting.runtime import ExportedModel
from pumer.settings.common import Resize
from pumer.settings.export import ExportConfig
from pumer.tasks import TASKS, Example, Retrieval, Task
from pumer.tasks.base import model_inputs, spread
from pumer.tasks.loading import make_inputs
from pumer.utils.errors import InputError
from pumer.utils.shipped import name_of

_FLOATING = ["ScaledDotProductAttention", "Interpolate"]
"""Operators that stay in floating point: attention, and what resizes masks and positions."""


def quantize(file: Path, examples: Sequence[Sequence[np.ndarray]]) -> None:
    """Quantise an OpenVINO program in place: weights and activations of its linear layers, after SmoothQuant.

    What a reduction decides by stays in floating point: in integers other tokens would be removed. The same program and
    examples give the same result.

    Args:
        file: The program, ``.xml``.
        examples: To calibrate on: the program's inputs, in order, with a batch of one.

    Raises:
        InputError: If NNCF is not installed.

    Reference: Xiao et al., SmoothQuant, ICML 2023.
    """
    try:
        nncf, openvino = without_reports("nncf"), without_reports("openvino")
    except ImportError as error:
        raise InputError(f"int8 needs {error.name}, which is not installed; install pumer[export]") from error
    nncf.set_log_level(logging.ERROR)
    program, aside = openvino.Core().read_model(file), file.with_stem(f"{file.stem}-int8")
    floating = nncf.IgnoredScope(names=_floating_products(program), types=_FLOATING, validate=False)
    with redirect_stdout(sys.stderr):  # its progress bars
        quantised = nncf.quantize(
            program,
            nncf.Dataset(list(examples)),
            subset_size=len(examples),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=floating,
        )
    openvino.save_model(quantised, aside, compress_to_fp16=False)
    for suffix in (".xml", ".bin"):  # not overwritten: weights that are open are mapped to memory
        aside.with_suffix(suffix).replace(file.with_suffix(suffix))


def _floating_products(program: Any) -> list[str]:
    """Names of the products that stay in floating point: those without weights, and those that choose tokens.

    A product chooses if its values reach the results through integers and booleans alone.
    """
    found, left = set(), list(program.get_results())
    while left:
        for value in left.pop().input_values():
            node = value.get_node()
            if value.get_element_type().is_real() and node.get_friendly_name() not in found:
                found.add(node.get_friendly_name())
                left.append(node)
    products = [node for node in program.get_ops() if node.get_type_name() == "MatMul"]
    return [
        node.get_friendly_name()
        for node in products
        if node.get_friendly_name() not in found or not _is_weight(node.input_value(1))
    ]


def _is_weight(value: Any) -> bool:
    return value.get_node().get_type_name() == "Constant" and len(value.get_partial_shape()) == 2


def calibration_inputs(
    config: ExportConfig,
    model: PreTrainedModel,
    processor: Any,
    trained: Mapping[str, Any],
    length: int,
    given: Sequence[Mapping[str, Tensor]] | None = None,
) -> tuple[list[dict[str, Tensor]], dict[str, Any]]:
    """Inputs that an int8 program is calibrated on, one example each, and what they are.

    Unless batches are given, they are `training_examples` of the split that the model was trained on.

    Raises:
        InputError: If no data folder is known, or it holds nothing that fits the model.
    """
    if given is not None:
        rows = [{name: x[row : row + 1] for name, x in each.items()} for each in given for row in _rows(each)]
        if not rows:
            raise InputError("calibration holds no inputs; give at least one batch of them")
        return rows, {"task": None, "root": None, "split": None, "examples": len(rows)}
    name, data = name_of(config.model), trained.get("data", {})
    root, split = config.calibration or data.get("root"), data.get("train") or "train"
    if root is None:
        raise InputError(f"{name} has no record of its training data, which int8 needs; give --calibration FOLDER")
    if split.startswith("test"):
        raise InputError(f"{name} was trained on split {split}, which int8 may not see; give batches of other inputs")
    if processor is None:
        raise InputError(f"{name} has no processor, which reads calibration examples; give one, or batches of inputs")
    task = _task(model, trained, Path(root), split)
    examples = training_examples(task, Path(root), split, config.calibration_examples)
    resize: Resize = "pad" if trained.get("resize") == "pad" else "square"
    inputs = make_inputs(processor, length, resize, trained.get("blank") or "none")
    about = {"task": task.name, "root": str(root), "split": split, "examples": len(examples)}
    return [model_inputs([example], inputs) for example in examples], about


def training_examples(task: type[Task], root: Path, split: str, count: int) -> list[Example]:
    """At most `count` examples, spread evenly; in retrieval every second image has the caption of another one."""
    examples = spread(task.read(root, split, count), count)  # of retrieval it reads so many images
    if not issubclass(task, Retrieval):
        return list(examples)
    other = len(examples) // 2
    return [replace(each, text=examples[row - row % 2 * other].text) for row, each in enumerate(examples)]


def _rows(inputs: Mapping[str, Tensor]) -> range:
    return range(len(inputs["input_ids"]))


def _task(model: PreTrainedModel, trained: Mapping[str, Any], root: Path, split: str) -> type[Task]:
    """The task that a model was trained for, else the one whose files are in the folder."""
    fitting = [task for task in TASKS.values() if isinstance(model, tuple(task.models().values()))]
    known = [task for task in fitting if task.name == trained.get("task")]
    there = [task for task in fitting if all(path.is_file() for path in task.annotation_files(root, split))]
    if not known and not there:
        names = " or ".join(task.name for task in fitting) or "any task"
        raise InputError(f"{root} holds no split {split} of {names}, for a {type(model).__name__}; give --calibration")
    return (known or there)[0]


@torch.inference_mode()
def agreement(model: PreTrainedModel, exported: ExportedModel, examples: Sequence[Mapping[str, Tensor]]) -> float:
    """The fraction of examples whose highest logit is the model's; of single scores, of pairs in the model's order.

    Of a head with a row for each word, the fraction of words.
    """
    logits = []
    for each in examples:
        both = torch.stack([model(**each).logits, torch.from_numpy(exported(**each).logits)])
        logits.append(both[:, 0, each["attention_mask"][0] > 0] if both.ndim == 4 else both)
    own, other = torch.cat(logits, dim=1)
    return same_choices(own, other)


def same_choices(own: Tensor, other: Tensor) -> float:
    """The fraction of rows of logits ``(N, labels)`` with the same column highest; of ``(N, 1)``, of pairs of rows."""
    if own.shape[1] > 1:
        return float((own.argmax(1) == other.argmax(1)).double().mean())
    above = torch.ones(len(own), len(own)).triu(1) > 0
    return float(((own > own.T) == (other > other.T))[above].double().mean())
