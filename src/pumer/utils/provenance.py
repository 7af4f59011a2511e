"""Where a result comes from: what every result file holds beside its metrics."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from pumer.utils.config import to_dict


def collect(config: Any = None, dtype: str = "float32") -> dict[str, Any]:
    """Command, device, dtype, versions, git commit, date and config of this process, ready for JSON."""
    packages = ("pumer", "torch", "transformers")
    return {
        "command": shlex.join([*_program(), *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "dtype": dtype,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "commit": _commit(),
        "config": to_dict(config),
    }


def _program() -> list[str]:
    """What starts this process again: `pumer`, a module by its dotted name, or a script by its file's."""
    path, spec = Path(sys.argv[0]), sys.modules["__main__"].__spec__
    if path.parts[-2:] == ("pumer", "__main__.py"):
        return ["pumer"]
    if spec is not None and spec.origin == sys.argv[0]:
        return ["python", "-m", spec.name.removesuffix(".__main__")]
    return [path.name]


def device_name() -> str:
    """Name of the GPU that torch uses, else of the processor and its cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{_processor()} ({os.cpu_count()} cores)"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the source tree that tracks this package, with `+changes` when files differ; else None."""
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        changes = _git("status", "--porcelain", "--untracked-files=no")
        return _git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
