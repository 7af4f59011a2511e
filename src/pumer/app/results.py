"""Result files that hold speed and accuracy of the same model, as points of a plot; no file lends the other either."""

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from pumer.reducers import config_to_dict, reduction_from
from pumer.tuning.card import AXES
from pumer.utils.errors import InputError
from pumer.utils.files import read_json

logger = logging.getLogger(__name__)

HERE = Path("benchmarks/results")
"""Where results are looked for, if no folder is given and there is this one, as in a clone of the repository."""
MOST_BYTES = 64 * 2**20
Spread = Mapping[str, float]
"""``median`` or ``mean``, ``low`` and ``high``."""


@dataclass(frozen=True)
class Point:
    """A model that was timed and tested.

    Attributes:
        name: of its reduction.
        gain: times as fast as unreduced: the median, and its quartiles.
        accuracy: the mean, and its 95% interval.
    """

    name: str
    gain: Spread
    accuracy: Spread


@dataclass(frozen=True)
class Curve:
    """Points that may be compared: one model and task, one machine, one batch size.

    Attributes:
        title: which model and task.
        about: how it was measured.
        axis: what the gain is.
        points: the unreduced model first.
    """

    title: str
    about: str
    axis: str
    points: tuple[Point, ...]

    @property
    def front(self) -> list[Point]:
        """The points that no other one beats in both, from the slowest on."""
        best, found = -1.0, []
        for point in sorted(self.points, key=lambda one: (-one.gain["median"], -one.accuracy["mean"])):
            if point.accuracy["mean"] > best:
                best = point.accuracy["mean"]
                found.append(point)
        return found[::-1]


def curves(folder: Path) -> dict[str, Curve]:
    """What the result files of a folder, and of its folders, hold that can be plotted, by a name to choose it by."""
    files = []
    for path in sorted(folder.rglob("*.json")):
        try:
            content = read_json(path) if path.stat().st_size <= MOST_BYTES else None
        except (InputError, OSError) as error:
            logger.warning("left out: %s", error)
            continue
        if isinstance(content, Mapping):
            files.append((path.relative_to(folder), content))
    found: dict[str, Curve] = {}
    for path, content in files:
        try:
            made = [*_tuned(content), *_demonstrated(content), *_reproduced(content)]
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:  # another file of this name
            logger.warning("left out: %s is no result file that can be plotted (%r)", path, error)
            continue
        found |= {f"{curve.title} ({path})": curve for curve in made}
    return found | _joined(files)
