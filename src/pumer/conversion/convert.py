"""`pumer convert`: a released checkpoint, in a folder or on the hub, into a folder that `pumer.load` reads."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel
from transformers.image_utils import SizeDict
from transformers.utils import CONFIG_NAME

from pumer.checkpoint import REDUCTION_FILE, save
from pumer.conversion.family import Family
from pumer.conversion.released import family_of, from_released
from pumer.conversion.sources import read_answers, read_source
from pumer.patching import reduction
from pumer.reducers import config_to_dict
from pumer.settings.convert import TASKS, ConvertConfig
from pumer.utils.errors import InputError
from pumer.utils.files import first_line, replacing
from pumer.utils.locks import exclusive

logger = logging.getLogger(__name__)

_TASK_HEADS = {
    "vqa2": ("vqa_classifier",),
    "ve": ("ve_classifier", "snli_classifier"),  # the latter in METER's own checkpoints
    "nlvr2": ("nlvr2_classifier",),
    "irtr": ("rank_output",),
}
_CONVERTED = ("vilt.encoder.", "vilt.embeddings.", "meter.text_model.", "meter.vision_model.")
"""What tensors are called in transformers, and in no released checkpoint."""


@exclusive
def run(config: ConvertConfig) -> dict[str, Any]:
    """Convert a released checkpoint into a folder that `pumer.load` and plain transformers read.

    The tokenizer comes from the source, or from the hub under the name that the released config gives; without either,
    put one into the folder.

    Returns:
        ``task``, ``reduction`` (as in ``reduction.json``, or None), ``tensors`` (number read), ``tokenizer`` (name or
        None).
    """
    released, weights = read_source(config.source)
    if any(name.startswith(_CONVERTED) for name in weights):
        raise InputError(f"{config.source} is a transformers checkpoint already; pumer loads it as it is")
    family = family_of(weights)
    if config.image_size is not None:
        if family.backbone.set_image_size is None:
            raise InputError(f"image_size is {config.image_size}, but {family.backbone.name} reads any; leave it out")
        released["image_size"] = config.image_size
    task = config.task or infer_task(weights)
    model = from_released(weights, released, task)
    if config.answers is not None:
        name_answers(model, read_answers(config.answers), task)
    reduced = reduction(model)
    with replacing(config.out, last=CONFIG_NAME) as folder:
        save(model, folder)
        tokenizer = _save_processor(config.source, family, released, model, folder)
        if reduced is None:
            for name in (CONFIG_NAME, REDUCTION_FILE):  # of an older model
                (config.out / name).unlink(missing_ok=True)
    return {
        "task": task,
        "reduction": None if reduced is None else config_to_dict(reduced),
        "tensors": len(weights),
        "tokenizer": tokenizer,
    }


def infer_task(names: Sequence[str] | Mapping[str, Tensor]) -> str:
    """The one task whose head is among the tensors."""
    found = [task for task, heads in _TASK_HEADS.items() if any(name.startswith(heads) for name in names)]
    if len(found) != 1:
        known = ", ".join(head for heads in _TASK_HEADS.values() for head in heads)
        seen = "none" if not found else " and ".join(_TASK_HEADS[task][0] for task in found)
        wrong = f"the task of the checkpoint is not clear: it must have one head of {known}; it has {seen}"
        raise InputError(f"{wrong}; give --task {', '.join(TASKS[:-1])} or {TASKS[-1]}")
    return found[0]


def name_answers(model: PreTrainedModel, answers: Sequence[str], task: str = "vqa2") -> None:
    """Make answers the meaning of the outputs, in order, of a question-answering model (``config.id2label``)."""
    if task != "vqa2":
        raise InputError(f"the checkpoint is for {task}, whose labels are fixed; leave out --answers")
    if len(answers) != model.config.num_labels:
        counts = f"{len(answers)} answers but the head has {model.config.num_labels} outputs"
        raise InputError(f"there are {counts}; give one per output")
    model.config.id2label = dict(enumerate(answers))
    model.config.label2id = {answer: index for index, answer in enumerate(answers)}


def _save_processor(
    source: str, family: Family, released: Mapping[str, Any], model: PreTrainedModel, folder: Path
) -> str | None:
    """Write image settings and, if one can be had, the tokenizer; returns its name."""
    images, side = family.backbone.image_processor(), model.config.image_size
    if family.backbone.set_image_size is not None:
        images.size = SizeDict(height=side, width=side)
    images.save_pretrained(folder)
    # without its files, AutoTokenizer would make up an empty vocabulary from the model type
    own = any((Path(source) / file).is_file() for file in ("tokenizer.json", "vocab.txt", "vocab.json"))
    name = source if own else str(released.get("tokenizer", family.tokenizer))
    try:
        AutoTokenizer.from_pretrained(name).save_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        logger.warning("no tokenizer: put the files of %s into the folder (%s)", name, first_line(error))
        return None
    return name
