"""METHODS x BACKBONES x TASKS: every method learns every task in every backbone, and goes through every job."""

import dataclasses
from collections import defaultdict

import pytest
import torch
from tiny import EXAMPLES, FOLDERS, TINY, WITH_HEADS, covering

import pumer
from pumer.checkpoint import load_processor
from pumer.evaluation import evaluate
from pumer.profiling.planning import run as run_plan
from pumer.reducers import config_to_dict
from pumer.reducers.learned import LearnedReducer
from pumer.settings.evaluate import EvaluateConfig
from pumer.settings.plan import PlanConfig
from pumer.tasks import TASKS
from pumer.tasks.loading import Collator, Examples, make_inputs
from pumer.training import run as train


def test_every_task_is_in_the_grid():
    assert set(FOLDERS) == set(TASKS), "add a data folder to tests/fixtures/datasets.py"


@pytest.mark.parametrize(("name", "backbone"), covering(TASKS, TINY))
def test_every_method_learns_every_task(name, backbone, request):
    root, checkpoint = request.getfixturevalue(FOLDERS[name]), request.getfixturevalue(f"tiny_{backbone}")
    task = TASKS[name](TASKS[name].vocabulary(root, 1))
    examples, collate = (
        Examples(task.read(root, "train", 4), task),
        Collator(task, make_inputs(load_processor(checkpoint), 12)),
    )
    batch, alone = collate([examples[index] for index in range(4)]), collate([examples[1]])
    model = task.model(str(checkpoint), task.labels).eval()
    for example, *_ in EXAMPLES.values():
        config = TINY[backbone].fit(example.config)
        pumer.patch(model, config)
        with torch.no_grad():
            logits = task.logits(model, batch)
            assert torch.isfinite(logits).all()
            if example.any_batch:
                torch.testing.assert_close(task.logits(model, alone)[0], logits[1], atol=1e-5, rtol=1e-5)
            with pumer.disabled(model):
                assert torch.equal(task.logits(model, batch), logits) == (not config.places()), config
        task.loss(task.logits(model.train(), batch), batch).backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        assert all(torch.isfinite(gradient).all() for gradient in gradients.values()), config
        learning = {n.partition(".")[0] for n, gradient in gradients.items() if gradient.any()}
        assert {prefix.partition(".")[0] for prefix in task.head} <= learning, config
        learners = [module for module in model.modules() if isinstance(module, LearnedReducer)]
        assert len(learners) == len(config.learned(defaultdict(lambda: 8)))
        assert all(any(p.grad.any() for p in learner.parameters()) for learner in learners), config
        model.zero_grad(set_to_none=True)
        model.eval()


@pytest.mark.parametrize(("method", "backbone"), covering(WITH_HEADS, TINY))
def test_every_method_is_planned_trained_saved_and_evaluated(method, backbone, training, request):
    example, *_ = EXAMPLES[method]
    config = TINY[backbone].fit(example.config)
    settings, checkpoint = config_to_dict(config), str(request.getfixturevalue(f"tiny_{backbone}"))
    planned = run_plan(PlanConfig(model=checkpoint, reduction=settings))
    first, *_, last = [row for row in planned.layers if row.stack == "fusion"]
    fewer = last.text_tokens_out + last.image_tokens_out < first.text_tokens + first.image_tokens
    assert fewer == bool(config.places())
    data = dataclasses.replace(training.data, limit=4, eval_limit=4)
    job = dataclasses.replace(training, model=checkpoint, reduction=settings, data=data, max_steps=1, teacher="self")
    trained = train.run(job, progress=False)
    found = evaluate.run(EvaluateConfig(model=str(job.output), limit=4))
    assert found["reduction"] == config_to_dict(pumer.reduction(pumer.load(job.output))) == settings
    assert found["accuracy"]["mean"] == trained["accuracy"]["mean"]
