"""A model as it is served: what it is asked is read and checked alone, then answered in batches."""

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import LogitsProcessorList
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from pumer.checkpoint import reading
from pumer.data.images import decode
from pumer.evaluation.evaluate import logits_of
from pumer.evaluation.generation import ExportedGenerativeSession, GenerativeSession, open_session
from pumer.exporting.session import Program
from pumer.generative import MAX_NEW_TOKENS, conversed, replies
from pumer.generative import Reply as Generated
from pumer.serving.app import About, Reply
from pumer.serving.protocols import Asked
from pumer.settings.serve import ServeConfig
from pumer.tasks import Example, Retrieval
from pumer.tasks.loading import Collator, Item
from pumer.tasks.session import Session
from pumer.utils.errors import InputError
from pumer.utils.tensors import numbers

logger = logging.getLogger(__name__)

Conversation = tuple[list[dict[str, Any]], int]
"""The messages of a chat with their images, and how many tokens its answer may have."""


class ServedModel:
    """A model that answers questions in batches.

    Raises:
        InputError: for a model that cannot be opened, one for retrieval, and settings of another kind of model.
    """

    def __init__(self, config: ServeConfig) -> None:
        set_verbosity_error()
        disable_progress_bar()
        self.config = config
        given = {name: getattr(config, name) for name in ("image_size", "max_new_tokens", "max_pixels")}
        self.session = open_session(config.model, config.task, **given)
        if isinstance(self.session.task, Retrieval):
            name = self.session.task.name
            raise InputError(f"a model for {name} ranks images and captions; serve one that answers questions")
        self.session.model.eval()

    def about(self) -> About:
        """What the model is."""
        session, name = self.session, Path(self.config.model).resolve().name
        program: Any = session.model
        platform = program.exported.record["format"] if isinstance(program, Program) else "pytorch"
        if isinstance(session, GenerativeSession):
            return About(name, platform, 1 if isinstance(program, Program) else None, self._most)
        return About(name, platform, session.task.image_count)

    @property
    def _most(self) -> int:
        """Tokens that an answer may have, of a model that generates."""
        return self.config.max_new_tokens or MAX_NEW_TOKENS

    def read(self, asked: Asked) -> Example | Conversation:
        """What the model is asked, with its images decoded; checked alone, so that no other question suffers from it.

        Raises:
            InputError: for images and conversations that the model does not take.
        """
        session, images = self.session, [self._image(each) for each in asked.images]
        if isinstance(session, Session):
            example = Example(0, tuple(map(session.inputs.pixels.smaller, images)), asked.text)
            session.check(example)
            return example
        turns, rest = asked.turns or (("user", (*(None for _ in images), asked.text)),), iter(images)
        messages = [{"role": role, "content": [_part(part, rest) for part in parts]} for role, parts in turns]
        with reading("the model's chat template does not take this conversation"):
            session.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return messages, asked.max_new_tokens or self._most

    def _image(self, content: bytes) -> Image.Image:
        try:
            return decode(content, self.config.max_image_pixels)
        except InputError as error:
            raise InputError(f"an image {error}; send another one") from error

    def replies(self, batch: Sequence[Any]) -> list[Reply | Exception]:
        """The answers to what was `read`; where one of them fails the whole batch, each is answered alone."""
        try:
            with torch.inference_mode():
                found = self._choose(batch) if isinstance(self.session, Session) else self._generate(batch)
            return [replace(found[0], batch=len(batch)), *found[1:]]
        except Exception as error:  # a model or its processor raises whatever it stumbles over
            if len(batch) > 1:
                return [reply for each in batch for reply in self.replies([each])]
            if isinstance(error, InputError):
                return [Reply(str(error), refused=True)]
            logger.exception("a question failed")
            return [error]

    def _choose(self, examples: Sequence[Example]) -> list[Reply]:
        """The answers of a model that chooses among labels."""
        session: Any = self.session
        batch = Collator(session.task, session.inputs)([Item(row, example) for row, example in enumerate(examples)])
        logits, labels = logits_of(session, batch), session.task.labels
        chosen = enumerate(session.task.choose(logits).tolist())
        return [Reply(labels[column], score=float(logits[row, column])) for row, column in chosen]

    def _generate(self, asked: Sequence[Conversation]) -> list[Reply]:
        """The answers of a model that generates: together where they may have as many tokens."""
        rows_of, found = defaultdict[int, list[int]](list), dict[int, Reply]()
        for row, (_, most) in enumerate(asked):
            rows_of[most].append(row)
        processor = self.session.processor
        for most, rows in rows_of.items():
            with reading("no prompt can be made of this conversation"):
                inputs = conversed(processor, [asked[row][0] for row in rows])
            lengths = inputs["attention_mask"].sum(1).tolist()
            answers = self._answers(inputs, most)
            for row, length, (text, new, ended) in zip(rows, lengths, answers, strict=True):
                found[row] = Reply(text, prompt_tokens=length, new_tokens=new, ended=ended)
        return [found[row] for row in range(len(asked))]

    def _answers(self, inputs: Any, most: int) -> list[Generated]:
        """The answers to prompts, of at most so many tokens."""
        processor = self.session.processor
        if isinstance(self.session, ExportedGenerativeSession):
            exported: Any = self.session.model
            rows = exported.exported.generate(most, None, **inputs)  # without the token that ends an answer
            texts = processor.batch_decode(rows, skip_special_tokens=True)
            return [
                Generated(text.strip(), len(row) + (len(row) < most), len(row) < most)
                for text, row in zip(texts, rows, strict=True)
            ]
        model = self.session.model
        checked = LogitsProcessorList([lambda ids, logits: numbers(logits)])
        return replies(model, processor, inputs.to(model.device, model.dtype), most, logits_processor=checked)


def _part(part: str | None, images: Iterator[Image.Image]) -> dict[str, Any]:
    return {"type": "image", "image": next(images)} if part is None else {"type": "text", "text": part}
