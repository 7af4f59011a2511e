"""What a reduced model did to one image and its question: what was pruned, what was merged."""

import itertools
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from pumer import patching
from pumer.data.images import ImageLike, read_image
from pumer.generative import generated, is_generative, load_generative, prompt
from pumer.reducers import NoReduction, reduction_from
from pumer.settings.visualize import VisualizeConfig
from pumer.tasks import Example, Retrieval
from pumer.tasks.base import model_inputs
from pumer.tasks.session import Session
from pumer.utils.errors import InputError
from pumer.utils.locks import exclusive
from pumer.utils.shipped import name_of
from pumer.utils.tensors import numbers
from pumer.visualization import drawing, tracing, words
from pumer.visualization.drawing import Drawing, Page, Panel
from pumer.visualization.panels import image_alone, maps_of, panels_of, rows_of, scores_of
from pumer.visualization.saliency import Saliency
from pumer.visualization.saliency import saliency as scored
from pumer.visualization.shapes import FAINT, HEADING, MARGIN, SMALL, WIDTH
from pumer.visualization.tracing import ForwardTrace, Trace
from pumer.visualization.views import Fate

WHOLE = WIDTH - 2 * MARGIN
"""Pixels of a page without its margins."""
logger = logging.getLogger(__name__)


class Asked(NamedTuple):
    """A question that was asked.

    Attributes:
        answer: The model's, of retrieval its score.
        drawing: Of the tokens.
        unreduced: The answer of the same model without its reduction; None if it has none.
        tokens: For each forward those that entered and that each reduction left, and those it pruned and merged.
    """

    answer: str
    drawing: Drawing
    unreduced: str | None
    tokens: list[list[dict[str, str | int]]]


def draw(
    trace: Trace,
    image: ImageLike | Sequence[ImageLike],
    question: str | Sequence[str] | None = None,
    answer: str | None = None,
    sample: int = 0,
    forward: int = 0,
    saliency: Sequence[Saliency] | None = None,
    unreduced: str | None = None,
) -> Drawing:
    """Draw what became of every patch and every word of one sample.

    Three panels show the image with its own aspect ratio, the pruned patches hatched in grey (the earlier, the paler),
    and the tokens that are left: each is its patches' mean colour; the largest three have a frame of a colour of their
    own, and their number in each patch (where patches are small, that colour). Above them stand the words: those that
    were merged share a colour and a bracket, those that were pruned are struck out.

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
        unreduced: written below the answer: that of the model without its reduction.

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
    levels = max(len(set(words.bracket_levels(fate).values())) for fate in fates)

    def page(at: int) -> Page:
        fate, prompted = fates[at], recorded.segment is not None
        parts = _prompt(question) if prompted else words.text(fate, levels, question, WHOLE)
        parts += [part for view in fate.views for part in rows_of(view, fate, last)]
        if fate is last:
            parts += [part for view in fate.views for part in scores_of(view, fate, recorded.places, scores, sample)]
        parts += [*_answers(answer, unreduced), drawing.lines([_counts(fate)], WHOLE, SMALL, FAINT)]
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
    found = [each for view in fate.views for each in panels_of(view, fate, fate)]
    return found + [each for view in fate.views for each in maps_of(view, fate, recorded.places, scores, 0)]


@exclusive
def run(config: VisualizeConfig) -> list[Asked]:
    """Ask a model about images and write the drawing of what it did with the tokens.

    Returns:
        For each question the answers and the tokens.
    """
    images = [read_image(image) for image in config.images]  # the cheap check first
    asked = _generated(config, images) if is_generative(config.model) else _classified(config)
    drawing.together([each.drawing for each in asked]).save(config.out)
    return asked


def _classified(config: VisualizeConfig) -> list[Asked]:
    session = Session.open(
        config.model,
        config.task,
        text_length=config.text_length,
        resize=config.resize,
        image_size=config.image_size,
        reduction=config.reduction,
    )
    _warn_of_no_reduction(config, session.model)
    examples = [Example(number, config.images, question) for number, question in enumerate(config.questions)]
    return [ask(session, example, config.saliency) for example in examples]


def _generated(config: VisualizeConfig, images: Sequence[Image.Image]) -> list[Asked]:
    given = {name: getattr(config, name) for name in ("task", "text_length", "resize", "image_size")}
    if others := [f"{name}={value}" for name, value in given.items() if value is not None]:
        name = name_of(config.model)
        raise InputError(f"{name} generates its answers and takes no {', '.join(others)}; leave it out")
    model, processor = load_generative(config.model)
    if config.reduction is not None:
        patching.patch(model, reduction_from(config.reduction))
    _warn_of_no_reduction(config, model)
    return [ask_generative(model, processor, images, question, config.saliency) for question in config.questions]


def _is_reduced(model: torch.nn.Module) -> bool:
    return not isinstance(patching.reduction(model) or NoReduction(), NoReduction)


def _warn_of_no_reduction(config: VisualizeConfig, model: torch.nn.Module) -> None:
    """Log a reduction that the model can have, unless it has one, or none was asked for."""
    if config.reduction is not None or _is_reduced(model):
        return
    root, family = patching.patchable(model)[0]
    settings, stack = "method: fastv, layers: [1], prune_ratio: 0.5", family.layers(root).get("fusion")
    if stack is not None:
        free = [layer for layer in range(len(stack)) if family.unsupported_reason(root, "fusion", layer) is None]
        wanted = [len(stack) * twelfths // 12 for twelfths in (2, 5, 8)]  # of twelve layers those of the paper
        layers = sorted({max(layer for layer in free if layer <= most) for most in wanted})
        settings = f"method: pumer, layers: {layers}, prune_ratio: 0.1, merge_ratio: 0.3"
    logger.warning("%s is not reduced; give 'reduction={%s}'", name_of(config.model), settings)


@torch.inference_mode()
def ask_generative(
    model: Any, processor: Any, images: Sequence[ImageLike], question: str, saliency: bool = False
) -> Asked:
    """Ask a generative model about images, and draw what it did with the tokens.

    Args:
        model: The model, see `pumer.generative.load_generative`; of one that is not reduced, the images are drawn.
        processor: Its processor.
        images: In the order of the prompt, before the question.
        question: The text.
        saliency: Whether to draw the scores of each layer as well.

    Raises:
        InputError: If the reduction does nothing in the model's decoder, and for images that cannot be read.
    """
    read = [read_image(image) for image in images]
    inputs = prompt(processor, read, question).to(model.device, model.dtype)
    seen = as_seen(processor, inputs, read)
    if not _is_reduced(model):
        _check_scores(model, [] if saliency else None)
        answer = generated(model, processor, inputs)
        return Asked(answer, _unreduced(seen, question, answer), None, [])
    with tracing.trace(model) as recorded, scored(model) if saliency else nullcontext() as scores:
        answer = generated(model, processor, inputs)
    if not recorded.forwards:
        raise InputError(
            "the reduction changes nothing before or in the model's decoder; give a method that prunes a prompt, or "
            "steps of stack decoder"
        )
    with patching.disabled(model):
        whole = generated(model, processor, inputs)
    _check_scores(model, scores)
    drawn = draw(recorded, seen, question, answer, saliency=scores, unreduced=whole)
    return Asked(answer, drawn, whole, [_table(recorded.forwards[0])])


def _unreduced(images: Sequence[Image.Image], question: str, answer: str) -> Drawing:
    """Images whose tokens are all left."""
    titles = ["image"] if len(images) == 1 else [f"image {number}" for number in range(1, len(images) + 1)]
    shown = [image_alone(*each) for each in zip(images, titles, strict=True)]
    page = drawing.framed(drawing.stacked([*_prompt(question), *shown, *_answers(answer)]))
    return Drawing(lambda _: page, 1)


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
def ask(session: Session, example: Example, saliency: bool = False) -> Asked:
    """Ask a model one example, and draw what it did with the tokens.

    Args:
        session: The model.
        example: Its images and text.
        saliency: Whether to draw the scores of each layer as well.
    """
    session.check(example)
    model = session.model
    tokenizer, framed = session.inputs.tokenizer, session.inputs.pixels.framed
    batch = {name: tensor.to(model.device) for name, tensor in model_inputs([example], session.inputs).items()}
    with tracing.trace(model) as recorded, scored(model) if saliency else nullcontext() as scores:
        answer = _answer(session, batch)
    _check_scores(model, scores)
    unreduced = None
    if _is_reduced(model):
        with patching.disabled(model):
            unreduced = _answer(session, batch)
    read = tokenizer.convert_ids_to_tokens(batch["input_ids"][0][batch["attention_mask"][0] > 0].tolist())
    read += tokenizer.tokenize(example.text)[len(read) - 2 :]  # cut off, without [CLS] and [SEP]
    images, last = [framed(read_image(image)) for image in example.images], len(example.images) - 1
    drawings = []
    for forward, image in enumerate(images):
        said = (answer, unreduced) if forward == last else (None, None)
        drawn = draw(recorded, image, read, said[0], forward=forward, saliency=scores, unreduced=said[1])
        drawings.append(drawn)
    return Asked(answer, drawing.together(drawings), unreduced, list(map(_table, recorded.forwards)))


def _table(forward: ForwardTrace) -> list[dict[str, str | int]]:
    found: list[dict[str, str | int]] = []
    for row in forward.rows(0):
        pruned, merged = row.gone or (0, 0)
        counts = {"image": sum(row.images), "text": row.text, "pruned": pruned, "merged": merged}
        found.append({"after": row.name, **counts})
    return found


def _answer(session: Session, batch: Mapping[str, Tensor]) -> str:
    task, logits = session.task, numbers(session.model(**batch).logits)
    return f"score {float(logits):.2f}" if isinstance(task, Retrieval) else task.labels[int(task.choose(logits))]


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


def _prompt(question: str | Sequence[str] | None) -> list[Page]:
    asked = question if isinstance(question, str) or question is None else " ".join(question)
    return [drawing.lines([asked], WHOLE, HEADING)] if asked else []


def _answers(answer: str | None, unreduced: str | None = None) -> list[Page]:
    given = {"answer": answer, "without reduction": unreduced}
    said = [f"{name}: {text.strip() or '(empty)'}" for name, text in given.items() if text is not None]
    return [drawing.lines(said, WHOLE, HEADING)] if said else []


def _counts(fate: Fate) -> str:
    """How many tokens of each kind there are, and how many are left after each reduction that took some."""
    said = []
    for name, counts in fate.kinds.items():
        steps = zip(fate.steps, itertools.pairwise(counts), strict=True)
        left = [f" -> {after} ({step})" for step, (before, after) in steps if after != before]
        said.append(f"{name}: {counts[0]}{''.join(left)}")
    return "; ".join(said)
