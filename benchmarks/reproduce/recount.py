"""Count the MACs of `results.json` anew, for models of the world: they follow from shapes alone.

    python -m benchmarks.reproduce.recount

What was trained, tested and timed stays as it is. What was compared at equal MACs goes, for that needs all answers.
"""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from transformers import PreTrainedModel

from benchmarks.common import RESULTS, parser
from benchmarks.reproduce.report import write
from pumer.backbones.image_size import set_image_size
from pumer.checkpoint import load
from pumer.patching import patch
from pumer.profiling.planning import plan
from pumer.reducers import reduction_from
from pumer.tasks import task_class
from pumer.tasks.session import labels_of
from pumer.utils.files import read_json
from pumer.utils.provenance import collect
from pumer.utils.shipped import located

_WORDS = re.compile(r"text_length=(\d+)")


def main() -> None:
    """Read, count, write the file and the report beside it."""
    parser(__doc__).parse_args()
    folder = RESULTS / "reproduce"
    results = read_json(folder / "results.json")
    for row in (row for table in results["tables"] for row in table["rows"]):
        if row.get("cost"):
            row["cost"] |= counted(row)
            row.pop("at_equal_macs", None)
    results["counted"] = collect({})
    write(results, folder)


def counted(row: Mapping[str, Any]) -> dict[str, Any]:
    """`macs` of a row's model for one example, and `macs_fewer` than its original's."""
    backbone, task = row["where"].split()[0].split("/")
    found = _WORDS.search(row["cost"]["command"])
    assert found is not None, row["cost"]["command"]
    words = int(found[1])
    unreduced = plan(_model(backbone, task), None, words).macs
    size = row["image_size"]
    model = _model(backbone, task, size) if size else _model(backbone, task)
    macs = plan(patch(model, reduction_from(row["reduction"] or "none")), size, words).macs
    patch(model, reduction_from("none"))
    return {"macs": macs, "macs_fewer": unreduced / macs}


@cache
def _model(backbone: str, task: str, image_size: int | None = None) -> PreTrainedModel:
    """A small model with the task's head, unreduced."""
    name, kind = str(located(f"small:{backbone}")), task_class(task)
    labels = kind.fixed_labels or labels_of(load(name))
    model = patch(kind.model(name, list(labels)), reduction_from("none"))
    set_image_size(image_size, model)
    return model


if __name__ == "__main__":
    main()
