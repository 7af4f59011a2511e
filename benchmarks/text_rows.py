"""Should the text rows, whose probabilities pruning asks for, share the fused attention call or be computed apart?

apart:  the fused kernel runs for all rows, and the text rows' probabilities are computed once more beside it;
shared: the fused kernel runs for the image rows only, and the text rows' output comes from their probabilities.

Times the attention of the three reducing layers of ViLT-B/32 (2, 5, 8) both ways and writes
`benchmarks/results/text-rows-<device>.json`. On two CPU cores sharing gains 1 to 11% of these three attention calls at
most, about 0.2% of a forward, within the spread. So the library computes the rows apart: one attention call for every
layer, with or without dropout, and a reducer that needs no text rows changes nothing.
"""

import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks.common import RESULTS, parser
from pumer.functional import attention, attention_probabilities
from pumer.profiling.timing import compare
from pumer.utils.files import write_json
from pumer.utils.provenance import collect

HEADS, WIDTH = 12, 64
LAYERS = {2: (32, 145), 5: (26, 87), 8: (21, 52)}
"""Reducing layer to text and image tokens that enter it."""


class Apart(nn.Module):
    """All rows through the fused kernel; text rows once more."""

    def __init__(self, text: int) -> None:
        super().__init__()
        self.text = text
        self.place = nn.Parameter(torch.zeros(1))  # the timer reads the device from it

    def forward(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Context ``(B, H, N, Dh)`` and text-to-image probabilities ``(B, H, T, V)``."""
        context = attention(query, key, value, bias)
        rows = attention_probabilities(query[:, :, : self.text], key, bias)
        return context.transpose(1, 2).flatten(2), rows[..., self.text :]


class Shared(Apart):
    """Image rows through the fused kernel; text rows by their probabilities."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """As `Apart`."""
        rows = attention_probabilities(query[:, :, : self.text], key, bias)
        image = attention(query[:, :, self.text :], key, value, bias)
        context = torch.cat([(rows @ value).transpose(1, 2), image.transpose(1, 2)], dim=1)
        return context.flatten(2), rows[..., self.text :]


def main() -> None:
    """Measure every layer at a few batch sizes."""
    options = parser(__doc__)
    options.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options.add_argument("--dtype", default="float32")
    options.add_argument("--pairs", type=int, default=40)
    arguments = options.parse_args()
    batch_sizes = (1, 8) if arguments.device == "cpu" else (1, 8, 64, 256)
    layers = {}
    for layer, (text, image) in LAYERS.items():

        def make_inputs(batch: int, tokens: int = text + image) -> dict[str, Tensor]:
            shape = (batch, tokens, HEADS, WIDTH)  # as the projections leave them
            states = [torch.randn(shape, dtype=getattr(torch, arguments.dtype)).transpose(1, 2) for _ in range(3)]
            query, key, value = (tensor.to(arguments.device) for tensor in states)
            bias = torch.zeros(batch, 1, 1, tokens, device=arguments.device)
            return {"query": query, "key": key, "value": value, "bias": bias}

        models = {name: kind(text).to(arguments.device) for name, kind in (("apart", Apart), ("shared", Shared))}
        layers[layer] = compare(models, make_inputs, batch_sizes, arguments.pairs)
        for point in layers[layer]["points"]:
            speedup = point["models"]["shared"]["speedup"]
            Console().print(
                f"layer {layer}, batch {point['batch']}: sharing is {speedup['median']:.2f}x as fast as apart "
                f"({speedup['low']:.2f} to {speedup['high']:.2f})",
                highlight=False,
            )
    write_json(
        RESULTS / f"text-rows-{arguments.device}.json",
        {"layers": layers, "provenance": collect(vars(arguments), arguments.dtype)},
    )


if __name__ == "__main__":
    main()
