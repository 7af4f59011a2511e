"""Settings of `pumer convert`."""

from dataclasses import dataclass
from pathlib import Path

from pumer.utils.arguments import in_range, there, writable_folders
from pumer.utils.errors import InputError
from pumer.utils.limits import is_place

TASKS = ("vqa2", "ve", "nlvr2", "irtr", "mlm")
"""What the heads of released checkpoints are for."""
_WEIGHTS = (".ckpt", ".bin", ".safetensors", ".pt", ".pth")


@dataclass(frozen=True)
class ConvertConfig:
    """`pumer convert`.

    Attributes:
        source: Folder with ``config.json`` and weights (safetensors, ``.bin`` or ``.ckpt``), such a file by itself, or
            a name on the hub.
        out: Folder to write.
        answers: JSON list, or text with one answer per line, in the order of the head's outputs; for vqa2.
        task: "vqa2", "ve", "nlvr2", "irtr" or "mlm"; None: that of the head among the tensors.
        image_size: Pixels along a side that the model shall read, for METER; None: those the checkpoint was made for.
        force: Whether to replace a model that is in ``out`` already.
    """

    source: str
    out: Path
    answers: Path | None = None
    task: str | None = None
    image_size: int | None = None
    force: bool = False

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        in_range(self)
        if self.task is not None and self.task not in TASKS:
            raise InputError(f"--task must be {', '.join(TASKS[:-1])} or {TASKS[-1]}, not '{self.task}'")

    @property
    def written(self) -> tuple[Path, ...]:
        """What is written."""
        return (self.out,)

    def check_places(self) -> None:
        """Refuse files and folders that are not there, or could not be written."""
        source = Path(self.source)
        if is_place(self.source) or source.suffix in _WEIGHTS:
            there("checkpoint", source)
        there("file", self.answers)
        writable_folders(self.out)
        if (self.out / "config.json").exists() and not self.force:
            raise InputError(f"{self.out} holds a model already; give another folder, or --force to replace it")
