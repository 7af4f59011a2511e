"""Planning and timing the schedules of one model: one with a head, or one that generates."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor

from pumer.evaluation.generation import GenerativeSession
from pumer.profiling.generation import Prefill
from pumer.profiling.inputs import inputs_for
from pumer.profiling.named_models import variant
from pumer.profiling.planning import plan
from pumer.profiling.prompt_planning import plan_prompt
from pumer.profiling.prompts import images_of
from pumer.profiling.timing import compare
from pumer.reducers import NoReduction, ReductionConfig
from pumer.tasks import Example
from pumer.tasks.loading import Item
from pumer.tasks.session import Session
from pumer.tuning.costs import Path

UNREDUCED = "unreduced"
Counted = Literal["macs", "cache"]


@dataclass(frozen=True)
class Machine:
    """Plans and times schedules of one model.

    Attributes:
        path: The way of an example's tokens.
        plans: From a patched model to what each layer costs, and all together.
        calls: From a patched model to what is timed.
        inputs: What it is timed with.
        model: Whose copies are planned and timed.
    """

    path: Path
    plans: Callable[[Any], tuple[list[float], float]]
    calls: Callable[[Any], Any]
    inputs: dict[str, Tensor]
    model: Any

    @classmethod
    def of(
        cls, session: Session | GenerativeSession, examples: list[Example], batch: int, counted: Counted = "macs"
    ) -> "Machine":
        """For a model and examples like those that it will see.

        Args:
            session: The model.
            examples: Calibration examples; texts as long as their longest one are planned and timed, of a model that
                generates the longest prompt with its images.
            batch: Examples of a forward that is timed.
            counted: What plans are about.
        """
        if isinstance(session, GenerativeSession):
            return cls._of_prompts(session, examples, batch, counted)
        model: Any = session.model
        tokens = session.inputs.tokenizer(
            [each.text for each in examples], truncation=True, max_length=session.inputs.text_length
        )
        length, size = max(map(len, tokens.input_ids)), session.inputs.pixels.edge
        first = plan(variant(model, NoReduction()), size, length)
        counts: dict[str, int] = {}
        for row in first.layers:
            counts[row.stack] = counts.get(row.stack, 0) + 1
        one = "vision" not in counts  # without an encoder of their own, images run beside the words
        path = Path(counts, length, (first.layers[0].image_tokens,), as_one=one)

        def plans(reduced: Any) -> tuple[list[float], float]:
            made = plan(reduced, size, length)
            return [float(row.macs) for row in made.layers], float(made.macs)

        return cls(path, plans, lambda reduced: reduced, inputs_for(model, size, length, batch), model)

    @classmethod
    def _of_prompts(
        cls, session: GenerativeSession, examples: list[Example], batch: int, counted: Counted
    ) -> "Machine":
        model: Any = session.model
        longest = max(examples, key=lambda example: _prompts(session, [example])["input_ids"].shape[1])
        one = _prompts(session, [longest])
        images = tuple(images_of(model, one))
        text = one["input_ids"].shape[1] - sum(images)

        def plans(reduced: Any) -> tuple[list[float], float]:
            made = plan_prompt(reduced, text, images)
            if counted == "cache":
                return [float(row.cache_bytes) for row in made.layers], float(made.cache_bytes)
            return [float(row.macs) for row in made.layers], float(made.macs)

        layers = len(plan_prompt(variant(model, NoReduction()), text, images).layers)
        return cls(Path({"decoder": layers}, text, images), plans, Prefill, _prompts(session, [longest] * batch), model)

    def planned(self, config: ReductionConfig) -> tuple[list[float], float]:
        """What each layer costs without a run, and all together: MACs, or bytes of the cache."""
        return self.plans(variant(self.model, config))

    def timed(self, configs: Mapping[str, ReductionConfig], pairs: int) -> dict[str, Any]:
        """Time schedules in turn with the unreduced model.

        Args:
            configs: Schedules by name.
            pairs: Rounds, in each of which every schedule runs once.

        Returns:
            By name, and for `UNREDUCED`, ``seconds`` of a forward and the paired ``speedup``: median and quartiles.
        """
        every = {UNREDUCED: NoReduction(), **configs}
        models = {name: self.calls(variant(self.model, config)) for name, config in every.items()}
        batch = len(self.inputs["input_ids"])
        found: dict[str, Any] = compare(models, partial(_given, self.inputs), [batch], pairs)["points"][0]["models"]
        return found


def _given(inputs: dict[str, Tensor], batch: int) -> dict[str, Tensor]:
    return inputs


def _prompts(session: GenerativeSession, examples: list[Example]) -> dict[str, Tensor]:
    inputs = session.collate([Item(at, each) for at, each in enumerate(examples)])
    return dict(inputs.to(session.model.device, session.model.dtype))
