"""PuMer: text-informed pruning and modality-aware merging (sections 4.1 and 4.2, Algorithm 1), corrected."""

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, replace
from typing import Any, ClassVar, Literal

from pumer.reducers.base import KEYS, TEXT_ROWS, Layer, Place, Ratio, Reducer, ReductionConfig, check_distinct
from pumer.reducers.cues import Cues
from pumer.reducers.decisions import prune_and_merge
from pumer.reducers.tables import Rule, mergeable, pruned
from pumer.tokens import Decision
from pumer.utils.config import config
from pumer.utils.errors import InputError


@config
class Step(Rule):
    """One reduction: where it happens and what fraction it removes.

    The fractions are of the real tokens that enter the reducer, [CLS] counted, rounded half to even.

    Attributes:
        stack: "fusion" for the cross-modal layers, "vision" for those of a vision encoder, "decoder" for those of a
            generative model.
        layer: 0-based layer of that stack.
        prune_ratio: Fraction of the image tokens to prune, in [0, 1).
        merge_ratio: Fraction of the image tokens to merge away, in [0, 1); at most half of what pruning leaves.
        text_merge_ratio: Fraction of the text tokens to merge away, in [0, 1); at most half of them.

    Raises:
        InputError: For a value out of range.
    """

    layer: Layer
    stack: Literal["fusion", "vision", "decoder"] = "fusion"
    prune_ratio: Ratio = 0.0
    merge_ratio: Ratio = 0.0
    text_merge_ratio: Ratio = 0.0

    def __post_init__(self) -> None:
        """Refuse what needs text in a vision encoder, and what changes it in a decoder."""
        if self.stack == "vision" and (self.prune_ratio or self.text_merge_ratio):
            raise InputError(
                f"vision layer {self.layer} sees no text and can only merge; leave out prune_ratio and text_merge_ratio"
            )
        if self.stack == "decoder" and self.text_merge_ratio:
            raise InputError(
                f"decoder layer {self.layer} keeps the text as it is, which what is generated continues; leave out "
                f"text_merge_ratio={self.text_merge_ratio}"
            )

    def kept(self, n: int) -> int:
        """Image tokens left of ``n`` after pruning; [CLS] always is."""
        return n - pruned(self.prune_ratio, n)

    def merges(self, n: int) -> int:
        """Image tokens merged away of ``n`` that entered (released counts: a fraction of the length before pruning)."""
        return mergeable(round(self.merge_ratio * n), self.kept(n))

    def text_merges(self, n: int) -> int:
        """Text tokens merged away of ``n``."""
        return mergeable(round(self.text_merge_ratio * n), n)


@config
class PuMerConfig(ReductionConfig):
    """PuMer as this library does it: the paper's method, with per-sample counts and [CLS] protected.

    Give either a ``schedule``, or ``layers`` of a ``stack`` with one ratio each for all of them.

    Attributes:
        schedule: The steps, each in a layer of its own.
        proportional_attention: Add ``log(size)`` to attention logits, so that a merged token counts as often as it
            has parts; not in a decoder, whose attention kernels take no such bias.

    Differs from the paper: counts are rounded from the length before pruning (they give Table 7), only real text
    tokens ask, [CLS] stays, kept tokens keep their order, sizes are carried.

    Raises:
        InputError: For a ratio outside [0, 1), or a layer that is repeated or negative.

    Example:
        >>> PuMerConfig(layers=(2, 5, 8), prune_ratio=0.1, merge_ratio=0.3, text_merge_ratio=0.2).schedule[0].layer
        2
    """

    schedule: tuple[Step, ...] = ()
    proportional_attention: bool = True
    # Only ways to write a schedule: read back, they are None.
    layers: InitVar[tuple[Layer, ...] | None] = None
    stack: InitVar[Literal["fusion", "vision", "decoder"] | None] = None
    prune_ratio: InitVar[Ratio | None] = None
    merge_ratio: InitVar[Ratio | None] = None
    text_merge_ratio: InitVar[Ratio | None] = None

    method: ClassVar[str] = "pumer"
    amounts: ClassVar[tuple[str, ...]] = ("prune_ratio", "merge_ratio", "text_merge_ratio")

    def __post_init__(
        self,
        layers: tuple[int, ...] | None,
        stack: str | None,
        prune_ratio: float | None,
        merge_ratio: float | None,
        text_merge_ratio: float | None,
    ) -> None:
        """Turn ``layers`` into steps and check them."""
        ratios = {"prune_ratio": prune_ratio, "merge_ratio": merge_ratio, "text_merge_ratio": text_merge_ratio}
        every = {"stack": stack, **ratios}
        given: dict[str, Any] = {name: value for name, value in every.items() if value is not None}
        if self.schedule and (layers or given):
            raise InputError("both schedule and layers or ratios are given; put all of them into the schedule's steps")
        if not self.schedule and not layers:
            raise InputError(
                "layers and schedule are empty; give layers=[2, 5, 8] with ratios, a schedule, or method 'none'"
            )
        steps = tuple(self.schedule) or tuple(Step(layer=layer, **given) for layer in layers or ())
        check_distinct([(step.stack, step.layer) for step in steps])
        steps = tuple(sorted(steps, key=lambda step: (step.stack != "vision", step.layer)))
        object.__setattr__(self, "schedule", steps)

    @classmethod
    def preset(
        cls, backbone: str, task: str, vision: bool | Sequence[int] = False, style: str = "paper"
    ) -> "PuMerConfig":
        """A schedule for a backbone and a task: the paper's (Table 6 and the released commands), or a gentler one.

        Args:
            backbone: "vilt" or "meter".
            task: a name in `pumer.tasks.TASKS`: "vqav2", "nlvr2", "snli_ve", "flickr30k" or "coco".
            vision: Also merge a fifth of the image tokens in each of layers 2, 5 and 8 of METER's vision encoder, or in
                those given, as in ``vision=(1, 2, 3)`` for ``small:meter``, which has four. The paper leaves it open
                (section 8): half the MACs of METER instead of two thirds.
            style: "paper", or "gradual" (not from the paper): merges a few image tokens in every layer but the last and
                nothing else. MACs are those of the paper's schedule within 6% with 20 to 32 words, and 4 to 10% fewer
                with 12. Not fine-tuned, the small ViLT loses less on VQAv2, SNLI-VE and in ranking images
                (docs/results.md). Of ViLT alone: METER can reduce in every second layer.

        Raises:
            InputError: For a pair or a style that there is no schedule for, and for ViLT's vision encoder, which it has
                not.
        """
        if style not in STYLES:
            raise InputError(f"style must be {' or '.join(STYLES)}, not {style!r}")
        if (backbone, task) not in PRESETS:
            known = ", ".join(f"{b}/{t}" for b, t in PRESETS)
            raise InputError(f"no preset for {backbone}/{task}; there are {known}")
        if style == "gradual":
            if backbone not in GRADUAL or vision:
                given = f"{backbone} with vision={vision}" if vision else backbone
                raise InputError(
                    f"no gradual preset for {given}; there is one for {', '.join(GRADUAL)}: give style=paper"
                )
            layers, ratios = GRADUAL[backbone]
            return cls(layers=layers, merge_ratio=ratios[task])
        layers, prune_ratio, merge_ratio, text_merge_ratio = PRESETS[backbone, task]
        paper = cls(layers=layers, prune_ratio=prune_ratio, merge_ratio=merge_ratio, text_merge_ratio=text_merge_ratio)
        if not vision:
            return paper
        if backbone not in VISION_PRESETS:
            raise InputError(f"no vision preset for {backbone}; there is one for {', '.join(VISION_PRESETS)}")
        layers, merge_ratio = VISION_PRESETS[backbone]
        if not isinstance(vision, bool):
            layers = tuple(vision)
        seeing = (Step(stack="vision", layer=layer, merge_ratio=merge_ratio) for layer in layers)
        return cls(schedule=(*seeing, *paper.schedule))

    def places(self) -> list[Place]:
        """The layers of all steps."""
        return [(step.stack, step.layer) for step in self.schedule]

    def reducers(self) -> dict[Place, Reducer]:
        """One reducer per step; a step that removes nothing has none."""
        return {
            (step.stack, step.layer): PuMerReducer(step, self.proportional_attention)
            for step in self.schedule
            if step.prune_ratio or step.merge_ratio or step.text_merge_ratio
        }


PRESETS: dict[tuple[str, str], tuple[tuple[int, ...], float, float, float]] = {
    ("vilt", "vqav2"): ((2, 5, 8), 0.1, 0.3, 0.2),
    ("vilt", "nlvr2"): ((2, 5, 8), 0.1, 0.3, 0.2),
    ("vilt", "snli_ve"): ((2, 4, 6, 8), 0.1, 0.3, 0.2),
    ("vilt", "flickr30k"): ((2, 5, 8), 0.1, 0.3, 0.2),
    ("vilt", "coco"): ((2, 5, 8), 0.1, 0.3, 0.2),
    ("meter", "vqav2"): ((0, 2, 4, 6), 0.2, 0.2, 0.2),
    ("meter", "nlvr2"): ((2, 4, 6), 0.3, 0.5, 0.2),
    ("meter", "snli_ve"): ((0, 2, 4, 6), 0.3, 0.5, 0.2),
    ("meter", "flickr30k"): ((2, 4, 6), 0.2, 0.5, 0.2),
    ("meter", "coco"): ((2, 4, 6), 0.2, 0.5, 0.2),
}
"""Backbone and task to layers, prune, merge and text-merge ratio (Table 6 and the released commands)."""

STYLES = ("paper", "gradual")
GRADUAL: dict[str, tuple[tuple[int, ...], dict[str, float]]] = {
    "vilt": (
        tuple(range(11)),
        {"vqav2": 0.15, "nlvr2": 0.15, "snli_ve": 0.19, "flickr30k": 0.15, "coco": 0.15},
    )
}
"""Backbone to layers and, by task, the merge ratio (not from the paper) that needs about the MACs of the paper's
schedule with 20 to 32 words."""

VISION_PRESETS: dict[str, tuple[tuple[int, ...], float]] = {"meter": ((2, 5, 8), 0.2)}
"""Backbone to layers of its vision encoder and merge ratio (not from the paper)."""


@dataclass(frozen=True)
class PuMerReducer:
    """The token reducer of one layer; it has no parameters.

    Attributes:
        step: What to remove.
        proportional: See `PuMerConfig.proportional_attention`.
    """

    step: Step
    proportional: bool = True

    @property
    def needs(self) -> frozenset[str]:
        """Keys to merge, text rows to prune."""
        needs = set()
        if self.step.merge_ratio or self.step.text_merge_ratio:
            needs.add(KEYS)
        if self.step.prune_ratio:
            needs.add(TEXT_ROWS)
        return frozenset(needs)

    def decide(self, cues: Cues) -> Decision:
        """Prune and merge the image tokens, merge the text tokens (Algorithm 1)."""
        return replace(prune_and_merge(cues, self.step), proportional=self.proportional)
