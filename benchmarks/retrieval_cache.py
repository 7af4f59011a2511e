"""Retrieval with METER: every image with every caption, encoded once each or anew for every pair.

Scores 50 images against 250 captions both ways with the small METER that ships with the package, under a retrieval head
of random weights (which changes no time), and writes `benchmarks/results/retrieval-cache-<device>.json`: seconds, how
many times faster, and the largest difference of a score. The reduction is the paper's for retrieval.
"""

import time
from collections.abc import Iterator

import torch
from rich.console import Console
from torch import Tensor

import pumer
from benchmarks.common import RESULTS, parser
from pumer.models.meter import MeterConfig, MeterForImageAndTextRetrieval
from pumer.profiling.timing import synchronise
from pumer.utils.files import write_json
from pumer.utils.provenance import collect
from pumer.utils.shipped import SMALL
from pumer.utils.tensors import best_device


def main() -> None:
    """Parse, measure, write."""
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=50)
    options.add_argument("--captions", type=int, default=250)
    options.add_argument("--batch", type=int, default=64, help="pairs per forward")
    arguments = options.parse_args()
    device = best_device()
    torch.manual_seed(0)
    model = MeterForImageAndTextRetrieval.from_pretrained(SMALL["small:meter"]).eval().to(device)
    config: MeterConfig = model.config
    pixels = torch.randn(arguments.images, 3, config.image_size, config.image_size, device=device)
    words = torch.randint(5, config.text_config.vocab_size, (arguments.captions, 16), device=device)
    mask = (torch.arange(16, device=device) < torch.randint(6, 17, (arguments.captions, 1), device=device)).long()
    result = {}
    for name, reduction in {
        "unreduced": pumer.NoReduction(),
        "2,4,6; 0.2/0.5/0.2": pumer.PuMerConfig.preset("meter", "flickr30k"),
    }.items():
        pumer.patch(model, reduction)
        pair_scores, pair_seconds = timed(model, pixels, words, mask, arguments.batch, cached=False)
        scores, seconds = timed(model, pixels, words, mask, arguments.batch, cached=True)
        result[name] = {
            "seconds_pairs": pair_seconds,
            "seconds_cached": seconds,
            "times_faster": pair_seconds / seconds,
            "largest_difference": float((scores - pair_scores).abs().max()),
        }
    result |= {"images": arguments.images, "captions": arguments.captions, "provenance": collect(vars(arguments))}
    write_json(RESULTS / f"retrieval-cache-{device.type}.json", result)
    Console().print(result)


@torch.inference_mode()
def timed(
    model: MeterForImageAndTextRetrieval, pixels: Tensor, words: Tensor, mask: Tensor, size: int, cached: bool
) -> tuple[Tensor, float]:
    """Scores ``(images * captions,)`` of all pairs, and the seconds they took."""
    synchronise(pixels.device)
    start, scores = time.perf_counter(), []
    if cached:
        images, texts = model.encode_image(pixels), model.encode_text(words, mask)
        for image, text in pairs(len(pixels), len(words), size):
            scores.append(model(encoded_text=texts.select(text), encoded_image=images.select(image)).logits[:, 0])
    else:
        for image, text in pairs(len(pixels), len(words), size):
            out = model(input_ids=words[text], attention_mask=mask[text], pixel_values=pixels[image])
            scores.append(out.logits[:, 0])
    synchronise(pixels.device)
    return torch.cat(scores), time.perf_counter() - start


def pairs(images: int, captions: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Positions of image and caption of all pairs, ``size`` at a time."""
    everything = torch.cartesian_prod(torch.arange(images), torch.arange(captions))
    for chunk in everything.split(size):
        yield chunk[:, 0], chunk[:, 1]


if __name__ == "__main__":
    main()
