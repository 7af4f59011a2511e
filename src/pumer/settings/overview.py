"""Settings of `pumer list` and `pumer info`."""

from typing import Literal

from pumer.settings.common import Job, ModelOrPreset
from pumer.utils.config import config
from pumer.utils.limits import check_checkpoint

Kind = Literal["methods", "models", "tasks", "recipes", "presets"]


@config
class ListConfig(Job):
    """Settings of `pumer list`.

    Attributes:
        kind: methods, models, tasks, recipes or presets; null for all.
    """

    kind: Kind | None = None


@config
class InfoConfig(Job):
    """Settings of `pumer info`.

    Attributes:
        model: folder, hub name, one that ships, such as small:vilt, or a preset (`pumer list`).
    """

    model: ModelOrPreset

    def check_places(self) -> None:
        """Refuse a model that is missing."""
        check_checkpoint(self.model)
        super().check_places()
