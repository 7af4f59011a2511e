"""The paper's numbers: accuracy in percent, throughput as a factor, memory as a change in percent.

PuMer (Cao, Paranjape, Hajishirzi, ACL 2023). Accuracy is the mean of three runs; throughput and memory stand against
the unreduced model of the same row, at the batch of highest throughput and at equal batch.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Figures:
    """What the paper prints of one model.

    Attributes:
        accuracy: in percent.
        throughput: times the unreduced model's.
        memory: change of peak memory in percent.
    """

    accuracy: float
    throughput: float | None = None
    memory: float | None = None


TABLE_1 = {
    "meter/vqav2": (Figures(77.5), Figures(76.8, 1.82, -38)),
    "meter/snli_ve": (Figures(81.1), Figures(80.3, 2.07, -43)),
    "meter/nlvr2": (Figures(82.7), Figures(82.2, 1.79, -38)),
    "meter/flickr30k TR": (Figures(94.7), Figures(93.8, 1.81, -38)),
    "meter/flickr30k IR": (Figures(82.0), Figures(81.2, 1.81, -38)),
    "vilt/vqav2": (Figures(69.5), Figures(68.9, 1.76, -45)),
    "vilt/snli_ve": (Figures(76.0), Figures(75.6, 2.01, -51)),
    "vilt/nlvr2": (Figures(75.5), Figures(74.9, 1.74, -45)),
    "vilt/flickr30k TR": (Figures(78.2), Figures(77.6, 1.78, -46)),
    "vilt/flickr30k IR": (Figures(60.2), Figures(59.6, 1.78, -46)),
}
"""Original and PuMer. TR finds the text for an image, IR the image for a text."""

TABLE_2 = {
    192: Figures(74.3, 4.23, -75),
    224: Figures(75.2, 3.48, -66),
    256: Figures(76.1, 2.67, -54),
    320: Figures(77.0, 1.62, -37),
    384: Figures(77.5, 1.0, 0),
}
"""METER on VQAv2, unreduced, by pixels along a side."""
TABLE_2_PUMER = {320: Figures(76.3, 2.86, -59), 384: Figures(76.8, 1.82, -38)}

TABLE_3 = {
    "original": Figures(69.5, 1.0),
    "PuMer": Figures(68.9, 1.76),
    "without pruning": Figures(69.2, 1.52),
    "without merging": Figures(69.1, 1.46),
    "without distillation": Figures(68.6, 1.76),
}
"""ViLT on VQAv2."""

Design = tuple[tuple[int, ...], float, float, float]
"""Layers, and the ratios of pruning, image merging and text merging."""

TABLE_4: dict[str, dict[Design, Figures]] = {
    "ratios": {
        ((2, 5, 8), 0.1, 0.3, 0.2): Figures(75.8, 1.77),
        ((2, 5, 8), 0.3, 0.3, 0.2): Figures(74.7, 2.04),
        ((2, 5, 8), 0.1, 0.3, 0.5): Figures(74.9, 1.89),
        ((2, 5, 8), 0.1, 0.5, 0.2): Figures(73.8, 2.12),
    },
    "number of layers": {
        ((2,), 0.1, 0.3, 0.2): Figures(75.9, 1.43),
        ((2, 4), 0.1, 0.3, 0.2): Figures(75.8, 1.69),
        ((2, 4, 6), 0.1, 0.3, 0.2): Figures(75.7, 1.80),
    },
    "locations": {
        ((2, 3, 4), 0.2, 0.2, 0.2): Figures(74.2, 2.03),
        ((7, 8, 9), 0.2, 0.2, 0.2): Figures(75.9, 1.31),
    },
    "PuMer": {((2, 4, 6, 8), 0.1, 0.3, 0.2): Figures(75.6, 2.01)},
}
"""ViLT on SNLI-VE."""
TABLE_4_ORIGINAL = Figures(76.0, 1.0)

TABLE_7 = {
    "meter/vqav2": (92, 64.7),
    "meter/snli_ve": (92, 59),
    "meter/nlvr2": (184, 131),
    "vilt/vqav2": (16, 8.7),
    "vilt/snli_ve": (16, 7.7),
    "vilt/nlvr2": (32, 17.4),
}
"""Multiply-accumulates of original and PuMer in units of 10^9 ("GFLOPs" there): 384 pixels, 32 words, batch 1."""

FIGURE_5_SPEEDUP = 1.8
"""Where Figure 5 (ViLT on VQAv2) has PuMer above DynamicViT and ToMe; it prints no numbers."""
