"""What a reduced model did to one image and its question: what was pruned, what was merged."""

import io
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw

from pumer.data.images import ImageLike, read_image
from pumer.settings.visualize import VisualizeConfig
from pumer.tasks import Example, Retrieval
from pumer.tasks.base import model_inputs
from pumer.tasks.session import Session
from pumer.utils.errors import InputError
from pumer.utils.files import write_bytes
from pumer.utils.locks import exclusive
from pumer.utils.tensors import numbers
from pumer.visualization import drawing, tracing
from pumer.visualization.tracing import ForwardTrace, Trace
from pumer.visualization.tracing import name as place_name

IMAGE_EDGE = 396  # pixels along the longer side of the image in a panel
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

    Three panels show the image as the model saw it, the pruned patches (one tint per layer), and the merged patches
    (one colour and outline per final token; a patch that was not merged stays as it is). Below them, words that were
    merged share a colour and a bracket.

    Args:
        trace: the recording of a forward pass, see `pumer.trace`.
        image: a file name, a PIL image or an array, see `pumer.data.images.read_image`; it is resized to the sample's
            patch grid, as the processor did.
        question: the text, or its tokens as the tokenizer names them (`[CLS]` and `[SEP]` included). A text is split at
            spaces and punctuation; where that does not give one word per token, tokens are shown by their position.
        answer: written below the question, such as the model's answer.
        sample: index in the batch.
        forward: index of the encoder run; NLVR2 has one per image.

    Returns:
        An RGB image about 1270 pixels wide for a square image.

    Raises:
        InputError: when `sample` or `forward` is not in the trace, and for an image that cannot be read.

    Example:
        >>> with pumer.trace(model) as trace:  # doctest: +SKIP
        ...     model(**inputs)
        >>> pumer.draw(trace, image, "what is it?").save("tokens.png")  # doctest: +SKIP
    """
    fate = _Fate(_forward(trace, forward), sample)
    cell = max(4, IMAGE_EDGE // max(fate.rows, fate.cols))
    shown = read_image(image).resize((fate.cols * cell, fate.rows * cell), Image.Resampling.BICUBIC)
    as_read = drawing.panel(shown, "input", [(None, f"{fate.rows} x {fate.cols} patches")])
    panels = drawing.beside((as_read, _pruned_panel(shown, fate, cell), _merged_panel(shown, fate, cell)))
    return drawing.stacked((panels, _text_line(fate, question, answer, panels.width), _counts_line(fate, panels.width)))


@exclusive
def run(config: VisualizeConfig) -> str:
    """Ask a model one question and write the drawing of what it did with the tokens.

    Returns:
        The model's answer.
    """
    for image in config.images:
        read_image(image)  # the cheap check first
    session = Session.open(
        config.model,
        config.task,
        text_length=config.text_length,
        resize=config.resize,
        image_size=config.image_size,
        reduction=config.reduction,
    )
    answer, drawn = ask(session, Example(0, config.images, config.question))
    file = io.BytesIO()
    drawn.save(file, format="PNG")
    write_bytes(config.out, file.getvalue())
    return answer


@torch.inference_mode()
def ask(session: Session, example: Example) -> tuple[str, Image.Image]:
    """A model's answer to one example, of retrieval its score, and the drawing of what it did with the tokens."""
    session.check(example)
    model, task, tokenizer = session.model, session.task, session.inputs.tokenizer
    batch = {name: tensor.to(model.device) for name, tensor in model_inputs([example], session.inputs).items()}
    with tracing.trace(model) as recorded:
        logits = numbers(model(**batch).logits)
    answer = f"score {float(logits):.2f}" if isinstance(task, Retrieval) else task.labels[int(task.choose(logits))]
    words = tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())
    last = len(example.images) - 1
    drawings = [
        draw(recorded, image, words, answer if forward == last else None, forward=forward)
        for forward, image in enumerate(example.images)
    ]
    return answer, drawing.stacked(drawings) if last else drawings[0]


class _Part(NamedTuple):
    """One sample's patches, in raster order, or its real text tokens."""

    pruned_at: list[int]  # index of the place, or -1
    owner: list[int]
    counts: list[int]  # real tokens that entered, then after each place; [CLS] counted


class _Fate:
    """One sample's part of a trace: its image of `rows` x `cols` patches, its text, and the names of the `places`."""

    def __init__(self, forward: ForwardTrace, sample: int) -> None:
        batch, length = forward.mask.shape[0], forward.text_tokens
        if not -batch <= sample < batch:
            raise InputError(f"sample {sample} is not in the trace; it holds samples 0 to {batch - 1}")
        self.rows, self.cols = forward.grid[sample].tolist()
        self.places = tuple(map(place_name, forward.places))
        mask, cells = forward.mask[sample].tolist(), forward.patch_cell[sample].tolist()
        pruned_at, owner = forward.pruned_at[sample].tolist(), forward.owner[sample].tolist()
        token_of = {patch: token for token, patch in enumerate(cells, start=length)}
        left = [[int(count[sample]) for count in counts] for counts in forward.tokens_per_place]

        def part(tokens: Sequence[int | None], entered: int, kind: int) -> _Part:
            pruned, owned = ([-1 if token is None else x[token] for token in tokens] for x in (pruned_at, owner))
            return _Part(pruned, owned, [entered, *(counts[kind] for counts in left)])

        words = [token for token in range(length) if mask[token]]
        self.text = part(words, len(words), 0)
        self.image = part([token_of.get(patch) for patch in range(self.rows * self.cols)], sum(mask[length:]), 1)


def _forward(trace: Trace, forward: int) -> ForwardTrace:
    if not trace.forwards:
        raise InputError("the trace is empty; run the model inside `with pumer.trace(model) as trace:`")
    if not -len(trace.forwards) <= forward < len(trace.forwards):
        last = len(trace.forwards) - 1
        raise InputError(f"forward {forward} is not in the trace; it holds forwards 0 to {last}")
    return trace.forwards[forward]


def _pruned_panel(image: Image.Image, fate: _Fate, cell: int) -> Image.Image:
    counts = Counter(place for place in fate.image.pruned_at if place >= 0)
    # most methods only merge in a vision encoder: no legend for what did not happen there
    pruning = [rank for rank, place in enumerate(fate.places) if counts[rank] or not place.startswith("vision")]
    colours = {place: drawing.layer_colour(rank, len(pruning)) for rank, place in enumerate(pruning)}
    legend = [(colour, f"{fate.places[place]}: {counts[place]}") for place, colour in colours.items()]
    shown = image.copy()
    for patch, place in enumerate(fate.image.pruned_at):
        if place >= 0:
            drawing.tint(shown, drawing.patch_box(patch, fate.cols, cell), colours[place], 0.75)
    return drawing.panel(shown, f"pruned: {counts.total()} of {fate.rows * fate.cols} patches", legend)


def _merged_panel(image: Image.Image, fate: _Fate, cell: int) -> Image.Image:
    groups, shown = _groups(fate.image.owner), image.copy()
    for patch, place in enumerate(fate.image.pruned_at):
        if place >= 0:  # pale, so that what is left stands out
            drawing.tint(shown, drawing.patch_box(patch, fate.cols, cell), PRUNED, 0.9)
    for rank, patches in enumerate(groups):
        colour = drawing.group_colour(rank)
        for patch in patches:
            drawing.tint(shown, drawing.patch_box(patch, fate.cols, cell), colour, 0.42)
        drawing.outline(shown, set(patches), fate.cols, cell, colour)
    merged = sum(map(len, groups))
    alone = sum(owner >= 0 for owner in fate.image.owner) - merged
    legend = [(None, "one colour = one token"), (None, f"alone: {alone}"), (PRUNED, "pruned")]
    return drawing.panel(shown, f"merged: {merged} patches into {len(groups)} tokens", legend)


def _groups(owners: list[int]) -> list[list[int]]:
    """Sets of two or more members with the same owner, the largest first."""
    members: dict[int, list[int]] = defaultdict(list)
    for member, owner in enumerate(owners):
        members[owner].append(member)
    shared = (group for owner, group in members.items() if owner >= 0 and len(group) > 1)
    return sorted(shared, key=lambda group: (-len(group), group))


def _text_line(fate: _Fate, question: str | Sequence[str] | None, answer: str | None, width: int) -> Image.Image:
    """The words in boxes, merged ones coloured and bracketed, pruned ones struck out; then the answer."""
    words, groups = _words(question, len(fate.text.owner)), _groups(fate.text.owner)
    caption = [question] if isinstance(question, str) and words is None else []
    caption += [f"answer: {answer}"] if answer is not None else []
    labels = [str(position) for position in range(len(fate.text.owner))] if words is None else words
    chips = drawing.chips(labels, width, brackets=len(groups))
    colours = {word: drawing.group_colour(rank) for rank, group in enumerate(groups) for word in group}
    bottom = chips[-1].bottom + drawing.bracket_room(len(groups)) if chips else 0
    line = Image.new("RGB", (width, max(1, bottom + 30 * len(caption))), drawing.PAPER)
    pen = ImageDraw.Draw(line)
    for word, (chip, pruned_at) in enumerate(zip(chips, fate.text.pruned_at, strict=True)):
        colour = drawing.mixed(drawing.PAPER, colours[word], 0.55) if word in colours else drawing.BOX
        chip.draw(pen, colour, gone=pruned_at >= 0)
    for rank, group in enumerate(groups):
        drawing.bracket(pen, [chips[word] for word in group], rank)
    for row, text in enumerate(caption):
        pen.text((0, bottom + 15 + 30 * row), text, drawing.INK, drawing.font(19), anchor="lm")
    return line


def _words(question: str | Sequence[str] | None, count: int) -> list[str] | None:
    """One word for each of `count` real text tokens; None where the question does not give as many."""
    if isinstance(question, str):
        words = ["[CLS]", *re.findall(r"\w+|[^\w\s]", question), "[SEP]"]
    else:
        words = list(question or ())[:count]
    return words if len(words) == count else None


def _counts_line(fate: _Fate, width: int) -> Image.Image:
    """How many tokens of each kind were left after each reduction."""
    parts = []
    counted = [("image tokens", fate.image.counts), ("text tokens", fate.text.counts)]
    if 0 in fate.text.counts[1:]:  # words and patches were merged alike: there is no telling them apart
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
