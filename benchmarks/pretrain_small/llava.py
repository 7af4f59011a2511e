"""Training of the small LLaVA that ships: `python -m benchmarks llava`.

Its vision encoder is that of the small METER, which knows what every patch shows, and stays as it is. Its decoder
starts afresh and learns to answer in words, by conversations of `TURNS` questions about one image. In the layers
`GROUNDED` the words are trained to look at the image tokens that their question is about, which is what a reducer asks
of them; heads that are not shipped are asked what an image token shows, and what is asked about. In the first part of
the run most of the background is left out. The run's folder holds its state, saved every few minutes: it may be killed
and started again at will.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from benchmarks.pretrain_small.patches import DENSE, dense_labels, patch_objects
from benchmarks.pretrain_small.settings import LlavaTrainingConfig
from benchmarks.pretrain_small.small import IMAGE_SIZE, PATCH_SIZE
from benchmarks.pretrain_small.tokenizer import train_tokenizer
from pumer.checkpoint import read_model
from pumer.evaluation.generation import PROMPTS, QUESTION
from pumer.models.meter import MeterForQuestionAnswering
from pumer.utils.errors import InputError
from pumer.utils.files import write_bytes
from pumer.utils.locks import only_one
from pumer.utils.shipped import SMALL
from pumer.world import scenes, sentences

TURNS = 4
"""Questions about each image."""
GROUNDED = (1, 2, 3)
"""Layers whose words are trained to look at what they are about."""
SHOWN, FOUND = 1, 5
"""Layers after which image tokens are trained to know what they show, and `<answer>` what it is asked about."""
_FACTS = tuple(DENSE.values())[:5]
"""Values of shape, colour, size, texture and position."""
PATCHES = (IMAGE_SIZE // PATCH_SIZE) ** 2
PAD, UNKNOWN, BEGIN, END, IMAGE, ANSWER = SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<image>", "<answer>")
TEMPLATE = (
    f"{BEGIN}"
    "{% for message in messages %}"
    f"{{% if message['role'] == 'assistant' %}}{ANSWER}{{% endif %}}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    f"{{% if part['type'] == 'image' %}}{IMAGE}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}"
    "{% endfor %}{% endif %}"
    f"{{% if message['role'] == 'assistant' %}}{END}{{% endif %}}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{ANSWER}{{% endif %}}"
)
"""A prompt is `<s><image>question<answer>`, an answer ends with `</s>`, and the next question follows at once."""
_WEIGHTS = {"answer": 1.0, "ground": 0.3, "dense": 0.2, "found": 0.2}
_INSTRUCTION = PROMPTS["vqav2"].replace(QUESTION, "").strip()
"""Which `pumer evaluate` adds to every question."""


def tokenizer() -> PreTrainedTokenizerFast:
    """The small models' words and characters, with the words of the instruction, without their special tokens."""
    known = [word for word in train_tokenizer().get_vocab() if not word.startswith("[") or len(word) == 1]
    words, _ = zip(*pre_tokenizers.BertPreTokenizer().pre_tokenize_str(_INSTRUCTION.lower()), strict=True)
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *sorted({*known, *words})])}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=1_000_000))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=END,
        extra_special_tokens=[IMAGE, ANSWER],
        padding_side="left",
    )


def processor() -> LlavaProcessor:
    """Of the small LLaVA: images of any size become 96 x 96 pixels in [-1, 1]."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = CLIPImageProcessorPil(size=size, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return LlavaProcessor(
        images,
        tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def small_llava(words: PreTrainedTokenizerFast, layers: int, width: int) -> LlavaForConditionalGeneration:
    """A fresh decoder behind the vision encoder of the small METER."""
    source = read_model(MeterForQuestionAnswering, str(SMALL["small:meter"]), dtype=torch.float32)[0]
    vision: Any = source.meter.vision_model
    begin, end, pad = (words.convert_tokens_to_ids(each) for each in (BEGIN, END, PAD))
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=512,
        initializer_range=0.06,
        tie_word_embeddings=True,
        bos_token_id=begin,
        eos_token_id=end,
        pad_token_id=pad,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision.config.to_dict()),
        text_config=text,
        image_token_index=words.convert_tokens_to_ids(IMAGE),
        image_seq_length=PATCHES,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        initializer_range=0.06,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.requires_grad_(False)
    missing, extra = model.model.vision_tower.load_state_dict(vision.state_dict(), strict=False)
    if missing or extra:
        raise InputError(f"the vision encoder of small:meter lacks {missing} and has {extra} too many")
    generation: Any = model.generation_config
    generation.bos_token_id, generation.eos_token_id, generation.pad_token_id = begin, end, pad
    return model


@dataclass
class Batch:
    """B conversations of T tokens about P patches.

    Attributes:
        images: (B, H, W, 3) uint8.
        ids: (B, T) what follows the image, padded with 0.
        labels: (B, T) the token that follows each, where it is part of an answer; -100 elsewhere.
        turns: (B, T) the turn whose question, or `<answer>`, a token is of; -1 for the rest.
        about: (B, TURNS, P) whether a patch shows what the turn's question is about, or refers to.
        dense: (B, P, 6) what every patch shows, see `dense_labels`.
        facts: (B, TURNS, 2, 5) shape, colour, size, texture and position of the object that a question is about, and of
            that which it refers to; -100 where there is none, or more than one.
    """

    images: Tensor
    ids: Tensor
    labels: Tensor
    turns: Tensor
    about: Tensor
    dense: Tensor
    facts: Tensor


@dataclass(frozen=True)
class Conversations:
    """Where batches come from: each index is one scene and `TURNS` questions about it."""

    words: PreTrainedTokenizerFast
    seed: int
    split: str = "pretrain"

    def batch(self, first: int, count: int) -> Batch:
        """The conversations `first` to `first + count - 1`."""
        images, rows = [], []
        about = np.zeros((count, TURNS, PATCHES), bool)
        dense, facts = np.zeros((count, PATCHES, len(DENSE)), np.int64), np.full((count, TURNS, 2, len(_FACTS)), -100)
        for place, index in enumerate(range(first, first + count)):
            rng = scenes.generator(self.seed, self.split, index)
            scene = scenes.make_scene(rng, held_out=self.split == "heldout")
            images.append(scenes.render(scene))
            asked = [sentences.ask(scene, rng) for _ in range(TURNS)]
            rows.append(list(self._tokens(asked, instructed=rng.integers(4) == 0)))
            owner = patch_objects(scene, PATCH_SIZE).reshape(-1).astype(np.int64)
            dense[place] = dense_labels(scene, owner)
            for turn, question in enumerate(asked):
                about[place, turn] = np.isin(owner, (*question.targets, *question.anchors))
                for part, objects in enumerate((question.targets, question.anchors)):
                    if len(objects) == 1:
                        item = scene.objects[objects[0]]
                        where = sentences.POSITIONS.index(sentences.position(scene, item))
                        facts[place, turn, part] = (item.shape, item.colour, item.size, item.texture, where)
        length = max(map(len, rows))
        columns = np.array([row + [(0, -100, -1)] * (length - len(row)) for row in rows])
        ids, labels, turns = torch.from_numpy(columns).unbind(2)
        others = map(torch.from_numpy, (about, dense, facts))
        return Batch(torch.from_numpy(np.stack(images)), ids, labels, turns, *others)

    def _tokens(self, asked: list[sentences.Question], instructed: bool) -> Iterator[tuple[int, int, int]]:
        """Id, label and turn of every token."""
        answer, end = (self.words.convert_tokens_to_ids(each) for each in (ANSWER, END))
        for turn, question in enumerate(asked):
            text = f"{question.text}\n{_INSTRUCTION}" if instructed else question.text
            said = [*self._ids(question.answer), end]
            yield from ((token, -100, turn) for token in self._ids(text))
            yield answer, said[0], turn
            yield from ((token, label, -1) for token, label in zip(said, [*said[1:], -100], strict=True))

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.words(text, add_special_tokens=False).input_ids
        return ids


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
        self.found_norm, self.found = nn.LayerNorm(width), nn.Linear(width, 2 * sum(_FACTS))

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
    parts = zip(asked.split(_FACTS, 2), batch.facts.flatten(0, 1).unbind(2), strict=True)
    found = [F.cross_entropy(part.flatten(0, 1), each.flatten(), ignore_index=-100) for part, each in parts]
    return {"answer": answer, "ground": ground, "dense": dense_loss, "found": torch.stack(found).nan_to_num().sum()}


def shown(batch: Batch, count: int) -> Tensor:
    """(B, count) patches to show: those that any question is about first, then others at random."""
    rank = torch.rand(batch.about.shape[0], PATCHES) + batch.about.any(1)
    return rank.topk(count, 1).indices.sort(1).values


@torch.inference_mode()
def accuracy(trainee: Trainee, source: Conversations, count: int) -> tuple[float, float]:
    """Fraction of `count` conversations' answers that are right to the last token: first questions, and later ones."""
    first, later = [], []
    for start in range(0, count, 32):
        batch = source.batch(start, 32)
        logits = trainee(batch)["logits"]
        said = batch.labels >= 0
        wrong = (logits.argmax(2) != batch.labels) & said
        # A turn's answer starts where `turns` names it and the label is one.
        number = ((batch.turns >= 0) & said).long().cumsum(1) - 1
        for turn in range(TURNS):
            right = ~(wrong & (number == turn)).any(1)
            (first if turn == 0 else later).append(right.float())
    return torch.cat(first).mean().item(), torch.cat(later).mean().item()


def run(config: LlavaTrainingConfig) -> Path:
    """Train, or go on with a run that was interrupted, and write the checkpoint.

    Returns:
        The folder of the checkpoint.
    """
    config.check_places()
    with only_one(*config.written):
        return _trained(config)


def _trained(config: LlavaTrainingConfig) -> Path:
    folder, console = Path(config.out), Console()
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)
    words = tokenizer()
    trainee = Trainee(small_llava(words, config.layers, config.width))
    optimizer = _optimizer(trainee, config)
    seconds, step, path = 0.0, 0, folder / "state.pt"
    if path.exists():
        saved = torch.load(path, weights_only=True)
        trainee.load_state_dict(saved["trainee"])
        optimizer.load_state_dict(saved["optimizer"])
        seconds, step = saved["seconds"], saved["step"]
    source, check = Conversations(words, config.seed), Conversations(words, config.seed + 1)
    total, saved_at, told_at, told_step = 60 * config.minutes, seconds, seconds, step
    average: dict[str, float] = {}
    while seconds < total:
        begin, progress = time.monotonic(), seconds / total
        batch = source.batch(step * config.batch_size, config.batch_size)
        keep = shown(batch, config.patches) if progress < config.full_at else None
        with torch.autocast("cpu", torch.bfloat16, enabled=config.half):
            out = trainee(batch, keep)
        parts = losses({name: each.float() for name, each in out.items()}, batch, keep)
        torch.stack([_WEIGHTS[name] * loss for name, loss in parts.items()]).sum().backward()
        nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = _rate(config, step, progress)
        optimizer.step()
        optimizer.zero_grad()
        for name, loss in parts.items():
            average[name] = 0.98 * average.get(name, loss.item()) + 0.02 * loss.item()
        step += 1
        seconds += min(time.monotonic() - begin, 5.0)  # a stopped process does not train
        if seconds - told_at >= 60:
            rate = (step - told_step) * config.batch_size * TURNS / (seconds - told_at)
            scores = " and ".join(f"{score:.1%}" for score in accuracy(trainee, check, 256))
            shown_losses = ", ".join(f"{name} {value:.3f}" for name, value in average.items())
            console.print(
                f"{seconds / 60:.0f} of {config.minutes:.0f} min, step {step}, {rate:.0f} answers/s: {shown_losses}; "
                f"first and later questions {scores}",
                soft_wrap=True,
            )
            told_at, told_step = seconds, step
        if seconds - saved_at >= 60 * config.save_minutes or seconds >= total:
            state = {"trainee": trainee.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"seconds": seconds, "step": step}
            content = io.BytesIO()
            torch.save(state, content)
            write_bytes(path, content.getvalue())
            saved_at = seconds
    return export(trainee.model, folder / "llava-small")


def _optimizer(trainee: nn.Module, config: LlavaTrainingConfig) -> torch.optim.Optimizer:
    trained = [p for p in trainee.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if (p.dim() > 1) == decays], "weight_decay": config.weight_decay * decays}
        for decays in (True, False)
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), foreach=True)


def _rate(config: LlavaTrainingConfig, step: int, progress: float) -> float:
    """Learning rate: warm-up, constant, then a cosine down."""
    fall = min(1.0, max(0.0, (progress - config.fall_at) / (1 - config.fall_at)))
    return config.lr * min(1.0, (step + 1) / 200) * (0.02 + 0.98 * (1 + cos(pi * fall)) / 2)


def export(model: LlavaForConditionalGeneration, folder: Path) -> Path:
    """Write the model in bfloat16, with its processor."""
    model.model.language_model.set_attn_implementation("sdpa")
    model.to(torch.bfloat16).save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder
