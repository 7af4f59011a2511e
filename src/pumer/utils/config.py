"""Configs: frozen dataclasses that check what a user gives, from Python, YAML files, `key=value` settings and JSON.

A wrong key or value ends in an `InputError` of one line that names the key, the value and what is allowed.
"""

import dataclasses
import difflib
import inspect
import re
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    TypeVar,
    Union,
    cast,
    dataclass_transform,
    get_args,
    get_origin,
)

import pydantic.dataclasses
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AllowInfNan, BeforeValidator, ConfigDict, Strict, TypeAdapter, ValidationError

from pumer.utils.errors import InputError
from pumer.utils.files import read_text
from pumer.utils.places import file_there

Config = TypeVar("Config")
_ENTRY = re.compile(r"^    (\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)
_KINDS = {int: "an integer", float: "a finite number", str: "text", bool: "true or false", Path: "a path"}
_SETTINGS = ConfigDict(extra="forbid", validate_default=True)
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
    made = pydantic.dataclasses.dataclass(
        frozen=True, kw_only=True, config=ConfigDict(extra="forbid", validate_default=True)
    )(cls)
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
    """Build a (nested) config from plain data.

    Args:
        cls: the config; a part of which only some settings are given keeps its other defaults.
        mapping: plain data, as read from YAML or JSON.
        where: what the messages call the mapping; by default `TrainConfig` gives "train config".

    Raises:
        InputError: for an unknown key (with the nearest valid one), a missing key or a wrong value.
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


def checked(hint: Any, name: str, value: Any) -> Any:
    """One value, as a config with that annotation takes it.

    Args:
        hint: such as `Annotated[int, Field(ge=1)]`.
        name: of the value, for the message.
        value: what was given.

    Raises:
        InputError: with the name, the value and what is allowed.
    """
    try:
        return TypeAdapter(_strict(hint)).validate_python(value)
    except ValidationError:
        raise InputError(f"{name} must be {allowed(hint)}, not {value!r}") from None


def to_dict(config: Any) -> Any:
    """A config as plain data for YAML and JSON: dataclass to dict, tuple to list, `Path` to text."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {key: to_dict(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_dict(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def described(cls: type[Any], prefix: str = "", of: Any = None) -> dict[str, str]:
    """What the settings of a config are, from its docstring, with their defaults; `data.root` is one of them.

    Args:
        cls: the config; its docstring, or a base's, has a section "Attributes:" that names each setting.
        prefix: of the names.
        of: a config whose values are the defaults; None for the dataclass's own.
    """
    meanings: dict[str, str] = {}
    for one in reversed(cls.__mro__[:-1]):
        section = re.split(r"^(?:Attributes|Args):\n", inspect.cleandoc(one.__doc__ or ""), flags=re.MULTILINE)[-1]
        meanings |= {name: " ".join(text.split()) for name, text in _ENTRY.findall(section.split("\n\n")[0])}
    hints = _hints(cls)
    found: dict[str, str] = {}
    for field in dataclasses.fields(cls):
        inner = _plain(hints[field.name])
        default = _default(field) if of is None else getattr(of, field.name)
        if dataclasses.is_dataclass(inner):
            part = default if dataclasses.is_dataclass(default) else None
            found |= described(cast(type[Any], inner), f"{prefix}{field.name}.", part)
        else:
            shown = "" if default is dataclasses.MISSING else f" [default: {_yaml(default)}]"
            found[prefix + field.name] = meanings.get(field.name, "") + shown
    return found


def _default(field: dataclasses.Field[Any]) -> Any:
    """What a field is when nothing is given; MISSING where something must be."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _yaml(value: Any) -> str:
    """A value as it is typed."""
    return str(yaml.safe_dump(to_dict(value), default_flow_style=True, width=1000)).splitlines()[0]


def load(
    cls: type[Config], path: str | Path | None, overrides: Sequence[str] = (), given: Mapping[str, Any] | None = None
) -> Config:
    """Read a YAML file, apply `key=value` overrides and build the config.

    Args:
        cls: the config to build.
        path: a YAML file, or None for the defaults.
        overrides: settings such as `epochs=3` or `data.root=/data/vqav2`; values are YAML, later ones win. A mapping
            changes the keys it names; one that names a `method` takes the place of another method's settings.
        given: values of settings that neither file nor overrides name.

    Raises:
        InputError: for a missing or broken file, a malformed override, and whatever `from_dict` refuses.
    """
    merged = OmegaConf.create({}) if path is None else _read_yaml(Path(path))
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key.strip():
            raise InputError(f"setting '{override}' is not of the form key=value")
        try:
            one = OmegaConf.from_dotlist([override])
            value = OmegaConf.select(one, key.strip())
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
    file_there("recipe", path)
    text = read_text(path, "give the YAML file of a recipe")
    if not text.strip():
        raise InputError(f"recipe {path} is empty; give a file with 'key: value' lines")
    try:
        content = OmegaConf.create(text)
    except (yaml.YAMLError, ValueError, RecursionError, OmegaConfBaseException) as error:
        raise InputError(f"recipe {path} is not readable YAML: {_first_line(error)}") from error
    except AssertionError:  # a number by itself
        content = OmegaConf.create([])
    if not OmegaConf.is_dict(content):
        raise InputError(f"recipe {path} must hold 'key: value' lines")
    return content


def _first_line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem} in line {error.problem_mark.line + 1}"
    return str(error).splitlines()[0]


def _strict(hint: Any) -> Any:
    """An annotation under which pydantic converts no scalar, and nothing but a list to a tuple."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is float:
        return Annotated[float, Strict(), AllowInfNan(False)]
    if hint in (int, str, bool):
        return Annotated[hint, Strict()]
    if isinstance(hint, dataclasses.InitVar):
        return dataclasses.InitVar(_strict(hint.type))
    if origin is Annotated:
        return Annotated[_strict(arguments[0]), *hint.__metadata__]
    if origin in (Union, types.UnionType):
        return Union[tuple(map(_strict, arguments))]  # noqa: UP007
    if origin is tuple:
        inner = tuple(kind if kind is Ellipsis else _strict(kind) for kind in arguments)
        return Annotated[origin[inner], Strict(), BeforeValidator(_listed)]
    if origin in (dict, Mapping):
        return origin[tuple(map(_strict, arguments))]
    return hint


def _listed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _message(error: ValidationError, cls: type[Any], where: str = "") -> str:
    """The first of pydantic's errors as one line; an unknown key comes before all others."""
    where = where or f"{cls.__name__.removesuffix('Config').lower()} config"
    first = min(error.errors(include_url=False), key=lambda one: one["type"] not in _UNKNOWN)
    hint: Any = cls
    name = ""
    step: Any
    for step in first["loc"]:
        kind = _plain(hint)
        if dataclasses.is_dataclass(kind):
            hints = _hints(kind)
            if first["type"] in _UNKNOWN and step not in hints:
                return _unknown(step, hints, where, name)
            hint, name = hints[step], f"{name}.{step}".removeprefix(".")
        elif get_origin(kind) is tuple and not (first["type"] == "missing" and isinstance(first["input"], tuple)):
            kinds = get_args(kind)
            hint, name = kinds[0 if kinds[-1] is Ellipsis else step], f"{name}[{step}]"
        else:
            break
    if "error" in first.get("ctx", {}):
        said = str(first["ctx"]["error"])
        return said if not name or said.startswith(name) else f"{name}: {said}"
    if first["type"] == "missing" and not isinstance(first["input"], tuple):
        return f"key '{name}' is missing in {where}; give {name}=..."
    given = list(first["input"]) if isinstance(first["input"], tuple) else first["input"]
    example = f", as in {name}=[{given}]" if get_origin(_plain(hint)) is tuple and type(given) in (str, int) else ""
    return f"key '{name}' in {where} must be {allowed(hint)}{example}, not {given!r}"


def _hints(cls: Any) -> dict[str, Any]:
    """What may be given to a config, `InitVar`s too, with the annotations."""
    fields = cls.__dataclass_fields__.items()
    return {name: field.type for name, field in fields if get_origin(field.type) is not ClassVar}


def _unknown(key: Any, hints: Mapping[str, Any], where: str, prefix: str) -> str:
    """The message about an unknown key; the remedy is the nearest name here or one level below."""
    names = {inside: f"{name}.{inside}" for name, hint in hints.items() for inside in _names_inside(hint)}
    names |= {name: name for name in hints}
    prefix = prefix and f"{prefix}."
    nearest = difflib.get_close_matches(str(key), names, n=1, cutoff=0.5)
    remedy = f"did you mean '{prefix}{names[nearest[0]]}'?" if nearest else f"allowed: {', '.join(hints)}"
    return f"key '{prefix}{key}' is unknown in {where}; {remedy}"


def _names_inside(hint: Any) -> list[str]:
    kind = _plain(hint)
    return [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def _plain(hint: Any) -> Any:
    """An annotation without `Annotated`, `InitVar` and `| None`."""
    if isinstance(hint, dataclasses.InitVar):
        return _plain(hint.type)
    if get_origin(hint) is Annotated:
        return _plain(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        return _plain(kinds[0]) if len(kinds) == 1 else hint
    return hint


def allowed(hint: Any) -> str:
    """What values an annotation admits, in words: "an integer in [0, 10)"."""
    origin, arguments = get_origin(hint), get_args(hint)
    if isinstance(hint, dataclasses.InitVar):
        return allowed(hint.type)
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
    """The limits of a number among the metadata of an annotation, from `Field(ge=0)` or `annotated_types.Ge(0)`."""
    if any(getattr(limit, "min_length", 0) for one in metadata for limit in getattr(one, "metadata", [one])):
        return " that is not empty"
    limits = {
        name: getattr(limit, name)
        for one in metadata
        for limit in getattr(one, "metadata", [one])
        for name in ("ge", "gt", "le", "lt")
        if getattr(limit, name, None) is not None
    }
    low = next((f"{'[' if name == 'ge' else '('}{limits[name]}" for name in ("ge", "gt") if name in limits), "(-inf")
    high = next((f"{limits[name]}{']' if name == 'le' else ')'}" for name in ("le", "lt") if name in limits), "inf)")
    return f" in {low}, {high}" if limits else ""
