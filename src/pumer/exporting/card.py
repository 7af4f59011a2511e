"""The card of an exported model."""

import json
from collections.abc import Mapping
from typing import Any


def card(record: Mapping[str, Any]) -> str:
    """``README.md`` of an exported model, from its ``export.json``."""
    made = record["provenance"]
    rows = [
        f"| {row['words']} | {row['batch']} | {'yes' if row['padded'] else 'no'} "
        f"| {row['largest']:.1e} | {row['logits']:.2f} |"
        for row in record["differences"]
    ]
    programs = [
        f"| `{each['file']}` | {', '.join(map(_shown, each['inputs'].items()))} | `{'`, `'.join(each['outputs'])}` |"
        for each in record["programs"]
    ]
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    reduction = json.dumps(record["reduction"], ensure_ascii=False)
    return "\n".join(
        [
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
            'model = pumer.ExportedModel("THIS_FOLDER")',
            'print(model.answers(["cat.jpg"], ["what is it?"]))',
            "```",
            "",
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
