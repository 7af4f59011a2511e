"""The card of an exported model."""

import json
from collections.abc import Mapping
from typing import Any


def card(record: Mapping[str, Any]) -> str:
    """``README.md`` of an exported model, from its ``export.json``."""
    rows = [
        f"| {row['words']} | {row['batch']} | {'yes' if row['padded'] else 'no'} "
        f"| {row['largest']:.1e} | {row['logits']:.2f} |"
        for row in record["differences"]
    ]
    programs = [
        f"| `{each['file']}` | {', '.join(map(_shown, each['inputs'].items()))} | `{'`, `'.join(each['outputs'])}` |"
        for each in record["programs"]
    ]
    return "\n".join(
        [
            *_head(record, "ExportedModel"),
            "## Programs",
            "",
            "A batch has any size; shorter texts, and smaller images where there is a mask for them, are padded.",
            "",
            "| program | inputs | outputs |",
            "|---|---|---|",
            *programs,
            "",
            "## Differences",
            "",
            "Of the logits, from those of the model in PyTorch in float32, on random inputs:",
            "",
            "| words | batch | padded | largest difference | largest logit |",
            "|---|---|---|---|---|",
            *rows,
            "",
            *calibrated(record.get("calibration")),
        ]
    )


def _shown(each: tuple[str, list[int]]) -> str:
    """An input with its shape."""
    name, shape = each
    return f"`{name}` (batch, {', '.join(map(str, shape))})"


def generative_card(record: Mapping[str, Any]) -> str:
    """The same of a model that generates."""
    rows = [f"| {row['token']} | {row['largest']:.1e} | {row['logits']:.2f} |" for row in record["differences"]]
    left = ", ".join(map(str, record["stages"]))
    return "\n".join(
        [
            *_head(record, "ExportedGenerator"),
            "## Prompts",
            "",
            f"One image of {record['image_tokens']} tokens, and up to {record['text_length']} other tokens.",
            f"Layers that begin with another number of tokens in their cache than the one before: {left}.",
            "",
            "## Differences",
            "",
            "Of the logits, from those of the model in PyTorch in float32, on random prompts, one of them padded:",
            "",
            "| token after the prompt | largest difference | largest logit |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def _head(record: Mapping[str, Any], opener: str) -> list[str]:
    """What the card of each model begins with."""
    made = record["provenance"]
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    reduction = json.dumps(record["reduction"], ensure_ascii=False)
    return [
        "---",
        "library_name: pumer",
        "tags: [pumer, token-pruning, token-merging]",
        "---",
        "",
        f"# {record['architecture']} for {record['format']}, {record['precision']}",
        "",
        f"Exported from `{record['source']}` by `{made['command']}` on {made['date']} ({versions}).",
        "",
        f"Reduction: `{reduction}`",
        "",
        "```python",
        "import pumer",
        f'model = pumer.{opener}("THIS_FOLDER")',
        'print(model.answers(["cat.jpg"], ["what is it?"]))',
        "```",
        "",
    ]


def calibrated(about: Mapping[str, Any] | None) -> list[str]:
    """What an int8 program was calibrated on, in lines; of others none."""
    if about is None:
        return []
    given = "inputs that were given" if about["task"] is None else f"split `{about['split']}` of `{about['root']}`"
    task = "" if about["task"] is None else f" ({about['task']})"
    return [
        "## Calibration",
        "",
        f"{about['examples']} examples: {given}{task}.",
        f"For {about['agreement']:.1%} of them the highest logit is that of the model in PyTorch in float32 (of single "
        "scores: of pairs of examples, which one is higher).",
        "",
    ]
