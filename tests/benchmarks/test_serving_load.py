"""What starts a server to load it."""

import subprocess
import sys

import pytest

from benchmarks.serving_load import _announced

LOGS = """
import sys
sys.stderr.write("starting\\nserving small:vilt at http://127.0.0.1:1\\n")
sys.stderr.write("a line of a log\\n" * 60_000)
"""


def test_a_server_that_logs_much_is_not_blocked(capfd):
    process = subprocess.Popen([sys.executable, "-c", LOGS], stderr=subprocess.PIPE, text=True)
    assert _announced(process) == ("small:vilt", "http://127.0.0.1:1")
    assert process.wait(60) == 0


def test_a_server_that_does_not_start_is_shown():
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit('no port')"], stderr=subprocess.PIPE, text=True)
    with pytest.raises(SystemExit, match="no port"):
        _announced(process)
