"""Without a GPU the kernels run in Triton's interpreter, which must be chosen before anything imports Triton."""

import dataclasses
import os
import sys
from importlib.util import find_spec

import pytest
import torch

INTERPRETED = not torch.cuda.is_available()
collect_ignore_glob = [] if find_spec("triton") else ["test_*"]  # Triton is for Linux

if INTERPRETED:
    os.environ.setdefault("TRITON_INTERPRET", "1")
    if "triton" in sys.modules:
        from triton.runtime.interpreter import InterpretedFunction

        if not isinstance(sys.modules["triton.language"].sum, InterpretedFunction):
            raise RuntimeError("Triton was imported before TRITON_INTERPRET=1 was set; tests/conftest.py must set it")


@pytest.fixture(scope="session", autouse=True)
def _quick_interpreter():
    """Five times as fast (triton 3.6): no checks for overflow, and triton.language is not patched for every call."""
    if not INTERPRETED:
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter

    from pumer.kernels import device

    original = interpreter._patch_lang_tensor

    def with_index(tensor, scope):
        """For `range` up to a runtime value: NumPy 2.4 makes no integer of an array of one element."""
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    with pytest.MonkeyPatch.context() as patch:
        options = interpreter.interpreter_builder.options
        patch.setattr(interpreter.interpreter_builder, "options", dataclasses.replace(options, sanitize_overflow=False))
        patch.setattr(interpreter, "_patch_lang_tensor", with_index)
        scopes = [interpreter._patch_lang(device.best.fn), interpreter._patch_lang(tl.sum.fn)]
        patch.setattr(interpreter.InterpretedFunction, "__call__", lambda self, *a, **k: self.rewrite()(*a, **k))
        yield
    for scope in reversed(scopes):
        scope.restore()
