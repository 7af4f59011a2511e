"""Settings of `pumer plan`."""

from pumer.settings.common import MeasuringJob, Reduction
from pumer.utils.config import config


@config
class PlanConfig(MeasuringJob):
    """Settings of `pumer plan`; of a model only ``config.json`` and ``reduction.json`` are read.

    Attributes:
        reduction: method and settings; null for what the checkpoint was saved with.
    """

    reduction: Reduction | None = None
