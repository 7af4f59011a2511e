"""Answers that a generative model writes: what it is asked, in batches, and which answers there may be."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from transformers import LogitsProcessorList

from pumer.checkpoint import reading
from pumer.data.images import read_image
from pumer.exporting.generation_runtime import ExportedGenerator, is_exported_generator
from pumer.exporting.session import ExportedSession, Program
from pumer.generative import answers, is_generative, load_generative, load_generative_processor, prompts
from pumer.patching import patch
from pumer.patching import reduction as reduction_in
from pumer.reducers import reduction_from
from pumer.resolution import fewer_pixels
from pumer.settings.common import Rule
from pumer.tasks import NLVR2, SNLIVE, Task, VQAv2, task_class
from pumer.tasks.loading import Item
from pumer.tasks.metrics import normalise
from pumer.tasks.session import Session, TaskModel, warn_of_random_weights, with_rule
from pumer.utils.errors import InputError
from pumer.utils.places import is_exported
from pumer.utils.shipped import name_of
from pumer.utils.tensors import numbers

QUESTION = "{question}"
"""Where the question goes in a prompt."""
PROMPTS: Mapping[str, str] = {
    VQAv2.name: f"{QUESTION}\nAnswer the question using a single word or phrase.",
    NLVR2.name: f"{QUESTION}\nIs this sentence about the two images True or False?",
    SNLIVE.name: f"{QUESTION}\nIs this sentence about the image an entailment, neutral or a contradiction?",
}
"""What a model is asked, by task, unless another prompt is given. That of VQAv2 is LLaVA-1.5's."""
MAX_NEW_TOKENS = 16


def open_session(
    name: str | Path,
    task: str | None = None,
    *,
    prompt: str | None = None,
    max_new_tokens: int | None = None,
    max_pixels: int | None = None,
    root: Path | None = None,
    reduction: Mapping[str, Any] | str | None = None,
    rule: Rule | None = None,
    **reads: Any,
) -> "Session | GenerativeSession":
    """A model that was trained for a task, or one that generates, ready to answer.

    Settings are those of `GenerativeSession.open` and, as ``reads``, the other ones of `Session.open`; those of a
    model of the other kind are refused. An exported model takes those that do not change its program.
    """
    if is_exported(name) and is_exported_generator(name):
        fixed: dict[str, Any] = {"reduction": reduction, "max_pixels": max_pixels, **reads}
        return ExportedGenerativeSession.load(name, task, prompt, max_new_tokens, root, rule, **fixed)
    if is_exported(name):
        fixed = {"prompt": prompt, "max_new_tokens": max_new_tokens, "reduction": reduction}
        return ExportedSession.load(name, task, root=root, rule=rule, max_pixels=max_pixels, **fixed, **reads)
    generative = is_generative(name)
    prompted: dict[str, Any] = {"prompt": prompt, "max_new_tokens": max_new_tokens, "max_pixels": max_pixels}
    others = reads if generative else prompted
    if given := [f"{key}={value}" for key, value in others.items() if value is not None and value is not False]:
        kind = "generates" if generative else "does not generate"
        raise InputError(f"{name_of(name)} {kind} its answers and takes no {', '.join(given)}; leave it out")
    shared: dict[str, Any] = {"root": root, "reduction": reduction, "rule": rule}
    if generative:
        return GenerativeSession.open(name, task, **prompted, **shared)
    return Session.open(name, task, **shared, **reads)


@dataclass(frozen=True)
class GenerativeSession(TaskModel):
    """A generative model that is ready to take a task's examples: the images, and the question in a prompt.

    The likeliest token is taken each time. The answer is the first line; of a task with fixed labels it is one of
    these, because no other tokens are allowed.

    Attributes:
        prompt: what is asked, with ``{question}`` where the question goes; the images stand before it.
        max_new_tokens: tokens that an answer may have, where the task has no fixed labels.
        max_pixels: that the vision encoder gets of an image; None: as many as the processor gives.
    """

    prompt: str
    max_new_tokens: int
    max_pixels: int | None = None

    @classmethod
    def open(
        cls,
        name: str | Path,
        task: str | None = None,
        *,
        prompt: str | None = None,
        max_new_tokens: int | None = None,
        max_pixels: int | None = None,
        root: Path | None = None,
        reduction: Mapping[str, Any] | str | None = None,
        rule: Rule | None = None,
    ) -> "GenerativeSession":
        """Load a generative model, patched as it was saved, with its processor.

        Args:
            name: folder or hub name.
            task: a key of `PROMPTS`; by default "vqav2".
            prompt: by default that of `PROMPTS`.
            max_new_tokens: by default 16.
            max_pixels: see `pumer.fewer_pixels`.
            root: data folder.
            reduction: replaces the saved one: a mapping with `method`, or the name of a method.
            rule: of VQAv2, see `pumer.tasks.metrics.vqa_accuracy`; None for the official one.

        Raises:
            InputError: as of `pumer.generative.load_generative` and `pumer.fewer_pixels`, for retrieval, and for a
                prompt without the question.
        """
        bound, prompt, length = _asked(name, task, prompt, max_new_tokens, rule)
        model, processor = load_generative(name)
        if max_pixels is not None:
            fewer_pixels(processor, max_pixels, model)
        saved = reduction_in(model)
        if reduction is not None:
            patch(model, reduction_from(reduction))
        warn_of_random_weights(name, model, saved)
        return cls(str(name), model, processor, bound, prompt, length, max_pixels, root=root)

    def collate(self, items: Sequence[Item]) -> Any:
        """The prompts of B examples as inputs of the model, padded on the left."""
        examples = [item.example for item in items]
        asked = [
            ([read_image(image) for image in each.images], self.prompt.replace(QUESTION, each.text))
            for each in examples
        ]
        with reading(f"no prompts can be made of examples {examples[0].id} to {examples[-1].id}"):
            return prompts(self.processor, asked)

    def answer(self, inputs: Any) -> list[str]:
        """The answers to prompts of `collate`."""
        inputs, length = inputs.to(self.model.device, self.model.dtype), self.max_new_tokens
        settings: dict[str, Any] = {"logits_processor": LogitsProcessorList([lambda ids, logits: numbers(logits)])}
        if ids := self._labels():
            settings["prefix_allowed_tokens_fn"] = _one_of(ids)
            length = max(map(len, ids))
        texts = answers(self.model, self.processor, inputs, length, **settings)
        return [text.partition("\n")[0].strip() for text in texts]

    def _labels(self) -> list[list[int]]:
        """The ids of the task's fixed labels, each with the end."""
        tokenizer = self.processor.tokenizer
        end = tokenizer.eos_token_id
        return [[*tokenizer(label, add_special_tokens=False).input_ids, end] for label in self.task.fixed_labels or ()]

    def official(self, answers: Sequence[str]) -> list[str]:
        """Answers as they are scored: of VQAv2 in the normal form, which no model is asked to write.

        The challenge's script compares them as they are written where all annotators agree; to it "Yes" is not "yes".
        """
        return list(map(normalise, answers)) if isinstance(self.task, VQAv2) else list(answers)


@dataclass(frozen=True)
class ExportedGenerativeSession(GenerativeSession):
    """An exported generative model that is ready to take a task's examples."""

    @property
    def reduction(self) -> dict[str, Any]:
        """The reduction it was exported with, as plain data."""
        return dict(self._generator.record["reduction"])

    @property
    def _generator(self) -> ExportedGenerator:
        return cast(ExportedGenerator, cast(Any, self.model).exported)

    @classmethod
    def load(
        cls,
        name: str | Path,
        task: str | None,
        prompt: str | None,
        max_new_tokens: int | None,
        root: Path | None,
        rule: Rule | None,
        **fixed: Any,
    ) -> "ExportedGenerativeSession":
        """Open an exported folder; settings as of `GenerativeSession.open`, of which `fixed` cannot be changed."""
        if given := [f"{key}={value}" for key, value in fixed.items() if value not in (None, False)]:
            raise InputError(f"{name} is an exported model and cannot change {', '.join(given)}; export it that way")
        bound, prompt, length = _asked(name, task, prompt, max_new_tokens, rule)
        model: Any = Program(cast(Any, ExportedGenerator(name)))
        return cls(str(name), model, load_generative_processor(name), bound, prompt, length, root=root)

    def answer(self, inputs: Any) -> list[str]:
        """The answers to prompts of `collate`."""
        ids, length = self._labels(), self.max_new_tokens
        allowed = None
        if ids:
            allowed, length = partial(_following, ids), max(map(len, ids))
        rows = self._generator.generate(length, allowed, **inputs)
        texts = self.processor.batch_decode(rows, skip_special_tokens=True)
        return [text.strip().partition("\n")[0].strip() for text in texts]


def _asked(
    name: str | Path, task: str | None, prompt: str | None, max_new_tokens: int | None, rule: Rule | None
) -> tuple[Task, str, int]:
    """The task, the prompt and the most tokens of an answer, checked."""
    kind = task_class(task or VQAv2.name)
    if kind.name not in PROMPTS:
        others = ", ".join(PROMPTS)
        raise InputError(f"task {kind.name} needs a model that scores, and {name} generates; give task {others}")
    prompt = PROMPTS[kind.name] if prompt is None else prompt
    if QUESTION not in prompt:
        raise InputError(f"prompt is {prompt!r}; write {QUESTION} where the question goes")
    length = MAX_NEW_TOKENS if max_new_tokens is None else max_new_tokens
    if length < 1:
        raise InputError(f"max_new_tokens must be at least 1, not {length}")
    return with_rule(kind, kind.fixed_labels, rule), prompt, length


def _following(ids: Sequence[Sequence[int]], row: int, said: Sequence[int]) -> list[int]:
    """What may follow, so that one of these is said."""
    length = len(said)
    return [each[length] for each in ids if len(each) > length and list(each[:length]) == list(said)] or [ids[0][-1]]


def _one_of(ids: Sequence[Sequence[int]]) -> Callable[[int, Tensor], list[int]]:
    """What may follow in a row ``(T,)`` of a batch, first called with the prompt: what leads to one of these."""
    start: int | None = None  # shorter than the prompt that was given, where a reduction shortens it

    def following(row: int, tokens: Tensor) -> list[int]:
        nonlocal start
        start = len(tokens) if start is None else start
        return _following(ids, row, tokens[start:].tolist())

    return following
