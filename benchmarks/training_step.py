"""A training step at full size (384 pixels, 32 words, random weights), with reduction and without.

A step is forward, backward and AdamW, in training mode and float32, without a teacher and beside one: the unreduced
model, whose logits the distillation loss asks for. Random weights will do: speed and memory follow from shapes alone.
Every round runs each model once; speed-ups are ratios within rounds, to the unreduced step of the same group. The limit
of a schedule has its numbers of tokens by plain slices (`pumer.profiling.limit`).

Memory is measured in a process of its own. Activations: the peak of a step minus what is held before it (weights,
gradients, the optimiser's state, the teacher). Total: the peak of a step as the Trainer runs it, which frees gradients
before it.

Writes `benchmarks/results/training-step-<model>-<device>.json`. Run it on a machine that is idle otherwise.
"""

import argparse
import copy
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from benchmarks.common import RESULTS, parser
from benchmarks.rows import LIMIT, UNREDUCED, row_model
from pumer import NoReduction, PuMerConfig
from pumer.profiling.inputs import inputs_for
from pumer.profiling.limit import limit_of
from pumer.profiling.named_models import default_text_length, model_from, variant
from pumer.profiling.peak_memory import bytes_of, measured_apart, peak_since, resident
from pumer.profiling.timing import compare
from pumer.reducers import config_to_dict
from pumer.tasks import VQAv2
from pumer.training.distillation import distillation_loss
from pumer.utils.files import write_json
from pumer.utils.provenance import collect

if TYPE_CHECKING:
    from rich.table import Table

ALONE, WITH_TEACHER = "without a teacher", "with a teacher"


@dataclass(frozen=True)
class Case:
    """A model and its reductions.

    Attributes:
        model: As for `pumer.profiling.named_models.model_from`; a question-answering model.
        reductions: Name of the row to the reduction, as in ``reduction.json``; None for transformers' own forward.
    """

    model: str
    reductions: Mapping[str, dict[str, Any] | None]

    def rows(self) -> dict[str, dict[str, Any] | None]:
        """The reductions after none, the baseline."""
        return {UNREDUCED: config_to_dict(NoReduction()), **self.reductions}


def _with_limits(**presets: PuMerConfig) -> dict[str, dict[str, Any] | None]:
    reductions = {name: config_to_dict(config) for name, config in presets.items()}
    return {**reductions, **{LIMIT + name: limit_of(reduction) for name, reduction in reductions.items()}}


CASES = {
    "vilt": Case("preset:vilt-b32", _with_limits(**{"2,5,8; 0.1/0.3/0.2": PuMerConfig.preset("vilt", "vqav2")})),
    "meter": Case(
        "preset:meter-b16",
        _with_limits(
            **{
                "0,2,4,6; 0.2/0.2/0.2": PuMerConfig.preset("meter", "vqav2"),
                "0,2,4,6; 0.3/0.5/0.2": PuMerConfig.preset("meter", "snli_ve"),
            }
        ),
    ),
}


class TrainingStep(nn.Module):
    """One step of fine-tuning, called like a model."""

    def __init__(
        self,
        model: Any,
        optimizer: torch.optim.Optimizer,
        teacher: nn.Module | None = None,
        keep_gradients: bool = False,
        autocast: torch.dtype | None = None,
    ) -> None:
        """Set up.

        Args:
            model: What learns; it is put into training mode.
            optimizer: Of the model's parameters.
            teacher: Patched, in eval mode.
            keep_gradients: Whether gradients are set to zero instead of freed, so that what is held does not change.
            autocast: Number format of the forwards; None for that of the weights.
        """
        super().__init__()
        self.model, self.teacher, self.optimizer = model.train(), teacher, optimizer
        self.keep_gradients, self.autocast = keep_gradients, autocast
        self.task = VQAv2([str(column) for column in range(model.config.num_labels)])

    def forward(self, targets: Tensor, **inputs: Tensor) -> Tensor:
        """Forward, backward, update.

        Args:
            targets: ``(B, A)`` soft scores.
            **inputs: Of the model.

        Returns:
            The loss before the update, a scalar.
        """
        with torch.inference_mode(False), torch.enable_grad():
            self.optimizer.zero_grad(set_to_none=not self.keep_gradients)
            with torch.autocast(targets.device.type, self.autocast, enabled=self.autocast is not None):
                logits = self.model(**inputs).logits
                loss = self.task.loss(logits, {"targets": targets})
                if self.teacher is not None:
                    with torch.no_grad():
                        imitated = self.teacher(**inputs).logits
                    loss = distillation_loss(loss, logits, imitated)
            loss.backward()
            self.optimizer.step()
        return loss.detach()


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW as `pumer train` uses it, with a learning rate that leaves random weights as they are."""
    return torch.optim.AdamW(model.parameters(), lr=1e-12, fused=True)


def batches(case: Case, model: Any) -> Callable[[int], dict[str, Tensor]]:
    """From a batch size to the arguments of a `TrainingStep`."""

    def make(batch: int) -> dict[str, Tensor]:
        inputs = inputs_for(model, model.config.image_size, default_text_length(case.model, model), batch)
        generator = torch.Generator().manual_seed(1)
        targets = torch.rand(batch, model.config.num_labels, generator=generator)
        return {"targets": targets.to(inputs["pixel_values"].device), **inputs}

    return make


def times(
    case: Case,
    batch: int,
    rounds: int,
    base: Any = None,
    autocast: torch.dtype | None = None,
    seconds: float = 0.0,
    failures: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Seconds and speed-ups of a step, by group and row, which share weights; see `pumer.profiling.timing.compare`.

    Args:
        case: What is compared. A teacher of transformers' own model is that model, too.
        batch: Examples.
        rounds: Interleaved ones per group, at least.
        base: The model, on its device; None: the case's, on the accelerator if there is one.
        autocast: See `TrainingStep`.
        seconds: Least time per group.
        failures: See `pumer.profiling.timing.compare`; the names have the group before them.
    """
    if base is None:
        base = model_from(case.model).to(device())
    optimizer, make = optimizer_of(base), batches(case, base)
    result = {}
    for group in (ALONE, WITH_TEACHER):
        failed: dict[str, str] | None = None if failures is None else {}
        steps = {}
        for name, reduction in case.rows().items():
            teacher = variant(base, None if reduction is None else NoReduction()) if group == WITH_TEACHER else None
            steps[name] = TrainingStep(row_model(base, reduction), optimizer, teacher, autocast=autocast)
        timed = compare(steps, make, [batch], pairs=rounds, seconds=seconds, warm_up=1, failures=failed)
        result[group] = timed["points"][0]
        if failures is not None and failed:
            failures |= {f"{group}: {name}": why for name, why in failed.items()}
    return result


def device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


@dataclass(frozen=True)
class Job:
    """What a process of its own measures.

    Attributes:
        model: As of a `Case`.
        reduction: As in ``reduction.json``.
        batch: Examples.
        teacher: Whether there is one.
    """

    model: str
    reduction: dict[str, Any]
    batch: int
    teacher: bool


def memory(case: Case, batch: int) -> dict[str, Any]:
    """Bytes of `measure`, by group and row, and what a reduction saves of the unreduced activations and total."""
    result: dict[str, Any] = {}
    for group, taught in ((ALONE, False), (WITH_TEACHER, True)):
        result[group] = {}
        for name, reduction in case.rows().items():
            if reduction is None:
                continue
            job = Job(case.model, reduction, batch, taught)
            measured = measured_apart(["-m", "benchmarks.training_step", "--job"], asdict(job))
            full = result[group].get(UNREDUCED, measured)
            saved = {f"{kind}_saved": 1 - measured[kind] / max(full[kind], 1) for kind in ("activations", "total")}
            result[group][name] = measured | saved
    return result


def measure(job: Job) -> dict[str, int]:
    """Measure in this process.

    Returns:
        ``weights`` (of the model), ``held`` (weights, gradients, the optimiser's state and the teacher),
        ``activations`` (peak beyond what is held) and ``total`` (peak of a step that frees gradients first), in bytes.
    """
    kind = device().type
    model = row_model(model_from(job.model), job.reduction).to(kind)
    teacher = variant(copy.deepcopy(model), NoReduction()).eval() if job.teacher else None
    make = batches(Case(job.model, {}), model)
    step = TrainingStep(model, optimizer_of(model), teacher, keep_gradients=True)
    step(**make(1))
    inputs = make(job.batch)
    weights, taught = bytes_of(model), 0 if teacher is None else bytes_of(teacher)
    gradients = sum(each.grad.nbytes for each in model.parameters() if each.grad is not None)
    state = sum(
        value.nbytes for each in step.optimizer.state.values() for value in each.values() if isinstance(value, Tensor)
    )
    before = resident(kind)
    step(**inputs)
    activations = peak_since(kind) - before
    step.keep_gradients = False
    step.optimizer.zero_grad(set_to_none=True)
    before = resident(kind)
    step(**inputs)
    total = weights + taught + state + peak_since(kind) - before
    held = weights + taught + gradients + state
    return {"weights": weights, "held": held, "activations": activations, "total": total}


def table(title: str, result: Mapping[str, Any]) -> "Table":
    """What was measured, a row per reduction."""
    from rich.table import Table  # here, since `gpu.py` runs where there may be no rich

    shown = Table(title=title)
    for column in ("", "reduction", "seconds", "speed-up", "activations", "total peak"):
        shown.add_column(column, justify="left" if column in ("", "reduction") else "right")
    for group, rows in result["memory"].items():
        for name, bytes_ in rows.items():
            timed = result["time"][group]["models"][name]
            speed = timed["speedup"]
            peaks = [
                f"{bytes_[kind] / 2**20:.0f} MiB ({-100 * bytes_[f'{kind}_saved']:+.0f}%)"
                for kind in ("activations", "total")
            ]
            shown.add_row(
                group,
                name,
                f"{timed['seconds']['median']:.2f}",
                f"{speed['median']:.2f}x ({speed['low']:.2f} to {speed['high']:.2f})",
                *peaks,
            )
    return shown


def main() -> None:
    """Parse, measure, write, print."""
    options = parser(__doc__)
    options.add_argument("models", nargs="*", choices=[*CASES, []], help="default: both")
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--rounds", type=int, default=20, help="interleaved rounds per group")
    options.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    options.add_argument("--job", action="store_true", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.job:
        sys.stdout.write(json.dumps(measure(Job(**json.load(sys.stdin)))) + "\n")
        return
    from rich.console import Console

    console = Console()
    for model in arguments.models or CASES:
        case = CASES[model]
        result = {
            "memory": memory(case, arguments.batch),
            "time": times(case, arguments.batch, arguments.rounds),
            "reductions": dict(case.reductions),
        }
        config = {"model": case.model, "batch": arguments.batch, "rounds": arguments.rounds}
        name = f"training-step-{model}-{device().type}.json"
        write_json(arguments.results / name, {**result, "provenance": collect(config, "float32")})
        console.print(table(f"{case.model}, training step, batch {arguments.batch}", result))


if __name__ == "__main__":
    main()
