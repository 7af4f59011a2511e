"""Settings of `pumer plan`."""

from pumer.settings.common import DType, MeasuringJob, Reduction
from pumer.utils.config import config
from pumer.utils.places import check_not_exported


@config
class PlanConfig(MeasuringJob):
    """Settings of `pumer plan`; of a model only ``config.json`` and ``reduction.json`` are read.

    Attributes:
        reduction: method and settings, or a reduction.json; null for what the checkpoint was saved with.
        dtype: of a model that generates, number format of the cache; null for that of the config.
    """

    reduction: Reduction | None = None
    dtype: DType | None = None

    def check_places(self) -> None:
        """Refuse a model that is missing or exported."""
        super().check_places()
        check_not_exported(self.model, "plan")
