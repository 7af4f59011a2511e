"""What a schedule changes: answers on calibration examples beside those of the unreduced model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from pumer.evaluation.evaluate import predict
from pumer.evaluation.generation import GenerativeSession
from pumer.patching import patched
from pumer.reducers import NoReduction, ReductionConfig
from pumer.tasks import Example
from pumer.tasks.loading import Item
from pumer.tasks.session import Session
from pumer.utils.tensors import numbers


@dataclass(frozen=True)
class Change:
    """What a schedule changes, per example.

    Attributes:
        divergence: ``(B,)``, Kullback-Leibler divergence in nats of the answers' distribution from the unreduced
            model's; of a model that generates the mean over the tokens of the unreduced model's answer.
        same: ``(B,)`` bool, whether the answer is the same.
        answers: Those of a model with a head; empty where they are not known without generating.
    """

    divergence: Tensor
    same: Tensor
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Answers:
    """The distributions behind B answers of K tokens; K is 1 for a model with a head.

    Attributes:
        log: ``(B, K, labels)``, logarithms of probabilities.
        tokens: ``(B, K)`` int64, what was chosen.
        real: ``(B, K)`` bool, whether the answer had not ended before.
    """

    log: Tensor
    tokens: Tensor
    real: Tensor

    def to(self, device: torch.device | str) -> "_Answers":
        """The same on a device."""
        return _Answers(self.log.to(device), self.tokens.to(device), self.real.to(device))


class Calibration:
    """Examples as inputs of a model, kept in the host's memory with what the unreduced model makes of them.

    Attributes:
        session: The model, whose reduction is replaced for the time of a measurement.
        examples: In the order of the batches, each of which is spread over all examples.
        sizes: Examples of each batch.
    """

    def __init__(self, session: Session | GenerativeSession, examples: Sequence[Example], batch_size: int) -> None:
        self.session, count = session, -(-len(examples) // batch_size)
        groups = [list(examples[start::count]) for start in range(count)]
        self.examples = [example for group in groups for example in group]
        self.sizes = [len(group) for group in groups]
        self._inputs = [self._collate(group) for group in groups]
        with torch.inference_mode(), patched(session.model, NoReduction()):
            self._teacher = [self._answers(inputs).to("cpu") for inputs in self._inputs]

    def change(self, config: ReductionConfig, number: int) -> Change:
        """What a schedule changes in a batch.

        Args:
            config: The schedule.
            number: Of the batch, from 0.

        Raises:
            InputError: If the model's logits are NaN.
        """
        teacher = self._teacher[number].to(self.session.model.device)
        with torch.inference_mode(), patched(self.session.model, config):
            found = self._answers(self._inputs[number], teacher.tokens)
        before, after = teacher.log.float(), found.log.float()
        divergence = (before.exp() * (before - after)).sum(dim=-1).clamp(min=0) * teacher.real
        chosen = found.log.argmax(dim=-1) if isinstance(self.session, GenerativeSession) else found.tokens
        same = (chosen == teacher.tokens) | ~teacher.real
        answers: tuple[str, ...] = ()
        if isinstance(self.session, Session):
            answers = tuple(self.session.task.labels[column] for column in chosen[:, 0].tolist())
        mean = divergence.sum(dim=1) / teacher.real.sum(dim=1).clamp(min=1)
        return Change(mean.cpu(), same.all(dim=1).cpu(), answers)

    def answers(self, config: ReductionConfig) -> list[str]:
        """The answers to all examples with a schedule; of a model that generates, they are generated.

        Args:
            config: The schedule.

        Returns:
            One answer per example, in the order of `examples`, in the form that the task scores.

        Raises:
            InputError: If the model's logits are NaN.
        """
        if isinstance(self.session, Session):
            return [answer for number in range(len(self.sizes)) for answer in self.change(config, number).answers]
        with patched(self.session.model, config):
            return self.session.official(predict(self.session, self.examples, max(self.sizes)))

    def _collate(self, group: Sequence[Example]) -> dict[str, Tensor]:
        if isinstance(self.session, GenerativeSession):
            return dict(self.session.collate([Item(at, each) for at, each in enumerate(group)]))
        found: dict[str, Tensor] = self.session.task.collate(group, self.session.inputs)["inputs"]
        return found

    def _answers(self, inputs: dict[str, Tensor], forced: Tensor | None = None) -> _Answers:
        """The model's own answers, or the distributions in which it would choose each of the forced tokens."""
        device = self.session.model.device
        moved = {name: x.to(device) for name, x in inputs.items()}
        if isinstance(self.session, GenerativeSession):
            return _generated(self.session, moved, forced)
        logits = numbers(self.session.forward(**moved).logits).float()
        tokens = self.session.task.choose(logits)[:, None]
        return _Answers(logits.log_softmax(dim=-1)[:, None], tokens, torch.ones_like(tokens, dtype=torch.bool))


def _generated(session: GenerativeSession, inputs: dict[str, Tensor], forced: Tensor | None) -> _Answers:
    """Answers token by token, as they will be generated, so that the prompt is reduced by itself."""
    model: Any = session.model
    inputs = {name: x.to(model.dtype) if x.is_floating_point() else x for name, x in inputs.items()}
    settings: dict[str, Any] = {"max_new_tokens": session.max_new_tokens, "do_sample": False, "num_beams": 1}
    settings |= {"output_logits": True, "return_dict_in_generate": True}
    settings |= {"pad_token_id": session.processor.tokenizer.pad_token_id}
    if forced is not None:
        settings |= {"max_new_tokens": forced.shape[1], "logits_processor": LogitsProcessorList([_forcing(forced)])}
    made = model.generate(**inputs, **settings, **dict.fromkeys(("temperature", "top_p", "top_k")))
    log = torch.stack([numbers(logits).float().log_softmax(dim=-1).half() for logits in made.logits], dim=1)
    tokens, ends = made.sequences[:, -log.shape[1] :], model.generation_config.eos_token_id
    ended = torch.isin(tokens, torch.tensor([] if ends is None else ends, device=tokens.device))
    return _Answers(log, tokens, ended.cumsum(dim=1) - ended.long() == 0)


def _forcing(tokens: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """What lets prompts go on with given tokens ``(B, K)``, whatever the model prefers."""
    steps = iter(tokens.unbind(dim=1))

    def force(ids: Tensor, logits: Tensor) -> Tensor:
        return torch.full_like(logits, -torch.inf).scatter(1, next(steps)[:, None], 0.0)

    return force
