"""The model of lmms-eval against plain `generate`; where lmms-eval is missing, against a stand-in of its interface."""

import ast
import importlib
import json
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from PIL import Image
from tiny.decoders import DECODERS, END, IMAGE, PAD, PATCH, SIDE, VOCABULARY, WORDS
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import pumer
from pumer import InputError, NoReduction, PuMerConfig
from pumer.reducers import config_to_dict

TASK, SPLIT = "colours", "test"
GREEDY = {"max_new_tokens": 12, "temperature": 0, "do_sample": False, "num_beams": 1, "until": ["\n\n"]}
TEMPLATE = """{% for message in messages %}{{ message['role'] }} {% for part in message['content'] -%}
{{ '<image> ' if part['type'] == 'image' else part['text'] + ' ' }}{% endfor %}{% endfor -%}
{{ 'assistant' if add_generation_prompt }}"""


# ---------------------------------------------------------------- lmms-eval 0.7.3: names and signatures that are used


class Lmms:
    is_simple = True

    def __init__(self):
        self._rank, self._world_size, self.task_dict = 0, 1, {}

    rank = property(lambda self: self._rank)
    world_size = property(lambda self: self._world_size)


@dataclass
class Instance:
    request_type: str
    arguments: tuple
    idx: int
    metadata: dict = field(default_factory=dict)

    args = property(lambda self: self.arguments)


@dataclass
class TokenCounts:
    input_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None


@dataclass
class GenerationResult:
    text: str
    token_counts: TokenCounts | None = None


class ChatMessages:
    def __init__(self, messages):
        self.messages = messages

    def extract_media(self):
        parts = [part for message in self.messages for part in message["content"]]
        return tuple([part["url"] for part in parts if part["type"] == kind] for kind in ("image", "video", "audio"))

    def to_hf_messages(self, video_kwargs=None, image_kwargs=None):
        def changed(part):
            return part if part["type"] == "text" else {"type": part["type"], part["type"]: part["url"]}

        return [{**message, "content": [changed(part) for part in message["content"]]} for message in self.messages]


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


def log_metrics(total_elapsed_time, total_gen_tokens, avg_speed, additional_metrics=None):
    """Writes them to the log, and to the results."""


STAND_IN = {
    "": {},
    ".api": {},
    ".api.model": {"lmms": Lmms},
    ".api.instance": {"Instance": Instance, "TokenCounts": TokenCounts, "GenerationResult": GenerationResult},
    ".protocol": {"ChatMessages": ChatMessages},
    ".models": {},
    ".models.registry_v2": {"ModelManifest": ModelManifest},
    ".models.model_utils": {},
    ".models.model_utils.gen_metrics": {"log_metrics": log_metrics},
}


@pytest.fixture(scope="module")
def chat():
    """The module under test."""
    with pytest.MonkeyPatch.context() as patch:
        if find_spec("lmms_eval") is None:
            for name, content in STAND_IN.items():
                module = ModuleType(f"lmms_eval{name}")
                vars(module).update(content)
                patch.setitem(sys.modules, module.__name__, module)
        yield importlib.import_module("pumer.evaluation.lmms_eval.chat")
        sys.modules.pop("pumer.evaluation.lmms_eval.chat")


# ---------------------------------------------------------------- a model and requests


def word(index):
    """The words of the model; every third ends in a blank line, so that answers have some."""
    named = {PAD: "<pad>", END: "<end>", IMAGE: "<image>", 3: "user", 4: "assistant"}
    return named.get(index, f"w{index}" + "\n\n" * (index % 3 == 0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny LLaVA and its processor, on disk."""
    path = tmp_path_factory.mktemp("tiny-llava")
    words = Tokenizer(models.WordLevel({word(i): i for i in range(VOCABULARY)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<end>", additional_special_tokens=["<image>"]
    )
    LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(path)
    DECODERS["llava"].model().save_pretrained(path)
    return str(path)


def question(length):
    return " ".join(word(i) for i in list(WORDS)[5 : 5 + 3 * length] if i % 3)


DOCUMENTS = [
    {"images": [Image.new("RGB", (40, 32), "red")], "question": question(2)},
    {"images": [Image.new("RGB", (32, 64), "lime"), Image.new("RGB", (32, 32), "gold")], "question": question(9)},
    {"images": [Image.new("RGB", (50, 50), "blue")], "question": question(4)},
    {"images": [], "question": question(3)},
]


def to_messages(document):
    content = [{"type": "image", "url": image} for image in document["images"]]
    return [{"role": "user", "content": [*content, {"type": "text", "text": document["question"]}]}]


def requests_for(chat, *settings, messages=to_messages):
    """One request per entry of ``settings``, about the documents in turn."""
    return [
        chat.Instance(
            request_type="generate_until",
            arguments=(DOCUMENTS[i % 4]["question"], messages, given, i % 4, TASK, SPLIT),
            idx=0,
            metadata={"task": TASK, "doc_id": i % 4, "repeats": 1},
        )
        for i, given in enumerate(settings)
    ]


def opened(chat, folder, **settings):
    model = chat.ChatModel(folder, **{"dtype": "float64", "device": "cpu", **settings})
    model.task_dict[TASK] = {SPLIT: DOCUMENTS}
    return model


def alone(folder, document, config=None, **settings):
    """The oracle: the answer of transformers' model, patched or not, to one prompt that is spelled out."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float64)
    if config is not None:
        pumer.patch(model, config)
    prompt = f"user {'<image> ' * len(document['images'])}{document['question']} assistant"
    inputs = processor(text=[prompt], images=document["images"] or None, return_tensors="pt").to("cpu", torch.float64)
    ids = model.generate(**inputs, do_sample=False, **settings)[0, inputs["input_ids"].shape[1] :]
    return " ".join(word(i) for i in ids.tolist())


SCHEDULE = ({"stack": "decoder", "layer": 2, "prune_ratio": 0.2, "merge_ratio": 0.3},)
REDUCTION = PuMerConfig(schedule=SCHEDULE)


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize("batch_size", [1, 2, "3", 4])
def test_answers_are_those_of_generate_on_each_prompt_alone(chat, folder, batch_size):
    answers = opened(chat, folder, batch_size=batch_size).generate_until(requests_for(chat, *[GREEDY] * 4))
    expected = [alone(folder, document, max_new_tokens=12) for document in DOCUMENTS]
    assert [answer.text for answer in answers] == expected
    assert len(set(expected)) == 4
    assert [answer.token_counts.output_tokens for answer in answers] == [12] * 4


def test_answers_of_a_reduced_model_are_those_of_the_patched_model(chat, folder):
    reduced = opened(chat, folder, batch_size=4, reduction="pumer", schedule=json.dumps(SCHEDULE))
    answers = [answer.text for answer in reduced.generate_until(requests_for(chat, *[GREEDY] * 4))]
    assert answers == [alone(folder, document, REDUCTION, max_new_tokens=12) for document in DOCUMENTS]
    stock = [alone(folder, document, max_new_tokens=12) for document in DOCUMENTS]
    assert [a != b for a, b in zip(answers, stock, strict=True)].count(True) >= 2
    assert answers[3] == stock[3]  # no image, nothing to reduce


def test_requests_with_other_settings_stand_in_other_batches_and_keep_their_order(chat, folder, monkeypatch):
    model = opened(chat, folder, batch_size=8)
    sizes = []
    generate = model.model.generate
    monkeypatch.setattr(
        model.model, "generate", lambda **given: sizes.append(len(given["input_ids"])) or generate(**given)
    )
    beams, short = GREEDY | {"num_beams": 3}, GREEDY | {"max_new_tokens": 2}
    settings = [short, GREEDY, beams, GREEDY, short, short, beams]
    answers = [answer.text for answer in model.generate_until(requests_for(chat, *settings))]
    assert sorted(sizes) == [2, 2, 3]
    assert answers == [
        alone(folder, DOCUMENTS[i % 4], max_new_tokens=given["max_new_tokens"], num_beams=given["num_beams"])
        for i, given in enumerate(settings)
    ]
    assert answers[2] != alone(folder, DOCUMENTS[2], max_new_tokens=12)


def test_answers_end_before_the_first_until_string_and_blank_lines_are_none(chat, folder):
    whole = alone(folder, DOCUMENTS[2], max_new_tokens=12)
    early, late = whole.split(" ")[1], whole.split(" ")[4]
    assert 0 < whole.find(early) < whole.find(late)
    assert "\n\n" in whole
    cases = [("\n\n", whole), (["\n\n"], whole), (None, whole), ([], whole), ([""], whole)]
    cases += [(late, whole[: whole.find(late)]), ([late, early, "w("], whole[: whole.find(early)])]
    requests = [requests_for(chat, *[GREEDY | {"until": until}] * 3)[2] for until, _ in cases]
    answers = opened(chat, folder, batch_size=2).generate_until(requests)
    assert [answer.text for answer in answers] == [expected for _, expected in cases]


@pytest.mark.parametrize(
    ("given", "sampled"),
    [
        ({}, False),
        ({"temperature": 0}, False),
        ({"temperature": None, "top_p": None}, False),
        ({"temperature": 0.7, "do_sample": False}, False),
        ({"temperature": 0.0, "do_sample": True}, False),
        ({"temperature": 0.7}, True),
        ({"do_sample": True}, True),
        ({"temperature": 0.7, "do_sample": True, "top_p": 0.9, "top_k": 5}, True),
    ],
)
def test_settings_reach_generate(chat, folder, monkeypatch, given, sampled):
    model, seen = opened(chat, folder), {}
    generate = model.model.generate
    monkeypatch.setattr(model.model, "generate", lambda **x: seen.update(x) or generate(**x))
    task = {"max_new_tokens": 3, "repetition_penalty": 1.1, "image_aspect_ratio": "original", "until": ["x"], **given}
    (answer,) = model.generate_until(requests_for(chat, task))
    assert seen["do_sample"] is sampled
    wanted = given if sampled else dict.fromkeys(("temperature", "top_p", "top_k"))
    assert {name: seen.get(name) for name in wanted} == wanted
    assert (seen["max_new_tokens"], seen["repetition_penalty"]) == (3, 1.1)
    assert not {"until", "image_aspect_ratio"} & set(seen)
    assert answer.token_counts.output_tokens == 3


def test_a_length_of_its_own_where_the_task_gives_none(chat, folder, monkeypatch):
    monkeypatch.setattr(chat, "MAX_NEW_TOKENS", 5)
    (answer,) = opened(chat, folder).generate_until(requests_for(chat, {"until": ["\n\n"]}))
    assert answer.token_counts.output_tokens == 5


def test_padding_after_the_end_is_not_counted(chat, folder):
    model = opened(chat, folder, batch_size=4)
    first, second = (alone(folder, DOCUMENTS[i], max_new_tokens=12).split(" ") for i in (0, 1))
    place = next(i for i, each in enumerate(second) if each not in first)
    assert place < 11
    model.model.generation_config.eos_token_id = model.tokenizer.convert_tokens_to_ids(second[place])
    answers = model.generate_until(requests_for(chat, GREEDY, GREEDY))
    assert [answer.token_counts.output_tokens for answer in answers] == [12, place + 1]


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_what_is_no_image_is_refused(chat, folder, kind):
    def messages(document):
        return [{"role": "user", "content": [{"type": kind, "url": "cat.mp4"}, {"type": "text", "text": "w5"}]}]

    with pytest.raises(InputError, match=TASK):
        opened(chat, folder).generate_until(requests_for(chat, GREEDY, messages=messages))


@pytest.mark.parametrize("kind", ["loglikelihood", "generate_until_multi_round"])
def test_other_kinds_of_tasks_are_refused(chat, folder, kind):
    with pytest.raises(InputError, match="generate_until"):
        getattr(opened(chat, folder), kind)([])


# ---------------------------------------------------------------- settings of the model


@pytest.fixture
def patches(chat, monkeypatch):
    """The configs that models were patched with."""
    given = []
    monkeypatch.setattr(chat, "patch", lambda model, config: given.append(config) or model)
    return given


def test_the_reduction_is_a_method_with_its_settings(chat, folder, patches):
    schedule = "[{stack: decoder, layer: 2, prune_ratio: 0.2, merge_ratio: 0.3}]"
    opened(chat, folder, reduction="pumer", schedule=schedule)
    opened(chat, folder, reduction="pumer", schedule=json.dumps(SCHEDULE))
    opened(chat, folder, reduction="pumer", layers="[2, 5]", prune_ratio=0.2, max_image_tokens=228)
    opened(chat, folder, reduction="none")
    layers = PuMerConfig(layers=(2, 5), prune_ratio=0.2, max_image_tokens=228)
    assert patches == [REDUCTION, REDUCTION, layers, NoReduction()]


def test_the_reduction_is_a_file_whose_settings_can_be_replaced(chat, folder, patches, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(json.dumps(config_to_dict(REDUCTION)))
    opened(chat, folder, reduction=str(path))
    opened(chat, folder, reduction=str(path), max_image_tokens=64)
    assert patches == [REDUCTION, PuMerConfig(schedule=SCHEDULE, max_image_tokens=64)]


def test_the_reduction_is_what_the_model_was_saved_with(chat, folder, patches, tmp_path):
    for file in Path(folder).iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "reduction.json").write_text(json.dumps(config_to_dict(REDUCTION)))
    opened(chat, str(tmp_path))
    assert patches == [REDUCTION]
    opened(chat, folder)
    assert patches == [REDUCTION]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"batch_size": "auto"}, "'auto'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"reduction": "prune"}, "'prune'"),
        ({"reduction": "pumer", "layers": "[2]", "prune_ratios": 0.2}, "prune_ratios"),
        ({"reduction": "pumer", "layers": "[2", "prune_ratio": 0.2}, "layers"),
        ({"reduction": "missing.json"}, "missing.json"),
        ({"prune_ratio": 0.2}, "prune_ratio"),
        ({"dtype": "float17"}, "float17"),
    ],
)
def test_settings_that_cannot_be_used_are_named(chat, folder, settings, named):
    with pytest.raises(InputError) as caught:
        opened(chat, folder, **settings)
    assert named in str(caught.value)


def test_a_model_that_is_not_there_is_named(chat, tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        opened(chat, str(tmp_path / "nowhere"))


def test_dtype_attention_and_device_are_those_given(chat, folder):
    model = opened(chat, folder, dtype="bfloat16", attn_implementation="eager")
    assert (model.model.dtype, model.device) == (torch.bfloat16, torch.device("cpu"))
    assert model.model.config._attn_implementation == "eager"
    assert not model.model.training
    assert opened(chat, folder, dtype="auto").model.dtype == torch.float32
    assert opened(chat, folder, device="meta").model.device == torch.device("meta")


@pytest.mark.parametrize(("processes", "device"), [(1, "meta"), (2, "cpu")])
def test_each_of_several_processes_knows_its_place(chat, folder, monkeypatch, processes, device):
    accelerator = SimpleNamespace(process_index=processes - 1, num_processes=processes, device=torch.device("cpu"))
    monkeypatch.setattr(chat, "Accelerator", lambda: accelerator)
    model = opened(chat, folder, device="meta")
    assert (model.rank, model.world_size, model.device.type) == (processes - 1, processes, device)
    assert model.accelerator is accelerator


# ---------------------------------------------------------------- how lmms-eval finds it


def test_the_manifest_leads_to_the_chat_model(chat):
    from lmms_eval.api.model import lmms

    from pumer.evaluation.lmms_eval import manifest

    found = manifest()
    module, _, name = found.chat_class_path.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    assert (found.model_id, found.simple_class_path, cls) == ("pumer", None, chat.ChatModel)
    assert issubclass(cls, lmms) and not cls.is_simple


def test_lmms_eval_is_optional():
    source = Path(pumer.__file__).parent
    importers = set()
    for path in source.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(f"{name}.".startswith(("lmms_eval.", "pumer.evaluation.lmms_eval.")) for name in names):
                importers.add(path.relative_to(source).as_posix())
    assert importers == {"evaluation/lmms_eval/__init__.py", "evaluation/lmms_eval/chat.py"}
