"""A reproduction of seconds: a thin random ViLT, a handful of questions, commands in this process."""

import io

import pytest
from rich.console import Console
from typer.testing import CliRunner

from benchmarks.reproduce.run import Reproduction
from benchmarks.reproduce.settings import ReproduceConfig
from benchmarks.reproduce.setup import Setup
from pumer.cli import app
from pumer.profiling import benchmark, peak_memory
from pumer.utils.errors import InputError
from pumer.world import write_vqav2


def in_process(command, log, threads):
    """Runs a command as processes of their own would."""
    result = CliRunner().invoke(app, command)
    if result.exit_code:
        raise InputError(result.output)
    return result.stdout


@pytest.fixture
def run_nothing():
    """A runner that must not be called."""

    def run(command, log, threads):
        raise AssertionError(f"{command} was run")

    return run


@pytest.fixture(scope="session")
def questions(tmp_path_factory):
    """Data folders by task: VQAv2 alone."""
    root = tmp_path_factory.mktemp("data")
    write_vqav2(root / "vqav2", train=24, val=12, heldout=0, questions_per_image=3)
    return root


@pytest.fixture(scope="session")
def config(tmp_path_factory, tiny_vilt, questions):
    """Table 1's ViLT on VQAv2, two seeds."""
    return ReproduceConfig(
        out=tmp_path_factory.mktemp("reproduce"),
        data=questions,
        starts={"vilt": str(tiny_vilt)},
        only=("table1",),
        cells=("vilt/vqav2",),
        seeds=2,
        batch=2,
        settings=("max_steps=2", "batch_size=4", "optimizer.lr=0.01"),
    )


@pytest.fixture(scope="session")
def reproduced(config):
    """The same, run to its end, and what was printed."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(benchmark, "peak_memory", peak_memory.measure)
        reproduction = Reproduction(config, in_process)
        failures = reproduction.run(Console(file=printed, width=200))
    assert not failures
    return reproduction, printed.getvalue()


@pytest.fixture
def plans(tmp_path, run_nothing):
    """A setup of plans that are not run."""
    return Setup(out=tmp_path / "out", runner=run_nothing)
