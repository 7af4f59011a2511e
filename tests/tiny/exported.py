"""Records of exported models that no program stands behind."""

from typing import Any

from pumer.exporting import record


def blank_record(generative: bool) -> dict[str, Any]:
    """An ``export.json`` of the right version and types, for OpenVINO in float32, that says nothing."""
    blank: dict[type, Any] = {str: "", int: 1, list: [], dict: {}}
    kinds = record.GENERATING if generative else record.CHOOSING
    values = {name: blank[kind if isinstance(kind, type) else kind[0]] for name, kind in kinds.items()}
    version = record.GENERATIVE_VERSION if generative else record.VERSION
    kind = {"kind": record.GENERATIVE} if generative else {}
    return {**values, **kind, "version": version, "format": "openvino", "precision": "f32"}
