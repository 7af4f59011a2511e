"""Settings of `pumer app`."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pumer.settings.common import Folder, Job, Model
from pumer.utils.config import config
from pumer.utils.errors import InputError
from pumer.utils.limits import check_checkpoint, checkpoint_files
from pumer.utils.places import check_not_exported
from pumer.utils.shipped import SMALL, name_of


@config
class AppConfig(Job):
    """Settings of `pumer app`.

    Attributes:
        models: folders, hub names, or models that ship with the package.
        results: folder with result files, in its folders too, for the second tab; null for benchmarks/results, where
            there is one.
        host: address to listen at; 127.0.0.1 is reached from this machine alone. There is no access control.
        port: to listen at; 0 for any that is free.
        max_bytes: of an image file; larger ones are refused while they are uploaded.
        max_image_pixels: of an image; larger ones are refused before they are decoded.
        max_characters: of a question.
    """

    models: Annotated[tuple[Model, ...], Field(min_length=1)] = tuple(
        name for name, folder in SMALL.items() if folder.is_dir()
    )
    results: Folder | None = None
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 7860
    max_bytes: Annotated[int, Field(ge=1024, le=64 * 2**20)] = 20 * 2**20
    max_image_pixels: Annotated[int, Field(ge=1, le=64 * 2**20)] = 25_000_000
    max_characters: Annotated[int, Field(ge=1, le=2**20)] = 1000

    @property
    def read(self) -> list[Path]:
        """The files that it reads, which no result may replace."""
        return [*super().read, *(file for model in self.models for file in checkpoint_files(model))]

    def check_places(self) -> None:
        """Refuse models that are missing, given twice or exported, and an installation without what the page needs."""
        super().check_places()
        names = list(map(name_of, self.models))
        for name, model in zip(names, self.models, strict=True):
            if names.count(name) > 1:
                raise InputError(f"model {name} is given {names.count(name)} times; give it once")
            check_checkpoint(model)
            check_not_exported(model, "app")
        if find_spec("gradio") is None:
            raise InputError('gradio is not installed; give pip install "pumer[app]"')
