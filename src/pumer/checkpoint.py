"""Saving and loading patched models: safetensors and config as transformers writes them, plus ``reduction.json``."""

import os
import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, ViltImageProcessorPil, ViltProcessor
from transformers.utils import cached_file

from pumer.backbones.text_norm import restore_text_norm
from pumer.errors import InputError
from pumer.models import meter
from pumer.models.meter import MeterImageProcessorPil, MeterProcessor
from pumer.patching import LEARNED, adopt, patch, reduction, unwrapped
from pumer.reducers import NoReduction, ReductionConfig, config_from_dict, config_to_dict
from pumer.utils.files import first_line, read_json, replacing, write_json

REDUCTION_FILE = "reduction.json"
LEARNED_FILE = "reduction.safetensors"
"""Weights of a method that learns; plain transformers does not see them."""
HEADS_FILE = "pretraining_heads.safetensors"
"""A matching layer that the checkpoint's own model class has no place for."""
TRAINING_RECORD = "run.json"
"""File in a trained model's folder: provenance, config and results of its training."""
SAVED_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
HUB_OPTIONS = ("revision", "token", "cache_dir", "force_download", "local_files_only")


def save(model: nn.Module, directory: str | Path, weights: dict[str, Tensor] | None = None) -> None:
    """Write a model so that `load`, and plain transformers, can read it back.

    The folder is written aside and put in place when it is complete; files of other names that are in ``directory``
    already stay. A parameter-free reduction adds nothing but ``reduction.json``.

    Args:
        model: A transformers model, patched or not.
        directory: The folder to write.
        weights: Its whole state dict, where the model itself holds a part of it (FSDP).

    Raises:
        InputError: If ``directory`` is a file, or the model is not one of transformers'.
    """
    inner = unwrapped(model)
    if not isinstance(inner, PreTrainedModel):
        raise InputError(f"{type(inner).__name__} is not a transformers model; save the model inside it")
    with replacing(directory) as folder:
        state = inner.state_dict() if weights is None else weights
        learned = {name: tensor.contiguous() for name, tensor in state.items() if _is_learned(name)}
        rest = {name: tensor for name, tensor in state.items() if name not in learned}
        inner.save_pretrained(folder, state_dict=rest if learned else weights)
        if learned:
            save_file(learned, folder / LEARNED_FILE)
        write_reduction(inner, folder)
        written = {file.name for file in folder.iterdir()}
    for file in saved_files(directory):  # an older save must not be mistaken for a part of this one
        if file.name not in written:
            file.unlink()


def saved_files(directory: str | Path) -> list[Path]:
    """The files of a folder that `save` keeps weights and reduction in."""
    names = (REDUCTION_FILE, LEARNED_FILE)
    return [file for file in Path(directory).glob("*") if file.name in names or SAVED_WEIGHTS.fullmatch(file.name)]


def write_reduction(model: nn.Module, directory: str | Path) -> None:
    """Write ``reduction.json`` of a patched model into a folder; of an unpatched one, nothing."""
    config = reduction(model)
    if config is not None:
        write_json(Path(directory) / REDUCTION_FILE, config_to_dict(config))


def load(name: str | Path, **kwargs: Any) -> PreTrainedModel:
    """Load a model, patched as it was saved.

    Args:
        name: A folder, or the name of a model on the Hugging Face hub.
        **kwargs: Passed to ``from_pretrained``, such as ``dtype`` or ``revision``.

    Returns:
        The model in eval mode; patched if there is a ``reduction.json``.

    Raises:
        InputError: If the checkpoint is missing, broken or of an unknown model type, or if its reduction has an unknown
            method, version or key.
    """
    hub = {key: value for key, value in kwargs.items() if key in HUB_OPTIONS}
    cls = model_class(name, **hub)
    config = read_reduction(name, **hub)
    try:
        model: PreTrainedModel = cls.from_pretrained(str(name), **kwargs)
    except (OSError, EOFError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
        raise InputError(f"the weights of {name} cannot be loaded: {first_line(error)}") from error
    restore_text_norm(model)
    if config is None:
        return model.eval()
    patch(model.eval(), config)
    if wanted := learned_names(model):
        model.load_state_dict(_read_learned(name, wanted, **hub), strict=False)
    return model


def restore_learned(model: nn.Module, name: str | Path) -> set[str]:
    """Give a patched model what its method learned in a checkpoint, where that was reduced by the same method.

    Args:
        model: Patched by hand, of the class that was saved or with another head.
        name: The checkpoint.

    Returns:
        Names of the weights that the checkpoint had; none for a method without weights.
    """
    config, saved, wanted = reduction(model), read_reduction(name), learned_names(model)
    if not wanted or config is None or saved is None or config.method != saved.method:
        return set()
    return adopt(model, _read_learned(name, wanted, partly=True))


def learned_names(model: nn.Module) -> set[str]:
    """Names of the weights, in a model's state dict, that belong to a reduction that learns."""
    return {name for name in model.state_dict() if _is_learned(name)}


def _is_learned(name: str) -> bool:
    """Whether a tensor of a state dict belongs to a method that learns."""
    return f".{LEARNED}." in f".{name}"


def _read_learned(name: str | Path, wanted: set[str], partly: bool = False, **hub: Any) -> dict[str, Tensor]:
    """Tensors of a method that learns: `save` writes them apart, a checkpoint of a run holds them with the others."""
    found: dict[str, Tensor] = {}
    for file in (LEARNED_FILE, "model.safetensors"):
        path = cached_file(str(name), file, _raise_exceptions_for_missing_entries=False, **hub)
        if path is not None and not found:
            with safe_open(path, framework="pt") as tensors:
                found = {key: tensors.get_tensor(key) for key in tensors.keys() if key in wanted}  # noqa: SIM118
    if found.keys() != wanted and not partly:
        missing = sorted(wanted - found.keys())
        raise InputError(f"{name} lacks weights that its reduction learned, such as {missing[0]} (file {LEARNED_FILE})")
    return found


def model_class(name: str | Path, **hub: Any) -> type[PreTrainedModel]:
    """The class a checkpoint was saved from, of transformers or of `pumer.models`.

    Args:
        name: A folder or a hub name.
        **hub: Where on the hub to look: ``revision``, ``token``, ``cache_dir`` and such.

    Raises:
        InputError: If there is no readable ``config.json``, or it names no class of transformers.
    """
    if isinstance(name, Path) or name.startswith((os.sep, ".")) or name.count("/") > 1 or Path(name).exists():
        if not Path(name).is_dir():
            raise InputError(f"checkpoint {name} is not a folder; give a folder with config.json and model.safetensors")
        if not (Path(name) / "config.json").is_file():
            raise InputError(f"checkpoint {name} holds no config.json; give a folder that pumer or transformers wrote")
    try:
        config = AutoConfig.from_pretrained(str(name), **hub)
    except (OSError, ValueError, KeyError, TypeError) as error:
        where = "cannot be read" if Path(name).is_dir() else "is neither a folder nor on the hub"
        raise InputError(f"checkpoint {name} {where}: {first_line(error)}") from error
    architecture = (config.architectures or [""])[0]
    cls = getattr(transformers, architecture, getattr(meter, architecture, None)) if architecture else None
    if not (isinstance(cls, type) and issubclass(cls, PreTrainedModel)):
        raise InputError(f"config.json of {name} names the architecture '{architecture}', unknown to transformers")
    return cls


def read_reduction(name: str | Path, **hub: Any) -> ReductionConfig | None:
    """The reduction a checkpoint was saved with, or None.

    Args:
        name: A folder or a hub name.
        **hub: As for `model_class`.

    Raises:
        InputError: If ``reduction.json`` is broken, or names an unknown method, version or key.
    """
    try:
        path = cached_file(str(name), REDUCTION_FILE, _raise_exceptions_for_missing_entries=False, **hub)
    except OSError as error:
        raise InputError(f"{REDUCTION_FILE} of {name} cannot be read: {first_line(error)}") from error
    if path is None:
        return None
    content = read_json(path)
    try:
        return config_from_dict(content)
    except InputError as error:
        raise InputError(f"{REDUCTION_FILE} of {name}: {error}") from error


def load_processor(name: str | Path) -> ViltProcessor | MeterProcessor:
    """Tokenizer and Pillow image processor of a ViLT or METER checkpoint.

    Args:
        name: A folder or a hub name.

    Raises:
        InputError: If either cannot be read or is not there.
    """
    try:
        of_meter = AutoConfig.from_pretrained(str(name)).model_type == "meter"
        kind = MeterImageProcessorPil if of_meter else ViltImageProcessorPil
        images, tokenizer = kind.from_pretrained(str(name)), AutoTokenizer.from_pretrained(str(name))
    except (OSError, ValueError, KeyError) as error:
        if Path(name).is_dir() and not (Path(name) / "preprocessor_config.json").is_file():
            raise InputError(f"{name} holds no processor; add one: processor.save_pretrained('{name}')") from error
        raise InputError(f"the processor of {name} cannot be read: {first_line(error)}") from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # made up from the model type when there are no files
        raise InputError(f"{name} holds no tokenizer; put the tokenizer files that belong to the model into it")
    return MeterProcessor(images, tokenizer) if of_meter else ViltProcessor(images, tokenizer)


def ensure_patched(model: nn.Module) -> nn.Module:
    """Switch on the fast path, unless a reduction is in place already; returns the same model."""
    return model if reduction(model) is not None else patch(model, NoReduction())


def trained_with(model: str | Path) -> dict[str, Any]:
    """The settings that a model was trained with; none where its folder does not say.

    Raises:
        InputError: If its record is something else.
    """
    record = Path(model) / TRAINING_RECORD
    content = read_json(record) if record.is_file() else {}
    settings: Any = content.get("config", {}) if isinstance(content, dict) else None
    if not isinstance(settings, dict) or not isinstance(settings.get("data", {}), dict):
        raise InputError(f"{record} is no record of a training; remove it")
    return settings
