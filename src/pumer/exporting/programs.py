"""A patched model as a program: of torch.export, OpenVINO or ONNX, for one image size and word count, any batch."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.decomp_utils import CustomDecompTable

from pumer.exporting.runners import without_reports
from pumer.settings.common import LARGEST_BATCH
from pumer.utils.errors import InputError

aten = torch.ops.aten

CLOSE = 1e-4
"""How much the logits of a float32 program may differ from the model's."""
PACKAGES = {"openvino": ("openvino",), "onnx": ("onnx", "onnxscript", "onnxruntime"), "torch": ()}
"""What writes and runs programs, by their format."""


def write_program(module: nn.Module, inputs: Mapping[str, Tensor], file: Path, to: str) -> None:
    """Write a module as a program.

    Args:
        module: Takes tensors as ``*inputs``; on the CPU.
        inputs: A batch of at least two examples, by name; all sizes but the batch's stay as they are here.
        file: With the suffix of `pumer.exporting.record.SUFFIXES`.
        to: "openvino", "onnx" or "torch".

    Raises:
        InputError: If the library that writes such programs is not installed.
    """
    write_graph(module.eval(), tuple(inputs.values()), [(0,)] * len(inputs), file, to)


def write_graph(
    module: nn.Module, inputs: Sequence[Tensor], free: Sequence[Sequence[int]], file: Path, to: str
) -> None:
    """Write a module as a program, which takes and returns tensors by their place.

    Args:
        module: Takes ``*inputs``; in eval mode and on the CPU.
        inputs: Examples; a batch of at least two, where its size is free.
        free: Dimensions of each input whose size is not that of the example; the first one is the batch's.
        file: As for `write_program`.
        to: "openvino", "onnx" or "torch".

    Raises:
        InputError: As of `write_program`.
    """
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    sizes = tuple({each: torch.export.Dim.DYNAMIC if each else batch for each in own} for own in free)
    shapes = [
        [-1 if place in own else size for place, size in enumerate(x.shape)]
        for x, own in zip(inputs, free, strict=True)
    ]
    with torch.no_grad(), _quiet():
        program = torch.export.export(module, tuple(inputs), dynamic_shapes=(sizes,))
        try:
            _WRITERS[to](program, shapes, file)
        except ImportError as error:
            raise InputError(f"--to {to} needs {error.name}, which is not installed; install pumer[export]") from error


def _write_torch(program: ExportedProgram, shapes: Sequence[Sequence[int]], file: Path) -> None:
    torch.export.save(program.run_decompositions({}), file)  # else parts under autocast cannot be read back


def _write_onnx(program: ExportedProgram, shapes: Sequence[Sequence[int]], file: Path) -> None:
    import_module("onnxscript")
    written = torch.onnx.export(program, verbose=False)
    if written is not None:
        written.save(str(file))


def _write_openvino(program: ExportedProgram, shapes: Sequence[Sequence[int]], file: Path) -> None:
    openvino, decoders = without_reports("openvino"), import_module("openvino.frontend.pytorch.fx_decoder")
    decompositions = import_module("openvino.frontend.pytorch.torchdynamo.export_decompositions")
    table = CustomDecompTable()
    table.update(_FOR_OPENVINO)
    for operator in decompositions.ops_to_not_decompose():
        table.pop(operator, None)
    decoder = decoders.TorchFXPythonDecoder(program.run_decompositions(table).module())
    model = openvino.convert_model(decoder)
    model.reshape({place: openvino.PartialShape(list(shape)) for place, shape in enumerate(shapes)})
    openvino.save_model(model, file, compress_to_fp16=False)


_WRITERS: dict[str, Any] = {"openvino": _write_openvino, "onnx": _write_onnx, "torch": _write_torch}


def _shifted(x: Tensor, bits: int) -> Tensor:
    return torch.div(x, 2**bits, rounding_mode="floor")


def _exclusive_or(x: Tensor, value: int) -> Tensor:
    return torch.ne(x, value) if x.dtype == torch.bool else torch.bitwise_xor(x, torch.full_like(x, value))


def _zeros(x: Tensor, **settings: Any) -> Tensor:
    return torch.zeros_like(x)


_FOR_OPENVINO: dict[Any, Any] = {
    aten.__rshift__.Scalar: _shifted,
    aten.__xor__.Scalar: _exclusive_or,
    aten.bitwise_xor.Scalar: _exclusive_or,
    aten.empty_like.default: _zeros,
}
"""Operators that OpenVINO's front end has no rule for, by others."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' warnings, which are about their own code."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
