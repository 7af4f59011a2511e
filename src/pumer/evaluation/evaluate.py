"""Official accuracy with its uncertainty, by group, and against another run on the same examples."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader

from pumer.evaluation import summary
from pumer.evaluation.generation import GenerativeSession, open_session
from pumer.evaluation.ranking import CandidateSets, rank
from pumer.evaluation.spread import ALONE, Parts, Processes, fingerprint, parts_beside, remove_parts, together
from pumer.settings.evaluate import EvaluateConfig
from pumer.tasks import Example, Retrieval
from pumer.tasks.loading import Collator, Examples, Item
from pumer.tasks.session import Session, TaskModel
from pumer.utils.errors import InputError
from pumer.utils.files import write_json
from pumer.utils.locks import exclusive
from pumer.utils.progress import progress_bar
from pumer.utils.provenance import collect
from pumer.utils.shipped import name_of
from pumer.utils.tensors import numbers

logger = logging.getLogger(__name__)


@exclusive
def run(config: EvaluateConfig, console: Console | None = None) -> dict[str, Any]:
    """Evaluate one saved model; processes that `torchrun` started share the work, and the first one writes.

    Args:
        config: what to evaluate on what.
        console: where the table goes; None prints nothing.

    Returns:
        `model`, `split`, `reduction`, `answered`, `left_out` (examples whose images a prepared folder had to skip), of
        a model that generates `prompt`, `max_new_tokens` and `max_pixels`, the fields of
        `pumer.evaluation.summary.summarise`, and the provenance. The same dict is written to `config.output`.
    """
    with together() as processes:
        return _run(config, console, processes)


def _run(config: EvaluateConfig, console: Console | None, processes: Processes) -> dict[str, Any]:
    """Evaluate in one of several processes, or alone."""
    session = open_session(
        config.model,
        config.task,
        prompt=config.prompt,
        max_new_tokens=config.max_new_tokens,
        max_pixels=config.max_pixels,
        root=config.data.root,
        text_length=config.text_length,
        resize=config.resize,
        blank=config.blank,
        image_size=config.image_size,
        reduction=config.reduction,
        rule=config.rule,
    )
    name, task, root = name_of(config.model), session.task, session.root
    if root is None:
        remedy = "give data.root=FOLDER, such as `pumer data world` writes"
        raise InputError(f"{name} has no record of the data it was trained on; {remedy}")
    if not isinstance(task, Retrieval) and (config.galleries or config.scores):
        raise InputError(f"galleries and scores are for retrieval, not for task {task.name}; leave them out")
    examples, left_out = task.read_and_count(root, config.split, config.limit)
    sets = CandidateSets(examples, config.galleries) if isinstance(task, Retrieval) else None
    examples = examples if sets is None else sets.queries
    public = bool(examples[0].answers)
    if not public and (config.submission is None or config.per_example or config.against):
        raise InputError(f"split {config.split} has no public answers; give submission=FILE alone, for the server")
    train = _training_examples(config, session) if public else []
    parts = parts_beside((config.output, config.submission, config.per_example))
    against = None if config.against is None else summary.OtherRun(config.against, task, examples)
    if sets is not None and isinstance(session, Session):
        answers = rank(session, sets, config.batch_size, config.scores, progress=True, processes=processes)
    else:
        answers = predict(session, examples, config.batch_size, config.workers, True, processes, parts)
    if isinstance(session, GenerativeSession):
        answers = session.official(answers)
    if config.submission is not None and processes.main:
        task.write_submission(config.submission, examples, answers)
        if left_out:
            logger.warning("%s lacks %d examples, whose images are missing or broken", config.submission, left_out)
    result: dict[str, Any] = {"model": name, "split": config.split, "reduction": session.reduction}
    result |= {"answered": len(answers), "left_out": left_out}
    if isinstance(session, GenerativeSession):
        result |= {name: getattr(session, name) for name in ("prompt", "max_new_tokens", "max_pixels")}
    if public:
        result |= summary.summarise(task, examples, answers, train, against)
    if config.per_example is not None and processes.main:
        summary.write_per_example(config.per_example, name, config.split, task, examples, answers)
    result |= collect(config, str(session.model.dtype).removeprefix("torch."))
    if config.output is not None and processes.main:
        write_json(config.output, result)
    if processes.main:
        remove_parts(parts)
    if console is not None and public:
        console.print(summary.table(result, task, f"{name} on {config.split}, {session.reduction['method']}"))
    return result


def predict(
    session: Session | GenerativeSession,
    examples: Sequence[Example],
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = False,
    processes: Processes = ALONE,
    parts: Path | None = None,
) -> list[str]:
    """The model's answers, one per example, `batch_size` at a time; `workers` processes read the images.

    The model is put into eval mode. Logits that are NaN are refused. Of several `processes`, which share the batches,
    each gets all answers. In the folder `parts` answers are kept batch by batch, and what is kept is not asked again.
    """
    session.model.eval()
    collate: Callable[[Sequence[Item]], Any]
    answer: Callable[[Any], list[str]]
    if isinstance(session, GenerativeSession):
        collate, answer = session.collate, session.answer
    else:
        collate, answer = Collator(session.task, session.inputs), partial(_choose, session)
    batches = [range(start, min(start + batch_size, len(examples))) for start in range(0, len(examples), batch_size)]
    kept = None
    if parts is not None and len(batches) > 1:
        kept = Parts(parts, processes.of_main(lambda: fingerprint(session, examples, batch_size)))
    answers = {} if kept is None else processes.of_main(kept.read)
    left, taken = [number for number in range(len(batches)) if number not in answers], deque[int]()
    if kept is not None and answers:
        logger.info("going on with the answers to %d of %d batches", len(answers), len(batches))

    def own() -> Iterator[list[int]]:
        for piece in processes.take(len(left)):
            taken.append(piece)
            yield list(batches[left[piece]])

    loader = DataLoader(Examples(examples), batch_sampler=own(), collate_fn=collate, num_workers=workers)
    with (
        torch.inference_mode(),
        nullcontext(_forget) if kept is None else kept.writer() as keep,
        progress_bar(enabled=progress) as bar,
    ):
        shown = bar.add_task("evaluate", total=len(examples), note="")
        for batch in loader:
            piece = taken.popleft()
            number = left[piece]
            answers[number] = answer(batch)
            keep(number, answers[number])
            bar.update(shown, completed=min((len(batches) - len(left) + piece + 1) * batch_size, len(examples)))
    answers = processes.joined(answers)
    return [answer for number in range(len(batches)) for answer in answers[number]]


def _forget(number: int, answers: list[str]) -> None:
    """Keep nothing."""


def logits_of(session: Session, batch: Mapping[str, Any]) -> Tensor:
    """The logits ``(B, labels)`` of a classifier for a batch of its task; NaN is refused."""
    inputs = {name: tensor.to(session.model.device) for name, tensor in batch["inputs"].items()}
    return numbers(session.forward(**inputs).logits)


def _choose(session: Session, batch: Mapping[str, Any]) -> list[str]:
    """The labels that a classifier answers a batch with."""
    columns = session.task.choose(logits_of(session, batch)).tolist()
    return [session.task.labels[column] for column in columns]


def _training_examples(config: EvaluateConfig, session: TaskModel) -> list[Example]:
    """What the best constant answers are taken from; none where there is no train split."""
    try:
        return session.task.read(session.root, config.data.train) if session.root and config.data.train else []
    except InputError as error:
        logger.info("no best constant answers: %s", error)
        return []
