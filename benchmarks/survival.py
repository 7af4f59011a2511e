"""Ctrl-C, kill -9 and a full disk at ten random moments of every long command: is anything lost or half-written?

Each command runs once undisturbed. Then, for each kind of disturbance, it is started ten times on one output and
disturbed at a random moment of its time; the last time it runs to its end. What is there then must be what the
undisturbed run wrote, and the message of a disturbed run must be one line without a traceback:

- `interrupt`: SIGINT; exit code 130, or that of Python itself in its first moments.
- `kill`: SIGKILL, which cannot be handled.
- `limit`: a file-size limit of a random number of bytes from the start (RLIMIT_FSIZE); exit code 2 or 0.
- `full`: the output lies on a file system with a random number of bytes left (a tmpfs; as root on Linux alone); exit
  code 2 or 0.

Prints a line per command and kind, and PASS or FAIL; writes `benchmarks/results/survival.json`.
"""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.common import RESULTS, parser
from pumer.utils.files import read_json, write_json
from pumer.utils.provenance import collect
from pumer.utils.shipped import SMALL
from pumer.world import WorldConfig, write_world

GOLDEN = Path(__file__).parents[1] / "tests" / "goldens" / "vilt-vqa2.safetensors"
KINDS = ("interrupt", "kill", "limit", "full")
PATIENCE = 120.0
"""Seconds that a disturbed run has to end."""
CHANGING = {"date", "began", "seconds", "command", "samples_per_second", "input_seconds", "provenance", "resumed_from"}
CHANGING |= {"history", "loss", "out", "output", "model", "config"}
"""Keys of JSON files that differ from run to run."""


_CODES = {"interrupt": (0, 130, -signal.SIGINT), "kill": (0, -signal.SIGKILL)}
_SILENT = (0, -signal.SIGKILL, -signal.SIGINT)
"""A signal ends Python itself, without a word, as long as it has not come to `pumer`."""


@dataclass(frozen=True)
class Command:
    """A long command.

    Attributes:
        arguments: From the output to what follows `pumer`.
        kept: Files of the output that every run must end with alike; patterns.
        again: What is added to run it over its own result.
    """

    arguments: Callable[[Path], list[str]]
    kept: tuple[str, ...]
    again: tuple[str, ...] = ()


def commands(folder: Path) -> dict[str, Command]:
    """All of them, on a small world below a folder."""
    write_world(folder / "given", WorldConfig(train=60, val=24, heldout=0, test=0, tasks=("vqav2",)))
    root, model = folder / "given" / "vqav2", str(SMALL["small:vilt"])
    released = _released(folder / "released")
    recipe = folder / "recipe.yaml"
    reduction = {"method": "pumer", "layers": [2, 5, 8], "prune_ratio": 0.1, "merge_ratio": 0.3}
    data = {"root": str(root), "min_answer_count": 1}
    short = {"batch_size": 4, "max_steps": 24, "eval_steps": 4, "log_steps": 4, "report_to": []}
    recipe.write_text(yaml.safe_dump({"model": model, "data": data, "reduction": reduction, **short}))
    shorter = ["world.train=80", "world.val=40", "world.heldout=20", "questions=40", "pairs=2", "largest_batch=2"]
    at = f"data.root={root}"
    return {
        "train": Command(lambda out: ["train", str(recipe), f"output={out}"], ("model.safetensors",)),
        "prepare": Command(lambda out: ["data", "prepare", "vqav2", str(root), str(out)], ("prepared.json", "*.arrow")),
        "world": Command(
            lambda out: ["data", "world", str(out), "train=150", "val=40", "heldout=0", "test=0"],
            ("**/*.*",),
            ("--force",),
        ),
        "evaluate": Command(
            lambda out: ["evaluate", model, "task=vqav2", at, "data.train=null", f"output={out / 'result.json'}"],
            ("result.json",),
            ("force=true",),
        ),
        "predict": Command(
            lambda out: ["predict", model, "task=vqav2", at, "split=val", "--out", str(out / "answers.json")],
            ("answers.json",),
            ("--force",),
        ),
        "benchmark": Command(
            lambda out: ["benchmark", model, "pairs=4", "batch_sizes=[1]", f"output={out / 'speed.json'}"],
            ("speed.json",),
            ("force=true",),
        ),
        "convert": Command(
            lambda out: ["convert", str(released), str(out), "--task", "vqa2"],
            ("*.safetensors", "*.json"),
            ("--force",),
        ),
        "demo": Command(lambda out: ["demo", f"output={out}", *shorter], ("report.html",)),
    }


def main() -> None:
    """Disturb, go on, compare, write."""
    options = parser(__doc__)
    options.add_argument("commands", nargs="*", help="all by default")
    options.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    options.add_argument("--moments", type=int, default=10)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, default=RESULTS / "survival.json")
    arguments = options.parse_args()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, command in commands(folder).items():
            if arguments.commands and name not in arguments.commands:
                continue
            whole = folder / name / "undisturbed"
            whole.parent.mkdir()
            began = time.monotonic()
            _run(command.arguments(_made(whole, command)))
            seconds = time.monotonic() - began
            for kind in arguments.kinds:
                if kind == "full" and (os.geteuid() != 0 or not shutil.which("mount")):
                    continue
                moments = random.Random(f"{name} {kind} {arguments.seed}")
                found = disturbed(command, kind, folder / name / kind, whole, seconds, moments, arguments.moments)
                result[f"{name}, {kind}"] = found
                sys.stdout.write(f"{name}, {kind}: {'; '.join(found['faults']) or 'well'} {found['ended']}\n")
                sys.stdout.flush()
    passed = not any(entry["faults"] for entry in result.values())
    given = {key: str(value) for key, value in vars(arguments).items()}
    write_json(arguments.out, result | {"pass": passed, "provenance": collect(given)})
    sys.stdout.write("PASS\n" if passed else "FAIL\n")
    sys.exit(not passed)


def disturbed(
    command: Command, kind: str, out: Path, whole: Path, seconds: float, moments: random.Random, count: int
) -> dict[str, Any]:
    """Ten disturbed runs and one that ends; how the former ended, and what is wrong."""
    faults, ended = [], []
    written = sum(file.stat().st_size for file in whole.rglob("*") if file.is_file())
    largest = max(file.stat().st_size for file in whole.rglob("*") if file.is_file())
    for _ in range(count):
        with _disk(out, written, moments) if kind == "full" else _nothing():
            target = _made(out, command)
            line = command.arguments(target) + (list(command.again) if _finished(command, target) else [])
            code, said = _disturb(line, kind, moments, seconds, largest)
        ended.append(code)
        if "Traceback" in said or (code not in _SILENT and len(_messages(said)) != 1):
            faults.append(f"said {_messages(said)[-3:]}")
        if code not in _CODES.get(kind, (0, 2)):
            faults.append(f"ended with {code}")
        if code == 0:  # too late; the next moments are those of a new run
            shutil.rmtree(out)
        if code is None:
            faults.append(f"still there after {PATIENCE:.0f} s")
    target = _made(out, command)
    line = command.arguments(target) + (list(command.again) if _finished(command, target) else [])
    code, said = _run(line, check=False)
    if code:
        faults.append(f"does not go on: {_messages(said)[-1:]}")
    elif different := _different(command, whole, target):
        faults.append(f"ended otherwise in {different}")
    elif left := [file.name for file in target.rglob(".*") if file.is_file() and file.suffix != ".lock"]:
        faults.append(f"left behind {left[:3]}")
    return {"ended": ended, "faults": faults}


def _disturb(
    line: list[str], kind: str, moments: random.Random, seconds: float, largest: int
) -> tuple[int | None, str]:
    """Start a command and disturb it; its exit code, None if it did not end, and what it wrote to stderr."""
    limit = moments.randrange(1, largest + 1) if kind == "limit" else None

    def limited() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where this script runs in the background
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    command = [sys.executable, "-m", "pumer", *line]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=limited)
    if kind in ("interrupt", "kill"):
        try:
            child.wait(moments.uniform(0.05, seconds))
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGINT if kind == "interrupt" else signal.SIGKILL)
    try:
        _, said = child.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return None, ""
    return child.returncode, said


def _run(line: list[str], check: bool = True) -> tuple[int, str]:
    """Run a command to its end."""
    done = subprocess.run([sys.executable, "-m", "pumer", *line], capture_output=True, text=True)
    if check and done.returncode:
        raise RuntimeError(f"pumer {' '.join(line)} ended with {done.returncode}: {done.stderr[-500:]}")
    return done.returncode, done.stderr


def _messages(said: str) -> list[str]:
    """The lines that matter of what went to stderr: errors, and how a run was stopped."""
    lines = [line for line in said.replace("\r", "\n").splitlines() if line.strip()]
    return [line for line in lines if line.startswith(("error:", "interrupted", "stopped"))] or lines[-1:]


def _made(out: Path, command: Command) -> Path:
    """The output; as a folder where files are named in it."""
    if command.again and command.kept[0].count("*") == 0:
        out.mkdir(parents=True, exist_ok=True)
    return out


def _finished(command: Command, out: Path) -> bool:
    return bool(command.again) and any(file.exists() for pattern in command.kept for file in out.glob(pattern))


def _different(command: Command, whole: Path, out: Path) -> list[str]:
    """Names of files that are not alike in two outputs."""
    names = {file.relative_to(whole) for pattern in command.kept for file in whole.glob(pattern) if file.is_file()}
    if not names:
        return [f"none of {command.kept}"]
    if command.kept in (("speed.json",), ("report.html",)):  # measurements
        return [str(name) for name in names if not (out / name).is_file() or not (out / name).read_text().strip()]
    return sorted(str(name) for name in names if not _alike(whole / name, out / name))


def _alike(one: Path, other: Path) -> bool:
    if not other.is_file():
        return False
    if one.read_bytes() == other.read_bytes():
        return True
    return one.suffix == ".json" and _lasting(read_json(one)) == _lasting(read_json(other))


def _lasting(content: Any) -> Any:
    """Content of a JSON file without what changes from run to run."""
    if isinstance(content, Mapping):
        return {key: _lasting(value) for key, value in content.items() if key not in CHANGING}
    return [_lasting(value) for value in content] if isinstance(content, list) else content


@contextmanager
def _disk(out: Path, needed: int, moments: random.Random) -> Iterator[None]:
    """A file system of its own for the output, too small by some; what is on it is moved back to the real one."""
    small = out.parent / "disk"
    small.mkdir(exist_ok=True)
    kept = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) if out.exists() else 0
    page = resource.getpagesize()
    size = kept + needed + 64 * page
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(small)], check=True)
    try:
        if out.exists():
            shutil.copytree(out, small / "out", symlinks=True)
            shutil.rmtree(out)
        out.symlink_to(small / "out")
        (small / "out").mkdir(exist_ok=True)
        free = shutil.disk_usage(small).free
        (small / "filler").write_bytes(bytes(free - page * moments.randrange(max(needed // page, 1))))
        yield
    finally:
        out.unlink()
        shutil.copytree(small / "out", out, symlinks=True)
        subprocess.run(["umount", str(small)], check=True)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _released(folder: Path) -> Path:
    """A tiny checkpoint as the authors released them."""
    folder.mkdir()
    with safe_open(GOLDEN, "pt") as file:
        names = [name for name in file.keys() if name.startswith("weights/")]  # noqa: SIM118
        save_file({name[8:]: file.get_tensor(name) for name in names}, folder / "model.safetensors")
        config = json.loads(file.metadata()["description"])["config"]
    write_json(folder / "config.json", config)
    return folder


if __name__ == "__main__":
    main()
