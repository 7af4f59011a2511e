"""Configs: frozen dataclasses that check what a user gives, from Python, YAML files, `key=value` settings and JSON.

A wrong key or value ends in an `InputError` of one line that names the key, the value and what is allowed.
"""

import dataclasses
import difflib
import inspect
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, cast, dataclass_transform, get_args, get_origin

import pydantic.dataclasses
import yaml
from pydantic import BeforeValidator, ConfigDict, Strict, ValidationError

from pumer.utils.errors import InputError
from pumer.utils.files import first_line, read_text
from pumer.utils.places import check_input
from pumer.utils.shipped import name_of

Config = TypeVar("Config")
_ENTRY = re.compile(r"^    (\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)
_KINDS = {int: "an integer", float: "a finite number", str: "text", bool: "true or false", Path: "a path"}
_SETTINGS = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)
_LIMITS = ("ge", "gt", "le", "lt")
_UNKNOWN = ("unexpected_keyword_argument", "invalid_key")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,))
def config(cls: type[Config]) -> type[Config]:
    """A frozen dataclass with keyword arguments, whose construction raises `InputError` for a wrong key or value.

    An int is accepted for a float, a list becomes a tuple, text a `Path`, a mapping a nested config; nothing else is
    converted. `Annotated[int, Field(ge=0)]` limits a number. A `ValueError` from a validator or from `__post_init__`
    becomes an `InputError` in front of which stands the name of the setting.

    Example:
        >>> @config
        ... class TrainConfig:
        ...     epochs: int = 10
        >>> TrainConfig(epochs=3)
        TrainConfig(epochs=3)
        >>> TrainConfig(epochz=3)
        Traceback (most recent call last):
        ...
        pumer.utils.errors.InputError: key 'epochz' is unknown in train config; did you mean 'epochs'?
    """
    hints = inspect.get_annotations(cls, eval_str=True)
    cls.__annotations__ = {name: _strict(hint) for name, hint in hints.items()}
    made = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=_SETTINGS)(cls)
    construct = made.__init__

    def __init__(self: Any, **values: Any) -> None:
        try:
            construct(self, **values)
        except ValidationError as error:
            raise InputError(_message(error, cls)) from None

    __init__.__signature__ = inspect.signature(made)  # type: ignore[attr-defined]
    made.__init__ = __init__  # type: ignore[method-assign]
    return cast(type[Config], made)


def from_dict(cls: type[Config], mapping: Mapping[str, Any], where: str = "") -> Config:
    """Build a config from plain data; a nested one of which only some settings are given keeps its other defaults.

    `where` is what the messages call the mapping; by default `TrainConfig` gives "train config".
    """
    if not isinstance(mapping, Mapping):
        raise InputError(f"the content in {where or cls.__name__} must be a mapping, not {mapping!r}")
    values = dict(mapping)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        default = _default(field)
        if dataclasses.is_dataclass(default) and isinstance(part := values.get(field.name), Mapping):
            values[field.name] = {**vars(default), **part}
    try:
        return cast(Config, cls.__pydantic_validator__.validate_python(values))  # type: ignore[attr-defined]
    except ValidationError as error:
        raise InputError(_message(error, cls, where)) from None


def to_dict(config: Any) -> Any:
    """A config as plain data for YAML and JSON: dataclass to dict, tuple to list, path to text."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {key: to_dict(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_dict(value) for value in config]
    return name_of(config) if isinstance(config, str | Path) else config


def described(cls: type[Any], prefix: str = "", of: Any = None) -> dict[str, str]:
    """What the settings of a config are, from its docstring and its bases', with their defaults; see `config`.

    Args:
        cls: the config.
        prefix: of the names, such as "data." of "data.root".
        of: a config whose values are the defaults; None for the dataclass's own.
    """
    meanings: dict[str, str] = {}
    for one in reversed(cls.__mro__[:-1]):
        section = re.split(r"^(?:Attributes|Args):\n", inspect.cleandoc(one.__doc__ or ""), flags=re.MULTILINE)[-1]
        meanings |= {name: " ".join(text.split()) for name, text in _ENTRY.findall(section.split("\n\n")[0])}
    found: dict[str, str] = {}
    for field in dataclasses.fields(cls):
        name, default = prefix + field.name, _default(field) if of is None else getattr(of, field.name)
        if (inner := _nested(field.type)) is not None:
            found |= described(inner, f"{name}.", default if dataclasses.is_dataclass(default) else None)
            continue
        found[name] = meanings.get(field.name, "")
        if default != MISSING:
            typed = yaml.safe_dump(to_dict(default), default_flow_style=True, width=1000)
            found[name] += f" [default: {typed.splitlines()[0]}]"
    return found


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def load(
    cls: type[Config], path: str | Path | None, overrides: Sequence[str] = (), given: Mapping[str, Any] | None = None
) -> Config:
    """Build a config from a YAML file and `key=value` settings.

    Args:
        cls: the config to build.
        path: a YAML file, or None for the defaults.
        overrides: settings such as `epochs=3` or `data.root=/data/vqav2`; values are YAML, later ones win. A mapping
            changes the keys it names; one that names a `method` takes the place of another method's settings.
        given: values of settings that neither file nor overrides name.
    """
    from omegaconf import DictConfig, OmegaConf  # here: help, which needs none of it, is to come at once
    from omegaconf.errors import OmegaConfBaseException

    merged = OmegaConf.create({}) if path is None else _read_yaml(Path(path))
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key.strip():
            raise InputError(f"setting '{override}' is not of the form key=value")
        try:
            one = OmegaConf.from_dotlist([override])
            value = OmegaConf.select(one, key.strip())
            name = key.strip().partition(".")[0]
            if isinstance(method := merged.get(name), str) and name == "reduction" != key.strip():
                merged[name] = {"method": method}  # as in reduction=pumer reduction.layers=[2]
            if isinstance(value, DictConfig) and "method" in value:
                OmegaConf.update(merged, key.strip(), None)
            merged = OmegaConf.merge(merged, one)
        except (OmegaConfBaseException, yaml.YAMLError, ValueError, RecursionError) as error:
            raise InputError(f"setting '{override[:100]}' cannot be read: {_first_line(error)}") from error
    try:
        plain = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise InputError(f"{path or 'settings'}: {_first_line(error)}") from error
    return from_dict(cls, {**(given or {}), **cast(dict[str, Any], plain)})


def _read_yaml(path: Path) -> Any:
    check_input("recipe", path)
    text = read_text(path, "give the YAML file of a recipe")
    if not text.strip():
        raise InputError(f"recipe {path} is empty; give a file with 'key: value' lines")
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        content = OmegaConf.create(text)
    except (yaml.YAMLError, ValueError, RecursionError, OmegaConfBaseException) as error:
        raise InputError(f"recipe {path} is not readable YAML: {_first_line(error)}") from error
    except AssertionError:  # a number by itself
        content = OmegaConf.create([])
    if not OmegaConf.is_dict(content):
        raise InputError(f"recipe {path} must hold 'key: value' lines")
    return content


_OF_REDUCTIONS = ("method", "layers", "stack", "prune_ratio", "merge_ratio", "text_merge_ratio", "merge_count")


def _first_line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem} in line {error.problem_mark.line + 1}"
    return first_line(error)


def _strict(hint: Any) -> Any:
    """An annotation under which pydantic converts no scalar, and nothing but a list to a tuple."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in (int, float, str, bool):
        return Annotated[hint, Strict()]
    if isinstance(hint, dataclasses.InitVar):
        return dataclasses.InitVar(_strict(hint.type))
    if origin is Annotated:
        return Annotated[_strict(arguments[0]), *hint.__metadata__]
    if origin in (Union, types.UnionType):
        return Union[tuple(map(_strict, arguments))]  # noqa: UP007
    if origin is tuple:
        inner = tuple(kind if kind is Ellipsis else _strict(kind) for kind in arguments)
        as_tuple = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
        return Annotated[origin[inner], Strict(), as_tuple]
    if origin in (dict, Mapping):
        return origin[tuple(map(_strict, arguments))]
    return hint


def _message(error: ValidationError, cls: type[Any], where: str = "") -> str:
    """The first of pydantic's errors as one line; an unknown key comes before all others."""
    where = where or f"{cls.__name__.removesuffix('Config').lower()} config"
    first = min(error.errors(include_url=False), key=lambda one: one["type"] not in _UNKNOWN)
    given, name = first["input"], ""
    hint: Any = cls
    step: Any
    missing = first["type"] == "missing" and not isinstance(given, tuple)  # of a tuple an item
    for step in first["loc"]:
        items, inner = next((part for part in parts(hint) if get_origin(part) is tuple), None), _nested(hint)
        if isinstance(step, int) and items is not None and (missing or first["type"] != "missing"):
            kinds = get_args(items)
            hint, name = kinds[0 if kinds[-1] is Ellipsis else step], f"{name}[{step}]"
        elif inner is not None and step in _hints(inner):
            hint, name = _hints(inner)[step], f"{name}.{step}".removeprefix(".")
        elif inner is not None and first["type"] in _UNKNOWN:
            return _unknown(step, _hints(inner), where, name)
        else:
            break
    if "error" in first.get("ctx", {}):
        said = str(first["ctx"]["error"])
        return said if not name or said.startswith(name) else f"{name}: {said}"
    if missing:
        return f"key '{name}' is missing in {where}; give {name}=..."
    words = allowed(hint)
    if words.startswith("a list") and isinstance(given, str | int):
        words += f", as in {name}=[{given}]"
    shown = "null" if given is None else repr(list(given) if isinstance(given, tuple) else given)
    return f"key '{name}' in {where} must be {words}, not {shown}"


def _unknown(key: Any, hints: Mapping[str, Any], where: str, prefix: str) -> str:
    """The message about an unknown key; the remedy is the nearest name here or one level below."""
    groups = {name: inner for name, hint in hints.items() if (inner := _nested(hint)) is not None}
    names = {inside: f"{name}.{inside}" for name, inner in groups.items() for inside in _hints(inner)}
    names |= {name: name for name in hints}
    if "reduction" in hints and key in _OF_REDUCTIONS:
        return f"key '{key}' is unknown in {where}; did you mean 'reduction.{key}'?"
    prefix = prefix and f"{prefix}."
    nearest = difflib.get_close_matches(str(key), names, n=1, cutoff=0.5)
    remedy = f"did you mean '{prefix}{names[nearest[0]]}'?" if nearest else f"allowed: {', '.join(hints)}"
    return f"key '{prefix}{key}' is unknown in {where}; {remedy}"


def _hints(cls: Any) -> dict[str, Any]:
    """What may be given to a config, `InitVar`s too, with the annotations."""
    hints = {name: field.type for name, field in cls.__dataclass_fields__.items()}
    hints = {name: hint for name, hint in hints.items() if get_origin(hint) is not ClassVar}
    return {name: hint.type if isinstance(hint, dataclasses.InitVar) else hint for name, hint in hints.items()}


def parts(hint: Any) -> list[Any]:
    """All that an annotation is made of, itself included."""
    return [hint, *(part for one in get_args(hint) for part in parts(one))]


def _nested(hint: Any) -> Any:
    """The config that an annotation admits; None for a list of them, and without one."""
    found = parts(hint)
    configs = [part for part in found if isinstance(part, type) and dataclasses.is_dataclass(part)]
    return configs[0] if configs and not any(get_origin(part) is tuple for part in found) else None


def allowed(hint: Any) -> str:
    """What values an annotation admits, in words: "an integer in [0, 10)"."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return allowed(arguments[0]) + _bounds(hint.__metadata__)
    if origin in (Union, types.UnionType):
        return " or ".join(allowed(kind) for kind in arguments if kind is not type(None))
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is tuple:
        return "a list" if arguments[-1] is Ellipsis else f"a list of {len(arguments)} values"
    return _KINDS.get(hint) or ("a mapping" if origin or dataclasses.is_dataclass(hint) else str(hint))


def _bounds(metadata: Sequence[Any]) -> str:
    """The limits among the metadata of an annotation, from `Field(ge=0)` or `annotated_types.Ge(0)`."""
    single = [limit for one in metadata for limit in getattr(one, "metadata", [one])]
    if any(getattr(limit, "min_length", 0) for limit in single):
        return " that is not empty"
    limits = {name: value for limit in single for name in _LIMITS if (value := getattr(limit, name, None)) is not None}
    low = f"[{limits['ge']}" if "ge" in limits else f"({limits.get('gt', '-inf')}"
    high = f"{limits['le']}]" if "le" in limits else f"{limits.get('lt', 'inf')})"
    return f" in {low}, {high}" if limits else ""
