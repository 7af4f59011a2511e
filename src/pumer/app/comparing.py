"""A model beside its reduced self, on one question about one image: answers, latency, tokens."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pumer import patching
from pumer.app.strength import Strength
from pumer.checkpoint import reading
from pumer.evaluation.generation import GenerativeSession, open_session
from pumer.profiling.planning import plan
from pumer.profiling.timing import compare
from pumer.reducers import ReductionConfig
from pumer.settings.tune import DECODER, INSIDE, PROMPT
from pumer.tasks import Example, Retrieval
from pumer.tasks.base import model_inputs
from pumer.tasks.loading import Item
from pumer.tasks.session import Session
from pumer.utils.errors import InputError
from pumer.utils.shipped import SMALL, name_of
from pumer.utils.tensors import numbers
from pumer.visualization.drawing import Panel
from pumer.visualization.saliency import saliency
from pumer.visualization.tracing import ForwardTrace, trace
from pumer.visualization.visualize import as_seen, panels

ORIGINAL, REDUCED = "original", "reduced"
ROUNDS = 5
"""Times that each answer is timed; each time is the mean of several where one would be too short to measure."""
PLANS = 1024
"""Reductions, each at a size of image and text, whose multiply-accumulates are kept."""


@dataclass(frozen=True)
class Comparison:
    """What a model and its reduced self did with a question.

    Attributes:
        answers: by `ORIGINAL` and `REDUCED`.
        seconds: of an answer, by the same: median, lower and upper quartile.
        speedup: of the reduced one, likewise.
        fewer_macs: how many times fewer multiply-accumulates; None of a model that generates.
        forward: what became of the tokens.
        panels: drawings of it.
        config: the reduction.
        foreign: whether the image or the words are none that the model, a small one, knows.
    """

    answers: Mapping[str, str]
    seconds: Mapping[str, Mapping[str, float]]
    speedup: Mapping[str, float]
    fewer_macs: float | None
    forward: ForwardTrace
    panels: Sequence[Panel]
    config: ReductionConfig
    foreign: bool


class ComparedModel:
    """A model that answers with and without a reduction; one question at a time, whoever asks.

    Attributes:
        name: as it is shown.
        small: whether it ships with the package, and knows the built-in world alone.
        strength: what its reductions are made of.
    """

    def __init__(self, model: str) -> None:
        """Load a model.

        Args:
            model: A folder, a hub name, or a model that ships with the package.

        Raises:
            InputError: for a model that cannot be opened, or that does not answer a question about one image.
        """
        self.name, self._lock = name_of(model), Lock()
        self.small = self.name in SMALL
        self._planned = lru_cache(PLANS)(self._plan)  # for it takes longer than answering
        self._session: Any = open_session(model)
        task = self._session.task
        if isinstance(task, Retrieval) or task.image_count != 1:
            what = "ranks images and captions" if isinstance(task, Retrieval) else "looks at two images at once"
            raise InputError(f"{self.name} is a model for {task.name}, which {what}; give one for vqav2 or snli_ve")
        self._session.model.eval()
        generates = isinstance(self._session, GenerativeSession)
        methods = (*DECODER, *PROMPT) if generates else INSIDE
        self.strength = Strength.of(self._session.model, task.name, methods)

    def ask(self, image: Image.Image, question: str, method: str, prune: float, merge: float) -> Comparison:
        """Ask the model, and its reduced self.

        Args:
            image: RGB.
            question: The text.
            method: A name in ``strength.methods``.
            prune: Share of the image tokens to prune.
            merge: Share of the image tokens to merge into others.

        Raises:
            InputError: For a method that is not offered, and amounts that nothing is left of.
        """
        config = self.strength.config(method, prune, merge)
        with self._lock, torch.inference_mode():
            return self._ask(image, question, config)

    def _ask(self, image: Image.Image, question: str, config: ReductionConfig) -> Comparison:
        session, model = self._session, self._session.model
        example = Example(0, (image,), question)
        patching.patch(model, config)
        inputs, answer = self._prepared(example)
        with trace(model) as recorded, saliency(model) as scores:
            reduced = answer()
        if not recorded.forwards:
            raise InputError(f"this changes nothing in {self.name}; choose another method, or more than 0%")

        def unreduced() -> str:
            with patching.disabled(model):
                return answer()

        both: dict[str, Callable[..., Any]] = {ORIGINAL: lambda **_: unreduced(), REDUCED: lambda **_: answer()}
        answers = {ORIGINAL: unreduced(), REDUCED: reduced}
        (point,) = compare(both, lambda _: dict(inputs), [1], ROUNDS, warm_up=1)["points"]
        classifies = isinstance(session, Session)
        seen = [session.inputs.pixels.framed(image)] if classifies else as_seen(session.processor, inputs, [image])
        return Comparison(
            answers=answers,
            seconds={name: point["models"][name]["seconds"] for name in both},
            speedup=point["models"][REDUCED]["speedup"],
            fewer_macs=self._planned(config, *_sizes(inputs)) if classifies else None,
            forward=recorded.forwards[0],
            panels=panels(recorded, seen, scores),
            config=config,
            foreign=self.small and not session.of_world(example),
        )

    def _plan(self, config: ReductionConfig, height: int, width: int, text_length: int) -> float:
        """How many times fewer multiply-accumulates the model needs, which is patched with the reduction."""
        return plan(self._session.model, (height, width), text_length).ideal_speedup

    def _prepared(self, example: Example) -> tuple[Any, Callable[[], str]]:
        """The inputs of the model, and what answers them."""
        session, model = self._session, self._session.model
        if isinstance(session, GenerativeSession):
            prompt = session.collate([Item(0, example)])
            return prompt, lambda: session.answer(prompt)[0]
        with reading("the image cannot be made an input of the model"):
            inputs = {name: x.to(model.device) for name, x in model_inputs([example], session.inputs).items()}
        labels, choose = session.task.labels, session.task.choose
        return inputs, lambda: labels[int(choose(numbers(model(**inputs).logits)))]


def _sizes(inputs: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """Height and width of the images, and tokens of the texts."""
    height, width = inputs["pixel_values"].shape[-2:]
    return height, width, inputs["input_ids"].shape[1]
