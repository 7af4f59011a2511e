"""What a reduced model did to one image and its question: what was pruned, what was merged."""

import io
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from pumer import patching
from pumer.data.images import ImageLike, read_image
from pumer.generative import generated, is_generative, load_generative, prompt
from pumer.reducers import reduction_from
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
from pumer.visualization.views import Fate, View

IMAGE_EDGE = 396  # pixels along the longer side of the image in a panel
PRUNED = (222, 222, 226)  # where the panel of merged patches shows pruned ones


def draw(
    trace: Trace,
    image: ImageLike | Sequence[ImageLike],
    question: str | Sequence[str] | None = None,
    answer: str | None = None,
    sample: int = 0,
    forward: int = 0,
) -> Image.Image:
    """Draw what became of every patch and every word of one sample.

    Three panels show the image as the model saw it, the pruned patches (one tint per layer), and the merged patches
    (one colour and outline per final token; a patch that was not merged stays as it is). Below them, words that were
    merged share a colour and a bracket.

    The prompt of a generative model has such a row of panels for each of its images, on the image's own grid. Of an
    image that the processor cut into tiles, the tiles are put together, and the view of the whole image has a row of
    its own. The question and the answer stand above, and no words.

    Args:
        trace: the recording of a forward pass, see `pumer.trace`.
        image: a file name, a PIL image or an array, see `pumer.data.images.read_image`; it is resized to the sample's
            patch grid, as the processor did (one that cuts off borders, as LLaVA's does, needs the image without them).
            A list of them for a prompt with several images.
        question: the text, or its tokens as the tokenizer names them (`[CLS]` and `[SEP]` included). A text is split at
            spaces and punctuation; where that does not give one word per token, tokens are shown by their position.
        answer: written below the question, such as the model's answer.
        sample: index in the batch.
        forward: index of the encoder run; NLVR2 has one per image.

    Returns:
        An RGB image about 1270 pixels wide for a square image.

    Raises:
        InputError: when `sample` or `forward` is not in the trace, for an image that cannot be read, and for images
            that are not those of the prompt.

    Example:
        >>> with pumer.trace(model) as trace:  # doctest: +SKIP
        ...     model(**inputs)
        >>> pumer.draw(trace, image, "what is it?").save("tokens.png")  # doctest: +SKIP
    """
    given: Any = image if isinstance(image, list | tuple) else [image]
    images = [read_image(each) for each in given]
    recorded = _forward(trace, forward)
    fate = Fate(recorded, sample, images)
    panels = [_panels(view, fate) for view in fate.views]
    width = max(row.width for row in panels)
    answers = [] if answer is None else [f"answer: {answer}"]
    if recorded.segment is not None:
        asked = [question if isinstance(question, str) else " ".join(question)] if question else []
        return drawing.stacked((drawing.title([*asked, *answers], width), *panels, _counts_line(fate, width)))
    words = _words(question, len(fate.text))
    lines = [question] if isinstance(question, str) and words is None else []
    return drawing.stacked((*panels, _text_line(fate, words, [*lines, *answers], width), _counts_line(fate, width)))


@exclusive
def run(config: VisualizeConfig) -> str:
    """Ask a model one question and write the drawing of what it did with the tokens.

    Returns:
        The model's answer.
    """
    images = [read_image(image) for image in config.images]  # the cheap check first
    if is_generative(config.model):
        answer, drawn = _generated(config, images)
    else:
        answer, drawn = _classified(config)
    file = io.BytesIO()
    drawn.save(file, format="PNG")
    write_bytes(config.out, file.getvalue())
    return answer


def _classified(config: VisualizeConfig) -> tuple[str, Image.Image]:
    session = Session.open(
        config.model,
        config.task,
        text_length=config.text_length,
        resize=config.resize,
        image_size=config.image_size,
        reduction=config.reduction,
    )
    return ask(session, Example(0, config.images, config.question))


def _generated(config: VisualizeConfig, images: Sequence[Image.Image]) -> tuple[str, Image.Image]:
    given = {name: getattr(config, name) for name in ("task", "text_length", "resize", "image_size")}
    if others := [f"{name}={value}" for name, value in given.items() if value is not None]:
        raise InputError(f"{config.model} generates its answers and takes no {', '.join(others)}; leave it out")
    model, processor = load_generative(config.model)
    if config.reduction is not None:
        patching.patch(model, reduction_from(config.reduction))
    if patching.reduction(model) is None:
        raise InputError(f"{config.model} was saved without a reduction; give one, as in reduction.method=pumer")
    return ask_generative(model, processor, images, config.question)


@torch.inference_mode()
def ask_generative(model: Any, processor: Any, images: Sequence[ImageLike], question: str) -> tuple[str, Image.Image]:
    """A patched generative model's answer to a question about images, and the drawing of what it did with the tokens.

    Args:
        model: The model, see `pumer.generative.load_generative`.
        processor: Its processor.
        images: In the order of the prompt, before the question.
        question: The text.

    Raises:
        InputError: If the model has no reduction in its decoder, and for images that cannot be read.
    """
    pictures = [read_image(image) for image in images]
    inputs = prompt(processor, pictures, question).to(model.device, model.dtype)
    with tracing.trace(model) as recorded:
        answer = generated(model, processor, inputs)
    if not recorded.forwards:
        raise InputError(
            "the reduction changes nothing before or in the model's decoder; give a method that prunes a prompt, or "
            "steps of stack decoder"
        )
    with patching.disabled(model):
        whole = generated(model, processor, inputs)
    answers = f"{answer}\nwithout reduction: {whole}"
    return answer, draw(recorded, _as_seen(processor, inputs, pictures), question, answers)


def _as_seen(processor: Any, inputs: Mapping[str, Tensor], images: list[Image.Image]) -> list[Image.Image]:
    """Images without the borders that a processor cuts off, or with those that it adds, where each is one tile."""
    pixels, settings = inputs["pixel_values"], processor.image_processor
    if pixels.ndim == 5 and pixels.shape[1] == 1:
        pixels = pixels[:, 0]
    elif "image_sizes" in inputs:  # of several sizes, filled up to the largest
        return images
    if pixels.ndim != 4 or len(pixels) != len(images):
        return images
    mean, std = (torch.tensor(values)[:, None, None] for values in (settings.image_mean, settings.image_std))
    colours = ((pixels.float().cpu() * std + mean).clamp(0, 1) * 255).round().byte()
    return [Image.fromarray(each.permute(1, 2, 0).numpy()) for each in colours]


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


def _forward(trace: Trace, forward: int) -> ForwardTrace:
    if not trace.forwards:
        raise InputError("the trace is empty; run the model inside `with pumer.trace(model) as trace:`")
    if not -len(trace.forwards) <= forward < len(trace.forwards):
        last = len(trace.forwards) - 1
        raise InputError(f"forward {forward} is not in the trace; it holds forwards 0 to {last}")
    return trace.forwards[forward]


def _panels(view: View, fate: Fate) -> Image.Image:
    """A view as the model saw it, with what was pruned, and with what was merged, side by side."""
    cell = max(4, IMAGE_EDGE // max(view.rows, view.cols))
    shown = view.image.resize((view.cols * cell, view.rows * cell), Image.Resampling.BICUBIC)
    as_read = drawing.panel(shown, view.title, [(None, f"{view.rows} x {view.cols} {fate.unit}")])
    return drawing.beside((as_read, _pruned_panel(shown, view, fate, cell), _merged_panel(shown, view, fate, cell)))


def _pruned_panel(image: Image.Image, view: View, fate: Fate, cell: int) -> Image.Image:
    pruned_at = [-1 if token is None else fate.pruned_at[token] for token in view.tokens]
    counts = Counter(place for place in pruned_at if place >= 0)
    # most methods only merge in a vision encoder: no legend for what did not happen there
    pruning = [rank for rank, place in enumerate(fate.places) if counts[rank] or not place.startswith("vision")]
    colours = {place: drawing.layer_colour(rank, len(pruning)) for rank, place in enumerate(pruning)}
    legend = [(colour, f"{fate.places[place]}: {counts[place]}") for place, colour in colours.items()]
    shown, absent = image.copy(), _absent(view, fate)
    if absent:
        legend.insert(0, (PRUNED, f"before the decoder: {len(absent)}"))
    for patch, place in enumerate(pruned_at):
        if place >= 0 or patch in absent:
            colour, share = (colours[place], 0.75) if place >= 0 else (PRUNED, 0.9)
            drawing.tint(shown, drawing.patch_box(patch, view.cols, cell), colour, share)
    gone = counts.total() + len(absent)
    return drawing.panel(shown, f"pruned: {gone} of {view.rows * view.cols} {fate.unit}", legend)


def _absent(view: View, fate: Fate) -> set[int]:
    """The cells of an image in a prompt whose tokens were gone before the decoder."""
    in_prompt = fate.unit == "tokens"
    return {patch for patch, token in enumerate(view.tokens) if token is None} if in_prompt else set()


def _merged_panel(image: Image.Image, view: View, fate: Fate, cell: int) -> Image.Image:
    groups, shown = defaultdict(set), image.copy()
    absent = _absent(view, fate)
    for patch, token in enumerate(view.tokens):
        if token in fate.image_groups:
            groups[fate.image_groups[token]].add(patch)
        elif patch in absent or (
            token is not None and fate.pruned_at[token] >= 0
        ):  # pale, so that what is left stands out
            drawing.tint(shown, drawing.patch_box(patch, view.cols, cell), PRUNED, 0.9)
    for rank, patches in groups.items():
        colour = drawing.group_colour(rank)
        for patch in patches:
            drawing.tint(shown, drawing.patch_box(patch, view.cols, cell), colour, 0.42)
        drawing.outline(shown, patches, view.cols, cell, colour)
    merged = sum(map(len, groups.values()))
    alone = sum(token is not None and fate.owner[token] >= 0 for token in view.tokens) - merged
    legend = [(None, "one colour = one token"), (None, f"alone: {alone}"), (PRUNED, "pruned")]
    return drawing.panel(shown, f"merged: {merged} {fate.unit} into {len(groups)} tokens", legend)


def _text_line(fate: Fate, words: Sequence[str] | None, lines: Sequence[str], width: int) -> Image.Image:
    """The words in boxes, merged ones coloured and bracketed, pruned ones struck out; then lines of text."""
    labels = [str(position) for position in range(len(fate.text))] if words is None else words
    count = len(set(fate.text_groups.values()))
    chips = dict(zip(fate.text, drawing.chips(labels, width, brackets=count), strict=True))
    bottom = max((chip.bottom for chip in chips.values()), default=0)
    bottom += drawing.bracket_room(count) if chips else 0
    line = Image.new("RGB", (width, max(1, bottom + 30 * len(lines))), drawing.PAPER)
    pen = ImageDraw.Draw(line)
    joined = defaultdict(list)
    for token, chip in chips.items():
        colour = drawing.BOX
        if token in fate.text_groups:
            colour = drawing.mixed(drawing.PAPER, drawing.group_colour(fate.text_groups[token]), 0.55)
            joined[fate.text_groups[token]].append(chip)
        chip.draw(pen, colour, gone=fate.pruned_at[token] >= 0)
    for rank, members in joined.items():
        drawing.bracket(pen, members, rank)
    for row, text in enumerate(lines):
        pen.text((0, bottom + 15 + 30 * row), text, drawing.INK, drawing.font(19), anchor="lm")
    return line


def _words(question: str | Sequence[str] | None, count: int) -> list[str] | None:
    """One word for each of `count` real text tokens; None where the question does not give as many."""
    if isinstance(question, str):
        words = ["[CLS]", *re.findall(r"\w+|[^\w\s]", question), "[SEP]"]
    else:
        words = list(question or ())[:count]
    return words if len(words) == count else None


def _counts_line(fate: Fate, width: int) -> Image.Image:
    """How many tokens of each kind were left after each reduction."""
    parts = []
    counted = [(f"{kind} tokens", counts) for kind, counts in fate.counts.items()]
    if 0 in fate.counts["text"][1:]:  # words and patches were merged alike: there is no telling them apart
        counted = [("tokens of image and text", [sum(both) for both in zip(*fate.counts.values(), strict=True)])]
    for name, (entered, *left) in counted:
        counts = zip(fate.places, left, strict=True)
        seen = [(place, count) for place, count in counts if "image" in name or not place.startswith("vision")]
        parts.append(f"{name}: {', '.join([str(entered), *(f'{count} after {place}' for place, count in seen)])}")
    text = "      ".join(parts)
    sizes = [size for size in (15, 14, 13, 12, 11, 10) if drawing.font(size).getlength(text) <= width]
    line = Image.new("RGB", (width, 26), drawing.PAPER)
    ImageDraw.Draw(line).text((0, 13), text, drawing.FAINT, drawing.font(max(sizes, default=9)), anchor="lm")
    return line
