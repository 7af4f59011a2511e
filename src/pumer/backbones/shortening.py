"""Fewer image tokens in the prompts of a generative model, before its decoder runs: what `pumer.shorten` does.

Tokens that go leave no place in the prompt: their placeholders are dropped, and those that stay keep the positions that
they had. So stock code runs on what is left, with any cache and any kernel of attention.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import torch
import transformers
from torch import Tensor

from pumer.backbones.encoding import Encoded, encode, encoder_arguments, similarity
from pumer.backbones.grids import PIXELS, PLACED, Grids, Kind, grids_of, placeholders
from pumer.backbones.streams import autocast_off
from pumer.functional import gather_tokens, ordered
from pumer.reducers.shortening.base import Choice, ImageTokens, ShorteningConfig
from pumer.utils.errors import InputError

FORWARD = "pumer_forward"
"""The attribute of a cache that holds a prompt which a forward has shortened."""
IGNORED = -100
"""The label of a token that no loss is computed of."""


@dataclass(frozen=True, eq=False)
class ShortPrompts:
    """A batch of prompts with fewer image tokens.

    Attributes:
        inputs: For the forward and ``generate`` of the stock model.
        ids: ``(B, K)``.
        mask: ``(B, K)`` bool, which of them are real.
        columns: ``(B, K)`` int64, where each of them stood.
        length: How long the prompts were.
    """

    inputs: dict[str, Any]
    ids: Tensor
    mask: Tensor
    columns: Tensor

    length: int

    def close(self, output: Any) -> Any:
        """Give the states in a model's output the length that the prompts had.

        A token that is gone shows the state of the one that stays before it: it says what comes next.
        """
        if isinstance(output, tuple):
            return (self._spread(output[0]), *output[1:])
        if (cache := getattr(output, "past_key_values", None)) is not None:
            setattr(cache, FORWARD, True)
        output.last_hidden_state = self._spread(output.last_hidden_state)
        if output.hidden_states is not None:
            output.hidden_states = tuple(self._spread(states) for states in output.hidden_states)
        return output

    def _spread(self, states: Any) -> Any:
        if states is None:  # those that nobody asked for
            return None
        columns, mask = self.columns.to(states.device), self.mask.to(states.device)
        stays = torch.zeros(len(states), self.length, dtype=torch.int64, device=states.device)
        stays.scatter_add_(1, columns, mask.long())
        rank = (stays.cumsum(dim=1) - 1).clamp(min=0) + mask.long().argmax(dim=1, keepdim=True)
        return gather_tokens(states, rank)


def answered(labels: Tensor | None, asking: Tensor) -> Tensor | None:
    """``(B, N)`` bool, the answer that is given for training and what follows it; None: there is none.

    Args:
        labels: ``(B, N)``, -100 for what is not to be said, or None.
        asking: ``(B, N)`` bool, the tokens that may ask; where labels begin before all of them, all do.
    """
    if labels is None or labels.shape != asking.shape:
        return None
    silent = (labels.to(asking.device) != IGNORED).cumsum(dim=1) > 0
    return silent & (asking & ~silent).any(dim=1, keepdim=True)


def reads_images(inputs: Mapping[str, Any]) -> bool:
    """Whether there are images or videos to encode."""
    return any(inputs.get(name) is not None for name in PIXELS.values())


def takes_encoder_outputs(model: Any) -> bool:
    """Whether a model of images and text takes ``mm_encoder_outputs``, as of transformers 5.23."""
    stock: Any = next(cls for cls in type(model).__mro__ if cls.__module__.startswith("transformers."))
    return "mm_encoder_outputs" in signature(stock.forward).parameters


def shorten_prompts(model: Any, inputs: Mapping[str, Any], config: ShorteningConfig) -> ShortPrompts:
    """Encode the images of prompts, choose among their tokens, and drop the placeholders of those that go.

    Args:
        model: The model of images and text.
        inputs: As for its forward, by name, with pixels.
        config: The method.

    Raises:
        InputError: See `pumer.shorten`.
    """
    if torch.compiler.is_exporting():
        raise RuntimeError("an exported prompt cannot be shortened, which looks at data; shorten it before the export")
    ids, mask = _checked(model, inputs)
    encoded = encode(model, inputs)
    if not takes_encoder_outputs(model) and any(each.deep for each in encoded.values()):
        raise InputError(
            f"a {type(model).__name__} of transformers {transformers.__version__} does not take encoded images, some "
            "of whose features it adds after its first layers; install transformers 5.23 or later"
        )
    if "video" in encoded and model.config.model_type == "glm4v":
        raise InputError("pixel_values_videos is given, but videos of GLM-4V cannot be shortened yet; leave them out")
    tokens = placeholders(model.config)
    places = {kind: ids == tokens[kind] for kind in encoded}
    for kind, each in encoded.items():
        if (found := int(places[kind].sum())) != len(each.features):
            raise InputError(
                f"the prompts have places for {found} {kind} tokens, but the {kind}s have {len(each.features)}; give "
                "the inputs that the model's processor makes of both"
            )
    positions, delta = _positions(model, ids, mask, inputs)
    grids, holder, chosen = _choose(model, inputs, ids, mask, places, encoded, config)
    stays = holder == torch.arange(ids.shape[1], device=ids.device)
    keep, right = mask & stays, bool(mask[:, 0].all() and not mask[:, -1].all())
    lengths = keep.sum(dim=1)
    K = int(lengths.max())
    if inputs.get("use_cache") is False and int(lengths.min()) == K < ids.shape[1]:
        K += 1  # generate drops a mask of ones, and stock models take gaps in positions for borders without either
    columns = ordered(~keep)[:, :K] if right else ordered(keep)[:, -K:]
    real = keep.gather(1, columns)
    short = {**inputs, "input_ids": ids, "attention_mask": mask}
    for name in encoder_arguments(model):
        short.pop(name, None)
    for name, x in short.items():
        if isinstance(x, Tensor) and x.shape == ids.shape and name != "position_ids":
            free = {"input_ids": _padding(model), "labels": IGNORED}.get(name, 0)
            short[name] = x.gather(1, columns.to(x.device)).masked_fill(~real.to(x.device), free)
    short["attention_mask"] = short["attention_mask"].long()
    rows = columns.expand(*positions.shape[:-2], *columns.shape)
    short["position_ids"] = positions.gather(-1, rows).masked_fill(~real, 0)
    if delta is not None:  # for tokens of a later turn, whose positions are counted from what is left
        model.rope_deltas = delta + (mask & ~keep).sum(dim=1, keepdim=True).to(delta.device)
    result = ShortPrompts(short, short["input_ids"], real, columns, ids.shape[1])
    if takes_encoder_outputs(model):
        short["mm_encoder_outputs"] = {kind: encoded[kind].output(*chosen[kind]) for kind in encoded}
        at = columns.cpu()[:, :, None].expand(-1, -1, grids.cells.shape[2])
        cells = grids.cells.gather(1, at).masked_fill(~real.cpu()[:, :, None], -1)
        rank = torch.arange(K, device=ids.device).expand_as(columns)
        rank = torch.full_like(holder, -1).scatter(1, columns, torch.where(real, rank, -1))
        merged = torch.where((holder >= 0) & ~stays, rank.gather(1, holder.clamp(min=0)), -1)
        for output in short["mm_encoder_outputs"].values():
            setattr(output, PLACED, Grids(cells, grids.images, (grids.cells, merged.cpu())))
    else:
        short["inputs_embeds"] = _embedded(model, short.pop("input_ids"), {k: x for k, (x, _) in chosen.items()})
    return result


def _checked(model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Ids ``(B, N)``, and which of them are real."""
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        shape = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        raise InputError(f"input_ids is {shape}; give ids (B, N) with a placeholder for each image token")
    if mask is not None and mask.shape != ids.shape:
        raise InputError(f"attention_mask is {tuple(mask.shape)}, but input_ids is {tuple(ids.shape)}; give both alike")
    padding = getattr(model.config.get_text_config(), "pad_token_id", None)
    if mask is None and padding is not None and bool((ids[:, [0, -1]] == padding).any()):
        raise InputError(f"attention_mask is missing, and input_ids begins or ends with padding ({padding}); give both")
    cache = inputs.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise InputError(
            f"past_key_values holds {cache.get_seq_length()} tokens, but images can be shortened in the first prompt "
            "alone; give an empty cache"
        )
    return ids, torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.to(ids.device) > 0


def _positions(model: Any, ids: Tensor, mask: Tensor, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Positions ``(B, N)`` or ``(4, B, N)`` as ``generate`` counts them, and what later ones add, where models do."""
    if (given := inputs.get("position_ids")) is not None:
        return given.to(ids.device).expand(*given.shape[:-2], *ids.shape), None
    plain = (mask.long().cumsum(dim=1) - 1).masked_fill(~mask, 0)
    if not callable(rope_index := getattr(model, "get_rope_index", None)):
        return plain, None
    if inputs.get("mm_token_type_ids") is None:
        raise InputError(
            f"mm_token_type_ids is missing, by which a {type(model).__name__} finds the positions of its images; the "
            "processor makes them"
        )
    others = {name: x for name, x in inputs.items() if name not in ("input_ids", "attention_mask")}
    positions, delta = rope_index(ids, attention_mask=mask.long(), **others)
    return torch.cat([plain[None].to(positions.device), positions]).to(ids.device), delta


_Chosen = tuple[list[Tensor], list[list[Tensor]]]
"""Features of each image, and the same of each layer after which features are added."""


def _choose(
    model: Any,
    inputs: Mapping[str, Any],
    ids: Tensor,
    mask: Tensor,
    places: Mapping[Kind, Tensor],
    encoded: Mapping[Kind, Encoded],
    config: ShorteningConfig,
) -> tuple[Grids, Tensor, dict[Kind, _Chosen]]:
    """Where image tokens stand, the token that holds each ``(B, N)`` int64, and the features of those of images.

    A token that stays holds itself, and -1 is that of a token that goes.
    """
    image = torch.stack(list(places.values())).any(dim=0)
    grids = grids_of(model, image, inputs)
    cells, rank = grids.cells.clone(), {kind: x.flatten().cumsum(dim=0).view_as(x) - 1 for kind, x in places.items()}
    if grids.images is None:  # nobody knows which tokens are those of one image: a run of them is one
        begins = image & ~torch.cat([torch.zeros_like(image[:, :1]), image[:, :-1]], dim=1)
        cells[..., 0] = torch.where(image, begins.cumsum(dim=1) - 1, -1).cpu()
    words = mask & ~image & ~torch.isin(ids, torch.tensor(sorted(_special(model)), device=ids.device))
    if (silent := answered(inputs.get("labels"), words)) is not None:
        words = words & ~silent
    holder = torch.where(image, -1, torch.arange(ids.shape[1], device=ids.device))
    chosen: dict[Kind, _Chosen] = {kind: ([], [[] for _ in each.deep]) for kind, each in encoded.items()}
    for sample, numbers in enumerate(cells[..., 0]):
        with torch.no_grad():
            text = model.get_input_embeddings()(ids[sample][words[sample]])
        for number in range(int(numbers.max()) + 1):
            at = (numbers == number).nonzero()[:, 0].to(ids.device)
            kind = next(kind for kind, x in places.items() if x[sample, at[0]])
            one, features = encoded[kind], encoded[kind].features
            index = rank[kind][sample, at].to(features.device)
            tokens = _tokens(one, index, text.to(features.device), cells[sample, at.cpu(), 1:].to(features.device))
            with autocast_off(features.device):
                choice = config.choose(tokens)
            group = choice.group.to(ids.device)
            holder[sample, at] = torch.where(group < 0, -1, at[group.clamp(min=0)])
            chosen[kind][0].append(tokens.features[choice.index] if choice.features is None else choice.features)
            for layer, deep in enumerate(one.deep):
                chosen[kind][1][layer].append(_alike(choice, deep[index.to(deep.device)]))
    return grids, holder, chosen


def _tokens(encoded: Encoded, index: Tensor, text: Tensor, cell: Tensor) -> ImageTokens:
    """The tokens of one image."""
    features, shown = encoded.features[index], encoded.shown
    if shown is None:
        return ImageTokens(
            features, text, cell, lambda: features, lambda: features, partial(similarity, features.detach())
        )
    return ImageTokens(
        features,
        text,
        cell,
        lambda: shown.states[index.to(shown.states.device)],
        lambda: shown.key[index.to(shown.key.device)],
        lambda: shown.attention[index.to(shown.attention.device)],
    )


def _alike(choice: Choice, deep: Tensor) -> Tensor:
    """Other features of an image ``(n, D)`` reduced as its own were: means, where those were merged."""
    means = None if choice.features is None else Choice.merged(choice.group.to(deep.device), deep).features
    return deep[choice.index.to(deep.device)] if means is None else means


def _special(model: Any) -> set[int]:
    """Ids that a model's configs name, such as those of images, of padding and of the end: no words."""
    found: set[int] = set()
    for config in (model.config, model.config.get_text_config()):
        for name, value in config.to_dict().items():
            if name.endswith(("_token_id", "_token_index")):
                found |= {i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int)}
    return found


def _padding(model: Any) -> int:
    """The id in free places."""
    given = getattr(model.config.get_text_config(), "pad_token_id", None)
    return 0 if given is None else given


def _embedded(model: Any, ids: Tensor, features: Mapping[Kind, list[Tensor]]) -> Tensor:
    """What enters the first layer ``(B, K, D)``."""
    embeds, tokens = model.get_input_embeddings()(ids), placeholders(model.config)
    for kind, each in features.items():
        place = (ids == tokens[kind]).to(embeds.device)
        embeds = embeds.masked_scatter(place[:, :, None], torch.cat(each).to(embeds))
    return embeds
