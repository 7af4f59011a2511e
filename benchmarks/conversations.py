"""What methods cost a generative model in accuracy: the small LLaVA answers two questions about each image.

The methods reduce the image to a half, a quarter and a ninth of its tokens, by the first question where they look at
the text; the second one, about other objects, is asked in the same conversation and sees what the first one kept.
Nothing is trained. Methods inside the decoder reduce after layer 1 (PyramidDrop and the second `pumer` after layers 1,
3 and 5, with as many tokens on average), those before it in the prompt; "fewer pixels" shows the vision encoder a
smaller image. An answer is right if every token of it is the likeliest, its end included, after the right answer to
the question before. Intervals are of the paired difference to the unreduced model, by bootstrap over images.

Writes `benchmarks/results/conversations-<name>-cpu.json`; rows that are there are not measured again.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import pumer
from benchmarks.common import RESULTS, check_same, parser, user_errors
from benchmarks.pretrain_small.patches import patch_objects
from pumer.evaluation.statistics import bootstrap, percent
from pumer.generative import load_generative
from pumer.profiling.prompt_planning import plan_prompt
from pumer.reducers import ReductionConfig, reduction_from
from pumer.reducers.shortening.base import ShorteningConfig
from pumer.utils.errors import InputError
from pumer.utils.files import read_json, write_json
from pumer.utils.provenance import collect
from pumer.visualization.tracing import ForwardTrace
from pumer.world import sentences
from pumer.world.questions import ask
from pumer.world.scenes import Scene, generator, make_scene, render

KEPT = {"1/2": 1 / 2, "1/4": 1 / 4, "1/9": 1 / 9}
STAGES = (1, 3, 5)
"""Layers after which methods with several steps reduce; all others reduce after the first of them."""
UNREDUCED = "unreduced"


def reductions(kept: float, layers: int) -> dict[str, ReductionConfig]:
    """The rows of a table, by name.

    Args:
        kept: fraction of the image tokens that is left, on average over the layers after the first reduction.
        layers: of the decoder.
    """
    gone, stage = 1 - kept, 1 - _stage(kept, layers)
    merged = min(gone / 2, kept)  # at most half of what pruning leaves
    prompt = {"prune_ratio": gone}
    rows: dict[str, dict[str, Any]] = {
        "pumer, pruning": _pumer(STAGES[:1], gone, 0.0),
        "pumer, merging too": _pumer(STAGES[:1], gone - merged, merged),
        "pumer, in three layers": _pumer(STAGES, stage, 0.0),
        "fastv": {"layers": STAGES[:1], "prune_ratio": gone},
        "pyramiddrop": {"layers": STAGES, "prune_ratio": stage},
        "sparsevlm": {"layers": STAGES[:1], "prune_ratio": gone},
        "dart": {"layers": STAGES[:1], "prune_ratio": gone},
        "random": {"stack": "decoder", "layers": STAGES[:1], "prune_ratio": gone},
        "divprune": prompt,
        "cdpruner": prompt,
        "visionzip": prompt,
        "vispruner": prompt,
        "simignore": prompt,
        "random-prompt": prompt,
    }
    if (block := round(kept**-0.5)) ** 2 == round(1 / kept):
        rows["pooling-prompt"] = {"block": block}
    return {name: reduction_from({"method": name.partition(",")[0], **settings}) for name, settings in rows.items()}


def _pumer(layers: Sequence[int], prune: float, merge: float) -> dict[str, Any]:
    step = {"stack": "decoder", "prune_ratio": prune, "merge_ratio": merge}
    return {"schedule": [{"layer": layer, **step} for layer in layers]}


def _stage(kept: float, layers: int) -> float:
    """What each of `STAGES` leaves, so that the layers after the first one have `kept` on average."""
    lengths = np.diff([*STAGES, layers - 1])
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        mean = sum(length * middle ** (place + 1) for place, length in enumerate(lengths)) / lengths.sum()
        low, high = (middle, high) if mean < kept else (low, middle)
    return high


def wanted(layers: int) -> Iterator[tuple[str, str, ReductionConfig | float | None]]:
    """All rows: the fraction of tokens that is left, a name, and a method, a fraction of the pixels, or nothing."""
    yield "1", UNREDUCED, None
    for kept, ratio in KEPT.items():
        for name, config in reductions(ratio, layers).items():
            yield kept, name, config
        yield kept, "fewer pixels", ratio
    yield "", "prumerge", reduction_from("prumerge")


@dataclass(frozen=True)
class Asked:
    """A scene and two questions about different objects of it."""

    scene: Scene
    questions: tuple[sentences.Question, sentences.Question]

    @classmethod
    def draw(cls, index: int) -> "Asked":
        """Of the split "test"."""
        rng = generator(0, "test", index)
        scene = make_scene(rng)
        while True:
            pair = ask(scene, rng), ask(scene, rng)
            about = [{*each.targets, *each.anchors} for each in pair]
            if all(about) and not about[0] & about[1]:
                return cls(scene, pair)

    @property
    def conversation(self) -> list[dict[str, Any]]:
        """For a chat template, with both answers."""
        first, second = self.questions
        image = {"type": "image", "image": Image.fromarray(render(self.scene))}
        return [
            {"role": "user", "content": [image, _text(first.text)]},
            {"role": "assistant", "content": [_text(first.answer)]},
            {"role": "user", "content": [_text(second.text)]},
            {"role": "assistant", "content": [_text(second.answer)]},
        ]


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def main() -> None:
    """Parse, measure, write."""
    options = parser(__doc__)
    options.add_argument("--model", default="small:llava")
    options.add_argument("--name", default="llava-small", help="of the result file")
    options.add_argument("--images", type=int, default=2000)
    options.add_argument("--batch", type=int, default=50, help="conversations per forward")
    options.add_argument("--results", type=Path, default=RESULTS, help="folder of the result file")
    arguments = options.parse_args()
    path = arguments.results / f"conversations-{arguments.name}-cpu.json"
    rows: list[dict[str, Any]] = read_json(path)["rows"] if path.exists() else []
    settings = {name: getattr(arguments, name) for name in ("model", "images", "batch")}
    same = {"model": arguments.model, "images": arguments.images}
    with user_errors():
        for row in rows:
            check_same(path, row["provenance"]["config"], same, "--name")
    done = {(row["kept"], row["method"]) for row in rows}
    model, processor = load_generative(arguments.model, dtype=torch.float32)
    asked = [Asked.draw(index) for index in range(arguments.images)]
    measure = partial(measured, model, processor, asked, arguments.batch)
    baseline = measure(UNREDUCED, None)
    for kept, name, config in wanted(model.config.get_text_config().num_hidden_layers):
        if (kept, name) not in done:
            found = baseline if config is None else measure(f"{name}, {kept}", config)
            row = summary(kept, name, found, baseline, fewer_macs(model, config))
            rows.append(row | {"provenance": collect(settings)})
            write_json(path, {"rows": rows})
    Console().print(table(rows))


@torch.inference_mode()
def measured(
    model: Any, processor: Any, asked: Sequence[Asked], size: int, title: str, config: ReductionConfig | float | None
) -> dict[str, list[float]]:
    """Per image, whether each answer is right, how much is left of what each question is about, and tokens left.

    Args:
        model: not patched.
        processor: its processor.
        asked: the conversations.
        size: conversations per forward.
        title: of the progress bar.
        config: a method, the fraction of the pixels that is shown, or nothing.
    """
    found: dict[str, list[float]] = {name: [] for name in ("first", "second", "asked", "other", "tokens")}
    inside = isinstance(config, ReductionConfig) and not isinstance(config, ShorteningConfig)
    if isinstance(config, ReductionConfig) and inside:
        pumer.patch(model, config)
    try:
        for start in track(range(0, len(asked), size), title, transient=True):
            part = asked[start : start + size]
            inputs = conversed_with_answers(processor, [each.conversation for each in part])
            labels = answers(inputs["input_ids"], processor)
            left: np.ndarray | None = None
            if isinstance(config, float):
                logits, tokens = _with_fewer_pixels(model, inputs, config)
                found["tokens"] += [float(tokens)] * len(part)
            elif isinstance(config, ShorteningConfig):
                short = pumer.shorten(model, {**inputs, "labels": labels}, config)
                labels = short.pop("labels")
                left = _entering(model, short)
                logits = model(**short).logits
            elif config is None:
                logits, left = model(**inputs).logits, np.ones((len(part), _patches(model)), bool)
            else:
                with pumer.trace(model) as trace:
                    logits = model(**inputs, labels=labels).logits
                left = _left(trace.forwards[0])
            if left is not None:
                found["tokens"] += left.sum(1).astype(float).tolist()
                for name, number in (("asked", 0), ("other", 1)):
                    found[name] += [_share(row, each, number) for row, each in zip(left, part, strict=True)]
            for name, right in zip(("first", "second"), _right(logits, labels), strict=True):
                found[name] += right.float().tolist()
    finally:
        if inside:
            pumer.unpatch(model)
    return found


def _share(left: np.ndarray, asked: Asked, number: int) -> float:
    """Of the patches of the objects that a question is about, the fraction that is left, from (P,)."""
    question = asked.questions[number]
    owner = patch_objects(asked.scene).reshape(-1)
    return float(left[np.isin(owner, (*question.targets, *question.anchors))].mean())


def summary(
    kept: str, method: str, found: dict[str, list[float]], baseline: dict[str, list[float]], fewer_macs: float | None
) -> dict[str, Any]:
    """A row of the result: means, and intervals of the paired differences to the unreduced model."""
    row: dict[str, Any] = {"kept": kept, "method": method, "images": len(found["first"]), "fewer_macs": fewer_macs}
    row["tokens"] = float(np.mean(found["tokens"]))
    for name in ("first", "second"):
        difference = np.subtract(found[name], baseline[name]).tolist()
        row[name] = bootstrap(found[name]) | {"difference": bootstrap(difference)}
    return row | {name: bootstrap(found[name]) for name in ("asked", "other") if found[name]}


def fewer_macs(model: Any, config: ReductionConfig | float | None) -> float | None:
    """How many times fewer MACs the decoder needs for a prompt of 16 words; None if that depends on the image."""
    if isinstance(config, float):
        tokens = round(_patches(model) ** 0.5 * config**0.5) ** 2
        plans = [plan_prompt(model, 16, count) for count in (_patches(model), tokens)]
        return plans[0].macs / plans[1].macs
    reduced = pumer.patch(copy.deepcopy(model), config or reduction_from("none"))
    try:
        return plan_prompt(reduced, 16, _patches(model)).ideal_speedup
    except InputError:
        return None


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """All rows, in percent."""
    shown = Table(
        "kept", "method", "tokens", "fewer MACs", "first", "difference", "second", "difference", "asked", "other"
    )
    for row in rows:
        macs = "" if row["fewer_macs"] is None else f"{row['fewer_macs']:.2f}x"
        cells = [row["kept"], row["method"], f"{row['tokens']:.0f}", macs]
        for name in ("first", "second"):
            cells += [f"{100 * row[name]['mean']:.1f}", percent(row[name]["difference"])]
        shown.add_row(*cells, *(f"{100 * row[name]['mean']:.0f}" if name in row else "" for name in ("asked", "other")))
    return shown


def conversed_with_answers(processor: Any, conversations: Sequence[Any]) -> Any:
    """Inputs of whole conversations, padded on the right: no prompt is to be answered."""
    return processor.apply_chat_template(
        conversations,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "right"},
    )


def answers(ids: Tensor, processor: Any) -> Tensor:
    """(B, N) labels: the tokens of the answers with what ends each, -100 for all else."""
    said, end = (processor.tokenizer.convert_tokens_to_ids(token) for token in ("<answer>", "</s>"))
    opened, closed = (ids == said).long(), (ids == end).long()
    speaking = opened.cumsum(1) - opened > closed.cumsum(1) - closed
    return ids.where(speaking, torch.full_like(ids, -100))


def _right(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) bool of the first and of the second answer: whether all its tokens are the likeliest."""
    wanted = F.pad(labels[:, 1:], (0, 1), value=-100)
    said = wanted >= 0
    turn = (said & ~F.pad(said[:, :-1], (1, 0))).long().cumsum(1)
    wrong = said & (logits.argmax(2) != wanted)
    return ~(wrong & (turn == 1)).any(1), ~(wrong & (turn == 2)).any(1)


def _left(trace: ForwardTrace) -> np.ndarray:
    """Bool (B, P): the patches that keep a place of their own, in the order of the image."""
    alone = (trace.pruned_at < 0) & (trace.merged_at < 0)
    return np.stack([row[cells >= 0].numpy() for row, cells in zip(alone, trace.patch_cell, strict=True)])


def _entering(model: Any, short: Any) -> np.ndarray:
    """The same of prompts that `pumer.shorten` returned; the image's first token has position 1."""
    left = np.zeros((len(short["input_ids"]), _patches(model)), bool)
    row, column = (short["input_ids"] == model.config.image_token_id).nonzero(as_tuple=True)
    left[row, short["position_ids"][row, column] - 1] = True
    return left


def _patches(model: Any) -> int:
    vision = model.config.vision_config
    return int((vision.image_size // vision.patch_size) ** 2)


def _with_fewer_pixels(model: Any, inputs: Any, kept: float) -> tuple[Tensor, int]:
    """Logits for images of fewer pixels, whose tokens stand first in the places of the whole image's."""
    side = round(_patches(model) ** 0.5 * kept**0.5)
    size = side * model.config.vision_config.patch_size
    pixels = F.interpolate(inputs["pixel_values"], (size, size), mode="bicubic", antialias=True)
    hidden = model.model.vision_tower(pixels, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states
    features = model.model.multi_modal_projector(hidden[model.config.vision_feature_layer][:, 1:])
    image = inputs["input_ids"] == model.config.image_token_id
    stays = ~image | (image.long().cumsum(1) <= side * side)
    ids, mask = (inputs[name][stays].view(len(stays), -1) for name in ("input_ids", "attention_mask"))
    states = model.get_input_embeddings()(ids)
    states = states.masked_scatter((ids == model.config.image_token_id)[:, :, None], features)
    short = model(inputs_embeds=states, attention_mask=mask).logits
    logits = short.new_zeros(*stays.shape, short.shape[-1])
    logits[stays] = short.flatten(0, 1)
    return logits, side * side


if __name__ == "__main__":
    main()
