"""How the command ends before it serves."""

import os
import subprocess
import sys

import pytest

KILLED = """
import os, signal, sys
from types import ModuleType

class Killing(ModuleType):
    def __getattr__(self, name):
        if name == os.environ["WHERE"]:
            os.kill(os.getpid(), signal.SIGTERM)
        return lambda *_: None

sys.modules["pumer.app.comparing"] = sys.modules["pumer.app.page"] = Killing("stand-in")
from pumer.app.run import run
from pumer.settings.app import AppConfig

run(AppConfig(port=0))
"""


@pytest.mark.parametrize("where", ["ComparedModel", "application"])
def test_sigterm_leaves_no_folder_though_nothing_is_served_yet(tmp_path, where):
    environment = {**os.environ, "TMPDIR": str(tmp_path), "WHERE": where}
    done = subprocess.run([sys.executable, "-c", KILLED], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert not [*tmp_path.iterdir()]
