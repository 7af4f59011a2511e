"""Benchmark scripts as modules: a test file names its own with `SCRIPT`."""

import importlib.util
import sys

import pytest


@pytest.fixture
def script(request, monkeypatch):
    path = request.module.SCRIPT
    monkeypatch.syspath_prepend(path.parent)  # scripts import their neighbours
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]
