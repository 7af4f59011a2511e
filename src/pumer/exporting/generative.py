"""`pumer export` of a generative model: a program that reads prompts, one that goes on by a token, both checked."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pumer.backbones.decoders import DECODERS, DecoderFamily
from pumer.backbones.encoding import encode
from pumer.checkpoint import write_reduction
from pumer.exporting.card import generative_card
from pumer.exporting.generation_runtime import QUESTION, ExportedGenerator, cropped, program_files, prompt_ids
from pumer.exporting.programs import CLOSE, PACKAGES, write_graph
from pumer.exporting.prompt_programs import Decode, Prefill, exported_attention
from pumer.exporting.record import GENERATIVE, GENERATIVE_VERSION
from pumer.exporting.weights import digest, share_weights
from pumer.generative import prompts
from pumer.patching import patch, reduction, unpatch
from pumer.reducers import DivPruneConfig, NoReduction, ReductionConfig, VisionZipConfig, config_to_dict
from pumer.reducers.shortening.base import RatioShorteningConfig, ShorteningConfig
from pumer.settings.export import ExportConfig, Runtime
from pumer.utils.errors import InputError
from pumer.utils.files import first_line, remove_leftovers, replacing, write_json, write_text
from pumer.utils.places import EXPORTED
from pumer.utils.provenance import collect
from pumer.utils.shipped import name_of

FAMILIES = ("llava",)
"""Whose images have one size; encoders of images of many sizes ask for these sizes while a program is made."""
SHORTENING = (DivPruneConfig, VisionZipConfig)
"""Before the decoder: what keeps a number of tokens that is known before, without a look at the words."""
TEXT_LENGTH = 64
"""Tokens of a prompt beside those of its image, unless another number is given."""
NEW_TOKENS = 8
"""Tokens after the prompt whose logits are checked."""


def write(config: ExportConfig, model: Any, processor: Any) -> dict[str, Any]:
    """Write a generative model as two programs; see `pumer.exporting.export.export`.

    Args:
        config: Of the export.
        model: The model; it stays patched as it was, and is then on the CPU, in float32.
        processor: Its processor; None: only inputs that one made can be answered.

    Returns:
        The content of ``export.json``.

    Raises:
        InputError: For families and reductions that cannot be exported, and if the logits of a float32 program differ
            from the model's by more than `CLOSE`.
    """
    name, family, own = name_of(config.model), _family(model), reduction(model)
    model = model.eval().to(device="cpu", dtype=torch.float32)
    before, inside = _split(own)
    given: dict[str, Any] = {"image_size": config.image_size, "parts": config.parts}
    given["precision"] = "int8" if config.precision == "int8" else None
    given["text_length"] = config.text_length if len(config.text_length or ()) > 1 else None  # one is taken
    if wrong := [f"{option}={value}" for option, value in given.items() if value]:
        raise InputError(f"{wrong[0]} is not for a model that generates; leave it out")
    text, pixels = getattr(model.model, family.decoder), _pixels(model)
    with torch.no_grad():
        image_tokens = len(encode(model.model, {"pixel_values": pixels})["image"].features)
    left = image_tokens if before is None else before.kept(image_tokens)
    stages = [0, *sorted({layer + 1 for stack, layer in inside.reducers() if stack == "decoder"})]
    (length,) = config.text_length or (TEXT_LENGTH,)
    record: dict[str, Any] = {
        "version": GENERATIVE_VERSION,
        "kind": GENERATIVE,
        "format": config.to,
        "precision": config.precision,
        "source": name,
        "architecture": type(model).__name__,
        "reduction": config_to_dict(own or NoReduction()),
        "image_tokens": image_tokens,
        "image_token_id": model.config.image_token_id,
        "text_length": length,
        "pixel_shape": list(pixels.shape[1:]),
        "stages": stages,
        "vocabulary": text.config.vocab_size,
        "end": _ends(model),
        "padding": getattr(text.config, "pad_token_id", None) or 0,
        "pixels": None if processor is None else _about_pixels(processor, pixels.shape[2]),
        "prompt": None if processor is None else _about_prompt(processor, image_tokens),
    }
    examples = _examples(model, record)
    remove_leftovers(config.out)
    with replacing(config.out, whole=True) as folder:
        files = program_files(folder, config.to)
        with _patched(model, replace(inside, image_tokens=left)), exported_attention(text):
            prefill, decode = Prefill(model, text, stages, before), Decode(model, text, stages)
            try:
                _write_programs(prefill, decode, [x[:1] for x in examples.values()], files, config.to)
            except InputError:
                raise
            except Exception as error:  # an exporter raises whatever it stumbles over in a graph
                asked = sorted(set(re.findall(r"aten[.:]+\w+", f"{error} {error.__cause__}")))  # amid reports
                raise InputError(
                    f"{name} with {record['reduction']['method']} cannot be written for {config.to} "
                    f"({', '.join(asked) or first_line(error)}); give another reduction, or another --to"
                ) from error
        share_weights(files, config.to)
        record["sha256"] = digest(folder)
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        write_reduction(model, folder)
        if processor is not None:
            processor.save_pretrained(folder)
        write_json(folder / EXPORTED, record)
        record["differences"] = differences(model, ExportedGenerator(folder), examples)
        worst = max(row["largest"] for row in record["differences"])
        if config.precision == "f32" and not worst <= CLOSE:
            raise InputError(
                f"the logits of the exported {name} differ from the model's by up to {worst:.2g}, which is more than "
                f"{CLOSE:g}; nothing was written: give another format with --to"
            )
        record["provenance"] = collect(config, config.precision)
        record["provenance"]["versions"] |= {name: version(name) for name in PACKAGES[config.to]}
        write_json(folder / EXPORTED, record)
        write_text(folder / "README.md", generative_card(record))
    return record


def _family(model: Any) -> DecoderFamily:
    kind = getattr(getattr(model, "config", None), "model_type", "")
    if kind not in FAMILIES:
        raise InputError(
            f"{type(model).__name__} cannot be exported yet: among models that generate, only those whose images all "
            f"have one size can, which are {', '.join(FAMILIES)}"
        )
    return DECODERS[kind]


def _split(config: ReductionConfig | None) -> tuple[RatioShorteningConfig | None, ReductionConfig]:
    """What shortens prompts before the decoder, and what reduces inside; refuses what a program cannot do."""
    before = config if isinstance(config, ShorteningConfig) else config and config.before
    inside = NoReduction() if config is None or isinstance(config, ShorteningConfig) else replace(config, before=None)
    if before is None:
        return None, inside
    if not isinstance(before, SHORTENING):
        allowed = ", ".join(each.method for each in SHORTENING)
        raise InputError(
            f"'{before.method}' before the decoder cannot be exported: it looks at words, or keeps a number of tokens "
            f"that depends on the image; give {allowed}"
        )
    return before, inside


@contextmanager
def _patched(model: Any, config: ReductionConfig) -> Iterator[None]:
    """Another reduction for the length of a block."""
    own = reduction(model)
    patch(model, config)
    try:
        yield
    finally:
        unpatch(model) if own is None else patch(model, own)


def _pixels(model: Any, count: int = 1) -> Tensor:
    """Random images."""
    vision = model.config.vision_config
    shape = (count, getattr(vision, "num_channels", 3), vision.image_size, vision.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _examples(model: Any, record: Mapping[str, Any]) -> dict[str, Tensor]:
    """Two random prompts, the second one with half of the text."""
    words, image = record["text_length"], record["image_tokens"]
    random, special = torch.Generator().manual_seed(0), {record["image_token_id"], record["padding"], *record["end"]}
    known = torch.tensor([token for token in range(record["vocabulary"]) if token not in special])
    text = known[torch.randint(len(known), (2, words), generator=random)]
    before = words // 2
    ids = torch.cat([text[:, :before], torch.full((2, image), record["image_token_id"]), text[:, before:]], dim=1)
    mask = torch.ones_like(ids)
    mask[1, :before], ids[1, :before] = 0, record["padding"]
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": _pixels(model, 2)}


@torch.no_grad()
def _write_programs(
    prefill: Prefill, decode: Decode, inputs: Sequence[Tensor], files: tuple[Path, Path], to: Runtime
) -> None:
    """Write both programs.

    Args:
        prefill: Reads a prompt.
        decode: Goes on from what that leaves.
        inputs: Of one prompt.
        files: To write.
        to: What is to run them.
    """
    write_graph(prefill.eval(), inputs, [()] * len(inputs), files[0], to)
    _, *left = prefill(*inputs)
    masks = [place < len(decode.stages) for place in range(len(left))]
    state = [  # of two prompts, with two free columns
        torch.nn.functional.pad(torch.cat([x, x]), (0, 2) if mask else (0, 0, 0, 2))
        for x, mask in zip(left, masks, strict=True)
    ]
    token = torch.zeros(2, 1, dtype=torch.int64)
    position = token.clone()  # one tensor for two inputs would make them one input
    free = [(0,), (0,), *((0, 1) if mask else (0, 2) for mask in masks)]
    write_graph(decode.eval(), [token, position, *state], free, files[1], to)


def differences(model: Any, exported: ExportedGenerator, inputs: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """How much the logits of an exported model differ: of the prompts, and of `NEW_TOKENS` likeliest tokens after.

    Returns:
        Rows of ``token`` (0: the first after the prompt), ``largest`` (absolute difference) and ``logits`` (largest
        absolute logit).
    """
    fixed: dict[str, Any] = dict.fromkeys(("temperature", "top_p", "top_k"))
    fixed |= {"max_new_tokens": NEW_TOKENS + 1, "min_new_tokens": NEW_TOKENS + 1, "do_sample": False, "num_beams": 1}
    fixed |= {"return_dict_in_generate": True, "output_logits": True, "pad_token_id": exported.record["padding"]}
    own = model.generate(**inputs, **fixed)
    tokens = own.sequences[:, -NEW_TOKENS - 1 :].numpy()
    steps = exported.steps(NEW_TOKENS, **inputs)
    rows: list[dict[str, Any]] = []
    for token, expected in enumerate(own.logits):
        logits = torch.from_numpy(next(steps) if token == 0 else steps.send(tokens[:, token - 1]))
        largest, most = float((logits - expected).abs().max()), float(expected.abs().max())
        rows.append({"token": token, "largest": largest, "logits": most})
    return rows


def _ends(model: Any) -> list[int]:
    """The ids that end an answer."""
    end = model.generation_config.eos_token_id
    end = model.config.get_text_config().eos_token_id if end is None else end
    return [] if end is None else list(np.atleast_1d(end).tolist())


def _about_pixels(processor: Any, side: int) -> dict[str, Any] | None:
    """How an image becomes numbers; None where `cropped` does not do as the processor."""
    images = processor.image_processor
    edge, crop = (images.size or {}).get("shortest_edge"), images.crop_size or {}
    if edge is None or (crop.get("height"), crop.get("width")) != (side, side) or not images.do_center_crop:
        return None
    about = {
        "edge": edge,
        "crop": [side, side],
        "resample": int(images.resample),
        "scale": images.rescale_factor,
        "mean": list(images.image_mean),
        "std": list(images.image_std),
    }
    image = _noise(2 * side + 1, side + 3)
    expected = np.asarray(images(image, return_tensors="np")["pixel_values"])[0]
    return about if np.abs(cropped(image, about) - expected).max() < 0.05 else None  # two levels of 256


def _about_prompt(processor: Any, image_tokens: int) -> dict[str, Any] | None:
    """How a question becomes ids; None where the tokenizer alone does not do as the processor."""
    image, tokenizer = getattr(processor, "image_token", None), getattr(processor.tokenizer, "backend_tokenizer", None)
    if image is None or tokenizer is None or processor.chat_template is None:
        return None
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    if text.count(QUESTION) != 1 or text.count(image) != 1:
        return None
    asked = "What is it?"
    expected = prompts(processor, [([_noise(40, 30)], asked)])["input_ids"][0].tolist()
    for special in (False, True):
        about = {"text": text, "image_token": image, "special": special}
        if prompt_ids(tokenizer, about, image_tokens, [asked]) == [expected]:
            return about
    return None


def _noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
