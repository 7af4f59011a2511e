"""The chat model that lmms-eval loads by the name "pumer"."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from time import perf_counter
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.protocol import ChatMessages
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from pumer.checkpoint import read_reduction, reading
from pumer.patching import patch
from pumer.reducers import ReductionConfig, config_from_dict
from pumer.utils.errors import InputError
from pumer.utils.files import read_config
from pumer.utils.progress import progress_bar

MAX_NEW_TOKENS = 1024
"""Of a task that gives no length of its own."""


class ChatModel(lmms):
    """A generative model of transformers, with a reduction, that answers lmms-eval's tasks about images.

    Example:
        >>> ChatModel.create_from_arg_string("pretrained=out/llava-pumer,dtype=bfloat16")  # doctest: +SKIP

    A run of several processes (``accelerate launch -m lmms_eval``) puts the whole model on each device; lmms-eval
    deals the requests out.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        reduction: str | None = None,
        *,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str = "auto",
        attn_implementation: str | None = None,
        **settings: Any,
    ) -> None:
        """Load a model and its processor, and patch the model.

        Args:
            pretrained: Folder or hub name, as for ``AutoModelForImageTextToText``.
            reduction: Name of a method, or a file such as ``reduction.json``; by default what the model was saved
                with, and transformers' own model where that is nothing.
            batch_size: Prompts answered together; the answers do not depend on it.
            device: Of a single process; by default the accelerator if there is one, else the CPU.
            dtype: As for ``from_pretrained``; "auto" for the checkpoint's own.
            attn_implementation: As for ``from_pretrained``.
            **settings: Of the reduction's method, as YAML where they are text:
                ``schedule=[{stack: decoder,layer: 2,prune_ratio: 0.2}]``; they replace those of a file.

        Raises:
            InputError: For a model or processor that cannot be loaded, a reduction that is unknown or does not fit,
                settings without a reduction, and a batch size that is not an integer from 1 on.
        """
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise InputError(f"batch_size is {batch_size!r}; give an integer from 1 on")
        self.batch_size = int(batch_size)
        config = _reduction(pretrained, reduction, settings)
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.device = torch.device(device if device and self._world_size == 1 else self.accelerator.device)
        with reading(f"{pretrained} cannot be loaded"):
            self.processor = AutoProcessor.from_pretrained(pretrained)
            model = AutoModelForImageTextToText.from_pretrained(
                pretrained, dtype=dtype, attn_implementation=attn_implementation
            )
        self.tokenizer = self.processor.tokenizer
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model = (model if config is None else patch(model, config)).eval().to(self.device)

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """The answers to the requests, in their order; requests with the same settings share batches.

        A task's settings are those of ``generate``, others are ignored. It samples where ``do_sample`` is true or, if
        that is not given, the temperature is above 0. An answer ends before the first of the ``until`` strings; a
        blank line is none of them, because lmms-eval adds it to tasks that name no end.

        Raises:
            InputError: For a request with a video or with audio.
        """
        answers: dict[int, GenerationResult] = {}
        seconds = 0.0
        with progress_bar() as bar:
            progress = bar.add_task("answering", total=len(requests), note="")
            for batch in _batches([request.args[2] for request in requests], self.batch_size):
                settings = requests[batch[0]].args[2]
                inputs = self._inputs([requests[index] for index in batch])
                start = perf_counter()
                generated = self._generate(inputs, settings)  # on the CPU: the device has finished
                seconds += perf_counter() - start
                texts = self.processor.batch_decode(generated, skip_special_tokens=True)
                counts = (generated != self.tokenizer.pad_token_id).sum(1).tolist()
                for index, text, count in zip(batch, texts, counts, strict=True):
                    answers[index] = GenerationResult(_cut(text, settings), TokenCounts(output_tokens=count))
                bar.advance(progress, len(batch))
        tokens = sum(answer.token_counts.output_tokens for answer in answers.values())
        log_metrics(seconds, tokens, tokens / seconds if seconds else 0.0)
        return [answers[index] for index in range(len(requests))]

    def _inputs(self, requests: Sequence[Instance]) -> Mapping[str, Tensor]:
        """Prompts of the processor's chat template, padded on the left."""
        conversations = []
        for request in requests:
            _, to_messages, _, document, task, split = request.args
            messages = ChatMessages(messages=to_messages(self.task_dict[task][split][document]))
            _, videos, audios = messages.extract_media()
            if videos or audios:
                raise InputError(f"document {document} of {task} is not images and text alone; choose another task")
            conversations.append(messages.to_hf_messages())
        inputs: Any = self.processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
        moved: Mapping[str, Tensor] = inputs.to(self.device, self.model.dtype)
        return moved

    def _generate(self, inputs: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Tensor:
        """Generated ids ``(B, T)``, those of the prompts not among them."""
        names = vars(self.model.generation_config)
        given = {name: value for name, value in settings.items() if name in names and value is not None}
        temperature = given.get("temperature")
        given["do_sample"] = temperature != 0 and given.get("do_sample", temperature is not None)
        if not given["do_sample"]:
            given |= dict.fromkeys(("temperature", "top_p", "top_k"))
        given = {"max_new_tokens": MAX_NEW_TOKENS, "pad_token_id": self.tokenizer.pad_token_id} | given
        ids: Tensor = self.model.generate(**inputs, **given)
        return ids[:, inputs["input_ids"].shape[1] :].cpu()

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not for chat models: lmms-eval asks them for text alone."""
        raise InputError("the model 'pumer' gives no likelihoods; choose a task with output_type generate_until")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not offered."""
        raise InputError("the model 'pumer' answers once; choose a task with output_type generate_until")


def _reduction(pretrained: str, reduction: str | None, settings: Mapping[str, Any]) -> ReductionConfig | None:
    if reduction is None:
        if settings:
            raise InputError(f"{', '.join(settings)}: unknown without a reduction; give reduction=pumer, for example")
        return read_reduction(pretrained)
    named = read_config(reduction) if str(reduction).endswith(".json") else {"method": reduction}
    return config_from_dict(named | {name: _value(name, value) for name, value in settings.items()})


def _value(name: str, value: Any) -> Any:
    """A setting of the reduction; lmms-eval reads numbers and leaves everything else as text."""
    try:
        return yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError:
        raise InputError(f"{name} is {value!r}, which is not YAML; give {name}=[2,6], for example") from None


def _batches(settings: Sequence[Mapping[str, Any]], size: int) -> Iterator[list[int]]:
    """Places of requests that are answered together: at most ``size``, all with the same settings."""
    names = [repr(each) for each in settings]
    for _, places in groupby(sorted(range(len(names)), key=names.__getitem__), key=names.__getitem__):
        group = list(places)
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _cut(text: str, settings: Mapping[str, Any]) -> str:
    until = settings.get("until") or []
    stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop not in ("", "\n\n")]
    return re.split("|".join(map(re.escape, stops)), text, maxsplit=1)[0] if stops else text
