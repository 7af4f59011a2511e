"""What requests hold: KServe's open inference protocol (v2), chats as OpenAI's, and what a model is asked by them.

No image is decoded here, and nothing that a request names is opened: images are its own bytes.
"""

import binascii
import re
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from pumer.settings.serve import ServeConfig
from pumer.utils.errors import some

_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.ASCII)
_LONGEST_LINE = 300
_STRUCTURE = 2**14
"""Commas and brackets of a body, beside those of its texts: each may stand for a value, which takes memory."""
Body = TypeVar("Body", bound=BaseModel)
_Parameters = Annotated[dict[str, Any], Field(max_length=64)]
"""What clients of KServe's protocol send along, without a meaning here."""


class RefusedRequest(Exception):
    """A request that is not answered.

    Attributes:
        status: of HTTP.
        line: the reason, and what to do.
    """

    def __init__(self, status: int, line: str) -> None:
        short = " ".join(line.split())
        self.status, self.line = status, short if len(short) <= _LONGEST_LINE else f"{short[: _LONGEST_LINE - 3]}..."
        super().__init__(self.line)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a model is asked once.

    Attributes:
        images: contents of image files.
        text: the question or sentence; of a chat its last text.
        turns: of a chat the role and the parts of every message: a text, or None for the next image.
        max_new_tokens: that the answer may have, of a model that generates; None for as many as the server allows.
    """

    images: tuple[bytes, ...]
    text: str
    turns: tuple[tuple[str, tuple[str | None, ...]], ...] = ()
    max_new_tokens: int | None = None


class _Strict(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    @model_validator(mode="after")
    def _nothing_more(self) -> Self:
        """Refuse unknown keys: the first of them alone, where pydantic itself would collect all."""
        for key in self.model_extra or ():
            raise PydanticCustomError("unknown_key", "key {key} is not known; leave it out", {"key": repr(key[:40])})
        return self


class InputTensor(_Strict):
    """An input of `Infer`: strings, row by row or nested."""

    name: str
    shape: Annotated[list[int], Field(max_length=4, fail_fast=True)]
    datatype: Literal["BYTES"]
    data: Annotated[list[str | Annotated[list[str], Field(fail_fast=True)]], Field(fail_fast=True)]
    parameters: _Parameters | None = None

    def rows(self) -> list[list[str]]:
        """The strings of each of the B rows."""
        flat = [each for entry in self.data for each in ([entry] if isinstance(entry, str) else entry)]
        if not self.shape or min(self.shape) < 1 or prod(self.shape) != len(flat):
            line = f"input {self.name} holds {len(flat)} strings, but its shape is {self.shape}; give one string of"
            raise RefusedRequest(400, f"{line} base64 per image, and one question per row")
        width = len(flat) // self.shape[0]
        return [flat[start : start + width] for start in range(0, len(flat), width)]


class WantedOutput(_Strict):
    """An output that `Infer` asks for."""

    name: Literal["answer", "score"]
    parameters: _Parameters | None = None


class Infer(_Strict):
    """The body of KServe's `POST /v2/models/NAME/infer`."""

    id: str | None = None
    parameters: _Parameters | None = None
    inputs: Annotated[list[InputTensor], Field(max_length=2, fail_fast=True)]
    outputs: Annotated[list[WantedOutput], Field(max_length=2, fail_fast=True)] | None = None

    def asked(self, config: ServeConfig) -> list[Asked]:
        """What the model is asked: the inputs `image` [B], of pairs [B, 2], and `question` [B]."""
        given = {each.name: each for each in self.inputs}
        if sorted(each.name for each in self.inputs) != ["image", "question"]:
            names = some([each.name for each in self.inputs]) or "none"
            raise RefusedRequest(400, f"inputs must be image and question, once each, not {names}")
        images, questions = given["image"].rows(), given["question"].rows()
        if len(images) != len(questions) or len(questions[0]) != 1:
            shapes = f"image {given['image'].shape} and question {given['question'].shape}"
            raise RefusedRequest(400, f"shapes are {shapes}; give as many rows of images as questions, question as [B]")
        _check_count(sum(map(len, images)), config)
        return [
            question(tuple(map(decoded, row)), text, config) for row, (text,) in zip(images, questions, strict=True)
        ]


class TextPart(_Strict):
    """A text of a message."""

    type: Literal["text"]
    text: str


class ImageURL(_Strict):
    """The address of an image, which must hold the image itself."""

    url: str
    detail: str | None = None


class ImagePart(_Strict):
    """An image of a message."""

    type: Literal["image_url"]
    image_url: ImageURL

    def content(self) -> bytes:
        """The image's bytes; an address elsewhere is refused."""
        found = _DATA_URL.match(self.image_url.url)
        if found is None:
            shown = self.image_url.url[:40]
            line = f"image_url is {shown!r}; give data:image/png;base64,... (no address and no file is opened)"
            raise RefusedRequest(400, line)
        return decoded(self.image_url.url[found.end() :])


class Message(_Strict):
    """A message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str | Annotated[list[TextPart | ImagePart], Field(fail_fast=True)]
    name: str | None = None

    def parts(self) -> Sequence[str | ImagePart]:
        """Its texts and images, in order."""
        if isinstance(self.content, str):
            return [self.content]
        return [each.text if isinstance(each, TextPart) else each for each in self.content]


class Chat(_Strict):
    """The body of `POST /v1/chat/completions`: what of OpenAI's has a meaning where the likeliest token is taken."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1024, fail_fast=True)]
    model: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: Literal[1] | None = None
    seed: int | None = None
    stream: Literal[False] | None = None
    user: str | None = None

    def asked(self, config: ServeConfig, most: int) -> Asked:
        """What the model is asked; `most` tokens may be asked for."""
        if self.messages[-1].role != "user":
            raise RefusedRequest(400, f"the last message is of {self.messages[-1].role}; it must be of user")
        if self.temperature:
            raise RefusedRequest(400, f"temperature is {self.temperature}; give 0: the likeliest token is taken")
        length = self.max_completion_tokens if self.max_tokens is None else self.max_tokens
        if length is not None and not 1 <= length <= most:
            raise RefusedRequest(400, f"max_tokens must lie in [1, {most}], not {length}")
        parts = [part for message in self.messages for part in message.parts()]
        _check_count(sum(isinstance(part, ImagePart) for part in parts), config)
        texts = [part for part in parts if isinstance(part, str)]
        check_characters(sum(map(len, texts)), config)
        images = tuple(part.content() for part in parts if isinstance(part, ImagePart))
        turns = tuple(
            (message.role, tuple(part if isinstance(part, str) else None for part in message.parts()))
            for message in self.messages
        )
        return Asked(images, texts[-1] if texts else "", turns, length)


def parsed(body: bytes, kind: type[Body], config: ServeConfig) -> Body:
    """A body of JSON, checked; what is wrong with it first as `RefusedRequest`."""
    found, most = sum(map(body.count, (b",", b"[", b"{"))), config.max_characters + _STRUCTURE
    if found > most:
        raise RefusedRequest(400, f"the body has {found} commas and brackets; at most {most} are taken")
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(step)[:40] for step in first["loc"])
        raise RefusedRequest(400, f"{where}: {first['msg']}".removeprefix(": ")) from None


def question(images: tuple[bytes, ...], text: str, config: ServeConfig) -> Asked:
    """A question about images, which may not be empty, and no longer than the server allows."""
    check_characters(len(text), config)
    if not text.strip():
        raise RefusedRequest(400, "the question is empty; give one, as in question=what is it?")
    return Asked(images, text)


def check_characters(given: int, config: ServeConfig) -> None:
    """Refuse texts that are too long."""
    if given > config.max_characters:
        raise RefusedRequest(400, f"the text has {given} characters; at most {config.max_characters} are taken")


def _check_count(images: int, config: ServeConfig) -> None:
    if images > config.max_images:
        raise RefusedRequest(400, f"the request has {images} images; at most {config.max_images} are taken")


def decoded(text: str) -> bytes:
    """The bytes of an image in base64."""
    try:
        return b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RefusedRequest(400, f"an image is not base64 ({error})") from None
