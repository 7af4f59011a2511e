"""Memory of scoring all pairs for retrieval: 100 images with 500 captions beside 20 with 100.

Ranks random images with the small models that ship with the package, under a retrieval head of random weights, each
size in a process of its own, and writes `benchmarks/results/retrieval-memory-<device>.json`: the peak of memory above
what was held before ranking, and pairs per second.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from benchmarks.common import RESULTS, parser
from pumer.evaluation.ranking import CandidateSets, rank
from pumer.profiling.peak_memory import peak_since, resident
from pumer.tasks import Flickr30k
from pumer.tasks.session import Session
from pumer.utils.files import write_json
from pumer.utils.provenance import collect
from pumer.utils.shipped import SMALL
from pumer.utils.tensors import best_device

MODELS = ("vilt-small", "meter-small")
CAPTIONS = 5
WORDS = [
    "a",
    "small",
    "large",
    "red",
    "green",
    "blue",
    "circle",
    "square",
    "star",
    "left",
    "right",
    "of",
    "above",
    "below",
    "and",
]


def main() -> None:
    """Parse, measure, write; in the process that `measured` starts, measure only."""
    options = parser(__doc__)
    options.add_argument("--images", type=int, nargs="+", default=[20, 100])
    options.add_argument("--batch", type=int, default=16, help="pairs per forward")
    options.add_argument("--out", type=Path, default=RESULTS / f"retrieval-memory-{best_device().type}.json")
    options.add_argument("--only", choices=MODELS, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.only:
        sys.stdout.write(json.dumps(measure(arguments.only, arguments.images[0], arguments.batch)) + "\n")
        return
    result: dict[str, Any] = {
        model: {
            f"{images} x {CAPTIONS * images}": measured(model, images, arguments.batch) for images in arguments.images
        }
        for model in MODELS
    }
    result["provenance"] = collect(vars(arguments))
    write_json(arguments.out, result)
    Console().print(result)


def measured(model: str, images: int, batch: int) -> dict[str, float]:
    """`measure` in a fresh process."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.retrieval_memory",
        "--only",
        model,
        "--images",
        str(images),
        "--batch",
        str(batch),
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(name: str, images: int, batch: int) -> dict[str, float]:
    """Peak memory in MiB above what is held before, and pairs per second."""
    torch.manual_seed(0)
    folder, device = str(SMALL[f"small:{name.removesuffix('-small')}"]), best_device()
    session = Session.around(folder, Flickr30k.model(folder, ()), Flickr30k())
    session.model.to(device)
    with tempfile.TemporaryDirectory() as root:
        write(Path(root), images)
        pairs = Flickr30k.read(Path(root), "test")
        rank(session, CandidateSets(pairs[: 4 * CAPTIONS]), batch)  # loads libraries and starts threads
        before, start = resident(device.type), time.perf_counter()
        rank(session, CandidateSets(pairs), batch)
        seconds = time.perf_counter() - start
        peak = peak_since(device.type) - before
    return {"peak_mib": peak / 2**20, "pairs_per_second": images * len(pairs) / seconds}


def write(root: Path, images: int) -> None:
    """Noise and captions of random words, in Karpathy's format."""
    random, entries = np.random.default_rng(0), []
    (root / Flickr30k.images).mkdir()
    for number in range(images):
        noise = random.integers(256, size=(96, 96, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / Flickr30k.images / f"{number}.png")
        texts = [" ".join(random.choice(WORDS, size=random.integers(5, 15))) for _ in range(CAPTIONS)]
        sentences = [{"raw": text, "sentid": CAPTIONS * number + index} for index, text in enumerate(texts)]
        entries.append({"filename": f"{number}.png", "imgid": number, "split": "test", "sentences": sentences})
    (root / Flickr30k.file).write_text(json.dumps({"images": entries}), encoding="utf-8")


if __name__ == "__main__":
    main()
