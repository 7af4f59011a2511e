"""Commands as processes: what they print, how they fail, and that none outlives its parent."""

import subprocess
import sys
import threading

import psutil
import pytest

from benchmarks.reproduce.commands import Commands, cores
from pumer.utils.errors import InputError

WAITING = """
import os, sys, threading
from pathlib import Path
from benchmarks.reproduce import child
def wait():
    aside = Path(sys.argv[1] + ".aside")
    aside.write_text(str(os.getpid()))
    aside.rename(sys.argv[1])
    threading.Event().wait()
child.main(wait)
"""
"""A command that says its process number in a file, and never ends by itself."""

PARENT = """
import sys
from pathlib import Path
from benchmarks.reproduce.commands import Commands
Commands(["-c", sys.argv[1]]).run([sys.argv[2]], Path(sys.argv[2] + ".log"), 1)
"""


def process_in(file):
    """The process that said its number in a file, once it has."""
    pause = threading.Event()
    for _ in range(2400):
        if file.exists():
            return psutil.Process(int(file.read_text()))
        pause.wait(0.05)
    raise AssertionError("the command did not start")


def test_what_a_command_prints_comes_back_and_what_it_says_is_in_its_log(tmp_path):
    told = Commands(
        ["-c", "import os, sys; print(os.environ['OMP_NUM_THREADS'], *sys.argv[1:]); print(1, file=sys.stderr)"]
    )
    assert told.run(["a", "b"], tmp_path / "log" / "x.txt", threads=3) == "3 a b\n"
    assert (tmp_path / "log" / "x.txt").read_text() == "1\n"


def test_pumer_itself_is_run(tmp_path):
    assert "visualize" in Commands().run(["--help"], tmp_path / "log.txt", threads=1)


def test_a_command_that_fails_is_told_with_its_last_line(tmp_path):
    failing = Commands(["-c", "import sys; sys.exit('first\\nerror: no such thing')"])
    with pytest.raises(InputError, match=r"^no such thing \(see .*log.txt\)$"):
        failing.run([], tmp_path / "log.txt", threads=1)


def test_stop_ends_what_runs_and_nothing_begins_after_it(tmp_path):
    commands, failures = Commands(["-c", WAITING]), []

    def run():
        try:
            commands.run([str(tmp_path / "pid")], tmp_path / "log.txt", threads=1)
        except InputError as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    process = process_in(tmp_path / "pid")
    commands.stop()
    thread.join()
    assert not process.is_running()
    assert len(failures) == 1
    with pytest.raises(InputError, match="before it began"):
        commands.run([], tmp_path / "log.txt", threads=1)


def test_no_command_outlives_a_parent_that_is_killed(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, WAITING, str(tmp_path / "pid")])
    command = process_in(tmp_path / "pid")
    parent.kill()
    parent.wait()
    gone, _ = psutil.wait_procs([command], timeout=120)
    assert gone


def test_cores_are_those_that_may_be_used(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    usable = cores()
    assert usable >= 1
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cores() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", str(usable + 5))
    assert cores() == usable
