"""What a reduced model did to one image and its question: what was pruned, what was merged."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from math import ceil, isfinite
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pumer import patching
from pumer.data.images import ImageLike, read_image
from pumer.generative import generated, is_generative, load_generative, prompt
from pumer.reducers import NoReduction, reduction_from
from pumer.reducers.base import Place
from pumer.settings.visualize import VisualizeConfig
from pumer.tasks import Example, Retrieval
from pumer.tasks.base import model_inputs
from pumer.tasks.session import Session
from pumer.utils.errors import InputError
from pumer.utils.locks import exclusive
from pumer.utils.tensors import numbers
from pumer.visualization import drawing, tracing
from pumer.visualization.drawing import Colour, Drawing, ImageShape, Page, Panel, Strokes
from pumer.visualization.saliency import Saliency
from pumer.visualization.saliency import saliency as scored
from pumer.visualization.tracing import ForwardTrace, Trace
from pumer.visualization.views import Fate, View

PANEL_WIDTH, PANEL_HEIGHT = 264, 420
"""The most pixels of a page that an image takes in a panel, beside two others."""
WIDE = 2
"""Images so many times as wide as high take the whole width, below each other."""
LARGEST = 3
"""Tokens whose numbers of patches are written out."""
SCORES: drawing.Legend = ((drawing.LOW, "lowest score: pruned first"), (drawing.HIGH, "highest"))
"""What the colours of maps of scores mean."""
SPACE = "\u0120"
"""How a byte-level tokenizer writes the space before a word."""


def draw(
    trace: Trace,
    image: ImageLike | Sequence[ImageLike],
    question: str | Sequence[str] | None = None,
    answer: str | None = None,
    sample: int = 0,
    forward: int = 0,
    saliency: Sequence[Saliency] | None = None,
) -> Drawing:
    """Draw what became of every patch and every word of one sample.

    Three panels show the image with its own aspect ratio, the pruned patches in grey (the earlier, the paler), and the
    tokens that are left: each is its patches' mean colour, and the largest three are numbered. Above them stand the
    words: those that were merged share a colour and a bracket, those that were pruned are struck out.

    The prompt of a generative model has such a row of panels for each of its images, on the image's own grid. Of an
    image that the processor cut into tiles, the tiles are put together, and the view of the whole image has a row of
    its own. The question and the answer stand above, and no words.

    Args:
        trace: the recording of a forward pass, see `pumer.trace`.
        image: a file name, a PIL image or an array, see `pumer.data.images.read_image`; the model's patches are laid
            over the whole of it (a processor that cuts off borders, as LLaVA's does, needs the image without them). A
            list of them for a prompt with several images.
        question: the text, or its tokens as the tokenizer names them (`[CLS]` and `[SEP]` included); those beyond what
            the model read are reported as cut off. A text is split at spaces and punctuation; where that does not give
            one word per token, tokens are shown by their position.
        answer: written below, such as the model's answer.
        sample: index in the batch.
        forward: index of the encoder run; NLVR2 has one per image.
        saliency: the scores that `pumer.visualization.saliency` recorded beside the trace; adds a map per layer.

    Returns:
        A drawing, which a notebook shows, and whose ``save`` writes a PNG, an SVG or an animated GIF file.

    Raises:
        InputError: when `sample` or `forward` is not in the trace, for scores of other forwards, for an image that
            cannot be read, and for images that are not those of the prompt.

    Example:
        >>> with pumer.trace(model) as trace:  # doctest: +SKIP
        ...     model(**inputs)
        >>> pumer.draw(trace, image, "what is it?").save("tokens.png")  # doctest: +SKIP
    """
    images, recorded = _images(image), _forward(trace, forward)
    scores = _scores_of(trace, saliency, forward)
    fates = [Fate(recorded, sample, images, after) for after in range(len(recorded.places) + 1)]
    last = fates[-1]
    levels = max(len(set(_levels(fate).values())) for fate in fates)
    whole = drawing.WIDTH - 2 * drawing.MARGIN

    def page(at: int) -> Page:
        fate, prompted = fates[at], recorded.segment is not None
        parts = _prompt(question, whole) if prompted else _text(fate, levels, question, whole)
        parts += [part for view in fate.views for part in _view(view, fate, last)]
        if fate is last:
            parts += [part for view in fate.views for part in _scores(view, fate, recorded.places, scores, sample)]
        if answer is not None:
            parts.append(drawing.lines([f"answer: {answer}"], whole, drawing.HEADING))
        parts.append(drawing.lines([_counts(fate)], whole, drawing.SMALL, drawing.FAINT))
        return drawing.framed(drawing.stacked(parts))

    return Drawing(page, len(fates))


def panels(
    trace: Trace, image: ImageLike | Sequence[ImageLike], saliency: Sequence[Saliency] | None = None
) -> list[Panel]:
    """The panels of `draw` one by one, of the first sample of the first forward: for a page that arranges them itself.

    Arguments and errors are those of `draw`.
    """
    recorded = _forward(trace, 0)
    fate, scores = Fate(recorded, 0, _images(image)), _scores_of(trace, saliency, 0)
    found = [each for view in fate.views for each in _panels(view, fate, fate)]
    return found + [each for view in fate.views for each in _maps(view, fate, recorded.places, scores, 0)]


@exclusive
def run(config: VisualizeConfig) -> list[str]:
    """Ask a model about images and write the drawing of what it did with the tokens.

    Returns:
        The model's answer to each question.
    """
    images = [read_image(image) for image in config.images]  # the cheap check first
    asked = _generated(config, images) if is_generative(config.model) else _classified(config)
    drawing.together([drawn for _, drawn in asked]).save(config.out)
    return [answer for answer, _ in asked]


def _classified(config: VisualizeConfig) -> list[tuple[str, Drawing]]:
    session = Session.open(
        config.model,
        config.task,
        text_length=config.text_length,
        resize=config.resize,
        image_size=config.image_size,
        reduction=config.reduction,
    )
    examples = [Example(number, config.images, question) for number, question in enumerate(config.questions)]
    return [ask(session, example, config.saliency) for example in examples]


def _generated(config: VisualizeConfig, images: Sequence[Image.Image]) -> list[tuple[str, Drawing]]:
    given = {name: getattr(config, name) for name in ("task", "text_length", "resize", "image_size")}
    if others := [f"{name}={value}" for name, value in given.items() if value is not None]:
        raise InputError(f"{config.model} generates its answers and takes no {', '.join(others)}; leave it out")
    model, processor = load_generative(config.model)
    if config.reduction is not None:
        patching.patch(model, reduction_from(config.reduction))
    if patching.reduction(model) is None:
        raise InputError(f"{config.model} was saved without a reduction; give one, as in reduction.method=pumer")
    return [ask_generative(model, processor, images, question, config.saliency) for question in config.questions]


@torch.inference_mode()
def ask_generative(
    model: Any, processor: Any, images: Sequence[ImageLike], question: str, saliency: bool = False
) -> tuple[str, Drawing]:
    """A patched generative model's answer to a question about images, and the drawing of what it did with the tokens.

    Args:
        model: The model, see `pumer.generative.load_generative`.
        processor: Its processor.
        images: In the order of the prompt, before the question.
        question: The text.
        saliency: Whether to draw the scores of each layer as well.

    Raises:
        InputError: If the model has no reduction in its decoder, and for images that cannot be read.
    """
    read = [read_image(image) for image in images]
    inputs = prompt(processor, read, question).to(model.device, model.dtype)
    with tracing.trace(model) as recorded, scored(model) if saliency else nullcontext() as scores:
        answer = generated(model, processor, inputs)
    if not recorded.forwards:
        raise InputError(
            "the reduction changes nothing before or in the model's decoder; give a method that prunes a prompt, or "
            "steps of stack decoder"
        )
    with patching.disabled(model):
        whole = generated(model, processor, inputs)
    answers = f"{answer}\nwithout reduction: {whole}"
    _check_scores(model, scores)
    return answer, draw(recorded, as_seen(processor, inputs, read), question, answers, saliency=scores)


def _check_scores(model: torch.nn.Module, scores: Sequence[Saliency] | None) -> None:
    if scores is not None and not any(scores):
        method = (patching.reduction(model) or NoReduction()).method
        raise InputError(f"saliency is true, but method '{method}' scores no image tokens here; leave it out")


def as_seen(processor: Any, inputs: Mapping[str, Tensor], images: list[Image.Image]) -> list[Image.Image]:
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
def ask(session: Session, example: Example, saliency: bool = False) -> tuple[str, Drawing]:
    """A model's answer to one example, of retrieval its score, and the drawing of what it did with the tokens.

    Args:
        session: The model.
        example: Its images and text.
        saliency: Whether to draw the scores of each layer as well.
    """
    session.check(example)
    model, task = session.model, session.task
    tokenizer, framed = session.inputs.tokenizer, session.inputs.pixels.framed
    batch = {name: tensor.to(model.device) for name, tensor in model_inputs([example], session.inputs).items()}
    with tracing.trace(model) as recorded, scored(model) if saliency else nullcontext() as scores:
        logits = numbers(model(**batch).logits)
    _check_scores(model, scores)
    answer = f"score {float(logits):.2f}" if isinstance(task, Retrieval) else task.labels[int(task.choose(logits))]
    words = tokenizer.convert_ids_to_tokens(batch["input_ids"][0][batch["attention_mask"][0] > 0].tolist())
    words += tokenizer.tokenize(example.text)[len(words) - 2 :]  # cut off, without [CLS] and [SEP]
    last = len(example.images) - 1
    drawings = [
        draw(recorded, framed(image), words, answer if forward == last else None, forward=forward, saliency=scores)
        for forward, image in enumerate(map(read_image, example.images))
    ]
    return answer, drawing.together(drawings)


def _images(given: ImageLike | Sequence[ImageLike]) -> list[Image.Image]:
    several: Any = given if isinstance(given, list | tuple) else [given]
    return [read_image(each) for each in several]


def _forward(trace: Trace, forward: int) -> ForwardTrace:
    if not trace.forwards:
        raise InputError("the trace is empty; run the model inside `with pumer.trace(model) as trace:`")
    if not -len(trace.forwards) <= forward < len(trace.forwards):
        last = len(trace.forwards) - 1
        raise InputError(f"forward {forward} is not in the trace; it holds forwards 0 to {last}")
    return trace.forwards[forward]


def _scores_of(trace: Trace, saliency: Sequence[Saliency] | None, forward: int) -> Saliency:
    """The scores of a forward; none where no forward has any."""
    if not saliency:
        return {}
    if len(saliency) != len(trace.forwards):
        seen = f"the trace holds {len(trace.forwards)} forward(s), and there are scores of {len(saliency)}"
        raise InputError(f"{seen}; record both in one `with` statement around the same forwards")
    return saliency[forward]


def _view(view: View, fate: Fate, last: Fate) -> list[Page]:
    """A view, what was pruned of it, and the tokens that are left."""
    found = [drawing.panel(*each) for each in _panels(view, fate, last)]
    if len(found) == 1:
        note = drawing.lines([f"nothing was reduced: each of the {fate.unit} is left"], PANEL_WIDTH)
        found.append(drawing.panel(note, ""))
    return [drawing.stacked(found) if len(found) > 2 and _is_wide(view) else drawing.beside(found)]


def _is_wide(view: View) -> bool:
    return view.image.width > WIDE * view.image.height


def _panels(view: View, fate: Fate, last: Fate) -> list[Panel]:
    """A view; unless nothing was reduced, what was pruned of it, and the tokens that are left."""
    wide = _is_wide(view)
    most = drawing.WIDTH - 2 * drawing.MARGIN if wide else PANEL_WIDTH
    width = min(most, max(PANEL_HEIGHT * view.image.width / view.image.height, most / 2))
    height = min(width * view.image.height / view.image.width, 2 * PANEL_HEIGHT)
    edges = zip((width, height), view.image.size, (view.cols, view.rows), strict=True)
    size = [ceil(min(max(own, edge), drawing.SCALE * edge) / cells) * cells for edge, own, cells in edges]
    image = view.image.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    shown = Page(width, height, [ImageShape(0, 0, width, height, image)])
    first = Panel(shown, view.title, [(None, f"{view.rows} x {view.cols} {fate.unit}")])
    if not (_gone(view, last) or last.groups(view.tokens)):
        return [first]
    grey = Page(width, height, [ImageShape(0, 0, width, height, _greyed(image, view, fate, last))])
    return [first, Panel(grey, *_pruned(view, fate, last)), _merged_panel(view, fate, width, height)]


def _gone(view: View, fate: Fate) -> dict[int, int]:
    """Of each cell that is gone the index of the place where it was pruned; -1: before the decoder."""
    places = ((cell, -1 if token is None else fate.pruned_at[token]) for cell, token in enumerate(view.tokens))
    absent = fate.unit == "tokens"  # of an image in a prompt; a grid of patches has a token in each cell
    return {cell: at for cell, at in places if at >= 0 or (absent and view.tokens[cell] is None)}


def _greyed(image: Image.Image, view: View, fate: Fate, last: Fate) -> Image.Image:
    gone, cells = _gone(view, fate), range(len(view.tokens))
    shares = [_wash(gone[cell], last) if cell in gone else 0 for cell in cells]
    return drawing.greyed(image, shares, view.rows, view.cols)


def _wash(place: int, last: Fate) -> float:
    """How pale the patches are that were pruned at a place."""
    return 0.92 - 0.24 * (place + 1) / max(len(last.places), 1)


def _pruned(view: View, fate: Fate, last: Fate) -> tuple[str, list[tuple[Colour | None, str]]]:
    """Title and legend."""
    gone, ever = Counter(_gone(view, fate).values()), Counter(_gone(view, last).values())
    named = [(-1, "before the decoder")] if ever[-1] else []
    # most methods only merge in a vision encoder: no legend for what did not happen there
    named += [(at, name) for at, name in enumerate(last.places) if ever[at] or not name.startswith("vision")]
    legend: list[tuple[Colour | None, str]] = [
        (drawing.mixed((0, 0, 0), drawing.PAPER, _wash(at, last)), f"{name}: {gone[at]}") for at, name in named
    ]
    return f"pruned: {gone.total()} of {view.rows * view.cols} {fate.unit}", legend


def _merged_panel(view: View, fate: Fate, width: float, height: float) -> Panel:
    grid, light = (view.rows, view.cols), np.asarray(view.image).mean() > 140
    holders = [None if token is None or fate.holder[token] < 0 else fate.holder[token] for token in view.tokens]
    colours = _mean_colours(fate)
    page = drawing.mosaic([colours.get(at, drawing.GONE) for at in holders], *grid, width, height)
    thin = drawing.borders(holders, *grid, width, height)
    page.shapes.append(Strokes(0, 0, thin, drawing.INK if light else drawing.PAPER, 0.75))
    sizes = Counter(at for at in holders if at is not None)
    largest = [(holder, count) for holder, count in sizes.most_common(LARGEST) if count > 1]
    for number, (holder, _) in enumerate(largest, start=1):
        own = [at if at == holder else None for at in holders]
        segments = drawing.borders(own, *grid, width, height)
        page.shapes += [Strokes(0, 0, segments, drawing.PAPER, 5), Strokes(0, 0, segments, drawing.INK, 2.5)]
        row, col = divmod(own.index(holder), view.cols)
        page.shapes += drawing.numbered(number, (col + 0.5) * width / view.cols, (row + 0.5) * height / view.rows)
    counts = [f"{number}: {count}" for number, (_, count) in enumerate(largest, start=1)]
    unit = "patches" if fate.unit == "patches" else "cells"  # of a token's that holds other tokens
    legend = [(None, "  ".join([f"{counts[0]} {unit}", *counts[1:]]))] if counts else []
    title = f"left: {len(sizes)} tokens"
    if fate.unit == "patches":
        title = f"image tokens: {fate.counts['image'][0]} -> {fate.counts['image'][-1]}"
    return Panel(page, title, [*legend, (drawing.GONE, "pruned")])


def _mean_colours(fate: Fate) -> dict[int | None, Colour]:
    """Of each token that is left the mean colour of its patches, in whatever view."""
    members = defaultdict(list)
    for view in fate.views:
        means = np.asarray(view.image.resize((view.cols, view.rows), Image.Resampling.BOX)).reshape(-1, 3)
        for token, mean in zip(view.tokens, means, strict=True):
            if token is not None:
                members[fate.holder[token]].append(mean)
    mixed = {token: np.mean(colours, axis=0).round().astype(int).tolist() for token, colours in members.items()}
    return {token: (red, green, blue) for token, (red, green, blue) in mixed.items() if token >= 0}


def _scores(view: View, fate: Fate, places: Sequence[Place], scores: Saliency, sample: int) -> list[Page]:
    """A view's scores at all places, four side by side, with one legend."""
    maps = _maps(view, fate, places, scores, sample)
    if not maps:
        return []
    shown = [drawing.panel(each.content, each.title) for each in maps]
    rows = [drawing.beside(shown[start : start + 4]) for start in range(0, len(shown), 4)]
    return [drawing.panel(drawing.stacked(rows), f"what each layer keeps of the {view.title}, by score", SCORES)]


def _maps(view: View, fate: Fate, places: Sequence[Place], scores: Saliency, sample: int) -> list[Panel]:
    """A view's scores at each place that scored: the highest dark, the lowest pale, what was gone white."""
    panels = []
    width = (drawing.WIDTH - 2 * drawing.MARGIN - 3 * drawing.GAP) / 4
    height = min(width * view.image.height / view.image.width, 2 * width)
    for place, name in zip(places, fate.places, strict=True):
        if place not in scores:
            continue
        values = [float("nan") if token is None else float(scores[place][sample, token]) for token in view.tokens]
        ordered = sorted({value for value in values if isfinite(value)})
        shares = {value: rank / max(len(ordered) - 1, 1) for rank, value in enumerate(ordered)}
        colours = [
            drawing.mixed(drawing.LOW, drawing.HIGH, shares[value]) if value in shares else drawing.PAPER
            for value in values
        ]
        content = drawing.mosaic(colours, view.rows, view.cols, width, height)
        panels.append(Panel(content, name, SCORES))
    return panels


def _prompt(question: str | Sequence[str] | None, width: float) -> list[Page]:
    asked = question if isinstance(question, str) or question is None else " ".join(question)
    return [drawing.lines([asked], width, drawing.HEADING)] if asked else []


def _text(fate: Fate, levels: int, question: str | Sequence[str] | None, width: float) -> list[Page]:
    """The words in boxes, merged ones coloured and bracketed, pruned ones struck out; and what else is to be said."""
    words, cut = _words(question, len(fate.text))
    labels = [str(position) for position in range(len(fate.text))] if words is None else words
    chips = dict(zip(fate.text, drawing.chips(labels, width, brackets=levels), strict=True))
    bottom = max((chip.bottom for chip in chips.values()), default=0)
    line = Page(width, bottom + drawing.bracket_room(levels) if chips else 0)
    joined = defaultdict(list)
    for token, chip in chips.items():
        colour = drawing.BOX
        if token in fate.text_groups:
            colour = drawing.mixed(drawing.PAPER, drawing.group_colour(fate.text_groups[token]), 0.55)
            joined[fate.text_groups[token]].append(chip)
        line.shapes += chip.draw(colour, gone=fate.pruned_at[token] >= 0)
    for rank, level in _levels(fate).items():
        line.shapes += drawing.bracket(joined[rank], level, drawing.group_colour(rank))
    asked = [question] if isinstance(question, str) and words is None else []
    note = [f"the question was cut after {len(fate.text)} tokens; not read: {cut}"] if cut else []
    return [line, *([drawing.lines([*asked, *note], width)] if asked or note else [])]


def _levels(fate: Fate) -> dict[int, int]:
    """How far below the words the bracket of each group is, so that no two of them touch."""
    spans: dict[int, list[int]] = defaultdict(list)
    for token in fate.text:
        if token in fate.text_groups:
            spans[fate.text_groups[token]].append(token)
    levels: dict[int, int] = {}
    ends: list[int] = []
    for rank, tokens in sorted(spans.items(), key=lambda span: span[1][0]):
        levels[rank] = next((level for level, end in enumerate(ends) if end < tokens[0]), len(ends))
        ends[levels[rank] : levels[rank] + 1] = [tokens[-1]]
    return levels


def _words(question: str | Sequence[str] | None, count: int) -> tuple[list[str] | None, str]:
    """One word for each of `count` real text tokens, None where the question does not give as many; and what is cut."""
    if isinstance(question, str):
        words = ["[CLS]", *re.findall(r"\w+|[^\w\s]", question), "[SEP]"]
        return (words if len(words) == count else None), " ".join(words[count - 1 : -1])  # a token is a word at most
    given = list(question or ())
    words, rest = [word.removeprefix(SPACE) for word in given[:count]], given[count:]
    cut = "".join(rest).replace(SPACE, " ") if any(SPACE in word for word in rest) else " ".join(rest)
    return (words if len(words) == count else None), cut.replace(" ##", "").strip()


def _counts(fate: Fate) -> str:
    """How many tokens of each kind were left after each reduction."""
    counted = {f"{kind} tokens": counts for kind, counts in fate.counts.items()}
    if 0 in fate.counts["text"][1:]:  # words and patches were merged alike: there is no telling them apart
        counted = {"tokens of image and text": [sum(each) for each in zip(*fate.counts.values(), strict=True)]}
    said = "; ".join(f"{name}: {' -> '.join(map(str, counts))}" for name, counts in counted.items())
    return f"{said} (after {', '.join(fate.places)})" if fate.places else said
