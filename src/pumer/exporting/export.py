"""`pumer export`: a model as a folder that OpenVINO, ONNX Runtime or torch runs, checked against the model itself."""

import copy
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pumer.backbones import DECODERS, REFUSED, Backbone, backbone_of
from pumer.backbones.image_size import set_image_size
from pumer.checkpoint import has_processor, load, load_processor, trained_with, write_reduction
from pumer.data.pixels import Pixels
from pumer.exporting import generative
from pumer.exporting.card import card
from pumer.exporting.parts import parts_of
from pumer.exporting.programs import CLOSE, PACKAGES, write_program
from pumer.exporting.quantizing import agreement, calibration_inputs, quantize
from pumer.exporting.record import SUFFIXES, VERSION
from pumer.exporting.runtime import ExportedModel
from pumer.exporting.weights import digest, share_weights
from pumer.generative import is_generative, load_generative
from pumer.patching import patch, reduction, unwrapped
from pumer.profiling.inputs import inputs_for
from pumer.profiling.named_models import PAPER_TEXT_LENGTH
from pumer.reducers import NoReduction, config_to_dict, reduction_from
from pumer.settings.export import ExportConfig, Precision, Runtime
from pumer.tasks.loading import text_length_of
from pumer.tasks.session import labels_of
from pumer.utils.errors import InputError
from pumer.utils.files import remove_leftovers, replacing, write_json, write_text
from pumer.utils.locks import exclusive, only_one
from pumer.utils.places import EXPORTED, check_export
from pumer.utils.provenance import collect
from pumer.utils.shipped import name_of

logger = logging.getLogger(__name__)

BATCHES = (1, 3, 8)
"""Sizes of the batches that a program is checked with."""


def export(
    model: PreTrainedModel | str | Path,
    out: str | Path,
    to: Runtime = "openvino",
    precision: Precision = "f32",
    *,
    calibration: str | Path | Sequence[Mapping[str, Tensor]] | None = None,
    calibration_examples: int = 300,
    image_size: int | None = None,
    text_length: int | Sequence[int] | None = None,
    parts: bool = False,
    processor: Any = None,
    force: bool = False,
) -> dict[str, Any]:
    """Write a model as a program that takes batches of any size, of one image size and word count.

    Of several word counts there is a program for each, and each batch is answered by the smallest that its texts fit.
    The folder holds the programs, the processor, ``config.json``, ``reduction.json``, and a card: ``README.md`` and
    ``export.json``, with how much its logits differ from the model's on random inputs. `pumer evaluate`, `predict` and
    `benchmark` take it in the place of a model, and so does `pumer.ExportedModel`, without torch. A model that
    generates becomes two programs, for `pumer.ExportedGenerator`.

    Args:
        model: A model with a head, patched or not, or the name of one, as for `pumer.load`.
        out: Folder to write; as a whole or not at all.
        to: What is to run the program.
        precision: Of OpenVINO's arithmetic, where the processor has it. "int8" is of the linear layers, the rest is in
            float32; of all others the weights are stored as float32.
        calibration: What sets the ranges of an int8 program: a data folder, of whose training examples it takes some,
            or batches of inputs; None for the folder that the model was trained on.
        calibration_examples: How many training examples.
        image_size: Pixels along a side; None for the model's own.
        text_length: Words, special tokens counted, or several such counts; None for as many as it was trained with,
            else 32. Of a model that generates, tokens of a prompt beside those of its image; None for 64.
        parts: Whether to write image encoder, text encoder and fusion as programs of their own, so that an image that
            is asked many questions is encoded once; of METER.
        processor: The model's, where ``model`` is no name; without one, only `ExportedModel.__call__` works.
        force: Whether to replace an exported model that is in ``out``.

    Returns:
        The content of ``export.json``.

    Raises:
        InputError: If the model has no head, generates and is none that a graph can hold, or reads text and image in
            one stream but is to be written in parts; if a library is missing; if there is nothing to calibrate an int8
            program on; and if the logits of a float32 program differ by more than `CLOSE`.

    Example:
        >>> pumer.export("out/vqav2-pumer", "out/vqav2-openvino")["differences"]  # doctest: +SKIP
    """
    settings: dict[str, Any] = {"to": to, "precision": precision, "image_size": image_size}
    lengths = (text_length,) if isinstance(text_length, int) else text_length
    settings |= {"text_length": lengths, "parts": parts, "force": force}
    settings["calibration_examples"] = calibration_examples
    named, inputs = isinstance(model, str | Path), None
    if calibration is None or isinstance(calibration, str | Path):
        settings["calibration"] = None if calibration is None else Path(calibration)
    else:
        inputs = calibration
        if precision != "int8":
            raise InputError(f"calibration is for precision int8, not for {precision}; leave it out")
    config = ExportConfig(model=str(model) if named else type(model).__name__, out=Path(out), **settings)
    if isinstance(model, str | Path):
        return run(config, inputs)
    check_export(config.out, force)
    with only_one(config.out):
        own, processor = copy.deepcopy(unwrapped(model)), copy.deepcopy(processor)
        if _generates(own):
            return generative.write(config, own, processor)
        return _write(config, own, processor, {}, inputs)


@exclusive
def run(config: ExportConfig, calibration: Sequence[Mapping[str, Tensor]] | None = None) -> dict[str, Any]:
    """Export a model by its name; see `export`."""
    if is_generative(config.model):
        model, processor = load_generative(config.model, dtype=torch.float32, device="cpu")
        return generative.write(config, _reduced(model, config), processor)
    processor = load_processor(config.model) if has_processor(config.model) else None
    return _write(config, _reduced(load(config.model), config), processor, trained_with(config.model), calibration)


def _reduced(model: Any, config: ExportConfig) -> Any:
    """The model with the reduction that was asked for, else as it is."""
    return model if config.reduction is None else patch(model, reduction_from(config.reduction))


def _generates(model: Any) -> bool:
    return getattr(getattr(model, "config", None), "model_type", "") in (*DECODERS, *REFUSED)


def _write(
    config: ExportConfig,
    model: Any,
    processor: Any,
    trained: dict[str, Any],
    given: Sequence[Mapping[str, Tensor]] | None,
) -> dict[str, Any]:
    name, family = name_of(config.model), _family(model)
    if config.parts and not family.separable:
        kind = type(model).__name__
        raise InputError(f"{kind} reads text and image in one stream, so it has no parts; leave out --parts")
    model = model.eval().to(device="cpu", dtype=torch.float32)
    if reduction(model) is None:
        patch(model, NoReduction())
    reads_any = family.set_image_size is None and processor is not None
    own = Pixels(processor.image_processor).edge if reads_any else int(model.config.image_size)
    size = config.image_size or own
    set_image_size(size, model, processor)
    usual = min(PAPER_TEXT_LENGTH, int(model.config.max_position_embeddings))
    asked = config.text_length or (trained.get("text_length") or usual,)
    lengths = sorted({text_length_of(model.config, each) for each in asked})
    resize = trained.get("resize", "square")
    if resize == "aspect":
        logger.warning("%s was trained on images of any shape; the exported model reads squares", name)
    record: dict[str, Any] = {
        "version": VERSION,
        "format": config.to,
        "precision": config.precision,
        "source": name,
        "architecture": type(model).__name__,
        "reduction": config_to_dict(reduction(model) or NoReduction()),
        "image_size": size,
        "images": model.config.num_images if family.reads_pairs(model) else 1,
        "text_lengths": lengths,
        "vocabulary": model.get_input_embeddings().num_embeddings,
        "labels": list(labels_of(model)),
        "task": trained.get("task"),
        "root": trained.get("data", {}).get("root"),
        "pixels": None if processor is None else _about_pixels(processor.image_processor, resize == "pad"),
        "padding": None if processor is None else _padding(processor.tokenizer),
        "programs": [],
    }
    make = partial(_inputs, model, family, size, batch=2, padded=True)
    calibration: list[dict[str, Tensor]] = []
    if config.precision == "int8":
        calibration, record["calibration"] = calibration_inputs(config, model, processor, trained, lengths[0], given)
    remove_leftovers(config.out)
    with replacing(config.out, whole=True) as folder:
        programs: list[tuple[str, Path]] = []
        for part in parts_of(model, make, lengths, config.parts):
            file = folder / f"{part.name}{SUFFIXES[config.to]}"
            write_program(part.module, part.inputs, file, config.to)
            programs.append((part.name, file))
            shapes = {each: list(x.shape[1:]) for each, x in part.inputs.items()}
            record["programs"].append({"file": file.name, "inputs": shapes, "outputs": list(part.outputs)})
        if len(programs) > 1:
            share_weights([file for _, file in programs], config.to)
        record["sha256"] = digest(folder)
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        write_reduction(model, folder)
        if processor is not None:
            processor.save_pretrained(folder)
        write_json(folder / EXPORTED, record | ({"precision": "f32"} if calibration else {}))  # until it is quantised
        if calibration:
            exported = ExportedModel(folder)
            quantize(programs[0][1], [exported.arrays(**each) for each in calibration])
            record["sha256"] = digest(folder)
            write_json(folder / EXPORTED, record)
        exported = ExportedModel(folder)
        record["differences"] = differences(model, family, exported)
        worst = max(row["largest"] for row in record["differences"])
        if calibration:
            record["calibration"]["agreement"] = agreement(model, exported, calibration)
        if config.precision == "f32" and not worst <= CLOSE:
            raise InputError(
                f"the logits of the exported {name} differ from the model's by up to {worst:.2g}, which is more than "
                f"{CLOSE:g}; nothing was written: give another format with --to"
            )
        record["provenance"] = collect(config, config.precision)
        packages = (*PACKAGES[config.to], *(["nncf"] if calibration else []))
        record["provenance"]["versions"] |= {name: version(name) for name in packages}
        write_json(folder / EXPORTED, record)
        write_text(folder / "README.md", card(record))
    return record


def _family(model: Any) -> Backbone:
    """The family of a model with a head; refuses others."""
    family, kind = backbone_of(model), type(model).__name__
    heads = () if family is None else (*family.heads.values(), *family.word_heads)
    if family is None or not isinstance(model, heads):
        raise InputError(f"{kind} has no head whose logits could be exported; give a model of ViLT or METER with one")
    return family


def _inputs(
    model: Any, family: Backbone, size: int, length: int, batch: int, padded: bool, shortest: int = 2
) -> dict[str, Tensor]:
    """Random inputs; if `padded`, each text but the first is shorter, and each image where it may be.

    One text alone has at least the `shortest` length.
    """
    inputs = inputs_for(model, size, length, batch)
    random, patch_size = torch.Generator().manual_seed(batch), model.config.patch_size
    if family.pixel_mask:
        pixels = inputs["pixel_values"]
        inputs["pixel_mask"] = torch.ones(*pixels.shape[:-3], *pixels.shape[-2:], dtype=torch.int64)
    for row in range(1, batch) if padded else ():
        words = int(torch.randint(2, length + 1, (), generator=random))
        inputs["attention_mask"][row, words:] = 0
        if family.pixel_mask:
            height, width = torch.randint(1, size // patch_size + 1, (2,), generator=random).mul(patch_size).tolist()
            inputs["pixel_mask"][row, ..., height:, :] = 0
            inputs["pixel_mask"][row, ..., width:] = 0
    if padded and batch == 1:
        inputs["attention_mask"][0, max(shortest, length // 2) :] = 0
        if family.pixel_mask and size > patch_size:
            inputs["pixel_mask"][..., patch_size * (size // patch_size // 2) :] = 0
    return inputs


def differences(model: Any, family: Backbone, exported: ExportedModel) -> list[dict[str, Any]]:
    """How much the logits of an exported model differ on random inputs, by batch size, with padding and without.

    Returns:
        Rows of ``words`` (of the program), ``batch``, ``padded``, ``largest`` (absolute difference) and ``logits``
        (largest absolute logit). In the rows of words, those of padding are left out.
    """
    rows: list[dict[str, Any]] = []
    shorter = 1
    for length in exported.text_lengths:
        for batch in BATCHES:
            for padded in (False, True):
                size = exported.record["image_size"]
                inputs = _inputs(model, family, size, length, batch, padded, shortest=shorter + 1)
                with torch.inference_mode():
                    own = model(**inputs).logits
                real = inputs["attention_mask"] > 0 if own.ndim == 3 else torch.ones(batch, dtype=torch.bool)
                other = torch.from_numpy(exported(**inputs).logits)
                largest, logits = float((other - own)[real].abs().max()), float(own[real].abs().max())
                row = {"words": length, "batch": batch, "padded": padded, "largest": largest, "logits": logits}
                rows.append(row)
        shorter = length
    return rows


def _about_pixels(image_processor: Any, pad: bool) -> dict[str, Any]:
    """How an image becomes numbers."""
    return {
        "pad": pad,
        "resample": int(Pixels(image_processor).square),
        "scale": image_processor.rescale_factor,
        "mean": list(image_processor.image_mean),
        "std": list(image_processor.image_std),
    }


def _padding(tokenizer: Any) -> tuple[int, str]:
    """Number and text of the token that pads texts."""
    return tokenizer.pad_token_id, tokenizer.pad_token
