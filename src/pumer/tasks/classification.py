"""What tasks with one right label out of a few have in common: cross-entropy and accuracy."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pumer.tasks.base import Example, Task
from pumer.utils.errors import InputError, some

UNKNOWN = -100
"""Target of an example without a public label, which the loss ignores."""


class SingleLabel(Task):
    """A task whose examples have one right label each, out of `fixed_labels`."""

    def __init__(self, labels: Sequence[str]) -> None:
        """Bind to a model's labels, one name per column, in order; refuses labels that are not the task's."""
        super().__init__(labels)
        if sorted(labels) != sorted(self.fixed_labels):
            known, allowed = f"{len(labels)} labels ({some(labels)})", ", ".join(self.fixed_labels)
            raise InputError(f"the model answers with {known}, but task {self.name} has {allowed}; give one for it")

    @classmethod
    def vocabulary(cls, root: Path, minimum: int = 1) -> tuple[str, ...]:
        """The fixed labels; see `Task.vocabulary`."""
        return cls.fixed_labels

    def targets(self, examples: Sequence[Example]) -> Tensor:
        """Columns (B,) of the right labels; `UNKNOWN` where there is none."""
        columns = [self.labels.index(example.answers[0]) if example.answers else UNKNOWN for example in examples]
        return torch.tensor(columns)

    def loss(self, logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Cross-entropy, averaged over the batch."""
        return cross_entropy(logits.float(), batch["targets"], ignore_index=UNKNOWN)

    def score(self, example: Example, answer: str) -> float:
        """1 for the right label, else 0."""
        if not example.answers:
            raise InputError(f"example {example.id} has no public label; score the submission file on the server")
        return float(answer == example.answers[0])
