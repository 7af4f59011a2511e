"""The model card of a trained model: what it is, what was measured, and how it was trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pumer.evaluation.statistics import percent
from pumer.reducers import config_to_dict, reduction_from
from pumer.settings.train import TrainConfig
from pumer.utils.errors import InputError
from pumer.utils.files import read_json

FILE = "README.md"
_TAGS = ["pumer", "token-pruning", "token-merging"]
_PIPELINES = {"vqav2": "visual-question-answering"}


def model_card(config: TrainConfig, record: Mapping[str, Any]) -> str:
    """The card of a model, from its training (`record`: `run.json`) and from the result files in its folder.

    Accuracy comes from the training and from every `pumer evaluate ... output=` into the folder since the run began,
    speed and memory from every `pumer benchmark ... output=`.
    """
    results = _results(config.output, record["began"])
    scored = [(config.data.eval, "this training", record)] if "accuracy" in record else []
    scored += [(result["split"], name, result) for name, result in results.items() if "accuracy" in result]
    data = ModelCardData(
        library_name="pumer",
        pipeline_tag=_PIPELINES.get(config.task),
        tags=[*_TAGS, config.task],
        base_model=None if Path(config.model).exists() else config.model,
    )
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.loader = FileSystemLoader(Path(__file__).parent)
    environment.filters["yaml"] = lambda value: yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip()
    environment.filters["cell"] = lambda value: str(value).replace("|", r"\|")
    return environment.get_template("model_card.md.jinja").render(
        header=data.to_yaml(),
        config=config,
        record=record,
        reduction=config_to_dict(reduction_from(config.reduction)),
        scores=[
            (split, percent(result["accuracy"]), result.get("questions", ""), source)
            for split, source, result in scored
        ],
        speeds={name: result for name, result in results.items() if "rows" in result and "provenance" in result},
    )


def _results(folder: Path, began: str) -> dict[str, Mapping[str, Any]]:
    """Result files of evaluations and benchmarks in a folder by name, but those of an earlier model."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            content = read_json(path)
        except InputError:
            continue
        measured = isinstance(content, dict) and ("rows" in content or {"split", "accuracy"} <= content.keys())
        if measured and content.get("provenance", content).get("date", "") >= began:
            found[path.name] = content
    return found
