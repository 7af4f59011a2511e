"""Reading what others published: released checkpoints and lists of answers. Nothing but tensors is ever unpickled."""

from collections import Counter
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import cached_file

from pumer.checkpoint import WEIGHT_FILES
from pumer.utils.errors import InputError, some
from pumer.utils.files import first_line, read_json, read_lines

_LIGHTNING = ("pytorch_lightning.", "lightning.")  # its checkpoints name the classes of the callbacks


def read_source(source: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of a checkpoint.

    Args:
        source: Folder with ``config.json`` and one weight file (safetensors, ``.bin`` or ``.ckpt``); one such file by
            itself, as METER's authors publish (its config is Lightning's, or empty); or a hub name.
    """
    if Path(source).is_file():
        return _read(Path(source))
    if Path(source).exists() or Path(source).is_absolute():
        folder = Path(source)
        if not (folder / "config.json").is_file():
            raise InputError(f"{source} holds no config.json; give the folder of a released checkpoint or a .ckpt")
        files = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
        files = files or sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*.ckpt")])
        if not files:
            raise InputError(f"{source} holds no weights; give a folder with *.safetensors, *.bin or *.ckpt")
        if len(files) > 1 and files[0].name not in WEIGHT_FILES:
            raise InputError(f"{source} holds several weight files: {some([file.name for file in files])}; leave one")
        return read_json(folder / "config.json"), _read(files[0])[1]
    try:
        config = cached_file(source, "config.json")
        found = [cached_file(source, name, _raise_exceptions_for_missing_entries=False) for name in WEIGHT_FILES]
    except OSError as error:
        raise InputError(f"checkpoint {source} is neither a folder nor on the hub: {first_line(error)}") from error
    weights = next((path for path in found if path is not None), None)
    if weights is None:
        raise InputError(f"checkpoint {source} has neither {' nor '.join(WEIGHT_FILES)}")
    return read_json(config), _read(Path(weights))[1]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Lightning's config, empty if there is none, and the tensors: of the file, or of the ``state_dict`` inside it."""
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    except (OSError, RuntimeError, SafetensorError, EOFError) as error:
        raise InputError(f"weights {path} cannot be read: {first_line(error)}") from error
    except Exception as error:  # pickle.UnpicklingError and what a broken file provokes
        raise InputError(
            f"weights {path} hold more than tensors, or are broken, and are not opened; save the tensors alone"
        ) from error
    tensors = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise InputError(f"weights {path} hold no dict of tensors")
    settings = content.get("hyper_parameters") if tensors is not content else None
    config = settings.get("config") if isinstance(settings, dict) else None
    return config if isinstance(config, dict) else {}, tensors


def _unpickled(path: Path) -> Any:
    """Content of a pickle: tensors and plain values. Lightning's classes, if any, are replaced by empty ones."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if not names or not all(name.startswith(_LIGHTNING) for name in names):
            raise
    empty: list[Any] = [(type("Ignored", (), {}), name) for name in names]
    with torch.serialization.safe_globals(empty):
        return torch.load(path, map_location="cpu", weights_only=True)


def read_answers(path: Path) -> list[str]:
    """Answers, each once, from a JSON list or from a text file with one per line."""
    answers: Any = read_lines(path, "give a file of answers")
    if path.suffix == ".json" or next((line for line in answers if line.strip()), "").lstrip().startswith("["):
        answers = read_json(path, "give a file of answers")
    elif answers[-1] == "":  # what follows the last line's end
        answers.pop()
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise InputError(f"answers file {path} must hold a JSON list of texts, or one answer per line")
    twice = [answer for answer, count in Counter(answers).items() if count > 1]
    if twice:
        raise InputError(f"answers file {path} has {some(twice)} more than once; each is one output of the model")
    return answers
