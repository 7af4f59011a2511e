"""What a reduced model did to one picture and its question: what was pruned, what was merged."""

import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw
from transformers import PreTrainedModel

from pumer import patching
from pumer.data.images import ImageLike, read_image
from pumer.evaluation.predict import Predictor
from pumer.reducers import reduction_from
from pumer.settings.visualize import VisualizeConfig
from pumer.tasks import Example, Inputs, Retrieval, Task
from pumer.tasks.base import model_inputs
from pumer.utils.errors import InputError
from pumer.utils.files import write_bytes
from pumer.utils.locks import only_one
from pumer.utils.tensors import numbers
from pumer.visualization import drawing, tracing
from pumer.visualization.tracing import ForwardTrace, Trace
from pumer.visualization.tracing import name as place_name

PICTURE = 396  # pixels along the longer side of the picture in a panel
PRUNED = (222, 222, 226)  # where the panel of merged patches shows pruned ones


def draw(
    trace: Trace,
    image: ImageLike,
    question: str | Sequence[str] | None = None,
    answer: str | None = None,
    sample: int = 0,
    forward: int = 0,
) -> Image.Image:
    """Draw what became of every patch and every word of one sample.

    Three panels show the image as the model saw it, the patches pruned (one tint per layer), and the
    patches merged (one colour and outline per final token; a patch that still stands alone keeps its own
    look). Below them, words that were merged share a colour and a bracket.

    Args:
        trace: the recording of a forward pass, see `pumer.trace`.
        image: a file name, a PIL image or an array, see `pumer.data.images.read_image`; it is resized to the sample's
            patch grid, as the processor did.
        question: the text, or its tokens as the tokenizer names them (`[CLS]` and `[SEP]` included). Given
            as text it is split at spaces and punctuation; where that does not give one word per token,
            tokens are shown by their position.
        answer: written below the question, such as the model's answer.
        sample: index in the batch.
        forward: index of the encoder run; NLVR2 has one per image.

    Returns:
        An RGB picture about 1270 pixels wide for a square image.

    Raises:
        InputError: when `sample` or `forward` is not in the trace, and for an image that cannot be read.

    Example:
        >>> with pumer.trace(model) as trace:  # doctest: +SKIP
        ...     model(**inputs)
        >>> pumer.draw(trace, image, "what is it?").save("tokens.png")  # doctest: +SKIP
    """
    fate = _Fate.of(_forward(trace, forward), sample)
    cell = max(4, PICTURE // max(fate.rows, fate.cols))
    picture = read_image(image).resize((fate.cols * cell, fate.rows * cell), Image.Resampling.BICUBIC)
    panels = drawing.beside(
        (
            drawing.panel(picture, "input", [(None, f"{fate.rows} x {fate.cols} patches")]),
            _pruned_panel(picture, fate, cell),
            _merged_panel(picture, fate, cell),
        )
    )
    return drawing.stacked((panels, _text_line(fate, question, answer, panels.width), _counts_line(fate, panels.width)))


def run(config: VisualizeConfig) -> str:
    """Ask a model one question and write the picture of what it did with the tokens.

    Returns:
        The model's answer.

    Raises:
        InputError: when the checkpoint or the image cannot be read, or the reduction does not fit the model.
    """
    config.check_places()
    with only_one(*config.written):
        return _drawn(config)


def _drawn(config: VisualizeConfig) -> str:
    for image in config.images:
        read_image(image)  # the cheap check first
    predictor = Predictor(config.checkpoint, config.task, config.text_length, config.resize, config.image_size)
    example = Example(0, config.images, config.question)
    predictor.check(example)
    if config.reduction is not None:
        patching.patch(predictor.model, reduction_from(config.reduction))
    answer, picture = ask(predictor.model, predictor.task, predictor.inputs, example)
    file = io.BytesIO()
    picture.save(file, format="PNG")
    write_bytes(config.out, file.getvalue())
    return answer


@torch.inference_mode()
def ask(model: PreTrainedModel, task: Task, inputs: Inputs, example: Example) -> tuple[str, Image.Image]:
    """A patched model's answer to one example, and the drawing of what it did with the tokens of every image.

    Args:
        model: a patched model for the task.
        task: reads the answer from the logits; of retrieval it is the score.
        inputs: how the example becomes tensors, see `pumer.tasks.loading.make_inputs`.
        example: its images and its text.
    """
    batch = {name: tensor.to(model.device) for name, tensor in model_inputs([example], inputs).items()}
    with tracing.trace(model) as recorded:
        logits = numbers(model(**batch).logits)
    answer = f"score {float(logits):.2f}" if isinstance(task, Retrieval) else task.labels[int(task.choose(logits))]
    words = inputs.tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())
    last = len(example.images) - 1
    drawings = [
        draw(recorded, image, words, answer if forward == last else None, forward=forward)
        for forward, image in enumerate(example.images)
    ]
    return answer, drawing.stacked(drawings) if last else drawings[0]


@dataclass(frozen=True)
class _Fate:
    """One sample's part of a trace, per patch in raster order and per real text token."""

    rows: int
    cols: int
    patch_pruned_at: list[int]  # index of the place, or -1
    patch_owner: list[int]
    word_pruned_at: list[int]
    word_owner: list[int]
    places: tuple[str, ...]
    image_counts: list[int]  # real tokens that entered, then after each of `places`; [CLS] counted
    text_counts: list[int]

    @staticmethod
    def of(forward: ForwardTrace, sample: int) -> "_Fate":
        batch = forward.mask.shape[0]
        if not -batch <= sample < batch:
            raise InputError(f"sample {sample} is not in the trace; it holds samples 0 to {batch - 1}")
        rows, cols = forward.grid[sample].tolist()
        mask, pruned_at = forward.mask[sample].tolist(), forward.pruned_at[sample].tolist()
        owner, text = forward.owner[sample].tolist(), forward.text_tokens
        patch_pruned_at, patch_owner = [-1] * (rows * cols), [-1] * (rows * cols)
        for token, patch in enumerate(forward.patch_cell[sample].tolist(), start=text):
            if patch >= 0:
                patch_pruned_at[patch], patch_owner[patch] = pruned_at[token], owner[token]
        words = [token for token in range(text) if mask[token]]
        return _Fate(
            rows=rows,
            cols=cols,
            patch_pruned_at=patch_pruned_at,
            patch_owner=patch_owner,
            word_pruned_at=[pruned_at[token] for token in words],
            word_owner=[owner[token] for token in words],
            places=tuple(map(place_name, forward.places)),
            image_counts=[
                sum(map(bool, mask[text:])),
                *(int(images[sample]) for _, images in forward.tokens_per_place),
            ],
            text_counts=[len(words), *(int(texts[sample]) for texts, _ in forward.tokens_per_place)],
        )


def _forward(trace: Trace, forward: int) -> ForwardTrace:
    if not trace.forwards:
        raise InputError("the trace is empty; run the model inside `with pumer.trace(model) as trace:`")
    if not -len(trace.forwards) <= forward < len(trace.forwards):
        last = len(trace.forwards) - 1
        raise InputError(f"forward {forward} is not in the trace; it holds forwards 0 to {last}")
    return trace.forwards[forward]


def _pruned_panel(picture: Image.Image, fate: _Fate, cell: int) -> Image.Image:
    counts = Counter(place for place in fate.patch_pruned_at if place >= 0)
    # most methods only merge in a vision encoder: no legend for what did not happen there
    pruning = [rank for rank, place in enumerate(fate.places) if counts[rank] or not place.startswith("vision")]
    colours = {place: drawing.layer_colour(rank, len(pruning)) for rank, place in enumerate(pruning)}
    legend = [(colour, f"{fate.places[place]}: {counts[place]}") for place, colour in colours.items()]
    shown = picture.copy()
    for patch, place in enumerate(fate.patch_pruned_at):
        if place >= 0:
            drawing.tint(shown, drawing.patch_box(patch, fate.cols, cell), colours[place], 0.75)
    return drawing.panel(shown, f"pruned: {counts.total()} of {fate.rows * fate.cols} patches", legend)


def _merged_panel(picture: Image.Image, fate: _Fate, cell: int) -> Image.Image:
    groups, shown = _groups(fate.patch_owner), picture.copy()
    for patch, place in enumerate(fate.patch_pruned_at):
        if place >= 0:  # pale, so that what is left stands out
            drawing.tint(shown, drawing.patch_box(patch, fate.cols, cell), PRUNED, 0.9)
    for rank, patches in enumerate(groups):
        for patch in patches:
            box = drawing.patch_box(patch, fate.cols, cell)
            drawing.tint(shown, box, drawing.group_colour(rank), 0.42)
        drawing.outline(shown, set(patches), fate.cols, cell, drawing.group_colour(rank))
    merged = sum(map(len, groups))
    alone = sum(owner >= 0 for owner in fate.patch_owner) - merged
    legend = [(None, "one colour = one token"), (None, f"alone: {alone}"), (PRUNED, "pruned")]
    return drawing.panel(shown, f"merged: {merged} patches into {len(groups)} tokens", legend)


def _groups(owners: list[int]) -> list[list[int]]:
    """Sets of two or more members with the same owner, the largest first."""
    members: dict[int, list[int]] = {}
    for member, owner in enumerate(owners):
        if owner >= 0:
            members.setdefault(owner, []).append(member)
    shared = (group for group in members.values() if len(group) > 1)
    return sorted(shared, key=lambda group: (-len(group), group))


def _text_line(fate: _Fate, question: str | Sequence[str] | None, answer: str | None, width: int) -> Image.Image:
    """The words in boxes, merged ones coloured and bracketed, pruned ones struck out; then the answer."""
    words, spelled = _words(question, len(fate.word_owner))
    groups = _groups(fate.word_owner)
    colours = {word: drawing.group_colour(rank) for rank, group in enumerate(groups) for word in group}
    chips = drawing.chips(words, width, brackets=len(groups))
    caption = [question] if isinstance(question, str) and not spelled else []
    caption += [f"answer: {answer}"] if answer is not None else []
    bottom = chips[-1].bottom + drawing.bracket_room(len(groups)) if chips else 0
    line = Image.new("RGB", (width, max(1, bottom + 30 * len(caption))), drawing.PAPER)
    pen = ImageDraw.Draw(line)
    for word, (chip, pruned_at) in enumerate(zip(chips, fate.word_pruned_at, strict=True)):
        colour = drawing.mixed(drawing.PAPER, colours[word], 0.55) if word in colours else drawing.BOX
        chip.draw(pen, colour, gone=pruned_at >= 0)
    for rank, group in enumerate(groups):
        drawing.bracket(pen, [chips[word] for word in group], rank)
    for row, text in enumerate(caption):
        pen.text((0, bottom + 15 + 30 * row), text, drawing.INK, drawing.font(19), anchor="lm")
    return line


def _words(question: str | Sequence[str] | None, count: int) -> tuple[list[str], bool]:
    """One label for each of `count` real text tokens, and whether the labels are the words themselves."""
    if isinstance(question, str):
        words = ["[CLS]", *re.findall(r"\w+|[^\w\s]", question), "[SEP]"]
    else:
        words = list(question or ())[:count]
    if len(words) == count:
        return words, True
    return [str(position) for position in range(count)], False


def _counts_line(fate: _Fate, width: int) -> Image.Image:
    """How many tokens of each kind were left after each reduction."""
    parts = []
    counted = [("image tokens", fate.image_counts), ("text tokens", fate.text_counts)]
    if 0 in fate.text_counts[1:]:  # words and patches were merged alike: there is no telling them apart
        counted = [("tokens of image and text", [sum(both) for both in zip(*(c for _, c in counted), strict=True)])]
    for name, (entered, *left) in counted:
        counts = zip(fate.places, left, strict=True)
        seen = [(place, count) for place, count in counts if "image" in name or not place.startswith("vision")]
        parts.append(f"{name}: {', '.join([str(entered), *(f'{count} after {place}' for place, count in seen)])}")
    text = "      ".join(parts)
    sizes = [size for size in (15, 14, 13, 12, 11, 10) if drawing.font(size).getlength(text) <= width]
    line = Image.new("RGB", (width, 26), drawing.PAPER)
    ImageDraw.Draw(line).text((0, 13), text, drawing.FAINT, drawing.font(max(sizes, default=9)), anchor="lm")
    return line
