"""Official accuracy with its uncertainty, by group, and against another run on the same questions."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from pumer.backbones.image_size import set_image_size
from pumer.checkpoint import ensure_patched, learned_names, load, load_processor, model_class, trained_with
from pumer.evaluation.ranking import in_galleries, rank
from pumer.evaluation.scoring import (
    compare,
    constant_per_template,
    entries_for,
    mean_score,
    per_example,
    rule_of,
    sources_of,
    summarise,
    table,
    task_for,
)
from pumer.patching import patch, reduction
from pumer.reducers import NoReduction, config_to_dict, reduction_from
from pumer.settings.evaluate import EvaluateConfig
from pumer.tasks import TASKS, Example, Inputs, Retrieval, Task, task_class
from pumer.tasks.loading import Collator, Examples, make_inputs, text_length_of
from pumer.utils.errors import InputError
from pumer.utils.files import read_json, write_json
from pumer.utils.locks import only_one
from pumer.utils.progress import progress_bar
from pumer.utils.provenance import collect
from pumer.utils.tensors import best_device, numbers

logger = logging.getLogger(__name__)


def run(config: EvaluateConfig, console: Console | None = None) -> dict[str, Any]:
    """Evaluate one saved model.

    Args:
        config: what to evaluate on what.
        console: where the table goes; None prints nothing.

    Returns:
        `model`, `split`, `reduction`, `answered`, `left_out` (examples whose images a prepared folder had to skip),
        the fields of `summarise`, `constant_per_template` (accuracy of the best
        constant answer per question type, or of one answer to all where the task has no types), with `against` also
        `difference` (the fields of `compare`), and the provenance. The same dict is written to `config.output`.

    Raises:
        InputError: for whatever the user can correct.
    """
    config.check_places()
    with only_one(*config.written):
        return _evaluated(config, console)


def _evaluated(config: EvaluateConfig, console: Console | None) -> dict[str, Any]:
    settings = _with_training_settings(config)
    task_type = task_class(settings["task"])
    if not issubclass(task_type, Retrieval) and (config.galleries or config.scores):
        raise InputError(f"galleries and scores are for retrieval, not for task {task_type.name}; leave them out")
    against = None if config.against is None else read_json(config.against)
    model = load(config.model)
    check_class(config.model, model, task_type)
    processor = load_processor(config.model)
    set_image_size(config.image_size, model, processor)
    if config.reduction is not None:
        _reduce(model, config)
    ensure_patched(model)
    model.to(best_device())
    task = task_for(task_type, labels_of(model), config.rule)
    examples, left_out = task.read_and_count(settings["root"], config.split, config.limit)
    public = bool(examples[0].answers) or isinstance(task, Retrieval)
    if not public and (config.submission is None or config.per_example or config.against):
        raise InputError(f"split {config.split} has no public answers; give submission=FILE alone, for the server")
    if against is not None:
        asked = examples
        if isinstance(task, Retrieval):
            asked = Retrieval.queries(in_galleries(examples, config.galleries)[0])
        ids = [example.id for example in asked]
        entries_for(ids, against, rule_of(task).get("rule"))  # refused now, not after the last forward
    text_length = text_length_of(model, settings["text_length"])
    inputs = make_inputs(processor, text_length, settings["resize"], settings["blank"])
    in_place = reduction(model) or NoReduction()
    reduced = config_to_dict(in_place)
    if isinstance(task, Retrieval):
        ranked = rank(model, examples, inputs, config.batch_size, config.galleries, config.scores, progress=True)
        examples, answers = ranked
    else:
        answers = predict(model, task, examples, inputs, config.batch_size, config.workers, progress=True)
    if config.submission is not None:
        task.write_submission(config.submission, examples, answers)
        if left_out:
            logger.warning("%s lacks %d examples, whose images are missing or broken", config.submission, left_out)
    result: dict[str, Any] = {"model": config.model, "split": config.split, "reduction": reduced}
    result |= {"answered": len(answers), "left_out": left_out}
    if public:
        result |= _scored(config, task, settings["root"], examples, answers, against)
    result |= collect(config, str(model.dtype).removeprefix("torch."))
    if config.output is not None:
        write_json(config.output, result)
    if console is not None and public:
        title = f"{config.model} on {config.split}, {reduced['method']}"
        console.print(table(result, task, title))
    return result


def predict(
    model: nn.Module,
    task: Task,
    examples: Sequence[Example],
    inputs: Inputs,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = False,
) -> list[str]:
    """The model's answers, one per example.

    Args:
        model: a model for the task, on its device; it is put into eval mode.
        task: bound to the model's labels.
        examples: what to answer.
        inputs: as made by `pumer.tasks.loading.make_inputs`.
        batch_size: examples per forward pass.
        workers: processes that read images.
        progress: show a progress bar on stderr.

    Raises:
        InputError: for logits that are not numbers.
    """
    device = next(model.parameters()).device
    loader = DataLoader(Examples(examples), batch_size, collate_fn=Collator(task, inputs), num_workers=workers)
    model.eval()
    answers: list[str] = []
    with torch.inference_mode(), progress_bar(enabled=progress) as bar:
        shown = bar.add_task("evaluate", total=len(examples), note="")
        for batch in loader:
            on_device = {name: tensor.to(device) for name, tensor in batch["inputs"].items()}
            logits = numbers(model(**on_device).logits)
            columns = task.choose(logits).tolist()
            answers += [task.labels[column] for column in columns]
            bar.advance(shown, len(columns))
    return answers


def labels_of(model: PreTrainedModel) -> tuple[str, ...]:
    """The meaning of the columns of a classifier's logits, from its config.

    Raises:
        InputError: when the config leaves a column without a name.
    """
    names = model.config.id2label
    unnamed = next((index for index in range(len(names)) if not isinstance(names.get(index), str)), None)
    if unnamed is not None:
        raise InputError(f"id2label in the model's config must name columns 0 to {len(names) - 1}, not lack {unnamed}")
    return tuple(names[index] for index in range(len(names)))


def _scored(
    config: EvaluateConfig,
    task: Task,
    root: Path,
    examples: Sequence[Example],
    answers: Sequence[str],
    against: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Scores of the answers, and what they are compared with."""
    result = summarise(task, examples, answers)
    scores = task.scores(examples, answers).tolist()
    constants = _constants(config, task, root, examples)
    if constants is not None:
        known = task.scores(examples, constants).tolist()
        result["constant_per_template"] = mean_score(known, sources_of(examples))
    ids = [example.id for example in examples]
    if against is not None:
        by_id = dict(zip(ids, scores, strict=True)), dict(zip(ids, answers, strict=True))
        result["difference"] = compare(*by_id, against)
    if config.per_example is not None:
        entries = per_example(examples, answers, scores)
        about = {"model": config.model, "split": config.split, **rule_of(task)}
        write_json(config.per_example, {**about, "examples": entries})
    return result


def _constants(config: EvaluateConfig, task: Task, root: Path, examples: Sequence[Example]) -> list[str] | None:
    """The best constant answers, where there is a train split to take them from."""
    if config.data.train is None:
        return None
    try:
        train = task.read(root, config.data.train)
        return constant_per_template(task, train, examples) if train[0].answers else None
    except InputError as error:
        logger.info("no best constant answers: %s", error)
        return None


def _reduce(model: PreTrainedModel, config: EvaluateConfig) -> None:
    """Put another reduction in place; say so where it has weights that nobody trained."""
    before, after = reduction(model), reduction_from(config.reduction or "none")
    patch(model, after)
    trained = before.places() if before is not None and before.method == after.method else []
    if learned_names(model) and not set(after.places()) <= set(trained):
        logger.warning(
            "reduction '%s' has weights, and %s none for these layers: they are random", after.method, config.model
        )


def check_class(name: str, model: PreTrainedModel, task: type[Task]) -> None:
    """Refuse a model that is not of the task's class.

    Raises:
        InputError: saying what it is, and what it must be.
    """
    if not isinstance(model, tuple(task.models.values())):
        needed = " or ".join(cls.__name__ for cls in task.models.values())
        others = [other for other, each in TASKS.items() if isinstance(model, tuple(each.models.values()))]
        remedy = f"; give task={' or '.join(others)}" if others else ""
        raise InputError(f"{name} is a {type(model).__name__}; task {task.name} needs a {needed}{remedy}")


def _with_training_settings(config: EvaluateConfig) -> dict[str, Any]:
    """Task, data folder and input format: as given, else as the model was trained, else the defaults."""
    trained = trained_with(config.model)
    root = config.data.root or trained.get("data", {}).get("root")
    if root is None:
        model_class(config.model)  # says so, if it is not there at all
        raise InputError(f"{config.model} does not say what it was trained on; give data.root=FOLDER")
    return {
        "task": config.task or trained.get("task", "vqav2"),
        "root": Path(root),
        "text_length": config.text_length or trained.get("text_length"),
        "resize": config.resize or trained.get("resize", "square"),
        "blank": config.blank or trained.get("blank", "none"),
    }
