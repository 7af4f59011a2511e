"""The schedules that are searched: shapes of a few numbers, each at any strength."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from pumer.backbones import families_in
from pumer.reducers import METHODS, PuMerConfig, ReductionConfig, Step
from pumer.reducers.pumer import PRESETS
from pumer.reducers.shortening.base import RatioShorteningConfig
from pumer.reducers.tables import mergeable
from pumer.settings.tune import DECODER, INSIDE, PROMPT
from pumer.utils.errors import InputError, unknown

Shape = Mapping[str, Any]
"""What Optuna suggests: a method and, as "method.name", a few numbers."""

METHOD = "method"
PAPER = "paper's layers"
"""Name of the shape of the paper's schedule."""
STRONGEST = 2.0
"""No schedule is searched beyond this strength: all its ratios are at their limits by then."""
_MOST_MERGED, _MOST_PRUNED = 0.5, 0.9
_ONCE = ("fastv",)
"""Methods that reduce in one layer."""


@dataclass(frozen=True)
class Space:
    """The schedules of one model.

    A shape of ``pumer`` is a first layer, a number of steps and a stride between them; of what a step removes, how much
    is pruned and from which step on; how merging grows or falls with depth; how much of the text is merged; and, where
    there is a vision encoder, how much is merged there. The strength multiplies all of its ratios. The other methods do
    the same in each of some layers, of that stack or of a vision encoder, or once before the decoder.

    Attributes:
        family: Of the model, such as "vilt".
        stack: The stack that is searched: "fusion" or "decoder".
        layers: Its layers that can reduce.
        vision: Those of a vision encoder whose tokens enter that stack; empty where there is none.
        tokens: Those that a method without regard to modality chooses from; a count to merge is a part of them.
        methods: Names of methods.
    """

    family: str
    stack: str
    layers: tuple[int, ...]
    vision: tuple[int, ...]
    tokens: int
    methods: tuple[str, ...]

    @classmethod
    def of(cls, model: nn.Module, tokens: int, methods: Sequence[str] | None = None) -> "Space":
        """The schedules of a model.

        Args:
            model: A supported one.
            tokens: Text and image tokens of an example.
            methods: Names; None for a few that suit the model.

        Raises:
            InputError: For a method that cannot reduce in such a model.
        """
        root, family = families_in(model)[0]
        able = {
            stack: tuple(at for at in range(len(layers)) if family.unsupported_reason(root, stack, at) is None)
            for stack, layers in family.layers(root).items()
        }
        generative = "decoder" in able
        stack = "decoder" if generative else "fusion"
        known = (*DECODER, *PROMPT) if generative else INSIDE
        chosen = tuple(methods or (("pumer", "fastv", "divprune") if generative else ("pumer", "tome")))
        for method in chosen:
            if method not in known:
                raise InputError(unknown(f"method to search in a {family.name} model", method, known))
        vision = () if generative else able.get("vision", ())
        most = min(tokens, family.tokens(root).get(stack, tokens))
        return cls(family.name, stack, able[stack], vision, most, chosen)

    def suggest(self, trial: Any) -> Shape:
        """The shape of one of Optuna's trials."""
        method = trial.suggest_categorical(METHOD, list(self.methods))
        whole, part = _asking(trial, method)
        if method in PROMPT:
            return dict(trial.params)
        whole("first", 0, len(self.layers) - 1)
        if method not in _ONCE:
            whole("steps", 1, len(self.layers))
            whole("stride", 1, 3)
        if method == "pumer":
            part("slope", -1.0, 1.0, 0.25)
            part("prune", 0.0, 1.0, 0.05)
            part("prune_from", 0.0, 1.0, 0.25)
            if self.stack != "decoder":
                part("text", 0.0, 1.0, 0.1)
            if self.vision:
                part("vision", 0.0, 1.0, 0.1)
                whole("vision_first", 0, len(self.vision) - 1)
        elif self.vision:
            trial.suggest_categorical(f"{method}.stack", [self.stack, "vision"])
        return dict(trial.params)

    def seeds(self, task: str) -> dict[str, Shape]:
        """Shapes that are tried first, by name: the paper's for a task, gradual merging, other methods."""
        found: dict[str, Shape] = {}
        for method in self.methods:
            if method in PROMPT:
                found[method] = {METHOD: method}
            elif method in _ONCE:
                found[method] = {METHOD: method, f"{method}.first": min(1, len(self.layers) - 1)}
            elif method == "pumer":
                found |= self._pumer_seeds(task)
            else:
                stacks = {method: self.stack} | ({f"{method}, vision": "vision"} if self.vision else {})
                for name, stack in stacks.items():
                    own = {"stack": stack} if self.vision else {}
                    found[name] = _shape(method, first=0, steps=len(self.layers), stride=1, **own)
        return found

    def _pumer_seeds(self, task: str) -> dict[str, Shape]:
        every = {"first": 0, "steps": len(self.layers), "stride": 1, "slope": 0.0, "prune_from": 0.0}
        others: dict[str, Any] = {} if self.stack == "decoder" else {"text": 0.0}
        others |= {"vision": 0.0, "vision_first": 0} if self.vision else {}
        found: dict[str, Shape] = {}
        if (preset := PRESETS.get((self.family, task))) is not None:
            layers, prune, merge, text = preset
            if set(layers) <= set(self.layers):
                at = [self.layers.index(layer) for layer in layers]
                stride = at[1] - at[0] if len(at) > 1 else 1
                shape = {"first": at[0], "steps": len(at), "stride": stride, "prune": round(prune / (prune + merge), 2)}
                found[PAPER] = _shape("pumer", **every | others | shape | {"text": round(text / (prune + merge), 1)})
        found["gradual merging"] = _shape("pumer", **every | others | {"prune": 0.0})
        found["gradual, pruned late"] = _shape("pumer", **every | others | {"prune": 0.2, "prune_from": 0.5})
        if self.vision:
            found["gradual, vision too"] = _shape("pumer", **every | others | {"prune": 0.0, "vision": 1.0})
        return found

    def config(self, shape: Shape, strength: float) -> ReductionConfig:
        """A shape at a strength in [0, `STRONGEST`]; the same ratios for the same numbers."""
        method = shape[METHOD]
        own = {name.removeprefix(f"{method}."): value for name, value in shape.items() if name != METHOD}
        cls: Any = METHODS[method]
        if issubclass(cls, RatioShorteningConfig):
            return cls(prune_ratio=_ratio(strength, _MOST_PRUNED))  # type: ignore[no-any-return]
        end = own["first"] + own.get("steps", 1) * own.get("stride", 1)
        stack = own.get("stack", self.stack)
        able = self.vision if stack == "vision" else self.layers
        layers = able[min(own["first"], len(able) - 1) : end : own.get("stride", 1)]
        if cls is PuMerConfig:
            return PuMerConfig(schedule=self._steps(own, layers, strength))
        (amount,) = cls.amounts
        if amount == "merge_count":
            count = min(round(strength * self.tokens), mergeable(self.tokens, self.tokens))
            return cls(layers=layers, stack=stack, merge_count=count)  # type: ignore[no-any-return]
        most = _MOST_MERGED if amount == "merge_ratio" else _MOST_PRUNED
        return cls(layers=layers, stack=stack, **{amount: _ratio(strength, most)})  # type: ignore[no-any-return]

    def _steps(self, own: Mapping[str, Any], layers: Sequence[int], strength: float) -> tuple[Step, ...]:
        pruned, last = own["prune"], max(len(layers) - 1, 1)
        steps = []
        if vision := own.get("vision", 0.0):
            merged = _ratio(strength * vision, _MOST_MERGED)
            steps = [Step(stack="vision", layer=at, merge_ratio=merged) for at in self.vision[own["vision_first"] :]]
        for number, layer in enumerate(layers):
            depth = 2 * number / last - 1 if len(layers) > 1 else 0.0
            prunes = number >= own["prune_from"] * len(layers)
            steps.append(
                Step(
                    stack=self.stack,  # type: ignore[arg-type]
                    layer=layer,
                    prune_ratio=_ratio(strength * pruned, _MOST_PRUNED) if prunes else 0.0,
                    merge_ratio=_ratio(strength * (1 - pruned) * (1 + own["slope"] * depth), _MOST_MERGED),
                    text_merge_ratio=_ratio(strength * own.get("text", 0.0), _MOST_MERGED),
                )
            )
        return tuple(step for step in steps if step.prune_ratio or step.merge_ratio or step.text_merge_ratio) or tuple(
            steps
        )

    def at(self, shape: Shape, target: float, gain: Callable[[ReductionConfig], float]) -> ReductionConfig | None:
        """The weakest schedule of a shape whose gain, such as the speed-up, reaches a target; None if none does."""
        low, high = 0.0, STRONGEST
        best = self.config(shape, high)
        if gain(best) < target:
            return None
        for _ in range(16):
            middle = (low + high) / 2
            config = self.config(shape, middle)
            if gain(config) < target:
                low = middle
            else:
                high, best = middle, config
        return best


def _asking(
    trial: Any, method: str
) -> tuple[Callable[[str, int, int], Any], Callable[[str, float, float, float], Any]]:
    def whole(name: str, low: int, high: int) -> None:
        trial.suggest_int(f"{method}.{name}", low, high)

    def part(name: str, low: float, high: float, step: float) -> None:
        trial.suggest_float(f"{method}.{name}", low, high, step=step)

    return whole, part


def _shape(method: str, **numbers: Any) -> dict[str, Any]:
    return {METHOD: method} | {f"{method}.{name}": value for name, value in numbers.items()}


def _ratio(value: float, most: float) -> float:
    return round(max(0.0, min(value, most)), 4)
