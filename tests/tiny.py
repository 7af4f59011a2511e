"""Tiny models of every backbone, random examples for them, and example configs of every method: the grid of tests.

A new entry of BACKBONES or METHODS is tested once it has an entry here; `test_laws.py` fails as long as it has none.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
import transformers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_outputs import ModelOutput

from pumer import (
    ClsPruningConfig,
    DynamicViTConfig,
    EViTConfig,
    NoReduction,
    PoolingConfig,
    PuMerConfig,
    RandomPruningConfig,
    ReleasedPuMerConfig,
    Step,
    ToMeConfig,
)
from pumer.models import meter
from pumer.reducers import ReductionConfig
from pumer.reducers.layered import LayeredConfig


@dataclass(frozen=True)
class Example:
    """A config of a method, and what is promised for it.

    Attributes:
        config: Reduces in layers 0 to 2 at most; `Tiny.fit` makes them layers of a backbone.
        off: The same method with nothing to remove; equal to the unpatched model. None if it cannot be.
        any_batch: Law 1 holds (the released code's counts depend on padding).
        fused: Attention is torch's own (the released code's softmax is not that of any kernel).
        sizes: Sizes add up to real tokens and weigh the averages.
        apart: Text and image never mix.
        cls_stays: [CLS] is neither pruned nor merged, and order is kept.
    """

    config: ReductionConfig
    off: ReductionConfig | None = None
    any_batch: bool = True
    fused: bool = True
    sizes: bool = True
    apart: bool = True
    cls_stays: bool = True


def _pumer(**settings: float) -> Example:
    return Example(PuMerConfig(layers=(0, 2), **settings), off=PuMerConfig(layers=(0, 2)))


def _layered(method: type[LayeredConfig], **settings: float | str) -> Example:
    off = {name: value for name, value in settings.items() if name == "stack"}
    return Example(method(layers=(0, 2), **settings), off=method(layers=(0, 2), **off), sizes=method is not EViTConfig)


def _tome(**settings: float) -> Example:
    return Example(ToMeConfig(layers=(0, 1, 2), **settings), off=ToMeConfig(layers=(0,)), apart=False, cls_stays=False)


EXAMPLES: dict[str, tuple[Example, ...]] = {
    "none": (Example(NoReduction(), off=NoReduction()),),
    "pumer": (
        _pumer(prune_ratio=0.1, merge_ratio=0.3, text_merge_ratio=0.2),
        _pumer(prune_ratio=0.4),
        _pumer(merge_ratio=0.45),
        _pumer(text_merge_ratio=0.4),
        _pumer(prune_ratio=0.6, merge_ratio=0.9, text_merge_ratio=0.9),
        Example(
            PuMerConfig(
                schedule=(
                    Step(layer=0, merge_ratio=0.4),
                    Step(layer=1, prune_ratio=0.3, text_merge_ratio=0.3),
                    Step(layer=2, prune_ratio=0.2, merge_ratio=0.2),
                ),
                proportional_attention=False,
            ),
            off=PuMerConfig(schedule=(Step(layer=1),)),
        ),
        Example(
            PuMerConfig(
                schedule=(
                    Step(stack="vision", layer=0, merge_ratio=0.2),
                    Step(stack="vision", layer=2, merge_ratio=0.3),
                    Step(layer=0, prune_ratio=0.2, merge_ratio=0.2, text_merge_ratio=0.2),
                )
            ),
            off=PuMerConfig(schedule=(Step(stack="vision", layer=0),)),
        ),
    ),
    "pumer-released": (
        Example(
            ReleasedPuMerConfig(layers=(0, 2), prune_ratio=0.1, merge_ratio=0.3, text_merge_ratio=0.2),
            any_batch=False,
            fused=False,
            sizes=False,
            cls_stays=False,
        ),
        Example(
            ReleasedPuMerConfig(layers=(1,), prune_ratio=0.5, merge_ratio=0.5, similarity="first_head"),
            any_batch=False,
            fused=False,
            sizes=False,
            cls_stays=False,
        ),
    ),
    "tome": (
        _tome(merge_count=3),
        _tome(merge_count=18, proportional_attention=False),
        Example(ToMeConfig(stack="vision", layers=(0, 2), merge_count=4), off=ToMeConfig(stack="vision", layers=(0,))),
    ),
    "dynamicvit": (
        _layered(DynamicViTConfig, prune_ratio=0.3),
        _layered(DynamicViTConfig, prune_ratio=0.6, stack="vision"),
    ),
    "evit": (_layered(EViTConfig, prune_ratio=0.3), _layered(EViTConfig, prune_ratio=0.95, stack="vision")),
    "cls": (_layered(ClsPruningConfig, prune_ratio=0.3), _layered(ClsPruningConfig, prune_ratio=0.5, stack="vision")),
    "random": (_layered(RandomPruningConfig, prune_ratio=0.3), _layered(RandomPruningConfig, prune_ratio=0.6, seed=3)),
    "pooling": (_layered(PoolingConfig, merge_ratio=0.3), _layered(PoolingConfig, merge_ratio=0.9)),
}


def moved(config: ReductionConfig, where: Callable[[str, int], int], vision: bool = True) -> ReductionConfig:
    """The config with its layers elsewhere, and without the steps of a vision encoder where there is none.

    Args:
        config: any.
        where: from stack and layer to another layer of the stack; what meets in one layer is done there once.
        vision: keep the steps of a vision encoder.
    """
    settings = {field.name for field in fields(config)}
    if "layers" in settings:
        stack = getattr(config, "stack", "fusion")
        return replace(config, layers=tuple(dict.fromkeys(where(stack, layer) for layer in config.layers)))
    if "schedule" not in settings:
        return config
    kept = [step for step in config.schedule if vision or step.stack == "fusion"]
    steps = {(step.stack, where(step.stack, step.layer)): step for step in reversed(kept)}
    schedule = tuple(replace(step, layer=layer) for (_, layer), step in sorted(steps.items()))
    return type(config)(**{name: getattr(config, name) for name in settings} | {"schedule": schedule})


@dataclass(frozen=True)
class Sample:
    """One example: word ids ``(T,)`` and images ``(C, height, width)``."""

    words: Tensor
    images: tuple[Tensor, ...]


@dataclass(frozen=True)
class Tiny:
    """How tests make models and inputs of one backbone.

    Attributes:
        heads: Names of transformers classes; the first is the one tests use when one is enough.
        two_images: Those of them that see two images.
        per_word: Those of them with one output row per word.
        patch: Pixels along a patch.
        build: From head, layers and config settings to a model in eval mode, float32.
        sample: From seed, words, patch rows and columns to an example; the last argument is the number of images.
        collate: Examples as a padded batch; text length, patch rows and columns may be larger than needed. What stands
            in padding is noise.
        root: The module below a head that is patched.
        states: From a root's output to the states of both modalities, text first, before and after each layer.
        stride: How many numbers a layer counts for: METER's pairs are two layers each.
        vision: Whether there is a vision encoder to reduce in.
        silence: Make every layer pass its input through, but for the reduction.
    """

    heads: tuple[str, ...]
    two_images: frozenset[str]
    per_word: frozenset[str]
    patch: int
    build: Callable[..., nn.Module]
    sample: Callable[..., Sample]
    collate: Callable[..., dict[str, Tensor]]
    root: Callable[[nn.Module], nn.Module]
    silence: Callable[[nn.Module], None]
    states: Callable[[ModelOutput], Sequence[Tensor]]
    stride: int = 1
    vision: bool = False

    def fit(self, config: ReductionConfig) -> ReductionConfig:
        """The config with its layers as this backbone counts them, without the vision steps if it has no such layers.

        Args:
            config: Reduces in layers 0 to 2 at most.
        """
        return moved(config, lambda stack, layer: layer if stack == "vision" else layer * self.stride, self.vision)

    def takes(self, config: ReductionConfig) -> bool:
        """Whether the backbone has all stacks of layers that the config names."""
        return self.vision or all(stack == "fusion" for stack, _ in config.places())

    def batch(
        self, grids: Sequence[tuple[int, int, int]], head: str | None = None, seed: int = 0, **padding: int
    ) -> dict[str, Tensor]:
        """A random batch; ``grids`` has words, patch rows and patch columns of each example."""
        images = 2 if head in self.two_images else 1
        samples = [self.sample(seed + i, *grid, images=images) for i, grid in enumerate(grids)]
        return self.collate(samples, **padding)


FOLDERS = {
    "vqav2": "tiny_vqa",
    "nlvr2": "tiny_nlvr2",
    "snli_ve": "tiny_snli_ve",
    "flickr30k": "tiny_flickr",
    "coco": "tiny_coco",
}
"""Fixture with a data folder of each task, in conftest.py."""

GRIDS = ((10, 6, 6), (6, 4, 6), (3, 6, 3))
"""Words, patch rows and patch columns of the usual batch."""

PATCH = 8
WORDS = 100


def _build_vilt(head: str = "ViltForQuestionAnswering", layers: int = 3, seed: int = 0, **settings) -> nn.Module:
    torch.manual_seed(seed)
    config = transformers.ViltConfig(
        **{
            "hidden_size": 32,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "vocab_size": WORDS,
            "image_size": 6 * PATCH,
            "patch_size": PATCH,
            "initializer_range": 0.2,
            "max_position_embeddings": 40,
            "num_labels": 7,
            "modality_type_vocab_size": 3,
            "num_images": 2,
            "tie_word_embeddings": False,
        }
        | settings
    )
    model = getattr(transformers, head)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():  # biases, [CLS] and positions: a model in which they matter
                parameter.normal_(0, 0.2)
    return model


def _sample_vilt(seed: int, words: int, rows: int, columns: int, images: int = 1) -> Sample:
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, WORDS, (words,), generator=random)
    size = (3, rows * PATCH, columns * PATCH)
    return Sample(ids, tuple(torch.randn(size, generator=random) for _ in range(images)))


def _collate_vilt(samples: Sequence[Sample], text: int = 0, rows: int = 0, columns: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(99)
    T = max(text, *(len(sample.words) for sample in samples))
    height = max(rows * PATCH, *(image.shape[1] for sample in samples for image in sample.images))
    width = max(columns * PATCH, *(image.shape[2] for sample in samples for image in sample.images))
    B, images = len(samples), len(samples[0].images)
    ids = torch.randint(5, WORDS, (B, T), generator=random)
    mask = torch.zeros(B, T, dtype=torch.int64)
    pixels = torch.randn(B, images, 3, height, width, generator=random)
    pixel_mask = torch.zeros(B, images, height, width, dtype=torch.int64)
    for i, sample in enumerate(samples):
        ids[i, : len(sample.words)] = sample.words
        mask[i, : len(sample.words)] = 1
        for j, image in enumerate(sample.images):
            pixels[i, j, :, : image.shape[1], : image.shape[2]] = image
            pixel_mask[i, j, : image.shape[1], : image.shape[2]] = 1
    if images == 1:
        pixels, pixel_mask = pixels[:, 0], pixel_mask[:, 0]
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels, "pixel_mask": pixel_mask}


def _vilt_root(model: nn.Module) -> nn.Module:
    return getattr(model, "vilt", model)


def _silence_vilt(model: nn.Module) -> None:
    for layer in _vilt_root(model).encoder.layer:
        for linear in (layer.attention.output.dense, layer.output.dense):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)


SIDE = 6
"""Patch rows and columns of METER's images, which all have one size."""


def _build_meter(head: str = "MeterForQuestionAnswering", layers: int = 3, seed: int = 0, **settings) -> nn.Module:
    torch.manual_seed(seed)
    shape = {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "initializer_range": 0.2,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    dropouts = {name: value for name, value in settings.items() if "dropout" in name}
    config = meter.MeterConfig(
        **shape
        | {
            "text_config": shape
            | dropouts
            | {"num_hidden_layers": 2, "vocab_size": WORDS, "max_position_embeddings": 42},
            "vision_config": {
                "hidden_size": 32,
                "num_attention_heads": 4,
                "intermediate_size": 64,
                "initializer_range": 0.2,
                "num_hidden_layers": 3,
                "image_size": SIDE * PATCH,
                "patch_size": PATCH,
            },
            "num_cross_modal_pairs": layers,
            "num_labels": 7,
            "modality_type_vocab_size": 3,
            "tie_word_embeddings": False,
        }
        | settings
    )
    model = getattr(meter, head)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():  # biases: a model in which they matter
                parameter.normal_(0, 0.2)
    return model


def _sample_meter(seed: int, words: int, rows: int, columns: int, images: int = 1) -> Sample:
    return _sample_vilt(seed, words, SIDE, SIDE, images)


def _collate_meter(samples: Sequence[Sample], text: int = 0, rows: int = 0, columns: int = 0) -> dict[str, Tensor]:
    inputs = _collate_vilt(samples, text)
    del inputs["pixel_mask"]
    return inputs


def _silence_meter(model: nn.Module) -> None:
    encoder = getattr(model, "meter", model).encoder
    for layer in (*encoder.text_layers, *encoder.image_layers):
        for part in (layer, layer.attention, layer.cross_attention):
            part.layer_norm = nn.Identity()
        for linear in (layer.attention.dense, layer.cross_attention.dense, layer.output):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)


TINY: dict[str, Tiny] = {
    "vilt": Tiny(
        heads=(
            "ViltForQuestionAnswering",
            "ViltModel",
            "ViltForImageAndTextRetrieval",
            "ViltForImagesAndTextClassification",
            "ViltForMaskedLM",
            "ViltForTokenClassification",
        ),
        two_images=frozenset({"ViltForImagesAndTextClassification"}),
        per_word=frozenset({"ViltForMaskedLM", "ViltForTokenClassification"}),
        patch=PATCH,
        build=_build_vilt,
        sample=_sample_vilt,
        collate=_collate_vilt,
        root=_vilt_root,
        silence=_silence_vilt,
        states=lambda output: output.hidden_states,
    ),
    "meter": Tiny(
        heads=(
            "MeterForQuestionAnswering",
            "MeterModel",
            "MeterForImageAndTextRetrieval",
            "MeterForImagesAndTextClassification",
            "MeterForMaskedLM",
        ),
        two_images=frozenset({"MeterForImagesAndTextClassification"}),
        per_word=frozenset({"MeterForMaskedLM"}),
        patch=PATCH,
        build=_build_meter,
        sample=_sample_meter,
        collate=_collate_meter,
        root=lambda model: getattr(model, "meter", model),
        silence=_silence_meter,
        states=lambda output: [
            torch.cat(pair, dim=1) for pair in zip(output.text_hidden_states, output.image_hidden_states, strict=True)
        ],
        stride=2,
        vision=True,
    ),
}


def grid(examples: Sequence[Example]) -> list[tuple[str, Example]]:
    """Every backbone with every one of these configs that it takes, fitted to it."""
    return [
        (backbone, replace(example, config=tiny.fit(example.config), off=example.off and tiny.fit(example.off)))
        for backbone, tiny in TINY.items()
        for example in examples
        if tiny.takes(example.config)
    ]


GRID = grid([example for examples in EXAMPLES.values() for example in examples])
"""Every backbone with every example config."""

HEADS = [(backbone, head) for backbone, tiny in TINY.items() for head in tiny.heads]
"""Every head class of every backbone."""


def in_vision(example: Example) -> bool:
    """Whether it reduces in a vision encoder."""
    return any(stack == "vision" for stack, _ in example.config.places())


def label(value: object) -> str | None:
    """How pytest calls a parameter: the settings that are not zero."""
    if not isinstance(value, Example):
        return None
    if in_vision(value):
        return f"{value.config.method}-vision"
    steps = getattr(value.config, "schedule", None) or [value.config]
    ratios = {name: r for step in steps for name, r in vars(step).items() if name.endswith("_ratio") and r}
    return "-".join([value.config.method, *(f"{name.removesuffix('_ratio')}{r}" for name, r in ratios.items())])


def answer(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """What the model computes: logits, or the pooled vector of a base model."""
    output = model(**inputs)
    return output.logits if "logits" in output else output.pooler_output


def to(inputs: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The batch with its images in another precision."""
    return {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}


class Shapes(TorchDispatchMode):
    """Notes every tensor that an operator returns."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, tuple | list) else [result]
        self.seen |= {tuple(item.shape) for item in results if isinstance(item, torch.Tensor)}
        return result
