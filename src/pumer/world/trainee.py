"""The model while it pre-trains: a ViLT plus heads that are not shipped, and a forward pass made for small batches.

The forward pass equals transformers' own for full pictures, except that patches come in raster order and that
background patches may be left out, which makes early pre-training about twice as fast.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers import ViltConfig, ViltForQuestionAnswering
from transformers.models.vilt.modeling_vilt import ViltLayer

from pumer.backbones import Reduction
from pumer.backbones.streams import expand_text
from pumer.patching import patch
from pumer.reducers import NoReduction, ReductionConfig
from pumer.tokens import Tokens
from pumer.world.pool import DENSE, Batch

_DENSE_WIDTHS = [count + 1 for count in DENSE.values()]


class Trainee(nn.Module):
    """ViLT with heads for masked words, matching, per-patch labels and per-patch roles.

    Args:
        config: the model's configuration.
    """

    def __init__(self, config: ViltConfig) -> None:
        """Fresh weights."""
        super().__init__()
        width = config.hidden_size
        self.model = patch(ViltForQuestionAnswering(config), NoReduction())
        self.dense_norm, self.dense = nn.LayerNorm(width), nn.Linear(width, sum(_DENSE_WIDTHS))
        self.role_norm, self.role = nn.LayerNorm(width), nn.Linear(width, 3)
        self.words = nn.Linear(width, config.vocab_size)
        self.match = nn.Linear(width, 2)
        self.place_norm, self.place = nn.LayerNorm(width), nn.Linear(width, 2 * DENSE["position"])

    @property
    def depth(self) -> int:
        """Transformer layers."""
        return len(self.model.vilt.encoder.layer)

    def forward(self, batch: Batch, keep: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Run the model.

        Args:
            batch: B samples.
            keep: (B, K) raster indices of the patches to show; None shows all.

        Returns:
            logits: answers (B, A), match (B, 2), words (B, T, V), dense (B, K, sum of values), role (B, K, 3), place
            (B, 18): where the sentence's target and where its anchor is.
        """
        vilt = self.model.vilt
        text = batch.ids.shape[1]
        hidden, bias = self._embed(batch, keep)
        dense_after, role_after, place_after = (max(1, self.depth * part // 6) for part in (2, 4, 5))
        out = {}
        for number, layer in enumerate(vilt.encoder.layer, 1):
            hidden = _layer(layer, hidden, bias)
            if number == dense_after:
                out["dense"] = self.dense(self.dense_norm(hidden[:, text + 1 :]))
            if number == place_after:
                out["place"] = self.place(self.place_norm(hidden[:, 0]))
            if number == role_after:
                out["role"] = self.role(self.role_norm(hidden[:, text + 1 :]))
        return out | self._read(vilt.layernorm(hidden[:, :text]))

    def reduced(self, batch: Batch, keep: torch.Tensor | None, config: ReductionConfig) -> dict[str, torch.Tensor]:
        """Run the model with a reduction in its layers, see `forward`.

        Returns:
            The outputs that come after the last layer: answers, match, words.
        """
        vilt, text = self.model.vilt, batch.ids.shape[1]
        hidden, bias = self._embed(batch, keep)
        mask = bias[:, 0, 0] == 0
        slots = torch.arange(mask.shape[1]).expand(mask.shape)
        tokens = Tokens(hidden, mask, mask.float(), bias, slots.masked_fill(~mask, -1), text)
        tokens, _ = vilt.encoder(tokens, Reduction(config))
        return self._read(expand_text(vilt.layernorm(tokens.states), tokens, text)[:, :text])

    def _read(self, text: torch.Tensor) -> dict[str, torch.Tensor]:
        pooled = self.model.vilt.pooler(text)
        return {"answers": self.model.classifier(pooled), "match": self.match(pooled), "words": self.words(text)}

    def _embed(self, batch: Batch, keep: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        embeddings = self.model.vilt.embeddings
        size, (height, width) = self.model.config.patch_size, batch.images.shape[1:3]
        pixels = batch.images.unflatten(1, (height // size, size)).unflatten(3, (width // size, size))
        patches = pixels.permute(0, 1, 3, 5, 2, 4).flatten(3).flatten(1, 2)
        places = embeddings.position_embeddings[0, 1:]
        if keep is not None:
            patches = patches.gather(1, keep[:, :, None].expand(-1, -1, patches.shape[2]))
            places = places[keep]
        projection = embeddings.patch_embeddings.projection
        image = F.linear(patches.float() / 127.5 - 1, projection.weight.flatten(1), projection.bias) + places
        first = (embeddings.cls_token[0] + embeddings.position_embeddings[0, :1]).expand(len(image), 1, -1)
        modality = embeddings.token_type_embeddings.weight
        text = embeddings.text_embeddings(input_ids=batch.ids)
        hidden = torch.cat([text + modality[0], torch.cat([first, image], 1) + modality[1]], 1)
        real = torch.cat([batch.ids != 0, batch.ids.new_ones(image.shape[0], image.shape[1] + 1).bool()], 1)
        bias = torch.zeros(real.shape).masked_fill(~real, -1e4)[:, None, None, :]
        return hidden, bias

    def grown(self, depth: int, places: tuple[int, ...]) -> Trainee:
        """A deeper model that computes the same, for its new layers add nothing yet.

        Args:
            depth: layers of the new model.
            places: where this model's layers stand in it.
        """
        config = type(self.model.config).from_dict(self.model.config.to_dict() | {"num_hidden_layers": depth})
        new = Trainee(config)
        for name, module in new.named_children():
            if name != "model":
                module.load_state_dict(getattr(self, name).state_dict())
        layers = new.model.vilt.encoder.layer
        new.model.vilt.encoder.layer, kept = nn.ModuleList(), self.model.vilt.encoder.layer
        own = self.model.state_dict()
        new.model.load_state_dict({k: v for k, v in own.items() if ".encoder.layer." not in k})
        for index, layer in enumerate(layers):
            if index in places:
                layer.load_state_dict(kept[places.index(index)].state_dict())
            else:
                for output in (layer.attention.output.dense, layer.output.dense):
                    nn.init.zeros_(output.weight)
                    nn.init.zeros_(output.bias)
        new.model.vilt.encoder.layer = layers
        return new


def _layer(layer: ViltLayer, hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    attention = layer.attention.attention
    heads, width = attention.num_attention_heads, attention.attention_head_size
    parts = (attention.query, attention.key, attention.value)
    weight, shift = torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
    qkv = F.linear(layer.layernorm_before(hidden), weight, shift).unflatten(2, (3, heads, width))
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2).flatten(2)
    hidden = hidden + layer.attention.output.dense(mixed)
    inner = F.gelu(layer.intermediate.dense(layer.layernorm_after(hidden)))
    return hidden + layer.output.dense(inner)


def choose_patches(batch: Batch, count: int) -> torch.Tensor:
    """Patches to show: those of objects first, then background at random.

    Returns:
        (B, count) raster indices, ascending.
    """
    rank = torch.rand(batch.roles.shape) + (batch.dense[:, :, 0] > 0) + (batch.roles > 0)
    return rank.topk(count, 1).indices.sort(1).values


def losses(out: dict[str, torch.Tensor], batch: Batch, keep: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The pre-training losses, each a mean over what it concerns.

    The answers' loss is the sum of a softmax cross-entropy, which learns fast, and a binary cross-entropy summed over
    answers, which leaves logits that fit the task's own loss.
    """
    result = _patch_losses(out, batch, keep) if "dense" in out else {}
    asked = batch.answers >= 0
    logits, answers = out["answers"][asked], batch.answers[asked]
    target = F.one_hot(answers, logits.shape[1]).float()
    result["answer"] = F.cross_entropy(logits, answers)
    result["binary"] = F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / max(1, len(answers))
    result["match"] = F.cross_entropy(out["match"], batch.true, reduction="sum") / (~asked).sum().clamp(min=1)
    result["words"] = F.cross_entropy(out["words"].flatten(0, 1), batch.words.flatten(), reduction="sum")
    result["words"] = result["words"] / (batch.words >= 0).sum().clamp(min=1)
    return result


def _patch_losses(out: dict[str, torch.Tensor], batch: Batch, keep: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The losses of the heads that sit below the last layer."""
    dense, roles = batch.dense, batch.roles
    if keep is not None:
        dense, roles = dense.gather(1, keep[:, :, None].expand(-1, -1, dense.shape[2])), roles.gather(1, keep)
    parts = zip(out["dense"].split(_DENSE_WIDTHS, 2), dense.unbind(2), strict=True)
    shown = [F.cross_entropy(logits.flatten(0, 1), labels.flatten()) for logits, labels in parts]
    role = F.cross_entropy(out["role"].flatten(0, 1), roles.flatten())
    return {"dense": torch.stack(shown).sum(), "role": role, "place": _place_loss(out["place"], batch)}


def _place_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Where target and anchor are, for sentences that have both: the two things a relation is computed from."""
    position = batch.dense[:, :, list(DENSE).index("position")] - 1
    places = [position.masked_fill(batch.roles != role, -1).amax(1) for role in (1, 2)]
    both = (places[0] >= 0) & (places[1] >= 0)
    if not both.any():
        return logits.sum() * 0
    parts = logits[both].chunk(2, 1)
    losses = [F.cross_entropy(part, place[both]) for part, place in zip(parts, places, strict=True)]
    return torch.stack(losses).sum()
