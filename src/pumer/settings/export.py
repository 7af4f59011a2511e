"""Settings of `pumer export`."""

from typing import Annotated, Literal

from pydantic import Field

from pumer.settings.common import Count, Folder, ImageSize, Job, Model, NewFolder, Reduction, TextLength
from pumer.utils.config import config
from pumer.utils.errors import InputError
from pumer.utils.limits import check_checkpoint
from pumer.utils.places import check_export, check_not_exported

Runtime = Literal["openvino", "onnx", "torch"]
Precision = Literal["f32", "bf16", "f16", "int8"]


@config
class ExportConfig(Job):
    """Settings of `pumer export`.

    Attributes:
        model: Folder, hub name, or one that ships, such as small:vilt (`pumer list models`).
        out: Folder to write.
        to: What is to run the program.
        precision: Of OpenVINO's arithmetic, where the processor has it. "int8" is of the linear layers, the rest is in
            float32; of all others the weights are stored as float32.
        calibration: Data folder whose training examples set the ranges of an int8 program; None for the one that the
            model was trained on.
        calibration_examples: How many of them.
        image_size: Pixels along a side of the images, a multiple of the patch size; None for the model's own.
        text_length: Words, special tokens counted, a program for each count; None for as many as the model was trained
            with, else 32. Of a model that generates, tokens of a prompt beside those of its image; None for 64.
        reduction: Replaces the saved one: a mapping with ``method``, or "none"; None for the model as it was saved.
        parts: Whether image encoder, text encoder and fusion are programs of their own.
        force: Whether to replace an exported model that is in ``out`` already.
    """

    model: Model
    out: NewFolder
    to: Runtime = "openvino"
    precision: Precision = "f32"
    calibration: Folder | None = None
    calibration_examples: Count = 300
    image_size: ImageSize | None = None
    text_length: Annotated[tuple[TextLength, ...], Field(min_length=1)] | None = None
    reduction: Reduction | None = None
    parts: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        if self.precision != "f32" and self.to != "openvino":
            raise InputError(f"precision {self.precision} is for openvino, not for {self.to}; give f32")
        if self.precision != "int8" and self.calibration is not None:
            raise InputError(f"calibration={self.calibration} is for precision int8, not for {self.precision}")
        if self.precision == "int8" and (self.parts or len(self.text_length or ()) > 1):
            raise InputError("precision int8 is for one program; leave out --parts and give one word count")

    def check_places(self) -> None:
        """Refuse a model that is missing and a folder that is not writable, or holds something else."""
        check_checkpoint(self.model, self.image_size)
        check_not_exported(self.model, "export")
        super().check_places()
        check_export(self.out, self.force)
