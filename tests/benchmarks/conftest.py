"""Benchmark scripts as modules: a test file names its own with `SCRIPT`."""

import importlib.util
import sys

import pytest


@pytest.fixture
def script(request):
    path = request.module.SCRIPT
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]
