"""An exported model in the place of a model: in a session, called with tensors."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from pumer.checkpoint import load_processor
from pumer.exporting.runtime import Encoded, ExportedModel
from pumer.settings.common import Blank, Resize, Rule
from pumer.tasks import task_class
from pumer.tasks.loading import make_inputs
from pumer.tasks.session import Session, with_rule
from pumer.utils.errors import InputError

_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "int8": torch.int8}


class Program(nn.Module):
    """An exported model as a module: tensors in, tensors out.

    Its one buffer is a hash of weights and precision, which stands for the weights where these are compared.
    """

    def __init__(self, exported: ExportedModel) -> None:
        super().__init__()
        self.exported = exported
        digest = hashlib.sha256(f"{exported.record['sha256']} {exported.precision}".encode()).digest()
        self.register_buffer("digest", torch.frombuffer(bytearray(digest), dtype=torch.uint8))

    @property
    def device(self) -> torch.device:
        """Where inputs are expected."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the arithmetic."""
        return _DTYPES[self.exported.precision]

    def forward(
        self, encoded_text: Encoded | None = None, encoded_image: Encoded | None = None, **inputs: Tensor
    ) -> SequenceClassifierOutput:
        """The logits, see `ExportedModel`."""
        arrays: dict[str, Any] = dict(inputs)
        for encoded in (encoded_text, encoded_image):
            arrays |= {} if encoded is None else encoded.arrays
        return SequenceClassifierOutput(logits=torch.from_numpy(self.exported(**arrays).logits))

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Encoded:
        """Texts by themselves, see `ExportedModel.encode`."""
        return self.exported.encode(input_ids=input_ids, attention_mask=attention_mask)

    def encode_image(self, pixel_values: Tensor) -> Encoded:
        """Images by themselves, see `ExportedModel.encode`."""
        return self.exported.encode(pixel_values=pixel_values)


@dataclass(frozen=True)
class ExportedSession(Session):
    """An exported model that is ready to take a task's examples; see `Session`."""

    @property
    def reduction(self) -> dict[str, Any]:
        """The reduction it was exported with, as plain data."""
        return dict(cast(Program, self.forward).exported.record["reduction"])

    @property
    def separable(self) -> bool:
        """Whether it was exported in parts."""
        return cast(Program, self.forward).exported.separable

    @classmethod
    def load(
        cls,
        name: str | Path,
        task: str | None = None,
        *,
        root: Path | None = None,
        text_length: int | None = None,
        resize: Resize | None = None,
        blank: Blank | None = None,
        image_size: int | None = None,
        rule: Rule | None = None,
        **fixed: Any,
    ) -> "ExportedSession":
        """Open an exported folder.

        Args:
            name: the folder.
            task: name in `pumer.tasks.TASKS`; by default the one it was trained for, else "vqav2".
            root: data folder.
            text_length: tokens that texts are cut to, at most those of the program.
            resize: the program's own alone: "square", or "pad" where it was trained with that.
            blank: as of `Session.open`.
            image_size: the program's own alone.
            rule: as of `Session.open`.
            **fixed: other settings of sessions, which an exported model has no more.

        Raises:
            InputError: for settings that the program does not have, a model of another task, and a broken folder.
        """
        exported = ExportedModel(name)
        program, record = Program(exported), exported.record
        if image_size not in (None, record["image_size"]):
            fixed["image_size"] = image_size
        own: Resize = "pad" if (record["pixels"] or {}).get("pad") else "square"
        if resize not in (None, own):
            fixed["resize"] = resize
        if given := [f"{key}={value}" for key, value in fixed.items() if value not in (None, False)]:
            raise InputError(f"{name} is an exported model and cannot change {', '.join(given)}; export it that way")
        kind = task_class(task or record["task"] or "vqav2")
        classes = [each.__name__ for each in kind.models().values()]
        if record["architecture"] not in classes:
            needed = " or ".join(classes)
            raise InputError(f"{name} is a {record['architecture']}; task {kind.name} needs a {needed}: give task=...")
        most = program.exported.text_lengths[-1]
        if text_length is not None and not 2 <= text_length <= most:
            raise InputError(f"text_length must lie in [2, {most}] for {name}, not {text_length}")
        folder, processor = root or record["root"], load_processor(name)
        return cls(
            str(name),
            cast(PreTrainedModel, program),
            processor,
            with_rule(kind, exported.labels, rule),
            make_inputs(processor, text_length or most, own, blank or "none"),
            forward=program,
            root=None if folder is None else Path(folder),
        )
