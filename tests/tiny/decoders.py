"""Tiny random generative models of every decoder family, and prompts with images for them.

Every model has a text decoder of width 32, 4 heads (2 of keys and values), 200 ids and, if no other number is asked
for, 6 layers. The ids in `WORDS` are words; the others are padding, end and what stands around images. No model ever
says one of those: greedy generation always runs to its last token.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import unpad_image

from tiny.base import fill_zeros

VOCABULARY = 200
WORDS = range(3, 140)
PAD, BEGIN, END = 0, 1, 2
IMAGE, VIDEO, IMAGE_START, IMAGE_END, ROW_END = 150, 151, 152, 153, 154

PATCH, SIDE = 8, 32
"""Pixels along a patch and along a tile. Qwen's and Mistral's patches are half as wide; four become one token."""


@dataclass(frozen=True)
class Image:
    """What a processor makes of one image.

    Attributes:
        ids: Ids in the prompt; those equal to `IMAGE` take the place of the image's tokens.
        pixels: Tiles ``(N, 3, SIDE, SIDE)``, a whole image ``(3, height, width)`` or patches ``(N, values)``.
        size: Height and width in pixels, or the grid of patches (frames, rows, columns).
    """

    ids: list[int]
    pixels: Tensor
    size: tuple[int, ...]


@dataclass(frozen=True)
class Sample:
    """One prompt: ids with placeholders, and its images in their order."""

    ids: list[int]
    images: tuple[Image, ...]


@dataclass(frozen=True)
class TinyDecoder:
    """How tests make a model and inputs of one decoder family.

    Attributes:
        build: From the layers of the text decoder to a model with transformers' own first values.
        image: From a generator and whether the image is alone in its prompt to a random image.
        collate: From samples and their padded ids ``(B, T)`` to keyword arguments beside ids and mask.
    """

    build: Callable[..., nn.Module]
    image: Callable[[torch.Generator, bool], Image]
    collate: Callable[[Sequence[Sample], Tensor], dict[str, Tensor]]

    def model(self, layers: int = 6) -> nn.Module:
        """A model in eval mode, float32, the same at every call; random numbers drawn outside stay as they are."""
        with _seeded():
            model = self.build(layers)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim > 1:
                        parameter.normal_(0, 1.4 / parameter[0].numel() ** 0.5)  # large, so that tokens matter
                model.lm_head.weight[[i for i in range(VOCABULARY) if i not in WORDS]] = 0
            return fill_zeros(model)

    def sample(self, seed: int, images: int = 1, before: int = 4, after: int = 6) -> Sample:
        """A prompt with ``before`` words, the images and ``after`` words; image sizes differ from seed to seed."""
        random = torch.Generator().manual_seed(seed)
        drawn = tuple(self.image(random, images == 1) for _ in range(images))
        around = text(before + after, seed)
        return Sample([*around[:before], *(i for image in drawn for i in image.ids), *around[before:]], drawn)

    def batch(
        self, samples: Sequence[Sample], padding: str = "left", dtype: torch.dtype = torch.float64
    ) -> dict[str, Tensor]:
        """Keyword arguments of ``model()`` and ``model.generate()``.

        Padded left, ``model()`` counts padding as positions, except Qwen-VL: its logits are those of a prompt alone
        only to the rounding of rotary angles, 1e-5. ``generate()`` counts from the first real token.
        """
        T = max(len(sample.ids) for sample in samples)
        ids, mask = torch.full((len(samples), T), PAD), torch.zeros(len(samples), T, dtype=torch.int64)
        for row, row_mask, sample in zip(ids, mask, samples, strict=True):
            place = slice(T - len(sample.ids), None) if padding == "left" else slice(len(sample.ids))
            row[place], row_mask[place] = torch.tensor(sample.ids), 1
        inputs = {"input_ids": ids, "attention_mask": mask}
        if any(sample.images for sample in samples):
            inputs |= self.collate(samples, ids)
        return {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}


def text(n: int, seed: int) -> list[int]:
    """Random words."""
    return torch.randint(WORDS.start, WORDS.stop, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


# ---------------------------------------------------------------- models

_LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
_TEXT = _LAYERS | {
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 4096,
    "pad_token_id": PAD,
    "bos_token_id": BEGIN,
    "eos_token_id": END,
}
_VISION = _LAYERS | {"num_hidden_layers": 2, "image_size": SIDE, "patch_size": PATCH}
_GRID_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "num_heads": 4,
    "patch_size": PATCH // 2,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_TILINGS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]


def _builder(name: str, text: dict[str, Any], vision: dict[str, Any], **settings: Any) -> Callable[..., nn.Module]:
    """Builds ``name`` with these settings beside `_TEXT`."""

    def build(layers: int = 6) -> nn.Module:
        whole = getattr(transformers, f"{name}ForConditionalGeneration")
        config = whole.config_class(
            text_config=_TEXT | {"num_hidden_layers": layers} | text,
            vision_config=vision,
            image_token_id=IMAGE,
            tie_word_embeddings=False,
            **settings,
        )
        return whole._from_config(config, attn_implementation="sdpa")

    return build


def _grid_builder(name: str, sections: list[int], **vision: Any) -> Callable[..., nn.Module]:
    """Builds a Qwen-VL or GLM model; ``sections`` are the frequencies that stand for frame, row and column."""
    return _builder(
        name,
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}},
        _GRID_VISION | vision,
        video_token_id=VIDEO,
        vision_start_token_id=IMAGE_START,
        vision_end_token_id=IMAGE_END,
    )


# ---------------------------------------------------------------- images


def _draw(random: torch.Generator, *choices: Any) -> Any:
    return choices[int(torch.randint(len(choices), (), generator=random))]


def _one_tile(random: torch.Generator, alone: bool) -> Image:
    """As LLaVA: every image has one size."""
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=random)
    return Image([IMAGE_START, *[IMAGE] * (SIDE // PATCH) ** 2, IMAGE_END], pixels, (SIDE, SIDE))


def _tiles(random: torch.Generator, alone: bool) -> Image:
    """As InternVL: one to four tiles in one run of placeholders; four patches become one token."""
    count = _draw(random, 1, 2, 3, 4)
    pixels = torch.randn(count, 3, SIDE, SIDE, generator=random)
    return Image([IMAGE_START, *[IMAGE] * count * (SIDE // PATCH // 2) ** 2, IMAGE_END], pixels, (SIDE, SIDE * count))


def _split_tiles(random: torch.Generator, alone: bool) -> Image:
    """As Idefics3: one to four tiles, each a run of placeholders of its own; four patches become one token."""
    count = _draw(random, 1, 2, 3, 4)
    ids = [IMAGE_START, *[IMAGE] * (SIDE // PATCH // 2) ** 2] * count + [IMAGE_END]
    return Image(ids, torch.randn(count, 3, SIDE, SIDE, generator=random), (SIDE, SIDE * count))


def _anyres(random: torch.Generator, alone: bool) -> Image:
    """As LLaVA-NeXT: the whole image as one tile, then its tiles without their padding, each row with an end."""
    height, width = _draw(random, (32, 64), (16, 64), (64, 32), (64, 64), (64, 20), (48, 64))
    rows, columns = (pixels // PATCH for pixels in select_best_resolution((height, width), _TILINGS))
    _, shown, across = unpad_image(torch.empty(1, rows, columns), (height, width)).shape
    side = SIDE // PATCH
    pixels = torch.randn(1 + rows * columns // side**2, 3, SIDE, SIDE, generator=random)
    return Image([IMAGE_START, *[IMAGE] * (side**2 + shown * (across + 1)), IMAGE_END], pixels, (height, width))


def _anyres_alone(random: torch.Generator, alone: bool) -> Image:
    """As LLaVA-OneVision: an image that is not alone is one tile and one end."""
    image = _anyres(random, alone)
    if alone:
        return image
    return Image([IMAGE_START, *[IMAGE] * ((SIDE // PATCH) ** 2 + 1), IMAGE_END], image.pixels[:1], image.size)


def _grid(random: torch.Generator, alone: bool) -> Image:
    """As Qwen2-VL and GLM-4V: patches in any grid; four patches become one token."""
    rows, columns = _draw(random, 4, 6, 8), _draw(random, 4, 6, 10)
    pixels = torch.randn(rows * columns, 3 * 2 * (PATCH // 2) ** 2, generator=random)
    return Image([IMAGE_START, *[IMAGE] * (rows * columns // 4), IMAGE_END], pixels, (1, rows, columns))


def _rows(random: torch.Generator, alone: bool) -> Image:
    """As Mistral3: images of any size, with an id after each row of tokens; four patches become one token."""
    rows, columns = _draw(random, 2, 3, 4), _draw(random, 2, 3, 5)
    ids = [*[IMAGE] * columns, ROW_END] * rows
    size = (rows * PATCH, columns * PATCH)
    return Image([*ids[:-1], IMAGE_END], torch.randn(3, *size, generator=random), size)


# ---------------------------------------------------------------- batches


def _images(samples: Sequence[Sample]) -> list[Image]:
    return [image for sample in samples for image in sample.images]


def _sizes(samples: Sequence[Sample]) -> Tensor:
    return torch.tensor([image.size for image in _images(samples)])


def _padded(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of unequal shapes in one, with zeros after their ends."""
    shape = [max(sizes) for sizes in zip(*(x.shape for x in tensors), strict=True)]
    whole = torch.zeros(len(tensors), *shape)
    for row, x in zip(whole, tensors, strict=True):
        row[tuple(slice(size) for size in x.shape)] = x
    return whole


def _joined(samples: Sequence[Sample], ids: Tensor) -> dict[str, Tensor]:
    return {"pixel_values": torch.cat([image.pixels for image in _images(samples)])}


def _sized(samples: Sequence[Sample], ids: Tensor) -> dict[str, Tensor]:
    return {
        "pixel_values": _padded([image.pixels for image in _images(samples)]),
        "image_sizes": _sizes(samples),
    }


def _counted(samples: Sequence[Sample], ids: Tensor) -> dict[str, Tensor]:
    return _sized(samples, ids) | {"batch_num_images": torch.tensor([len(sample.images) for sample in samples])}


def _gridded(samples: Sequence[Sample], ids: Tensor) -> dict[str, Tensor]:
    return _joined(samples, ids) | {"image_grid_thw": _sizes(samples), "mm_token_type_ids": (ids == IMAGE).int()}


def _per_prompt(samples: Sequence[Sample], ids: Tensor) -> dict[str, Tensor]:
    none = torch.zeros(0, 3, SIDE, SIDE)
    tiles = [torch.cat([none, *(image.pixels for image in sample.images)]) for sample in samples]
    return {
        "pixel_values": _padded(tiles),
        "pixel_attention_mask": _padded([torch.ones_like(x[:, 0]) for x in tiles]).long(),
    }


# ---------------------------------------------------------------- families

_INTERNVL_VISION = _VISION | {"image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]}
_IDEFICS3 = ({"model_type": "llama"}, _VISION)

DECODERS: dict[str, TinyDecoder] = {
    "llava": TinyDecoder(
        _builder("Llava", {"model_type": "llama"}, _VISION | {"model_type": "clip_vision_model"}), _one_tile, _joined
    ),
    "llava_next": TinyDecoder(
        _builder(
            "LlavaNext",
            {"model_type": "llama"},
            _VISION | {"model_type": "clip_vision_model"},
            image_grid_pinpoints=_TILINGS,
        ),
        _anyres,
        _sized,
    ),
    "llava_onevision": TinyDecoder(
        _builder(
            "LlavaOnevision",
            {"model_type": "qwen2"},
            _VISION | {"model_type": "siglip_vision_model"},
            image_grid_pinpoints=_TILINGS,
            video_token_id=VIDEO,
        ),
        _anyres_alone,
        _counted,
    ),
    "qwen2_vl": TinyDecoder(_grid_builder("Qwen2VL", [1, 1, 2], embed_dim=32), _grid, _gridded),
    "qwen2_5_vl": TinyDecoder(
        _grid_builder(
            "Qwen2_5_VL",
            [1, 1, 2],
            out_hidden_size=32,
            intermediate_size=64,
            window_size=2 * PATCH,
            fullatt_block_indexes=[1],
        ),
        _grid,
        _gridded,
    ),
    "qwen3_vl": TinyDecoder(
        _grid_builder(
            "Qwen3VL",
            [2, 1, 1],
            depth=3,
            out_hidden_size=32,
            intermediate_size=64,
            num_position_embeddings=64,
            deepstack_visual_indexes=[0, 1],
        ),
        _grid,
        _gridded,
    ),
    "smolvlm": TinyDecoder(_builder("SmolVLM", *_IDEFICS3, pad_token_id=PAD), _split_tiles, _per_prompt),
    "idefics3": TinyDecoder(_builder("Idefics3", *_IDEFICS3, pad_token_id=PAD), _split_tiles, _per_prompt),
    "internvl": TinyDecoder(_builder("InternVL", {"model_type": "qwen2"}, _INTERNVL_VISION), _tiles, _joined),
    "internvl_qwen3": TinyDecoder(_builder("InternVL", {"model_type": "qwen3"}, _INTERNVL_VISION), _tiles, _joined),
    "mistral3": TinyDecoder(
        _builder(
            "Mistral3",
            {"model_type": "mistral", "sliding_window": None},
            _VISION | {"model_type": "pixtral", "patch_size": PATCH // 2, "image_size": 2 * SIDE},
        ),
        _rows,
        _sized,
    ),
    "glm4v": TinyDecoder(
        _grid_builder("Glm4v", [1, 1, 2], out_hidden_size=32, intermediate_size=64, image_size=SIDE), _grid, _gridded
    ),
}
"""Every decoder family, by transformers' model type; InternVL 3.5 has another text model than InternVL 3."""


REFUSED: dict[str, Callable[..., nn.Module]] = {
    "paligemma": _builder(
        "PaliGemma", {"model_type": "gemma"}, _VISION | {"model_type": "siglip_vision_model"}, projection_dim=32
    ),
    "gemma3": _builder("Gemma3", {}, _VISION, mm_tokens_per_image=4),
    "qwen3_5": _builder(
        "Qwen3_5",
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        },
        _GRID_VISION | {"out_hidden_size": 32, "intermediate_size": 64, "num_position_embeddings": 64},
    ),
    "llama4": _builder(
        "Llama4",
        {"intermediate_size_mlp": 64, "num_local_experts": 2},
        _VISION | {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
    ),
}
"""Models of families with other text decoders, without inputs."""
