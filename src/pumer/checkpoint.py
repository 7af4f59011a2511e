"""Saving and loading patched models: safetensors and config as transformers writes them, plus ``reduction.json``."""

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, ProcessorMixin
from transformers.modeling_utils import load_state_dict
from transformers.utils import CONFIG_NAME, cached_file

from pumer.backbones import BACKBONES, backbone_of
from pumer.patching import LEARNED, patch, reduction, unwrapped
from pumer.reducers import ReductionConfig, config_from_dict, config_to_dict
from pumer.utils.errors import InputError, some
from pumer.utils.files import first_line, read_config, read_json, replacing, write_json
from pumer.utils.limits import check_checkpoint, check_model, is_place
from pumer.utils.shipped import located
from pumer.utils.tensors import not_finite

logger = logging.getLogger(__name__)

REDUCTION_FILE = "reduction.json"
LEARNED_FILE = "reduction.safetensors"
"""Weights of a method that learns; plain transformers does not read them."""
WEIGHTS_FILE = "model.safetensors"
WEIGHT_FILES = (WEIGHTS_FILE, "pytorch_model.bin")
HEADS_FILE = "pretraining_heads.safetensors"
"""A matching layer that the checkpoint's own model class has no place for."""
TRAINING_RECORD = "run.json"
"""File in a trained model's folder: provenance, config and results of its training."""
_SAVED = re.compile(r"reduction\.(json|safetensors)|model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
_HUB_OPTIONS = ("revision", "token", "cache_dir", "force_download", "local_files_only")
_PROCESSOR = ("preprocessor_config.json", "processor_config.json")
_READ = re.compile(r".*\.(json|safetensors|bin)|(vocab|merges)\.txt")


# Saving


def save(model: nn.Module, directory: str | Path, weights: dict[str, Tensor] | None = None) -> None:
    """Write a model so that `load`, and plain transformers, can read it back.

    The files are written aside and put in place when they are complete, ``config.json`` last: without it nothing loads,
    where a kill left a mix of an older save and this one. Files of other names that are in ``directory`` already stay.
    A parameter-free reduction adds nothing but ``reduction.json``.

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
    with replacing(directory, last=CONFIG_NAME) as folder:
        state = inner.state_dict() if weights is None else weights
        learned = {name: tensor.contiguous() for name, tensor in state.items() if _is_learned(name)}
        rest = {name: tensor for name, tensor in state.items() if name not in learned}
        inner.save_pretrained(folder, state_dict=rest if learned else weights)
        if learned:
            save_file(learned, folder / LEARNED_FILE)
        write_reduction(inner, folder)
        written = {file.name for file in folder.iterdir()}
        readable = (folder / CONFIG_NAME).stat().st_mode
        for name in written:  # safetensors writes for the owner alone
            (folder / name).chmod(readable)
        (Path(directory) / CONFIG_NAME).unlink(missing_ok=True)
        for file in saved_files(directory):  # an older save must not be mistaken for a part of this one
            if file.name not in written:
                file.unlink()


def saved_files(directory: str | Path) -> list[Path]:
    """The files of a folder that `save` keeps weights and reduction in."""
    return [file for file in Path(directory).glob("*") if _SAVED.fullmatch(file.name)]


def write_reduction(model: nn.Module, directory: str | Path) -> None:
    """Write ``reduction.json`` of a patched model into a folder; of an unpatched one, nothing."""
    config = reduction(model)
    if config is not None:
        write_json(Path(directory) / REDUCTION_FILE, config_to_dict(config))


# Loading


def load(name: str | Path, **kwargs: Any) -> PreTrainedModel:
    """Load a model, patched as it was saved.

    Args:
        name: A folder, the name of a model on the Hugging Face hub, or one that ships, such as "small:vilt".
        **kwargs: Passed to ``from_pretrained``, such as ``dtype`` or ``revision``.

    Returns:
        The model in eval mode; patched if there is a ``reduction.json``.

    Raises:
        InputError: If the checkpoint is missing, broken or of an unknown model type, or if its reduction has an unknown
            method, version or key.
    """
    name, hub = located(name), _hub_options(kwargs)
    cls = model_class(name, **hub)
    config = read_reduction(name, **hub)
    model, _ = read_model(cls, name, **kwargs)
    if config is not None:
        patch(model, config)
    _fill_learned(model.eval(), name, _read_learned(name, **hub), learned_names(model))
    return model


def model_class(name: str | Path, **hub: Any) -> type[PreTrainedModel]:
    """The class a checkpoint was saved from, of transformers or of `pumer.models`; arguments as of `load`."""
    check_checkpoint(name)
    name = located(name)
    if is_place(name):
        _check_readable(Path(name))
    where = "cannot be read" if Path(name).is_dir() else "is neither a folder nor on the hub"
    with reading(f"checkpoint {name} {where}"):
        config = AutoConfig.from_pretrained(str(name), **hub)
        check_model(config.to_dict(), str(name))
        architecture = (config.architectures or [""])[0]
        own = {name: cls for family in BACKBONES.values() for name, cls in family.model_classes.items()}
        cls = own.get(architecture) or getattr(transformers, architecture or " ", None)
    if not (isinstance(cls, type) and issubclass(cls, PreTrainedModel)):
        raise InputError(f"config.json of {name} names the architecture '{architecture}', unknown to transformers")
    return cls


def read_reduction(name: str | Path, **hub: Any) -> ReductionConfig | None:
    """The reduction a checkpoint was saved with, or None; arguments as of `load`."""
    path = _file(name, REDUCTION_FILE, **hub)
    if path is None:
        return None
    content = read_config(path, "replace it by the file that belongs to the weights")
    try:
        return config_from_dict(content)
    except InputError as error:
        raise InputError(f"{REDUCTION_FILE} of {name}: {error}") from error


def load_processor(name: str | Path) -> ProcessorMixin:
    """Tokenizer and Pillow image processor of a checkpoint, named as for `load`."""
    name = located(name)
    if Path(name).is_dir():
        _check_readable(Path(name))
        if not has_processor(name):
            raise InputError(f"{name} holds no processor; add one: processor.save_pretrained('{name}')")
    with reading(f"the processor of {name} cannot be read"):
        kind = AutoConfig.from_pretrained(str(name)).model_type
        if kind not in BACKBONES:
            raise InputError(f"{name} is a '{kind}' model; supported: {', '.join(BACKBONES)}")
        images = BACKBONES[kind].image_processor.from_pretrained(str(name))
        tokenizer = AutoTokenizer.from_pretrained(str(name))
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # made up from the model type when there are no files
        raise InputError(f"{name} holds no tokenizer; put the tokenizer files that belong to the model into it")
    processor: ProcessorMixin = BACKBONES[kind].processor(images, tokenizer)
    return processor


def has_processor(name: str | Path) -> bool:
    """Whether a checkpoint, in a folder or on the hub, has an image processor."""
    return any(_file(name, file) for file in _PROCESSOR)


def trained_with(model: str | Path) -> dict[str, Any]:
    """The settings that a model was trained with; empty where its folder has no record of it."""
    record = Path(model) / TRAINING_RECORD
    content = read_json(record) if os.path.lexists(record) else {}
    settings: Any = content.get("config", {}) if isinstance(content, dict) else None
    if not isinstance(settings, dict) or not isinstance(settings.get("data", {}), dict):
        raise InputError(f"{record} is no record of a training; remove it")
    return settings


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn any error about a user's files inside a `with` block into an `InputError`: what cannot be done, and why."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # broken files are not checked: anything can come up, in any library below
        raise InputError(f"{what}: {first_line(error).rstrip(':')}") from error


def _file(name: str | Path, file: str, **hub: Any) -> str | None:
    """Path of a checkpoint's file, in its folder or downloaded; None if the checkpoint has no such file."""
    with reading(f"{file} of {name} cannot be read"):
        path: str | None = cached_file(str(name), file, _raise_exceptions_for_missing_entries=False, **hub)
    return path


def _hub_options(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if key in _HUB_OPTIONS}


def _check_readable(folder: Path) -> None:
    """Refuse files of a model that are there but cannot be read, which would count as absent."""
    for file in sorted(folder.iterdir()):
        if _READ.fullmatch(file.name) and not (file.is_file() and os.access(file, os.R_OK)):
            raise InputError(f"{file} is there but cannot be read as a file; restore it, or remove it")


# Strict reading of weights: each tensor is used, and none is missing


def read_model(
    cls: type[PreTrainedModel], name: str | Path, head: bool = True, **kwargs: Any
) -> tuple[PreTrainedModel, frozenset[str]]:
    """A model of a class with the weights of a checkpoint: each of its tensors is read, and none is left over.

    Buffers that older versions of transformers saved, and heads of other tasks, may be left over; the log names the
    latter. Weights that a reduction learned are not read. Tensors that do not fit are named in an `InputError`.

    Args:
        cls: The class to make.
        name: A folder, or the name of a model on the Hugging Face hub.
        head: Whether the checkpoint must have the head of the class; otherwise a head that it lacks starts at random.
        **kwargs: Passed to ``from_pretrained``.

    Returns:
        The model, and which of its heads the checkpoint lacks (such as "classifier", "pooler").
    """
    allowed = bool(kwargs.get("ignore_mismatched_sizes"))  # by the caller
    old_names = {old: name for family in BACKBONES.values() for old, name in family.old_names.items()}
    options = {"key_mapping": old_names} | kwargs | {"ignore_mismatched_sizes": True, "output_loading_info": True}
    with reading(f"the weights of {name} cannot be loaded"):
        model, report = cls.from_pretrained(str(name), **options)
    of_head = {key: part for key in model.state_dict() if (part := _head_of(key, model))}
    lost = set(report["missing_keys"])
    whole = {part for part in of_head.values() if {key for key in of_head if of_head[key] == part} <= lost}
    absent = frozenset() if head else frozenset(whole)
    buffers = dict(model.named_buffers())  # derived from the config
    extra = {key for key in report["unexpected_keys"] if key not in buffers and not _is_learned(key)}
    others = {key: part for key in extra if (part := _head_of(key, model)) and part not in of_head.values()}
    refuse_tensors(
        name,
        missing=(key for key in lost if of_head.get(key) not in absent),
        unexpected=extra - others.keys(),
        misshapen=() if allowed else (key for key, *_ in report["mismatched_keys"]),
        not_floating_point=_no_floats(model, name, **_hub_options(kwargs)),
        not_finite=not_finite(model.named_parameters()),
    )
    if others:
        left = some(sorted(set(others.values())))
        logger.info("%s also holds what a %s has no place for: %s", name, cls.__name__, left)
    if (family := backbone_of(model)) is not None:
        family.restore(model)
    return model, absent


def read_tensors(name: str | Path, file: str, wanted: Callable[[str], bool], **hub: Any) -> dict[str, Tensor]:
    """The wanted tensors, by name, of one safetensors file of a checkpoint; none where it has no such file."""
    path = _file(name, file, **hub)
    if path is None:
        return {}
    with reading(f"{file} of {name} cannot be read"), safe_open(path, framework="pt") as tensors:
        return {key: tensors.get_tensor(key) for key in tensors.keys() if wanted(key)}  # noqa: SIM118


def check_tensors(name: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Refuse the tensors of a checkpoint if they differ from those wanted in names or shapes, or are not finite."""
    shared = wanted.keys() & found.keys()
    refuse_tensors(
        name,
        missing=wanted.keys() - shared,
        unexpected=found.keys() - shared,
        misshapen=(key for key in shared if found[key].shape != wanted[key].shape),
        not_floating_point=(key for key in shared if not found[key].is_floating_point()),
        not_finite=not_finite(found.items()),
    )


def refuse_tensors(name: str | Path, **faults: Iterable[str]) -> None:
    """Raise an error that names the tensors of a checkpoint with a fault, if there is one."""
    found = {fault.replace("_", " "): sorted(set(keys)) for fault, keys in faults.items()}
    named = "; ".join(f"{fault}: {some(keys)}" for fault, keys in found.items() if keys)
    if named:
        raise InputError(f"the tensors of {name} are not those of its model; {named}; give a whole checkpoint")


def _head_of(key: str, model: PreTrainedModel) -> str | None:
    """The head, or pooler, that a tensor belongs to; None for one of the body."""
    part, family = key.removeprefix(f"{model.base_model_prefix}.").partition(".")[0], backbone_of(model)
    return part if part.endswith("pooler") or (family is not None and part in family.head_modules) else None


def _no_floats(model: PreTrainedModel, name: str | Path, **hub: Any) -> list[str]:
    """Names of the weights that a checkpoint holds as integers; transformers would take these for the values."""
    if getattr(model.config, "quantization_config", None) is not None:
        return []
    wanted = {key for key, parameter in model.named_parameters() if parameter.is_floating_point()}
    with reading(f"the weights of {name} cannot be loaded"):
        files = [load_state_dict(file, map_location="meta") for file in _weight_files(name, **hub)]
    found = [(key, x.dtype) for tensors in files for key, x in tensors.items() if not x.is_floating_point()]
    return [f"{key} ({dtype})" for key, dtype in found if key in wanted]


def _weight_files(name: str | Path, **hub: Any) -> list[str]:
    """The files that transformers reads the weights of a checkpoint from: one, or the shards that an index names."""
    for whole in WEIGHT_FILES:
        if (path := _file(name, whole, **hub)) is not None:
            return [path]
        if (index := _file(name, f"{whole}.index.json", **hub)) is not None:
            shards = set(read_json(index)["weight_map"].values())
            return [str(cached_file(str(name), shard, **hub)) for shard in shards]
    return []


# Weights that a reduction learned


def restore_learned(model: nn.Module, name: str | Path) -> set[str]:
    """Give a patched model, with any head, what its method learned in a checkpoint that has the same method.

    Returns:
        Names of the weights that the checkpoint had; none for a method without weights.
    """
    config, saved, wanted = reduction(model), read_reduction(name), learned_names(model)
    if not wanted or config is None or saved is None or config.method != saved.method:
        return set()
    learned = [f".{stack}_{layer}." for stack, layer in saved.places()]
    wanted = {key for key in wanted if any(place in key for place in learned)}
    found = {key: x for key, x in _read_learned(name).items() if key in wanted}
    _fill_learned(model, name, found, wanted)
    return wanted


def learned_names(model: nn.Module) -> set[str]:
    """Names of the weights, in a model's state dict, that belong to a reduction that learns."""
    return {name for name in model.state_dict() if _is_learned(name)}


def _is_learned(name: str) -> bool:
    return f".{LEARNED}." in f".{name}"


def _read_learned(name: str | Path, **hub: Any) -> dict[str, Tensor]:
    """Tensors of a method that learns: `save` writes them apart, a checkpoint of a run holds them with the others."""
    return read_tensors(name, LEARNED_FILE, _is_learned, **hub) or read_tensors(name, WEIGHTS_FILE, _is_learned, **hub)


def _fill_learned(model: nn.Module, name: str | Path, found: Mapping[str, Tensor], wanted: set[str]) -> None:
    """Give a patched model the weights that its reduction learned: all that it wants, and no others."""
    own = model.state_dict()
    check_tensors(f"{name} ({REDUCTION_FILE}, {LEARNED_FILE})", found, {key: own[key] for key in wanted})
    model.load_state_dict(found, strict=False)
