"""Running an exported model: NumPy, Pillow, tokenizers and the program's own runtime, without torch or transformers."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from pumer.utils.errors import InputError
from pumer.utils.files import first_line, read_config
from pumer.utils.places import EXPORTED

VERSION = 1
"""Of the folder's layout, in its record."""
PROGRAMS = {"openvino": "program.xml", "onnx": "program.onnx", "torch": "program.pt2"}
"""The file of the program by what runs it."""
MASKS = {"input_ids": "attention_mask", "pixel_values": "pixel_mask"}
"""Which input marks, by 1, what is real of another one."""

ImageLike = str | Path | Image.Image
Run = Callable[[Sequence[np.ndarray]], np.ndarray]


class Output(NamedTuple):
    """What a model answers.

    Attributes:
        logits: ``(B, labels)``; of a head with a row for each word ``(B, T, outputs)``.
    """

    logits: np.ndarray


class ExportedModel:
    """A model that `pumer.export` wrote, called like the model it was made of.

    Texts may have fewer words, and images fewer pixels, than the program was made for: they are padded. A batch has any
    size.

    Example:
        >>> model = pumer.ExportedModel("out/vqav2-openvino")  # doctest: +SKIP
        >>> model.answers(["cat.jpg"], ["what is on the sofa?"])  # doctest: +SKIP
        ['cat']

    Attributes:
        folder: where it lies.
        record: the content of its ``export.json``.
        labels: meaning of the logits' columns.
        precision: of the arithmetic: "f32", "bf16", "f16" or "int8".
    """

    def __init__(self, folder: str | Path, threads: int | None = None, precision: str | None = None) -> None:
        """Open a folder.

        Args:
            folder: as `pumer.export` wrote it.
            threads: CPU threads of OpenVINO and ONNX Runtime; None for their own choice.
            precision: of OpenVINO's arithmetic, where the processor has it; None for that of the export.

        Raises:
            InputError: for a folder without a program, one of another version, and a runtime that is not installed.
        """
        self.folder, remedy = Path(folder), "export the model again"
        self.record = read_config(self.folder / EXPORTED, "give a folder that `pumer export` wrote")
        if self.record.get("version") != VERSION or self.record.get("format") not in PROGRAMS:
            seen = f"version {self.record.get('version')!r}, format {self.record.get('format')!r}"
            raise InputError(f"{self.folder / EXPORTED} has {seen}; this pumer reads version {VERSION}: {remedy}")
        self.labels: tuple[str, ...] = tuple(self.record["labels"])
        self.precision: str = precision or self.record["precision"]
        if self.precision == "int8" != self.record["precision"]:
            raise InputError(f"{self.folder} is no int8 program, but {self.record['precision']}; export one with int8")
        kind = self.record["format"]
        file = self.folder / PROGRAMS[kind]
        try:
            self._run = _OPENERS[kind](file, self.precision, threads)
        except ImportError as error:
            raise InputError(f"{file} needs {error.name}, which is not installed; install pumer[export]") from error
        except Exception as error:  # a runtime raises whatever it stumbles over in a broken file
            raise InputError(f"{file} cannot be opened ({first_line(error)}); {remedy}") from error

    def __call__(self, **inputs: Any) -> Output:
        """The logits of B examples.

        Args:
            **inputs: as for the model, anything that NumPy reads (tensors on the CPU are): ``input_ids (B, T)``,
                ``pixel_values (B, C, height, width)``, of pairs ``(B, 2, C, height, width)``, and their masks, where
                padding is 0; left out, nothing is padding.

        Raises:
            InputError: for inputs that the program does not have, and for larger ones than it was made for.
        """
        logits = self._run(self.arrays(**inputs))
        return Output(logits[:, : np.shape(inputs["input_ids"])[1]] if logits.ndim == 3 else logits)

    def inputs(self, images: Sequence[ImageLike | Sequence[ImageLike]], texts: Sequence[str]) -> dict[str, np.ndarray]:
        """What to call the model with for B images (of a model that reads pairs: pairs of images) and B texts.

        Images are resized to squares, as `pumer evaluate` does by default.
        """
        about = self.record["pixels"]
        if about is None:
            raise InputError(f"{self.folder} holds no processor; export the model with one")
        if len(images) != len(texts):
            raise InputError(f"there are {len(images)} images but {len(texts)} texts; give one text per image")
        count = self.record["images"]
        flat: list[np.ndarray] = []
        for each in images:
            several = [each] if isinstance(each, str | Path | Image.Image) else each
            if len(several) != count:
                raise InputError(f"the model looks at {count} image(s) at once, not {len(several)}")
            flat += [_pixels(image, self.record["image_size"], about) for image in several]
        pixels = np.stack(flat)
        encoded = self._tokenizer().encode_batch(list(texts))
        return {
            "input_ids": np.array([each.ids for each in encoded]),
            "attention_mask": np.array([each.attention_mask for each in encoded]),
            "pixel_values": pixels if count == 1 else pixels.reshape(-1, count, *pixels.shape[1:]),
        }

    def answers(self, images: Sequence[ImageLike | Sequence[ImageLike]], texts: Sequence[str]) -> list[str]:
        """The answers to B texts about B images, see `inputs`; of a model that chooses among labels."""
        logits = self(**self.inputs(images, texts)).logits
        if logits.ndim != 2 or logits.shape[1] != len(self.labels):
            raise InputError(
                f"a {self.record['architecture']} gives no answers; call it with its inputs for its scores"
            )
        return [self.labels[column] for column in logits.argmax(axis=1)]

    def arrays(self, **inputs: Any) -> list[np.ndarray]:
        """The program's inputs, in order and at its sizes, from those that the model is called with; see `__call__`."""
        given = {name: np.asarray(value) for name, value in inputs.items() if value is not None}
        if given.pop("token_type_ids", np.zeros(0)).any():
            raise InputError("token_type_ids are 0 in an exported model; leave them out")
        names, own = list(self.record["inputs"]), MASKS.values()
        unknown = [name for name in given if name not in (*names, *own)]
        lacking = [name for name in MASKS if name not in given]
        if unknown or lacking:
            wrong = f"takes no {unknown[0]}" if unknown else f"needs {lacking[0]}"
            raise InputError(f"the exported model {wrong}; its inputs are {', '.join(names)}")
        masks = {mask: np.ones(_masked(given[name].shape, name), np.int64) for name, mask in MASKS.items()}
        if not np.asarray(given.get("pixel_mask", 1)).all() and "pixel_mask" not in names:
            raise InputError("pixel_mask marks padding, but the model takes whole images; leave it out")
        arrays = []
        for name, shape in self.record["inputs"].items():
            array = given[name] if name in given else masks[name]
            if array.ndim != len(shape) + 1 or any(a > b for a, b in zip(array.shape[1:], shape, strict=True)):
                most = ", ".join(map(str, shape))
                raise InputError(f"{name} is {array.shape}; the exported model takes (batch, {most}) or smaller")
            free = [(0, 0), *((0, most - length) for length, most in zip(array.shape[1:], shape, strict=True))]
            dtype = np.float32 if name == "pixel_values" else np.int64
            arrays.append(np.ascontiguousarray(np.pad(array, free), dtype=dtype))
        if "pixel_mask" not in names and given["pixel_values"].shape[1:] != tuple(
            self.record["inputs"]["pixel_values"]
        ):
            raise InputError(f"pixel_values is {given['pixel_values'].shape}; the model takes whole images only")
        return arrays

    def _tokenizer(self) -> Any:
        """The tokenizer, which pads and cuts texts to the program's words."""
        words, (padding, token) = self.record["text_length"], self.record["padding"]
        tokenizer = import_module("tokenizers").Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        tokenizer.enable_truncation(words)
        tokenizer.enable_padding(length=words, pad_id=padding, pad_token=token)
        return tokenizer


def _masked(shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    """The shape of an input's mask, which has no colours."""
    return shape if name == "input_ids" else (*shape[:-3], *shape[-2:])


def _pixels(image: ImageLike, size: int, about: Mapping[str, Any]) -> np.ndarray:
    """An image as ``(3, size, size)``, resized and normalised as the model's processor does."""
    try:
        opened = image if isinstance(image, Image.Image) else Image.open(image)
        upright = ImageOps.exif_transpose(opened).convert("RGB")
    except OSError as error:
        raise InputError(f"image {image} cannot be read ({first_line(error)}); give a file that can be") from error
    resized = upright.resize((size, size), Image.Resampling(about["resample"]))
    values = np.asarray(resized, dtype=np.float32).transpose(2, 0, 1) * np.float32(about["scale"])
    mean, deviation = (np.array(about[name], np.float32)[:, None, None] for name in ("mean", "std"))
    return (values - mean) / deviation


def _openvino(file: Path, precision: str, threads: int | None) -> Run:
    rest = "f32" if precision == "int8" else precision  # of what is not quantised
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": rest, "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    compiled = import_module("openvino").Core().compile_model(str(file), "CPU", options)
    return lambda arrays: np.array(compiled(list(arrays))[0])


def _onnx(file: Path, precision: str, threads: int | None) -> Run:
    runtime = import_module("onnxruntime")
    options = runtime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return lambda arrays: np.asarray(session.run(None, dict(zip(names, arrays, strict=True)))[0])


def _torch(file: Path, precision: str, threads: int | None) -> Run:
    torch = import_module("torch")
    program = torch.export.load(str(file)).module()

    def run(arrays: Sequence[np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(program(*map(torch.from_numpy, arrays)))

    return run


_OPENERS: dict[str, Callable[[Path, str, int | None], Run]] = {"openvino": _openvino, "onnx": _onnx, "torch": _torch}
