"""Running an exported generative model: NumPy, Pillow, tokenizers and the programs' own runtime, without torch."""

from collections.abc import Callable, Generator, Mapping, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pumer.data.images import ImageLike, read_image
from pumer.exporting.record import GENERATIVE, SUFFIXES, arithmetic, read_record
from pumer.exporting.runners import open_program
from pumer.exporting.runtime import Output, normalised
from pumer.utils.errors import InputError
from pumer.utils.files import read_config
from pumer.utils.places import EXPORTED

QUESTION = "{question}"
"""Where the question goes in a recorded prompt."""
MAX_NEW_TOKENS = 64

Allowed = Callable[[int, Sequence[int]], Sequence[int]]
"""From a row and the ids that were generated in it to those that may follow."""


def is_exported_generator(folder: str | Path) -> bool:
    """Whether a folder that `pumer export` wrote holds a model that generates."""
    return read_config(Path(folder) / EXPORTED, "give a folder that `pumer export` wrote").get("kind") == GENERATIVE


class ExportedGenerator:
    """A generative model that `pumer.export` wrote: answers questions, each about one image, by the likeliest token.

    A prompt has up to as many tokens beside those of its image as the programs were made for. Each prompt is read by
    itself; then all are answered together.

    Example:
        >>> model = pumer.ExportedGenerator("out/llava-openvino")  # doctest: +SKIP
        >>> model.answers(["cat.jpg"], ["What is on the sofa?"])  # doctest: +SKIP
        ['A cat.']

    Attributes:
        folder: where it lies.
        record: the content of its ``export.json``.
        precision: of the arithmetic: "f32", "bf16" or "f16".
    """

    def __init__(self, folder: str | Path, threads: int | None = None, precision: str | None = None) -> None:
        """Open a folder; arguments and errors as of `pumer.ExportedModel`."""
        self.folder, self.record = Path(folder), read_record(folder)
        if self.record.get("kind") != GENERATIVE:
            raise InputError(f"{folder} holds a model that does not generate; open it with pumer.ExportedModel")
        self.precision = arithmetic(self.folder, self.record, precision)
        kind = self.record["format"]
        self._prefill, self._decode = (
            open_program(file, kind, self.precision, threads) for file in program_files(self.folder, kind)
        )

    def __call__(self, **inputs: Any) -> Output:
        """The logits ``(B, V)`` of the token that follows each of B prompts; see `generate`."""
        return Output(next(self.steps(0, **inputs)))

    def answers(
        self, images: Sequence[ImageLike], texts: Sequence[str], max_new_tokens: int = MAX_NEW_TOKENS
    ) -> list[str]:
        """The answers to B texts about B images, see `inputs`."""
        rows = self.generate(max_new_tokens, None, **self.inputs(images, texts))
        return [self._tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]

    def inputs(self, images: Sequence[ImageLike], texts: Sequence[str]) -> dict[str, np.ndarray]:
        """What to call the model with for B images and B texts, which stand after them, by the model's chat template.

        Raises:
            InputError: For images that cannot be read, and for a model whose prompts its processor alone makes.
        """
        if self.record["prompt"] is None or self.record["pixels"] is None:
            raise InputError(f"{self.folder} makes no prompts of images and texts; call it with its processor's inputs")
        if len(images) != len(texts):
            raise InputError(f"there are {len(images)} images but {len(texts)} texts; give one text per image")
        if not texts:
            raise InputError("there are no images; give at least one")
        rows = prompt_ids(self._tokenizer, self.record["prompt"], self.record["image_tokens"], texts)
        ids, mask = self._padded(rows)
        pixels = np.stack([cropped(image, self.record["pixels"]) for image in images])
        return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}

    def generate(
        self, max_new_tokens: int = MAX_NEW_TOKENS, allowed: Allowed | None = None, **inputs: Any
    ) -> list[list[int]]:
        """The ids that follow each of B prompts, up to the end that the model sets.

        Args:
            max_new_tokens: At most so many.
            allowed: Which ids may follow; None: all.
            **inputs: As for the model, anything that NumPy reads: ``input_ids`` and ``attention_mask (B, N)``, padded
                on either side, with the placeholders of one image each, and ``pixel_values (B, C, height, width)``.

        Raises:
            InputError: For inputs that the programs do not have, and for prompts that are too long.
        """
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
        steps = self.steps(max_new_tokens - 1, **inputs)
        logits = next(steps)
        rows: list[list[int]] = [[] for _ in logits]
        ended = np.zeros(len(rows), bool)
        for left in reversed(range(max_new_tokens)):
            tokens = _likeliest(logits, rows, allowed)
            for row, token in enumerate(tokens):
                if not ended[row]:
                    ended[row] = token in self.record["end"]
                    rows[row] += [] if ended[row] else [int(token)]
            if ended.all() or left == 0:
                break
            logits = steps.send(tokens)
        return rows

    def steps(self, room: int, **inputs: Any) -> Generator[np.ndarray, np.ndarray, None]:
        """The logits ``(B, V)`` that follow the prompts, and, for tokens ``(B,)`` that are sent, those after them.

        Args:
            room: Tokens that can be sent.
            **inputs: As of `generate`.
        """
        ids, mask, pixels = self._checked(inputs)
        read = [self._prefill([ids[row, None], mask[row, None], pixels[row, None]]) for row in range(len(ids))]
        logits, *left = (np.concatenate(each) for each in zip(*read, strict=True))
        stages = len(self.record["stages"])
        lengths = [each.shape[1] if place < stages else each.shape[2] for place, each in enumerate(left)]
        spaces = [((0, 0), *((0, 0),) * (place >= stages), (0, room)) for place in range(len(left))]
        state = [
            np.pad(each, [*space, *[(0, 0)] * (each.ndim - len(space))])
            for each, space in zip(left, spaces, strict=True)
        ]
        positions = mask.sum(axis=1, keepdims=True)
        for step in range(room):
            tokens = yield logits
            logits, *new = self._decode([np.asarray(tokens, np.int64)[:, None], positions + step, *state])
            for place, (whole, length) in enumerate(zip(state, lengths, strict=True)):
                if place < stages:
                    whole[:, length + step] = 1
                else:
                    whole[:, :, length + step] = new[place - stages][:, :, 0]
        yield logits

    def _checked(self, inputs: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids and mask ``(B, N)`` at the programs' length, and pixels."""
        given = {name: np.asarray(value) for name, value in inputs.items() if value is not None}
        names = ("input_ids", "attention_mask", "pixel_values")
        if unknown := [name for name in given if name not in names]:
            raise InputError(f"the exported model takes no {unknown[0]}; its inputs are {', '.join(names)}")
        if lacking := [name for name in names if name not in given and name != "attention_mask"]:
            raise InputError(f"the exported model needs {lacking[0]}; its inputs are {', '.join(names)}")
        ids, pixels = given["input_ids"], given["pixel_values"]
        real = given.get("attention_mask", np.ones_like(ids)) > 0
        shape = tuple(self.record["pixel_shape"])
        if pixels.shape != (len(ids), *shape):
            raise InputError(f"pixel_values is {pixels.shape}; give {(len(ids), *shape)}: one image for each prompt")
        if ids.ndim != 2 or real.shape != ids.shape:
            raise InputError(f"input_ids is {ids.shape}, attention_mask {real.shape}; give both as (B, N)")
        padded, mask = self._padded([row[kept].tolist() for row, kept in zip(ids, real, strict=True)])
        return padded, mask, np.ascontiguousarray(pixels, np.float32)

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask ``(B, N)`` of prompts, padded on the left to the programs' length."""
        text, image, token = (self.record[name] for name in ("text_length", "image_tokens", "image_token_id"))
        for row in rows:
            if (found := sum(each == token for each in row)) != image:
                raise InputError(
                    f"a prompt has {found} image tokens, and the model was exported for one image: {image}"
                )
            if len(row) > text + image:
                raise InputError(
                    f"a prompt has {len(row) - image} tokens beside its image, and the model was exported for {text}; "
                    "shorten the text, or export the model with a larger --text-length"
                )
        ids = np.full((len(rows), text + image), self.record["padding"], np.int64)
        mask = np.zeros_like(ids)
        for own, real, row in zip(ids, mask, rows, strict=True):
            own[len(own) - len(row) :], real[len(own) - len(row) :] = row, 1
        return ids, mask

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = import_module("tokenizers").Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer


def program_files(folder: Path, kind: str) -> tuple[Path, Path]:
    """The programs that read a prompt, and go on by a token."""
    return folder / f"prefill{SUFFIXES[kind]}", folder / f"decode{SUFFIXES[kind]}"


def prompt_ids(tokenizer: Any, about: Mapping[str, Any], image_tokens: int, texts: Sequence[str]) -> list[list[int]]:
    """The ids of prompts with one image each.

    Args:
        tokenizer: Of the tokenizers library, which neither pads nor cuts.
        about: ``text`` of a prompt with one ``image_token`` and `QUESTION`, and whether to add ``special`` tokens.
        image_tokens: Tokens of the image.
        texts: What is asked.
    """
    whole = about["text"].replace(about["image_token"], about["image_token"] * image_tokens)
    asked = [whole.replace(QUESTION, text) for text in texts]
    return [each.ids for each in tokenizer.encode_batch(asked, add_special_tokens=about["special"])]


def cropped(image: ImageLike, about: Mapping[str, Any]) -> np.ndarray:
    """An image as ``(3, height, width)``: resized to its shorter edge, cropped in the middle, and normalised."""
    upright = read_image(image)
    shorter, (height, width) = min(upright.size), about["crop"]
    size = [about["edge"] if each == shorter else int(about["edge"] * each / shorter) for each in upright.size]
    resized = upright.resize((size[0], size[1]), Image.Resampling(about["resample"]))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return normalised(resized.crop((left, top, left + width, top + height)), about)


def _likeliest(logits: np.ndarray, rows: Sequence[Sequence[int]], allowed: Allowed | None) -> np.ndarray:
    """The likeliest ids ``(B,)`` among those that may follow."""
    if np.isnan(logits).any():
        raise InputError("the model's answers are not numbers (NaN); export a model with smaller weights, or in f32")
    if allowed is None:
        return np.asarray(logits.argmax(axis=1))
    choices = [np.asarray(allowed(row, said)) for row, said in enumerate(rows)]
    return np.array([ids[own[ids].argmax()] for own, ids in zip(logits, choices, strict=True)])
