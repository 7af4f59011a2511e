"""Settings of `pumer serve`."""

from importlib.util import find_spec
from typing import Annotated

from pydantic import Field

from pumer.settings.common import BatchSize, Count, ModelJob, Task
from pumer.utils.config import config
from pumer.utils.errors import InputError


@config
class ServeConfig(ModelJob):
    """Settings of `pumer serve`.

    Attributes:
        task: vqav2, nlvr2 or snli_ve; null for the one it was trained on.
        host: address to listen at; 127.0.0.1 is reached from this machine alone. There is no access control.
        port: to listen at; 0 for any that is free.
        replicas: copies of the model, each in a process with its share of the cores and GPUs.
        max_batch_size: questions that a replica answers at once.
        max_waiting: questions in the server at once; further ones get status 429.
        timeout_s: seconds after which a request gets status 504, and that requests have to end when the server stops.
        max_request_bytes: of a request's body; larger ones get status 413.
        max_images: of a request.
        max_image_pixels: of an image; larger ones are refused before they are decoded.
        max_characters: of a question, or of a conversation.
        max_new_tokens: most tokens that an answer of a model that generates may have; null for 64.
        max_pixels: that the vision encoder of a model that generates gets of an image; null for as many as its
            processor gives.
    """

    task: Task | None = None
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    replicas: Annotated[int, Field(ge=1, le=1024)] = 1
    max_batch_size: BatchSize = 8
    max_waiting: Annotated[int, Field(ge=1, le=65_536)] = 128
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 60
    max_request_bytes: Annotated[int, Field(ge=1024, le=2**30)] = 16 * 2**20
    max_images: Annotated[int, Field(ge=1, le=4096)] = 16
    max_image_pixels: Annotated[int, Field(ge=1, le=64 * 2**20)] = 16 * 2**20
    max_characters: Annotated[int, Field(ge=1, le=2**20)] = 10_000
    max_new_tokens: Count | None = None
    max_pixels: Count | None = None

    def __post_init__(self) -> None:
        if self.max_images > self.max_waiting:
            raise InputError(f"max_images={self.max_images} is more than max_waiting={self.max_waiting}; lower it")

    def check_places(self) -> None:
        """Refuse a model that is missing, and an installation without what serving needs."""
        super().check_places()
        lacking = [name for name in ("ray", "uvicorn", "starlette", "prometheus_client") if find_spec(name) is None]
        if lacking:
            raise InputError(f"{lacking[0]} is not installed; install pumer[serve]")
