"""The small LLaVA while it trains."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from benchmarks.pretrain_small.patches import DENSE
from benchmarks.pretrain_small.pool_llava import FACTS, TURNS, Batch

GROUNDED = (1, 2, 3)
"""Layers whose words are trained to look at what they are about."""
SHOWN, FOUND = 1, 5
"""Layers after which image tokens are trained to know what they show, and `<answer>` what it is asked about."""
WEIGHTS = {"answer": 1.0, "ground": 0.3, "dense": 0.2, "found": 0.2}
"""Of the parts of the loss."""


class Trainee(nn.Module):
    """The model with the heads of its training.

    Args:
        model: whose decoder's attention becomes eager.
    """

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        """Fresh heads."""
        super().__init__()
        self.model = model
        inner: Any = model.model
        inner.language_model.set_attn_implementation("eager")
        width = model.config.text_config.hidden_size
        self.shown_norm, self.shown = nn.LayerNorm(width), nn.Linear(width, sum(each + 1 for each in DENSE.values()))
        self.found_norm, self.found = nn.LayerNorm(width), nn.Linear(width, 2 * sum(FACTS))

    def forward(self, batch: Batch, keep: Tensor | None = None) -> dict[str, Tensor]:
        """Run the model on conversations.

        Args:
            batch: B conversations.
            keep: (B, K) raster indices of the patches that are shown, ascending; None shows all.

        Returns:
            logits (B, T, V) of the tokens after the image; looks (B, L, T, K), how much of its attention each of them
            pays to every patch in the layers `GROUNDED`; shown (B, K, values of DENSE); found (B, T, 2 x facts).
        """
        inner: Any = self.model.model
        pixels = batch.images.permute(0, 3, 1, 2).float() / 127.5 - 1
        vision = inner.vision_tower(pixels, output_hidden_states=True)
        features = inner.multi_modal_projector(vision.hidden_states[-1][:, 1:])
        B, K, D = features.shape
        places = torch.arange(K).expand(B, K)
        if keep is not None:
            features, places = features.gather(1, keep[:, :, None].expand(-1, -1, D)), keep
        embed = inner.get_input_embeddings()
        begin = torch.full((B, 1), self.model.config.text_config.bos_token_id)
        states = torch.cat([embed(begin), features, embed(batch.ids)], 1)
        after = 1 + K + torch.arange(batch.ids.shape[1]).expand(B, -1)
        positions = torch.cat([torch.zeros(B, 1, dtype=torch.long), 1 + places, after], 1)
        # Without a mask transformers takes gaps between positions for the ends of packed sequences.
        mask = torch.ones(states.shape[:2], dtype=torch.long)
        settings = {"use_cache": False, "output_attentions": True, "output_hidden_states": True}
        out = inner.language_model(inputs_embeds=states, attention_mask=mask, position_ids=positions, **settings)
        text = 1 + features.shape[1]
        looks = [out.attentions[layer][:, :, text:, 1:text].mean(1) for layer in GROUNDED]
        return {
            "logits": self.model.lm_head(out.last_hidden_state[:, text:]),
            "looks": torch.stack(looks, 1),
            "shown": self.shown(self.shown_norm(out.hidden_states[SHOWN + 1][:, 1:text])),
            "found": self.found(self.found_norm(out.hidden_states[FOUND + 1][:, text:])),
        }


def losses(out: dict[str, Tensor], batch: Batch, keep: Tensor | None) -> dict[str, Tensor]:
    """How surprised the model, its attention and its heads are.

    Returns:
        answer: by the answers; ground: the words' attention by the patches that they are about; dense: by what patches
        show; found: by what is asked about.
    """
    about, dense = batch.about, batch.dense
    if keep is not None:
        about = about.gather(2, keep[:, None].expand(-1, TURNS, -1))
        dense = dense.gather(1, keep[:, :, None].expand(-1, -1, dense.shape[2]))
    answer = F.cross_entropy(out["logits"].flatten(0, 1), batch.labels.flatten(), ignore_index=-100)
    of_turn = batch.turns.clamp(min=0)[:, :, None].expand(-1, -1, about.shape[2])
    wanted = about.gather(1, of_turn) & (batch.turns >= 0)[:, :, None]
    looks = out["looks"]
    share = (looks * wanted[:, None]).sum(3) / looks.sum(3).clamp(min=1e-6)
    asking = wanted.any(2)[:, None].expand_as(share)
    ground = -share[asking].clamp(min=1e-6).log().mean() if asking.any() else share.sum() * 0
    shown = zip(out["shown"].split([each + 1 for each in DENSE.values()], 2), dense.unbind(2), strict=True)
    dense_loss = torch.stack([F.cross_entropy(part.flatten(0, 1), each.flatten()) for part, each in shown]).sum()
    # the state of a turn's <answer>, which stands where a turn's first label is
    asked = out["found"][(batch.turns >= 0) & (batch.labels >= 0)].unflatten(1, (2, -1))
    parts = zip(asked.split(FACTS, 2), batch.facts.flatten(0, 1).unbind(2), strict=True)
    found = [F.cross_entropy(part.flatten(0, 1), each.flatten(), ignore_index=-100) for part, each in parts]
    return {"answer": answer, "ground": ground, "dense": dense_loss, "found": torch.stack(found).nan_to_num().sum()}
