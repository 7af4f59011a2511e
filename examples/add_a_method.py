"""A reduction method of your own: its settings, and one function that gives every image token a score.

    python examples/add_a_method.py

prunes 30% of the image tokens in layers 2, 5 and 8 of a small model that ships with the package, and prints accuracy
on the built-in data: unreduced, with this method, and with random pruning, which every method should beat.

To make the method part of the package, move the class to a file of src/pumer/reducers and its entry to METHODS there;
CONTRIBUTING.md lists what else belongs to it.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import mean
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cosine_similarity

import pumer
from pumer.reducers import METHODS, ReductionConfig
from pumer.reducers.base import KEYS
from pumer.reducers.cues import Cues
from pumer.reducers.layered import ScoringConfig
from pumer.utils.config import config
from pumer.world import write_vqav2


@config
class DistinctConfig(ScoringConfig):
    """Keep the image tokens that differ most from the rest: whose key is least similar to the image's average key."""

    method: ClassVar[str] = "distinct"
    needs: ClassVar[frozenset[str]] = frozenset({KEYS})

    def score(self, cues: Cues) -> Tensor:
        """From ``(B, H, V, Dh)`` keys to ``(B, V)`` scores; padding must not change those of real tokens."""
        key = cues.image_key.mean(dim=1)
        real = cues.image_mask[..., None]
        average = (key * real).sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True)
        return -cosine_similarity(key, average, dim=2)


METHODS["distinct"] = DistinctConfig  # from here on known to patch, save and load


def accuracy(model: str, root: Path, reduction: ReductionConfig, limit: int) -> float:
    """VQA accuracy of a model with this reduction, not fine-tuned for it, on the first questions of the val split."""
    predictor = pumer.Predictor(model)
    pumer.patch(predictor.model, reduction)
    examples = predictor.task.read(root, "val", limit)
    return mean(predictor.task.score(example, predictor(example.images[0], example.text)) for example in examples)


def main() -> None:
    """Write built-in data, evaluate three times and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small:vilt", help="folder, hub name or small:vilt")
    parser.add_argument("--limit", type=int, default=300, help="questions to evaluate on")
    arguments = parser.parse_args()
    pruning = {"layers": (2, 5, 8), "prune_ratio": 0.3}
    reductions = (pumer.NoReduction(), DistinctConfig(**pruning), pumer.RandomPruningConfig(**pruning))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "vqav2"
        write_vqav2(root, train=1, val=arguments.limit, heldout=0)
        for reduction in reductions:
            print(f"{reduction.method}: {accuracy(arguments.model, root, reduction, arguments.limit):.1%}")


if __name__ == "__main__":
    main()
