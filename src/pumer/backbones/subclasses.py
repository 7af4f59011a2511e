"""Patched classes for a user's subclasses of transformers' classes."""

from inspect import unwrap
from types import FunctionType, new_class
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

from pumer.utils.errors import InputError

_ORIGINAL = "_pumer_original"
_MADE: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}


def combined(patched: type[nn.Module], own: type[nn.Module]) -> type[nn.Module]:
    """A class that computes as a patched one does and is the user's own for the rest; copied and pickled by its parts.

    Args:
        patched: Patched subclass of a transformers class.
        own: The user's subclass of the same class.

    Raises:
        InputError: If the user's class overrides a method that the patched one replaces.
    """
    if (patched, own) not in _MADE:
        _check_overrides(patched, own)
        names = {name: getattr(own, name) for name in ("__module__", "__qualname__", "__doc__")}
        names |= {_ORIGINAL: own, "__reduce_ex__": _reduce}
        made = new_class(own.__name__, (patched, own), exec_body=lambda body: body.update(names))
        like_its_parent(made, own)
        _MADE[patched, own] = made
    return _MADE[patched, own]


def like_its_parent(cls: Any, parent: Any) -> None:
    """Let a patched model return hidden states where asked, and be saved under the usual names of weights.

    transformers looks up by class which states there are, once a model is built; and it saves a class of its own under
    older names than one that it takes for somebody else's.
    """
    if issubclass(cls, PreTrainedModel):
        dict.__setitem__(_CAN_RECORD_REGISTRY, str(cls), cls._can_record_outputs)
        cls.is_custom_code = parent.is_custom_code


def original(cls: type) -> type[nn.Module] | None:
    """The user's class in one made by `combined`; None for another class."""
    return vars(cls).get(_ORIGINAL)


def _check_overrides(patched: type[nn.Module], own: type[nn.Module]) -> None:
    parent = next(cls for cls in patched.__mro__ if cls in own.__mro__)
    ours = patched.__mro__[: patched.__mro__.index(parent)]
    free: frozenset[str] = getattr(patched, "pumer_cooperative", frozenset())
    replaced = [name for cls in ours for name, value in vars(cls).items() if isinstance(value, FunctionType)]
    replaced = [name for name in replaced if name not in free]
    for cls in reversed(own.__mro__[: own.__mro__.index(parent)]):
        for name in replaced:
            mine, theirs = vars(cls).get(name), getattr(parent, name, None)
            # transformers wraps the forward of every subclass of a layer anew, which overrides nothing
            if mine is not None and (theirs is None or unwrap(mine) is not unwrap(theirs)):
                raise InputError(
                    f"{cls.__name__}.{name} cannot be patched: {parent.__name__}.{name} is what a patched model "
                    f"replaces; give a subclass of {parent.__name__} without a {name} of its own"
                )


def _reduce(module: nn.Module, protocol: int) -> tuple[Any, ...]:
    cls = type(module)
    return _blank, (cls.__bases__[0], cls.__bases__[1]), module.__getstate__()


def _blank(patched: type[nn.Module], own: type[nn.Module]) -> nn.Module:
    cls = combined(patched, own)
    return cls.__new__(cls)
