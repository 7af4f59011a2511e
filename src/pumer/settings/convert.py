"""Settings of `pumer convert`."""

from pathlib import Path
from typing import Literal, get_args

from pumer.settings.common import File, ImageSize, Job, NewFolder
from pumer.utils.config import config
from pumer.utils.errors import InputError
from pumer.utils.limits import is_place
from pumer.utils.places import check_input

Head = Literal["vqa2", "ve", "nlvr2", "irtr", "mlm"]
TASKS = get_args(Head)
"""What the heads of released checkpoints are for."""
_WEIGHTS = (".ckpt", ".bin", ".safetensors", ".pt", ".pth")


@config
class ConvertConfig(Job):
    """Settings of `pumer convert`.

    Attributes:
        source: Folder with ``config.json`` and weights (safetensors, ``.bin`` or ``.ckpt``), such a file by itself, or
            a name on the hub.
        out: Folder to write.
        answers: JSON list, or text with one answer per line, in the order of the head's outputs; for vqa2.
        task: What the head is for; None: that of the head among the tensors.
        image_size: Pixels along a side that the model shall read, for METER; None: those the checkpoint was made for.
        force: Whether to replace a model that is in ``out`` already.
    """

    source: str
    out: NewFolder
    answers: File | None = None
    task: Head | None = None
    image_size: ImageSize | None = None
    force: bool = False

    def check_places(self) -> None:
        """Refuse files and folders that are missing or not writable."""
        source = Path(self.source)
        if not source.is_dir() and (is_place(self.source) or source.suffix in _WEIGHTS):
            check_input("checkpoint", source)
            if source.suffix not in _WEIGHTS or not source.stat().st_size:
                wrong = "is not a checkpoint" if source.stat().st_size else "is empty"
                raise InputError(f"{source} {wrong}; give a folder, or a file that ends in {', '.join(_WEIGHTS)}")
        super().check_places()
        if (self.out / "config.json").exists() and not self.force:
            raise InputError(f"{self.out} holds a model already; give another folder, or --force to replace it")
