"""Records of exported models that no program stands behind."""

from collections.abc import Mapping
from typing import Any

from pumer.exporting import record


def blank_record(generative: bool) -> dict[str, Any]:
    """An ``export.json`` of the right version and types, for OpenVINO in float32, that says nothing."""
    values = _blank(record.GENERATING if generative else record.CHOOSING)
    version = record.GENERATIVE_VERSION if generative else record.VERSION
    kind = {"kind": record.GENERATIVE} if generative else {}
    named = {} if generative else {"programs": [{"file": "model.xml", "inputs": {}, "outputs": ["logits"]}]}
    return {**values, **kind, **named, "version": version, "format": "openvino", "precision": "f32"}


def _blank(kind: Any) -> Any:
    if isinstance(kind, Mapping):
        return {name: _blank(each) for name, each in kind.items() if name is not str}
    if isinstance(kind, list):
        return [] if ... in kind else [_blank(kind[0])]
    return kind() if kind in (str, int, dict) else None
