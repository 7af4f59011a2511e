"""Plain mappings and YAML files to frozen dataclasses, and back.

One parser serves recipes, `key=value` overrides and `reduction.json`. A wrong key or value ends in an
`InputError` of one line that names the key, the value and what is allowed.
"""

import dataclasses
import difflib
import inspect
import re
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pumer.utils.errors import InputError

Config = TypeVar("Config")
_ENTRY = re.compile(r"^    (\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)


def from_dict(cls: type[Config], mapping: Mapping[str, Any], where: str = "") -> Config:
    """Build a (nested) dataclass from plain data.

    Lists become tuples, mappings become nested dataclasses, an int is accepted for a float; nothing else is
    converted.

    Args:
        cls: the dataclass; its annotations may use `| None`, tuples, dicts, `Literal`, `Path`, `InitVar` and
            dataclasses.
        mapping: plain data, as read from YAML or JSON.
        where: what the messages call the mapping; by default `TrainConfig` gives "train config".

    Raises:
        InputError: for an unknown key (with the nearest valid one), a missing key or a value of a wrong type.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class TrainConfig:
        ...     epochs: int = 10
        >>> from_dict(TrainConfig, {"epochs": 3})
        TrainConfig(epochs=3)
        >>> from_dict(TrainConfig, {"epochz": 3})
        Traceback (most recent call last):
        ...
        pumer.utils.errors.InputError: key 'epochz' is unknown in train config; did you mean 'epochs'?
    """
    where = where or f"{cls.__name__.removesuffix('Config').lower()} config"
    return _build(cls, mapping, where, prefix="")


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
        cls: the dataclass; its docstring has a section "Attributes:" or "Args:".
        prefix: of the names.
        of: a config whose values are the defaults; None for the dataclass's own.
    """
    section = re.split(r"^(?:Attributes|Args):\n", inspect.getdoc(cls) or "", flags=re.MULTILINE)[-1].split("\n\n")[0]
    meanings = {name: " ".join(text.split()) for name, text in _ENTRY.findall(section)}
    hints = typing.get_type_hints(cls)
    found: dict[str, str] = {}
    for field in dataclasses.fields(cls):
        kinds = get_args(hints[field.name]) or (hints[field.name],)
        inner = next((kind for kind in kinds if dataclasses.is_dataclass(kind) and isinstance(kind, type)), None)
        default = _default(field) if of is None else getattr(of, field.name)
        if inner is not None:
            found |= described(inner, f"{prefix}{field.name}.", default if isinstance(default, inner) else None)
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


def load(cls: type[Config], path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `key=value` overrides and build the dataclass.

    Args:
        cls: the dataclass to build.
        path: a YAML file, or None for the defaults.
        overrides: settings such as `epochs=3` or `data.root=/data/vqav2`; values are YAML, later ones win. A mapping
            changes the keys it names; one that names a `method` takes the place of another method's settings.

    Raises:
        InputError: for a missing or broken file, a malformed override, and whatever `from_dict` refuses.
    """
    merged = OmegaConf.create({}) if path is None else _read_yaml(Path(path))
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key.strip():
            raise InputError(f"setting '{override}' is not of the form key=value")
        try:
            given = OmegaConf.from_dotlist([override])
            value = OmegaConf.select(given, key.strip())
            if isinstance(value, DictConfig) and "method" in value:
                OmegaConf.update(merged, key.strip(), None)
            merged = OmegaConf.merge(merged, given)
        except (OmegaConfBaseException, yaml.YAMLError, ValueError, RecursionError) as error:
            raise InputError(f"setting '{override[:100]}' cannot be read: {_first_line(error)}") from error
    try:
        plain = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise InputError(f"{path or 'settings'}: {_first_line(error)}") from error
    return from_dict(cls, typing.cast(dict[str, Any], plain))


def _read_yaml(path: Path) -> Any:
    try:
        content = OmegaConf.load(path)
    except FileNotFoundError:
        raise InputError(f"recipe {path} does not exist; recipes of this project lie in recipes/") from None
    except (yaml.YAMLError, ValueError, RecursionError, OSError, OmegaConfBaseException) as error:
        raise InputError(f"recipe {path} is not readable YAML: {_first_line(error)}") from error
    if not OmegaConf.is_dict(content):
        raise InputError(f"recipe {path} must hold 'key: value' lines, not a list")
    return content


def _first_line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem} in line {error.problem_mark.line + 1}"
    return str(error).splitlines()[0]


def _build(cls: type[Config], mapping: Any, where: str, prefix: str) -> Config:
    if not isinstance(mapping, Mapping):
        raise InputError(f"{_name(prefix[:-1])} in {where} must be a mapping, not {mapping!r}")
    parameters = inspect.signature(cls).parameters  # fields and, unlike `dataclasses.fields`, `InitVar`s
    hints = typing.get_type_hints(cls)
    for key in mapping:
        if key not in parameters:
            raise InputError(_unknown(key, hints, list(parameters), where, prefix))
    defaults = {field.name: _default(field) for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = {
        key: _value(hints[key], _over(defaults.get(key), value), where, prefix + key) for key, value in mapping.items()
    }
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in values:
            raise InputError(f"key '{prefix}{name}' is missing in {where}; give {prefix}{name}=...")
    return cls(**values)


def _over(default: Any, value: Any) -> Any:
    """What is given of a part of a config, over what that part is by default."""
    if not dataclasses.is_dataclass(default) or not isinstance(value, Mapping):
        return value
    return {field.name: getattr(default, field.name) for field in dataclasses.fields(default)} | dict(value)


def _unknown(key: Any, hints: Mapping[str, Any], known: list[str], where: str, prefix: str) -> str:
    """The message about an unknown key; the remedy is the nearest name here or one level below."""
    names = {name: f"{outer}.{name}" for outer in known for name in _names_inside(hints[outer])}
    names |= {name: name for name in known}
    nearest = difflib.get_close_matches(str(key), names, n=1, cutoff=0.5)
    remedy = f"did you mean '{prefix}{names[nearest[0]]}'?" if nearest else f"allowed: {', '.join(known)}"
    return f"key '{prefix}{key}' is unknown in {where}; {remedy}"


def _names_inside(kind: Any) -> list[str]:
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return [field.name for one in kinds if dataclasses.is_dataclass(one) for field in dataclasses.fields(one)]


def _value(kind: Any, value: Any, where: str, key: str) -> Any:
    """`value` as an instance of the annotation `kind`, or an InputError."""
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, dataclasses.InitVar):
        return _value(kind.type, value, where, key)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _union(arguments, value, where, key)
    if origin is Literal:
        if value in arguments and type(value) in {type(argument) for argument in arguments}:
            return value
        raise _wrong(key, where, " or ".join(map(repr, arguments)), value)
    if origin is tuple:
        return _tuple(arguments, value, where, key)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise _wrong(key, where, "a mapping", value)
        return {name: _value(arguments[1], item, where, f"{key}.{name}") for name, item in value.items()}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else _build(kind, value, where, key + ".")
    return _scalar(kind, value, where, key)


def _union(kinds: tuple[Any, ...], value: Any, where: str, key: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    others = [kind for kind in kinds if kind is not type(None)]
    if len(others) == 1:
        return _value(others[0], value, where, key)
    for kind in others:
        try:
            return _value(kind, value, where, key)
        except InputError:
            continue
    raise _wrong(key, where, " or ".join(map(_kind_name, kinds)), value)


def _tuple(kinds: tuple[Any, ...], value: Any, where: str, key: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _wrong(key, where, "a list", value)
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise _wrong(key, where, f"a list of {len(kinds)} values", value)
    items = enumerate(zip(kinds, value, strict=True))
    return tuple(_value(kind, item, where, f"{key}[{index}]") for index, (kind, item) in items)


def _scalar(kind: type, value: Any, where: str, key: str) -> Any:
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) <= sys.float_info.max:
            raise _wrong(key, where, "a finite number", value)
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _wrong(key, where, _kind_name(kind), value)
    return value


def _name(key: str) -> str:
    return f"key '{key}'" if key else "the content"


def _wrong(key: str, where: str, expected: str, value: Any) -> InputError:
    return InputError(f"key '{key}' in {where} must be {expected}, not {value!r}")


def _kind_name(kind: Any) -> str:
    names = {int: "an integer", float: "a number", str: "text", bool: "true or false", Path: "a path"}
    if kind is type(None):
        return "null"
    return names.get(kind) or ("a mapping" if get_origin(kind) in (dict, Mapping) else str(kind))
