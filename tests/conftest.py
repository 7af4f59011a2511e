"""What holds for every test: no network, the same examples in every run, kernels without a GPU interpreted."""

import os
import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background; what a test starts must hear Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: nothing may be downloaded
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hypothesis
import pytest
import torch

if not torch.cuda.is_available():  # before transformers imports Triton: the kernels run in its interpreter
    os.environ.setdefault("TRITON_INTERPRET", "1")
sys.modules.setdefault("openvino_telemetry", None)  # before openvino is imported: tests report to nobody

pytest_plugins = ["fixtures.checkpoints", "fixtures.datasets", "fixtures.scripts"]

hypothesis.settings.register_profile("default", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.register_profile("quick", hypothesis.settings.get_profile("default"), max_examples=40)
hypothesis.settings.register_profile("thorough", max_examples=500, deadline=None, print_blob=True)


def pytest_configure(config):
    """The quick tests try fewer examples."""
    quick = "not slow" in config.option.markexpr
    hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick" if quick else "default"))


def pytest_collection_modifyitems(items):
    """Skips tests marked ``gpu`` where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture
def training(tiny_vilt, tiny_vqa, tmp_path):
    """Settings of a training of six steps of four questions: one pass over the training questions."""
    from pumer.settings.train import OptimizerConfig, TrainConfig, TrainingData

    layers = {"layers": [2, 5, 8], "prune_ratio": 0.1, "merge_ratio": 0.3, "text_merge_ratio": 0.2}
    return TrainConfig(
        model=str(tiny_vilt),
        output=tmp_path / "out",
        data=TrainingData(root=tiny_vqa, min_answer_count=1),
        optimizer=OptimizerConfig(lr=1e-3),
        reduction={"method": "pumer", **layers},
        batch_size=4,
        max_steps=6,
        log_steps=1,
        report_to=(),
    )
