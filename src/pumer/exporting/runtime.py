"""Running an exported model: NumPy, Pillow, tokenizers and the program's own runtime, without torch or transformers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from pumer.data.images import ImageLike, padded, read_image
from pumer.exporting.record import GENERATIVE, arithmetic, read_record
from pumer.exporting.runners import Run, open_program
from pumer.utils.errors import InputError

MASKS = {"input_ids": "attention_mask", "pixel_values": "pixel_mask"}
"""Which input marks, by 1, what is real of another one."""
_WORDS = ("input_ids", "attention_mask", "text_states")
"""Inputs of programs that have an entry for each word."""
_INTEGERS = ("input_ids", *MASKS.values())


class Output(NamedTuple):
    """What a model answers.

    Attributes:
        logits: ``(B, labels)``; of a head with a row for each word ``(B, T, outputs)``.
    """

    logits: np.ndarray


@dataclass(frozen=True)
class Encoded:
    """B images, or texts, as the encoder of an exported model left them, to be kept for later.

    Attributes:
        arrays: inputs of the fusion by name, each with B rows.
    """

    arrays: dict[str, np.ndarray]

    def __len__(self) -> int:
        """B."""
        return len(next(iter(self.arrays.values())))

    def select(self, index: Sequence[int] | np.ndarray) -> "Encoded":
        """Some of them, in the order asked for; one may be asked for many times."""
        return Encoded({name: array[np.asarray(index, np.int64)] for name, array in self.arrays.items()})


class _Program(NamedTuple):
    """A program that is ready to run.

    Attributes:
        inputs: their shapes by name, without the batch.
        outputs: their names.
        run: from inputs to outputs.
    """

    inputs: dict[str, list[int]]
    outputs: list[str]
    run: Run


class ExportedModel:
    """A model that `pumer.export` wrote, called like the model it was made of.

    Texts may have fewer words, and images of ViLT fewer pixels, than the programs were made for: they are padded. Of
    programs for several word counts the smallest that the longest text of the batch fits is taken. A batch has any
    size.

    Example:
        >>> model = pumer.ExportedModel("out/vqav2-openvino")  # doctest: +SKIP
        >>> model.answers(["cat.jpg"], ["what is on the sofa?"])  # doctest: +SKIP
        ['cat']

    A model that was exported in parts encodes an image once for many questions:
        >>> images = model.encode_images(["cat.jpg", "dog.jpg"])  # doctest: +SKIP
        >>> model.answers(images.select([0, 0, 1]), ["what is it?", "is it asleep?", "what is it?"])  # doctest: +SKIP
        ['cat', 'yes', 'dog']

    Attributes:
        folder: where it lies.
        record: the content of its ``export.json``.
        labels: meaning of the logits' columns.
        text_lengths: word counts that there are programs for, in rising order.
        shapes: of the inputs of the programs for the most words, by name, without the batch.
        separable: whether it was exported in parts.
        precision: of the arithmetic: "f32", "bf16", "f16" or "int8".
    """

    def __init__(self, folder: str | Path, threads: int | None = None, precision: str | None = None) -> None:
        """Open a folder.

        Args:
            folder: as `pumer.export` wrote it.
            threads: CPU threads of OpenVINO and ONNX Runtime, see `open_program`.
            precision: of OpenVINO's arithmetic, where the processor has it; None for that of the export.

        Raises:
            InputError: for a folder without a program, one of another version, and a runtime that is not installed.
        """
        self.folder, self.record = Path(folder), read_record(folder)
        if self.record.get("kind") == GENERATIVE:
            raise InputError(f"{folder} holds a model that generates; open it with pumer.ExportedGenerator")
        self.labels: tuple[str, ...] = tuple(self.record["labels"])
        self.text_lengths: tuple[int, ...] = tuple(self.record["text_lengths"])
        self.precision = arithmetic(self.folder, self.record, precision)
        opened = [self._open(each, threads) for each in self.record["programs"]]
        self._programs = {
            length: [each for each in opened if each.inputs.get("attention_mask", [length]) == [length]]
            for length in self.text_lengths
        }
        self.shapes = _shapes(self._programs[self.text_lengths[-1]])
        self.separable = len(self._programs[self.text_lengths[-1]]) > 1

    def _open(self, about: Mapping[str, Any], threads: int | None) -> _Program:
        run = open_program(self.folder / about["file"], self.record["format"], self.precision, threads)
        return _Program(about["inputs"], about["outputs"], run)

    def __call__(self, **inputs: Any) -> Output:
        """The logits of B examples.

        Args:
            **inputs: as for the model, anything that NumPy reads (tensors on the CPU are): ``input_ids (B, T)``,
                ``pixel_values (B, C, height, width)``, of pairs ``(B, 2, C, height, width)``, and their masks, where
                padding is 0; left out, nothing is padding. Of a model in parts instead of either the arrays of an
                `Encoded`.

        Raises:
            InputError: for inputs that the programs do not have, and for larger ones than they were made for.
        """
        values, programs = self._fitted(inputs)
        for program in programs:
            if not set(program.outputs) <= values.keys():
                lacking = next((name for name in program.inputs if name not in values), None)
                if lacking is not None:
                    raise self._wrong(f"needs {lacking}")
                _compute(program, values)
        logits = values["logits"]
        if logits.ndim == 3:  # a row for each word that was given
            mask = inputs.get("attention_mask")
            words = np.shape(inputs["input_ids"] if mask is None else mask)[1]
            missing = max(0, words - logits.shape[1])
            logits = np.pad(logits[:, :words], ((0, 0), (0, missing), (0, 0)))
        return Output(logits)

    def encode(self, **inputs: Any) -> Encoded:
        """B images, or texts, encoded by themselves; of a model that was exported in parts.

        Args:
            **inputs: ``pixel_values``, or ``input_ids`` and ``attention_mask``, as of a call.

        Raises:
            InputError: as of a call, and for a model that is one program.
        """
        if not self.separable:
            raise InputError(f"{self.folder} encodes no images or texts apart; export the model with --parts")
        values, programs = self._fitted(inputs)
        encoders = [each for each in programs[:-1] if each.inputs.keys() <= values.keys()]
        if not encoders:
            raise self._wrong("needs pixel_values or input_ids to encode")
        for encoder in encoders:
            _compute(encoder, values)
        return Encoded({name: values[name] for name in programs[-1].inputs if name in values})

    def encode_images(self, images: Sequence[ImageLike | Sequence[ImageLike]]) -> Encoded:
        """Images, or pairs of them, see `inputs`, encoded by themselves; of a model that was exported in parts."""
        return self.encode(pixel_values=self._pixel_values(images))

    def inputs(
        self, images: Sequence[ImageLike | Sequence[ImageLike]] | Encoded, texts: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """What to call the model with for B images (of a model that reads pairs: pairs of images) and B texts.

        Images become squares as in the model's training, squeezed or filled up with grey; texts are padded to the
        longest.
        """
        if len(images) != len(texts):
            remedy = "give one image per text, encoded ones by select()"
            raise InputError(f"there are {len(images)} images but {len(texts)} texts; {remedy}")
        pixels = images.arrays if isinstance(images, Encoded) else {"pixel_values": self._pixel_values(images)}
        encoded = self._tokenizer.encode_batch(list(texts))
        ids, mask = [each.ids for each in encoded], [each.attention_mask for each in encoded]
        return {"input_ids": np.array(ids), "attention_mask": np.array(mask), **pixels}

    def _pixel_values(self, images: Sequence[ImageLike | Sequence[ImageLike]]) -> np.ndarray:
        """``(B, C, height, width)``, of pairs ``(B, 2, C, height, width)``."""
        about = self._about_processor("pixels")
        count = self.record["images"]
        flat: list[np.ndarray] = []
        for each in images:
            several = each if isinstance(each, Sequence) and not isinstance(each, str) else [each]
            if len(several) != count:
                raise InputError(f"the model looks at {count} image(s) at once, not {len(several)}")
            flat += [_pixels(image, self.record["image_size"], about) for image in several]
        if not flat:
            raise InputError("there are no images; give at least one")
        pixels = np.stack(flat)
        return pixels if count == 1 else pixels.reshape(-1, count, *pixels.shape[1:])

    def _about_processor(self, what: str) -> Any:
        """A part of the record about the processor."""
        if self.record[what] is None:
            raise InputError(f"{self.folder} holds no processor; export the model with one")
        return self.record[what]

    def answers(self, images: Sequence[ImageLike | Sequence[ImageLike]] | Encoded, texts: Sequence[str]) -> list[str]:
        """The answers to B texts about B images, see `inputs`; of a model that chooses among labels."""
        logits = self(**self.inputs(images, texts)).logits
        if logits.ndim != 2 or logits.shape[1] != len(self.labels):
            raise InputError(
                f"a {self.record['architecture']} gives no answers; call it with its inputs for its scores"
            )
        return [self.labels[column] for column in logits.argmax(axis=1)]

    def arrays(self, **inputs: Any) -> list[np.ndarray]:
        """The inputs of a program that is all of the model, in order and at its sizes; see `__call__`."""
        values, (program,) = self._fitted(inputs)
        return [values[name] for name in program.inputs]

    def _fitted(self, inputs: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], list[_Program]]:
        """The inputs at the sizes of the programs that are to run, and these."""
        given = {name: np.atleast_1d(np.asarray(value)) for name, value in inputs.items() if value is not None}
        if given.pop("token_type_ids", np.zeros(0)).any():
            raise InputError("token_type_ids are 0 in an exported model; leave them out")
        unknown = next((name for name in given if name not in (*self.shapes, *MASKS.values())), None)
        if unknown is not None:
            raise self._wrong(f"takes no {unknown}")
        for name, mask in MASKS.items():
            if name in given:
                _add_mask(given, name, mask)
        if "pixel_mask" not in self.shapes and not np.all(given.pop("pixel_mask", 1)):
            raise InputError("pixel_mask marks padding, but the model takes whole images; leave it out")
        rows = {name: len(array) for name, array in given.items()}
        if len(set(rows.values())) > 1:
            counts = ", ".join(f"{count} of {name}" for name, count in rows.items())
            raise InputError(f"the exported model needs as many rows of each input, not {counts}")
        words = _longest(given.get("attention_mask"))
        length = next((each for each in self.text_lengths if each >= words), self.text_lengths[-1])
        programs = self._programs[length]
        shapes = _shapes(programs)
        smaller = (*_WORDS, *(MASKS["pixel_values"], "pixel_values") * ("pixel_mask" in shapes))
        for name, array in given.items():
            short = array[:, :words] if name in _WORDS and array.ndim > 1 else array
            given[name] = _at_size(name, short, shapes[name], name in smaller)
        return given, programs

    def _wrong(self, what: str) -> InputError:
        return InputError(f"the exported model {what}; its inputs are {', '.join(self.shapes)}")

    @cached_property
    def _tokenizer(self) -> Any:
        """The tokenizer, which cuts texts to the most words and pads them to the longest."""
        padding, token = self._about_processor("padding")
        tokenizer = import_module("tokenizers").Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        tokenizer.enable_truncation(self.text_lengths[-1])
        tokenizer.enable_padding(pad_id=padding, pad_token=token)
        return tokenizer


def _shapes(programs: Sequence[_Program]) -> dict[str, list[int]]:
    """The shapes of all inputs of programs, by name."""
    return {name: shape for program in programs for name, shape in program.inputs.items()}


def _compute(program: _Program, values: dict[str, np.ndarray]) -> None:
    """Add the outputs of a program to the values that it is among."""
    values |= zip(program.outputs, program.run([values[name] for name in program.inputs]), strict=True)


def _add_mask(given: dict[str, np.ndarray], name: str, mask: str) -> None:
    """Add the mask of an input where it is left out; refuse one of another shape."""
    shape = _masked(given[name].shape, name)
    if given.setdefault(mask, np.ones(shape, np.int64)).shape != shape:
        raise InputError(f"{mask} is {given[mask].shape}, but {name} is {given[name].shape}; give {shape}")


def _longest(mask: np.ndarray | None) -> int:
    """The words of the longest text, by a mask ``(B, T)``."""
    columns = np.flatnonzero(np.atleast_2d(mask).any(axis=0)) if mask is not None else np.zeros(0)
    return 1 + int(columns[-1]) if columns.size else 1


def _at_size(name: str, array: np.ndarray, shape: Sequence[int], smaller: bool) -> np.ndarray:
    """An input of a program in its shape and type, padded where it may be `smaller`."""
    missing = [most - length for length, most in zip(array.shape[1:], shape, strict=False)]
    if array.ndim != len(shape) + 1 or min(missing) < 0 or (any(missing) and not smaller):
        most = ", ".join(map(str, shape))
        raise InputError(f"{name} is {array.shape}; the exported model takes (batch, {most}){' or smaller' * smaller}")
    padded = np.pad(array, [(0, 0), *((0, free) for free in missing)])
    return np.ascontiguousarray(padded, dtype=np.int64 if name in _INTEGERS else np.float32)


def _masked(shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    """The shape of an input's mask, which has no colours."""
    return shape if name == "input_ids" else (*shape[:-3], *shape[-2:])


def _pixels(image: ImageLike, size: int, about: Mapping[str, Any]) -> np.ndarray:
    """An image as ``(3, size, size)``, resized and normalised as the model's processor does."""
    read, resample = read_image(image), Image.Resampling(about["resample"])
    return normalised(padded(read, size, resample) if about.get("pad") else read.resize((size, size), resample), about)


def normalised(image: Image.Image, about: Mapping[str, Any]) -> np.ndarray:
    """An image as ``(3, height, width)``, normalised as the model's processor does."""
    values = np.asarray(image, dtype=np.float32).transpose(2, 0, 1) * np.float32(about["scale"])
    mean, deviation = (np.array(about[name], np.float32)[:, None, None] for name in ("mean", "std"))
    return (values - mean) / deviation
