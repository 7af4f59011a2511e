"""Switch reduction on and off in a model that is already there: patch, unpatch, patched, disabled, reduction."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import TypeVar

import torch
from torch import Tensor, nn

from pumer.backbones import BACKBONES, DECODERS, REFUSED, Backbone, Family, Reduction, families_in
from pumer.backbones.state import switched
from pumer.reducers import ReductionConfig
from pumer.utils.errors import InputError

_HOOKED = "_old_forward"
"""Where accelerate keeps the ``forward`` of a module that it has put a hook on."""
LEARNED = "reducer"
"""Where a patched module keeps the reducers that learn."""

Model = TypeVar("Model", bound=nn.Module)


def patch(
    model: Model, config: ReductionConfig, *, slice_size: int | None = None, slice_bytes: int | None = None
) -> Model:
    """Put a reduction into a model, in place. A model that is patched already gets the new config instead.

    Classes of the modules concerned are swapped for subclasses of themselves; weights, state dict and class names
    stay. Other models are not touched.

    Args:
        model: A transformers model of a supported family, or anything that contains one (a PEFT model, a compiled one).
        config: `PuMerConfig` or that of another method, `NoReduction` for the fast path alone. What a method has
            learned in the model, it keeps in the layers that the new config names as well.
        slice_size: Where gradients are disabled, as in ``torch.inference_mode()``, run the layers before the last
            reduction on this many examples at a time, and join them when their tokens are few: less memory, the same
            answers. None: the whole batch at once.
        slice_bytes: The same, chosen so that the activations of a slice take about this many bytes.

    Returns:
        The same model.

    Raises:
        InputError: If the model holds no supported family, has no such layer, has too few tokens, is a subclass that
            overrides what is replaced, or is under control of another library that replaced its ``forward``.
    """
    if not isinstance(config, ReductionConfig):
        raise InputError(f"{config!r} is not a reduction config; give pumer.PuMerConfig(...) or pumer.NoReduction()")
    _check_slices(slice_size, slice_bytes)
    roots = patchable(model)
    for root, backbone in roots:
        _check_layers(config, backbone, root)
        config.check_tokens(backbone.tokens(root))
        _check_untouched(root, backbone, "patch the model before, or load it without device_map")
    before = [_learned(root, config.method) for root, _ in roots]
    unpatch(model)
    for (root, backbone), weights in zip(roots, before, strict=True):
        holders = _holders(model, root)
        size, pooled = slice_size, False
        if isinstance(backbone, Backbone):
            pooled = bool(holders) and all(type(head) in backbone.heads.values() for head in holders)
            size = slice_size if slice_bytes is None else max(1, slice_bytes // backbone.example_bytes(root))
        state = Reduction(config, backbone.widths(root), slice_size=size, expands=not pooled)
        _install(root, backbone, state, holders)
        if LEARNED in root._modules:
            adopt(root.get_submodule(LEARNED), weights)
    return model


def unpatch(model: Model) -> Model:
    """Restore the original classes, in place; does nothing to a model that is not patched.

    Args:
        model: Any module.

    Returns:
        The same model.

    Raises:
        InputError: If another library replaced a patched module's ``forward``, or its class, in the meantime.
    """
    roots = [(root, backbone) for root, backbone in families_in(unwrapped(model)) if backbone.is_patched(root)]
    for root, backbone in roots:
        _check_untouched(root, backbone, "remove its hooks before unpatching")
    for root, backbone in roots:
        for module in (*_holders(model, root), *root.modules()):
            if (original := backbone.original_class(type(module))) is not None:
                _swap(module, original)
        for module in backbone.carriers(root):
            module.__dict__.pop("pumer_reduction", None)
        root._modules.pop(LEARNED, None)
    return model


@contextmanager
def patched(model: Model, config: ReductionConfig) -> Iterator[Model]:
    """Patch a model for the length of a ``with`` block, for all threads, then restore what was there before.

    Args:
        model: As for `patch`.
        config: As for `patch`.

    Yields:
        The model.
    """
    before = [(root, backbone, root.__dict__.get("pumer_reduction")) for root, backbone in patchable(model)]
    patch(model, config)
    for root, _, state in before:
        if state is not None:
            root.pumer_reduction.slice_size = state.slice_size  # type: ignore[union-attr]
    try:
        yield model
    finally:
        unpatch(model)
        for root, backbone, state in before:
            if state is not None:  # the very state, so that an enclosing `disabled` or trace stays in force
                _install(root, backbone, state, _holders(model, root))


@contextmanager
def disabled(model: Model) -> Iterator[Model]:
    """Switch the reduction off for the length of a ``with`` block; the fast path stays on.

    Other threads and tasks are not concerned, and tasks that begin inside the block are; threads that begin inside it,
    as those of ``nn.DataParallel``, are others. A graph of ``torch.compile`` cannot tell threads apart: it is switched
    off for all of them while one is inside the block.

    Args:
        model: A patched model.

    Yields:
        The model.

    Raises:
        InputError: If the model is not patched.
    """
    with switched(reductions(model), "disabling", True):
        yield model


def reduction(model: nn.Module) -> ReductionConfig | None:
    """The config a model is patched with, or None if it is not patched."""
    return next((state.config for state in _states(model)), None)


def reductions(model: nn.Module) -> list[Reduction]:
    """The state of every patched part of a model.

    Raises:
        InputError: If there is none.
    """
    if not (found := _states(model)):
        raise InputError(f"{type(model).__name__} is not patched; call pumer.patch(model, config) first")
    return found


def _states(model: nn.Module) -> list[Reduction]:
    found = [x for x in (m.__dict__.get("pumer_reduction") for m in unwrapped(model).modules()) if x is not None]
    return list({id(state): state for state in found}.values())  # some are carried by several modules


def unwrapped(model: nn.Module) -> nn.Module:
    """The module that ``torch.compile`` wrapped, or the model itself."""
    original = model.__dict__.get("_modules", {}).get("_orig_mod")
    return original if isinstance(original, nn.Module) else model


def patchable(model: nn.Module) -> list[tuple[nn.Module, Family]]:
    """Every part of a model that can be patched, with its family.

    Raises:
        InputError: If there is none.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"{model!r} is no model; give one that is loaded, such as that of pumer.load(...)")
    found = families_in(unwrapped(model))
    if not found:
        for module in model.modules():
            kind = getattr(getattr(module, "config", None), "model_type", None)
            if kind in REFUSED:
                raise InputError(f"{type(model).__name__} ('{kind}') cannot be patched: {REFUSED[kind]}")
        supported = ", ".join(family.root.__name__ for family in (*BACKBONES.values(), *DECODERS.values()))
        raise InputError(f"{type(model).__name__} cannot be patched; it must be or contain one of: {supported}")
    return found


def _holders(model: nn.Module, root: nn.Module) -> list[nn.Module]:
    """The modules that a root is a part of, itself."""
    return [module for module in unwrapped(model).modules() if any(part is root for part in module.children())]


def _check_slices(size: object, size_bytes: object) -> None:
    for name, value in (("slice_size", size), ("slice_bytes", size_bytes)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InputError(f"{name} is {value!r}; give an integer from 1 on, or None for the whole batch at once")
    if size is not None and size_bytes is not None:
        raise InputError("both slice_size and slice_bytes are given; give one of them")


def _install(root: nn.Module, backbone: Family, state: Reduction, holders: Sequence[nn.Module]) -> None:
    """Patch a root, and what holds it."""
    for module in (*holders, *backbone.touched(root, list(state.reducers))):
        if (patched := backbone.patched_class(type(module))) is not None:
            _swap(module, patched)
    for module in backbone.carriers(root):
        module.pumer_reduction = state  # type: ignore[assignment]
    if (learned := state.modules()) is not None:
        weights = list(root.parameters())
        dtype = next((weight.dtype for weight in weights if weight.is_floating_point()), torch.float32)
        root.add_module(LEARNED, learned.to(weights[0].device, dtype).train(root.training))


def _learned(root: nn.Module, method: str) -> dict[str, Tensor]:
    """Weights that a method has learned in a root; none where another method, or no method, is in place."""
    state, module = root.__dict__.get("pumer_reduction"), root._modules.get(LEARNED)
    return module.state_dict() if module is not None and state is not None and state.config.method == method else {}


def adopt(module: nn.Module, weights: Mapping[str, Tensor]) -> set[str]:
    """Copy the weights that fit a module by name and shape; returns their names."""
    own = module.state_dict()
    fitting = {name: x for name, x in weights.items() if name in own and own[name].shape == x.shape}
    module.load_state_dict(fitting, strict=False)
    return set(fitting)


def _swap(module: nn.Module, cls: type[nn.Module]) -> None:
    """Change a module's class, and what libraries keep of its ``forward`` on the instance."""
    if _HOOKED in module.__dict__:  # accelerate's hook calls this one
        module.__dict__[_HOOKED] = MethodType(cls.forward, module)
    else:
        module.__dict__.pop("forward", None)  # a copy of its own, which removed hooks leave
    module.__class__ = cls


def _check_layers(config: ReductionConfig, backbone: Family, root: nn.Module) -> None:
    layers = {stack: len(modules) for stack, modules in backbone.layers(root).items()}
    if isinstance(backbone, Backbone) and ("prompt" in config.stacks or config.before is not None):
        method = config.method if config.before is None else config.before.method
        raise InputError(
            f"method '{method}' shortens prompts of generative models; {backbone.name} does not generate: give a "
            "method that reduces in its layers, such as pumer"
        )
    for stack, layer in config.places():
        if stack not in config.stacks:
            raise InputError(
                f"method '{config.method}' cannot reduce in {stack} layers; it can in {', '.join(config.stacks)}"
            )
        if stack not in layers and (reason := backbone.unsupported_reason(root, stack, layer)):
            raise InputError(f"{stack} layers of {backbone.name} cannot reduce: {reason}")
        if stack not in layers:
            able = [name for name in layers if name in config.stacks]
            remedy = f"give stack={' or '.join(able)}" if able else f"method '{config.method}' is for other models"
            raise InputError(f"{backbone.name} has no {stack} layers to reduce in, but {', '.join(layers)}; {remedy}")
        if stack in backbone.whole and config.prunes:
            raise InputError(
                f"method '{config.method}' prunes, but all tokens leave the {stack} layers of {backbone.name}; give a "
                "method that merges there: pumer, tome, pooling or illava"
            )
        if layer >= layers[stack]:
            raise InputError(
                f"{stack} layer {layer} does not exist; {backbone.name} has {layers[stack]} of them, 0 to "
                f"{layers[stack] - 1}"
            )
        if reason := backbone.unsupported_reason(root, stack, layer):
            raise InputError(f"{stack} layer {layer} of {backbone.name} cannot reduce: {reason}")


def _check_untouched(root: nn.Module, backbone: Family, remedy: str) -> None:
    """Refuse modules that another library changed: whose ``forward`` was replaced on the instance, or whose class."""
    for name, module in root.named_modules():
        known = backbone.original_class(type(module)), backbone.patched_class(type(module))
        if known == (None, None):
            if not backbone.is_patched(module):
                continue
            raise InputError(
                f"the class of '{name or type(module).__name__}' was replaced by another library after patching "
                "(fully_shard does this); patch or unpatch the model before"
            )
        if "forward" not in module.__dict__:
            continue
        called = module.__dict__.get(_HOOKED if backbone.spreads else "forward", module.__dict__["forward"])
        if getattr(called, "__func__", None) is not type(module).forward:
            raise InputError(
                f"the forward of '{name or type(module).__name__}' was replaced by another library (accelerate's "
                f"device_map does this); {remedy}"
            )
