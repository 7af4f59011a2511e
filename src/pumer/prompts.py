"""Shorten prompts before the decoder: as a step of its own, or with every prompt of a model; keep them in files."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from pumer.backbones import DECODERS
from pumer.backbones.encoding import encoder_output
from pumer.backbones.grids import PIXELS
from pumer.backbones.shortening import reads_images, shorten_prompts
from pumer.patching import patchable, patched, reduction
from pumer.reducers.shortening.base import ShorteningConfig
from pumer.utils.errors import InputError
from pumer.utils.files import first_line, write_bytes

Model = TypeVar("Model", bound=nn.Module)

FEATURES = "mm_encoder_outputs"
_FORMAT = "shortened prompts 1"


def shorten(model: nn.Module, inputs: Mapping[str, Any], config: ShorteningConfig) -> dict[str, Any]:
    """Prompts with fewer image tokens: images are encoded once, and some of their tokens go before the decoder runs.

    What is returned is read by transformers' own ``generate`` and forward, with any cache and any kernel of attention;
    the model need not be patched. Tokens that stay keep the positions that they had. Each image or video is shortened
    by itself, so that a prompt keeps the same in every batch.

    Args:
        model: A generative model of a supported family, or anything that contains one.
        inputs: What its processor makes of the prompts: ``input_ids (B, N)``, ``attention_mask (B, N)`` (without one,
            all are real), pixels and what belongs to them. Other inputs with a value for each token, such as
            ``labels``, are shortened alike; all others are passed on.
        config: How many tokens go, and which: `DivPruneConfig` or that of another method.

    Returns:
        The inputs without pixels: ``input_ids``, ``attention_mask (B, K)`` and ``position_ids``, ``(B, K)`` or for
        Qwen-VL and GLM-V ``(4, B, K)``, padded on the right if the inputs were, else on the left; and
        ``mm_encoder_outputs``, the features of the tokens that stay. A transformers without these (before 5.23) gets
        ``inputs_embeds (B, K, D)`` in place of ``input_ids``; its ``generate`` then returns new tokens alone.
        Inputs without images are returned as they are.

    Raises:
        InputError: If the model holds no supported family, or several; if the placeholders and the images do not fit;
            for a cache that is not empty; for a model that has no way to take the features.

    Note:
        ``generate`` without a cache needs ``use_cache=False`` among the inputs here: without cache and mask, stock
        models take gaps in positions for the borders of packed sequences. ``generate`` with beams repeats features in
        place: shorten again for a second call. In a later turn through the
        same cache, models other than Qwen-VL and GLM-V need ``position_ids`` that go on from those of the prompt;
        `shortened` does that.

    Example:
        >>> short = pumer.shorten(model, inputs, pumer.DivPruneConfig(prune_ratio=0.75))  # doctest: +SKIP
        >>> model.generate(**short)  # doctest: +SKIP
    """
    if not isinstance(config, ShorteningConfig):
        raise InputError(
            f"{config!r} does not shorten prompts; give the config of a method that does, such as "
            "pumer.DivPruneConfig(prune_ratio=0.5)"
        )
    root = _root(model)
    return shorten_prompts(root, inputs, config).inputs if reads_images(inputs) else dict(inputs)


@contextmanager
def shortened(model: Model, config: ShorteningConfig) -> Iterator[Model]:
    """Let a model shorten every prompt that it gets, for the length of a ``with`` block; beside a reduction inside.

    ``generate`` shortens first; the sequences that it returns have the ids of all tokens. A forward computes with
    fewer tokens; its logits and hidden states have the input's length, so that labels need no change.
    ``pumer.patch(model, config)`` does the same for good, and the ``before`` of another method's config for both.

    Args:
        model: As for `shorten`.
        config: As for `shorten`.

    Yields:
        The model.

    Raises:
        InputError: As of `pumer.patch`, and as of `shorten` with every prompt.
    """
    _root(model)
    inside = reduction(model)
    both = config if inside is None or isinstance(inside, ShorteningConfig) else replace(inside, before=config)
    with patched(model, both):
        yield model


def write_prompts(path: str | Path, short: Mapping[str, Any]) -> None:
    """Write what `shorten` returned into one file (safetensors), as a whole or not at all.

    Args:
        path: The file, such as "prompts.safetensors".
        short: Inputs that are tensors, and features of images.

    Raises:
        InputError: For an input of another type, which it names; if the file cannot be written.

    Example:
        >>> pumer.write_prompts("prompts.safetensors", short)  # doctest: +SKIP
        >>> model.generate(**pumer.read_prompts("prompts.safetensors"))  # doctest: +SKIP
    """
    plain = {name: x for name, x in short.items() if name != FEATURES and x is not None}
    for name, x in plain.items():
        if not isinstance(x, Tensor):
            raise InputError(f"{name} is {x!r}, which is no tensor; leave it out, and give it to generate by itself")
    tensors = {f"inputs.{name}": x for name, x in plain.items()}
    for kind, output in (short.get(FEATURES) or {}).items():
        pooled, deep = output.pooler_output, getattr(output, "deepstack_features", None) or ()
        listed = {"features": pooled, **{f"deep.{layer}": each for layer, each in enumerate(deep)}}
        for part, features in listed.items():
            if isinstance(features, Tensor):
                tensors[f"{kind}.{part}"] = features
            else:
                tensors |= {f"{kind}.{part}.{number}": x for number, x in enumerate(features)}
    contiguous = {name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}
    write_bytes(path, safetensors.torch.save(contiguous, {"format": "pt", "pumer": _FORMAT}))


def read_prompts(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read what `write_prompts` wrote, for ``generate`` or the forward of the model that encoded the images.

    A later turn of Qwen-VL and GLM-V counts its positions from what the model remembers of a prompt, which is no part
    of the file.

    Args:
        path: The file.
        device: Where the tensors go.

    Returns:
        As of `shorten`.

    Raises:
        InputError: If the file is missing, or is none that `write_prompts` wrote.
    """
    try:
        with safetensors.safe_open(path, framework="pt", device=str(device)) as file:
            found = (file.metadata() or {}).get("pumer")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}; give a file of write_prompts") from error
    if found != _FORMAT:
        raise InputError(f"{path} holds {found or 'other tensors'}, not {_FORMAT}; give a file of write_prompts")
    short: dict[str, Any] = {name.removeprefix("inputs."): x for name, x in tensors.items() if name[:7] == "inputs."}
    encoded = {}
    for kind in PIXELS:
        if (whole := tensors.get(f"{kind}.features")) is not None:
            encoded[kind] = encoder_output([whole.flatten(0, -2)], [], listed=False)
        elif features := _listed(tensors, f"{kind}.features"):
            deep = [_listed(tensors, f"{kind}.deep.{layer}") for layer in range(len(tensors))]
            encoded[kind] = encoder_output(features, [each for each in deep if each], listed=True)
    return {**short, FEATURES: encoded} if encoded else short


def _listed(tensors: Mapping[str, Tensor], name: str) -> list[Tensor]:
    """Tensors under a name and a number."""
    return [tensors[f"{name}.{number}"] for number in range(len(tensors)) if f"{name}.{number}" in tensors]


def _root(model: nn.Module) -> Any:
    """The model of images and text inside a model."""
    roots = [root for root, family in patchable(model) if family in DECODERS.values()]
    if len(roots) != 1:
        raise InputError(
            f"{type(model).__name__} contains {len(roots)} generative models; give one that is or holds one"
        )
    return roots[0]
