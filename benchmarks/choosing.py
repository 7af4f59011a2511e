"""Choosing among the tokens of one image before the decoder: its cost beside the prefill that it saves.

The layers of a decoder with random weights read a prompt with the whole image, and one with the tokens that stay, in
interleaved rounds with the choices of DivPrune and CDPruner among random features: what a choice costs follows from
shapes alone. Writes `choosing-PRESET-DEVICE.json`. Run it on a machine that is idle otherwise:

    python -m benchmarks.choosing
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import RESULTS, parser
from pumer.profiling.generation_memory import base_model
from pumer.profiling.generative_presets import CONFIGS
from pumer.profiling.prompt_planning import decoder_of
from pumer.profiling.timing import compare
from pumer.reducers import CDPrunerConfig, DivPruneConfig
from pumer.reducers.shortening.base import ImageTokens, ShorteningConfig
from pumer.utils.files import write_json
from pumer.utils.provenance import collect

MOST = 0.05
"""Of the prefill saved, that choosing may cost."""
WHOLE, SHORT = "prefill, whole", "prefill, shortened"


def main() -> None:
    """Parse, measure, write, print."""
    options = parser(__doc__)
    options.add_argument("--preset", choices=CONFIGS, default="llava-0.1b")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    options.add_argument("--text-tokens", type=int, default=64)
    options.add_argument("--image-tokens", type=int, default=2880, help="of one image; LLaVA-NeXT's have up to 2,880")
    options.add_argument("--prune-ratio", type=float, default=0.75)
    options.add_argument("--pairs", type=int, default=5, help="interleaved rounds")
    options.add_argument("--threads", type=int, default=1, help="of the CPU")
    options.add_argument("--results", type=Path, default=RESULTS, help="folder of the result file")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    _, text = decoder_of(base_model(f"preset:{arguments.preset}", arguments.device, arguments.dtype))
    result = measured(text, arguments.text_tokens, arguments.image_tokens, arguments.prune_ratio, arguments.pairs)
    settings = {name: value for name, value in vars(arguments).items() if not isinstance(value, Path)}
    path = arguments.results / f"choosing-{arguments.preset}-{arguments.device}.json"
    write_json(path, result | {"provenance": collect(settings, arguments.dtype)})
    for name, seconds in result["seconds"].items():
        sys.stdout.write(f"{name:20} {1e3 * seconds['median']:>8.1f} ms\n")
    for name, share in result["share"].items():
        sys.stdout.write(f"{name}: {100 * share:.1f}% of the prefill saved{', too much' if share > MOST else ''}\n")


def measured(text: Any, text_tokens: int, image_tokens: int, prune_ratio: float, pairs: int) -> dict[str, Any]:
    """Seconds of the prefills and of each choice, and choices as shares of the prefill saved.

    Args:
        text: A decoder without its head.
        text_tokens: Of the prompt.
        image_tokens: Of its one image.
        prune_ratio: Of these, how many go.
        pairs: Interleaved rounds.
    """
    methods = [DivPruneConfig(prune_ratio=prune_ratio), CDPrunerConfig(prune_ratio=prune_ratio)]
    weight, left = next(text.parameters()), methods[0].kept(image_tokens)
    random = torch.Generator(weight.device).manual_seed(0)
    drawn = torch.randn(text_tokens + image_tokens, text.config.hidden_size, generator=random, device=weight.device).to(
        weight.dtype
    )
    inputs: dict[str, dict[str, Tensor]] = {
        WHOLE: {"inputs_embeds": drawn[None]},
        SHORT: {"inputs_embeds": drawn[None, : text_tokens + left]},
    }
    calls: dict[str, Any] = dict.fromkeys(inputs, partial(text, use_cache=True))
    for method in methods:
        inputs[method.method] = {"features": drawn[text_tokens:], "words": drawn[:text_tokens]}
        calls[method.method] = partial(_choose, method)
    makers = {name: partial(_given, each) for name, each in inputs.items()}
    (point,) = compare(calls, makers, [1], pairs, warm_up=1)["points"]
    seconds = {name: each["seconds"] for name, each in point["models"].items()}
    saved = seconds[WHOLE]["median"] - seconds[SHORT]["median"]
    return {
        "image_tokens": image_tokens,
        "image_tokens_left": left,
        "seconds": seconds,
        "share": {method.method: seconds[method.method]["median"] / saved for method in methods},
    }


def _given(inputs: dict[str, Tensor], batch: int) -> dict[str, Tensor]:
    return inputs


def _choose(method: ShorteningConfig, features: Tensor, words: Tensor) -> None:
    cell = torch.zeros(len(features), 3, dtype=torch.int64, device=features.device)
    method.choose(ImageTokens(features, words, cell, lambda: features, lambda: features, lambda: features[:, 0]))


if __name__ == "__main__":
    main()
