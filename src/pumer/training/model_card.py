"""The model card of a trained model: what it is, what was measured, and how it came about."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from pumer.evaluation.statistics import Interval
from pumer.reducers import config_to_dict, reduction_from
from pumer.settings.train import TrainConfig
from pumer.utils.errors import InputError
from pumer.utils.files import read_json

FILE = "README.md"
_TAGS = ["pumer", "token-pruning", "token-merging"]
_PIPELINES = {"vqav2": "visual-question-answering"}


def model_card(config: TrainConfig, record: Mapping[str, Any]) -> ModelCard:
    """The card of a model, from its training and from the result files in its folder.

    Accuracy comes from the training itself and from every file that `pumer evaluate ... output=` wrote into the folder
    since the run began, speed and memory from every one of `pumer benchmark ... output=`. Nothing is said that is in
    none of them.

    Args:
        config: of the training.
        record: content of `run.json`.

    Returns:
        The card; `save` writes it.
    """
    reduction = config_to_dict(reduction_from(config.reduction))
    data = ModelCardData(
        library_name="pumer",
        pipeline_tag=_PIPELINES.get(config.task),
        tags=[*_TAGS, config.task],
        base_model=None if Path(config.model).exists() else config.model,
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {config.output.name}",
        _introduction(config, reduction["method"]),
        "## Measured",
        *_measured(config, record),
        "## Reduction",
        _code(yaml.safe_dump(reduction, sort_keys=False), "yaml"),
        "## Training",
        _code(record["command"], "sh"),
        _table(["", ""], _origin(config, record)),
        _code(yaml.safe_dump(record["config"], sort_keys=False, allow_unicode=True), "yaml"),
    ]
    return ModelCard("\n\n".join(parts) + "\n")


def _introduction(config: TrainConfig, method: str) -> str:
    kind = "Unreduced" if method == "none" else f"Token reduction by `{method}`"
    taught = "" if config.teacher is None else f", distilled from `{config.teacher}`"
    use = _code(f'import pumer\n\nmodel = pumer.load("{config.hub_model_id or config.output}")', "python")
    return f"{kind}: `{config.model}`, fine-tuned on {config.task}{taught}.\n\n{use}"


def _measured(config: TrainConfig, record: Mapping[str, Any]) -> list[str]:
    """Tables of accuracy and of speed, each only where there is something in it."""
    results = list(_results(config.output, record["began"]))
    rows = [(config.data.eval, "this training", record["accuracy"], record)] if "accuracy" in record else []
    rows += [(result["split"], name, result["accuracy"], result) for name, result in results if "accuracy" in result]
    accuracy = [
        [str(split), str(Interval.of(score)), str(result.get("questions", "")), source]
        for split, source, score, result in rows
    ]
    tables = [_table(["split", "accuracy, % [95% interval]", "examples", "from"], accuracy)] if accuracy else []
    for name, result in results:
        if "rows" in result and "provenance" in result:
            tables.append(_speed(name, result))
    return tables or ["Nothing yet."]


def _results(folder: Path, began: str) -> list[tuple[str, dict[str, Any]]]:
    """The result files of a folder by name, but for those of a model that was there before."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            content = read_json(path)
        except InputError:
            continue
        if isinstance(content, dict) and ("rows" in content or {"split", "accuracy"} <= content.keys()):
            date = content.get("provenance", content).get("date", "")
            found += [(path.name, content)] if date >= began else []
    return found


def _speed(name: str, result: Mapping[str, Any]) -> str:
    rows = []
    for row in result["rows"]:
        speeds = [
            f"{entry['speedup']['median']:.2f}x at batch {entry['batch']}"
            for entry in row.get("speed", [])
            if entry.get("speedup")
        ]
        memory = f"{row['memory'] / 2**20:.0f} MiB" if row.get("memory") else ""
        rows.append([str(row["name"]), f"{row['macs'] / 1e9:.2f} G", ", ".join(speeds), memory])
    where = result["provenance"]
    caption = f"{result.get('what', '')}; {where['device']}, {where['dtype']} (`{name}`):"
    return f"{caption}\n\n{_table(['model', 'MACs', 'speed-up', 'peak memory'], rows)}"


def _origin(config: TrainConfig, record: Mapping[str, Any]) -> list[list[str]]:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return [
        ["data", f"{config.task}, split {config.data.train}, `{record['data_fingerprint']}`"],
        ["steps", str(record["steps"])],
        ["device", f"{record['device']}, {record['dtype']}"],
        ["versions", versions],
        ["commit", str(record["commit"])],
        ["date", str(record["date"])],
    ]


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _code(text: str, language: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```"
