"""What runs the program of an exported model: OpenVINO, ONNX Runtime or torch, each imported when it is needed."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from pumer.exporting.record import WEIGHTS
from pumer.utils.errors import InputError
from pumer.utils.files import first_line

_CODE = ("aotinductor/", "constants/custom_obj", "constants/opaque_obj")
"""Parts of torch's archives that are pickles or machine code."""
_THREADS = "OMP_NUM_THREADS"

Run = Callable[[Sequence[np.ndarray]], list[np.ndarray]]


def open_program(file: Path, kind: str, precision: str, threads: int | None) -> Run:
    """What runs a program: arrays in, in the order of its inputs, and arrays out.

    Args:
        file: The program.
        kind: What it was written for.
        precision: Of OpenVINO's arithmetic.
        threads: CPU threads of OpenVINO and ONNX Runtime; None for those of the environment variable
            ``OMP_NUM_THREADS``, which torch obeys too, and without it for their own choice.

    Raises:
        InputError: If its runtime is not installed, or cannot read it.
    """
    if threads is None and (given := os.environ.get(_THREADS, "")).isdecimal() and int(given):
        threads = int(given)
    try:
        return _OPENERS[kind](file, precision, threads)
    except ImportError as error:
        raise InputError(f"{file} needs {error.name}, which is not installed; install pumer[export]") from error
    except (InputError, MemoryError):
        raise
    except Exception as error:  # a runtime raises whatever it stumbles over in a broken file
        raise InputError(f"{file} cannot be opened ({first_line(error)}); export the model again") from error


def without_reports(name: str) -> Any:
    """OpenVINO or NNCF, or a module of theirs, kept from reporting to Google Analytics; all imports go through here.

    Both do without the package that sends, so it is made to seem missing. One that was imported before stays.
    """
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)
    return import_module(name)


def _openvino(file: Path, precision: str, threads: int | None) -> Run:
    rest = "f32" if precision == "int8" else precision  # of what is not quantised
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": rest, "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    core, own = without_reports("openvino").Core(), file.with_suffix(".bin")
    model = core.read_model(str(file), str(own if own.is_file() else file.parent / WEIGHTS))
    compiled = core.compile_model(model, "CPU", options)
    return lambda arrays: [np.array(each) for each in compiled(list(arrays), share_inputs=True).values()]


def _onnx(file: Path, precision: str, threads: int | None) -> Run:
    runtime = import_module("onnxruntime")
    options = runtime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return lambda arrays: list(session.run(None, dict(zip(names, arrays, strict=True))))


def _torch(file: Path, precision: str, threads: int | None) -> Run:
    torch, archives = import_module("torch"), import_module("torch.export.pt2_archive")
    with archives.PT2ArchiveReader(str(file)) as archive:
        names = [name for name in archive.get_file_names() if any(each in name.lower() for each in _CODE)]
    if names:
        raise InputError(f"{file} holds {names[0]}, which can run code as it is read; export the model again")
    with _weights_only():
        program = torch.export.load(str(file)).module()

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        with torch.inference_mode():
            outputs = program(*map(torch.from_numpy, arrays))
        return [np.asarray(each) for each in (outputs if isinstance(outputs, tuple) else (outputs,))]

    return run


@contextmanager
def _weights_only() -> Iterator[None]:
    """Let `torch.load` build tensors alone, also where torch itself asks it for more."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


_OPENERS: dict[str, Callable[[Path, str, int | None], Run]] = {"openvino": _openvino, "onnx": _onnx, "torch": _torch}
