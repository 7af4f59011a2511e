"""Limits that no model of today meets: larger ones come from broken files, and would run without end."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pumer.utils.errors import InputError
from pumer.utils.files import read_config

LAYERS = 1024
TOKENS = 16_384
_CHECKPOINT = re.compile(
    r"(.*_)?config\.json|.*\.(safetensors|bin|index\.json|txt)|(tokenizer|special_tokens_map|added_tokens|vocab)\.json"
    r"|(reduction|run|trainer_state)\.json"
)
_RANGES = {
    "patch_size": (1, 1024),
    "image_size": (1, TOKENS),
    "num_channels": (1, 64),
    "num_images": (-1, 64),
    "hidden_size": (1, 65_536),
    "intermediate_size": (1, 2**20),
    "num_attention_heads": (1, 1024),
    "max_position_embeddings": (1, 2**20),
    "vocab_size": (1, 2**24),
    "type_vocab_size": (1, 1024),
    "modality_type_vocab_size": (1, 1024),
    "num_hidden_layers": (0, LAYERS),
    "num_cross_modal_pairs": (0, LAYERS),
}


def check_model(config: Mapping[str, Any], where: str) -> None:
    """Refuse the content of a ``config.json`` that no model can be built from, or not in any reasonable time."""
    for key, value in config.items():
        if isinstance(value, Mapping) and key.endswith("_config"):
            check_model(value, where)
        if key not in _RANGES or value is None:
            continue
        least, most = _RANGES[key]
        for number in value if isinstance(value, list | tuple) else (value,):
            if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= most:
                wanted = f"an integer in [{least}, {most}]"
                raise InputError(f"config.json of {where}: {key} must be {wanted}, not {number!r}")


def check_tokens(image_size: int, patch_size: int) -> None:
    """Refuse an image with more tokens than attention takes in reasonable time."""
    tokens = (image_size // patch_size) ** 2
    if tokens > TOKENS:
        raise InputError(
            f"image_size {image_size} gives {tokens} tokens of {patch_size} x {patch_size} pixels; at most {TOKENS} "
            f"are taken: give image_size={int(TOKENS**0.5) * patch_size} or less"
        )


def check_reduction(settings: Any) -> None:
    """Refuse the content of a ``reduction.json``, or of a recipe, with more steps than a model has layers."""
    for key, value in settings.items() if isinstance(settings, Mapping) else ():
        if isinstance(value, list | tuple) and len(value) > LAYERS:
            raise InputError(f"{key} of the reduction names {len(value)} layers; a model has at most {LAYERS}")


def check_checkpoint(name: str | Path, image_size: int | None = None) -> None:
    """Refuse a checkpoint, read at another image size if given, by its small files alone; names on the hub pass."""
    folder = Path(name)
    if not is_place(name):
        return
    if not folder.is_dir():
        state = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(f"checkpoint {name} {state}; give a folder with config.json and model.safetensors")
    if not (folder / "config.json").is_file():
        raise InputError(f"checkpoint {name} holds no config.json; give a folder that pumer or transformers wrote")
    config = read_config(folder / "config.json")
    check_model(config, str(name))
    if (folder / "reduction.json").is_file():
        check_reduction(read_config(folder / "reduction.json"))
    vision = config.get("vision_config")
    sizes = vision if isinstance(vision, Mapping) else config
    size, patch_size = image_size or sizes.get("image_size"), sizes.get("patch_size")
    if isinstance(size, int) and isinstance(patch_size, int):
        check_tokens(size, patch_size)


def checkpoint_files(name: str | Path) -> list[Path]:
    """Files of a checkpoint that loading it reads, and that no result may take the place of; none for a hub name."""
    return [file for file in Path(name).glob("*") if _CHECKPOINT.fullmatch(file.name)]


def is_place(name: str | Path) -> bool:
    """Whether a checkpoint's name is that of a folder, there or not, rather than one on the hub."""
    return isinstance(name, Path) or name.startswith((os.sep, ".")) or name.count("/") > 1 or Path(name).exists()
