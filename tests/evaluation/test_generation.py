"""Evaluating and predicting with generative models: prompts, answers, their scores, and what is refused."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny.decoders import DECODERS, END, PATCH
from tiny.processors import PROCESSORS
from typer.testing import CliRunner

import pumer
from pumer import Predictor, PuMerConfig, Step
from pumer.cli import app
from pumer.data.images import read_image
from pumer.evaluation.evaluate import predict, run
from pumer.evaluation.generation import PROMPTS, GenerativeSession, _one_of
from pumer.reducers import NoReduction
from pumer.reducers.shortening.divprune import DivPruneConfig
from pumer.settings.evaluate import EvaluateConfig, EvaluationData
from pumer.tasks import NLVR2, SNLIVE, Example, VQAv2
from pumer.tasks.loading import Item
from pumer.tasks.metrics import normalise
from pumer.utils.errors import InputError
from pumer.utils.files import read_json

CONFIG = PuMerConfig(schedule=(Step(stack="decoder", layer=1, prune_ratio=0.5, merge_ratio=0.3),))
SETTING = "reduction={method: pumer, schedule: [{stack: decoder, layer: 1, prune_ratio: 0.5, merge_ratio: 0.3}]}"
ANNOTATIONS = "v2_mscoco_val2014_annotations.json"
FAMILIES = ("llava", "qwen2_5_vl")
TOKENS = 3
LABELS = {NLVR2: ("it", "True", "False"), SNLIVE: ("it", *SNLIVE.fixed_labels)}


def noise(width, height, seed=0):
    pixels = np.random.default_rng([width, height, seed]).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def saved(family, folder, config=None):
    """A tiny model in a folder with its processor."""
    model = DECODERS[family].model()
    pumer.save(model if config is None else pumer.patch(model, config), folder)
    PROCESSORS[family]().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return saved(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return saved("llava", tmp_path_factory.mktemp("llava"))


@pytest.fixture
def photographs(tiny_vqa):
    """The tiny data with images whose sizes and pixels differ."""
    for number, path in enumerate(sorted((tiny_vqa / "val2014").iterdir())):
        noise(20 + 11 * number, 70 - 9 * number).save(path)
    return tiny_vqa


def by_hand(folder, examples, reduction=None, prompt=PROMPTS["vqav2"]):
    """Of each example alone, by the processor's own call: answer in the normal form, and logits of the first token."""
    model = pumer.load(folder)
    if reduction is not None:
        pumer.patch(model, reduction)
    processor = PROCESSORS[model.config.model_type]()
    for example in examples:
        text = "<start><image><end>" * len(example.images) + prompt.replace("{question}", example.text) + " "
        inputs = processor(images=[read_image(image) for image in example.images], text=text, return_tensors="pt")
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)[0, inputs["input_ids"].shape[1] :]
            logits = model(**inputs).logits[0, -1]
        yield normalise(processor.tokenizer.decode(ids, skip_special_tokens=True)), logits


def answers_by_hand(*arguments, **settings):
    """Answers by the id of the example."""
    examples = arguments[1]
    return {each.id: answer for each, (answer, _) in zip(examples, by_hand(*arguments, **settings), strict=True)}


def agreeing(root, answers):
    """Annotations of which 0 to 4 give the answer of the model, written in another way; returns the accuracies."""
    content, accuracies = json.loads((root / ANNOTATIONS).read_text()), []
    for number, entry in enumerate(content["annotations"]):
        count = number % 5
        for annotator, given in enumerate(entry["answers"]):
            given["answer"] = f"The {answers[entry['question_id']]}." if annotator < count else f"other {annotator}"
        given = [annotator < count for annotator in range(10)]
        others = [given[:left] + given[left + 1 :] for left in range(10)]
        accuracies.append(sum(min(1, sum(rest) / 3) for rest in others) / 10)
    (root / ANNOTATIONS).write_text(json.dumps(content))
    return accuracies


@pytest.mark.parametrize("reduction", [None, CONFIG], ids=["unreduced", "reduced"])
def test_accuracy_is_that_of_answers_one_at_a_time(folder, reduction, photographs, tmp_path):
    examples = VQAv2.read(photographs, "val")
    expected = answers_by_hand(folder, examples, reduction)
    assert len(set(expected.values())) > 6
    accuracies = agreeing(photographs, expected)
    given = {} if reduction is None else {"reduction": {"method": "pumer", "schedule": [vars(reduction.schedule[0])]}}
    results = []
    for batch_size in (1, 5):
        config = EvaluateConfig(
            model=str(folder),
            data=EvaluationData(root=photographs),
            batch_size=batch_size,
            max_new_tokens=TOKENS,
            output=tmp_path / f"{batch_size}.json",
            per_example=tmp_path / f"per-example-{batch_size}.json",
            **given,
        )
        results.append(run(config))
        assert read_json(config.output) == json.loads(json.dumps(results[-1]))
        entries = read_json(config.per_example)["examples"]
        assert {entry["id"]: entry["answer"] for entry in entries} == expected
        assert [entry["score"] for entry in entries] == pytest.approx(accuracies)
    for result in results:
        assert result["accuracy"] == results[0]["accuracy"]
        assert result["accuracy"]["mean"] == pytest.approx(sum(accuracies) / 12)
        assert (result["questions"], result["rule"], result["max_new_tokens"]) == (12, "official", TOKENS)
        assert result["prompt"] == PROMPTS["vqav2"]
        assert result["reduction"]["method"] == ("none" if reduction is None else "pumer")
        assert {"question_type", "constant_per_template", "commit", "versions", "command"} <= result.keys()


def test_a_saved_reduction_is_in_force_and_compared_with_none(photographs, tmp_path):
    model = saved("llava", tmp_path / "model", CONFIG)
    config = {"model": str(model), "data": EvaluationData(root=photographs), "max_new_tokens": TOKENS}
    whole = run(EvaluateConfig(**config, reduction="none", per_example=tmp_path / "whole.json"))
    reduced = run(EvaluateConfig(**config, against=tmp_path / "whole.json", per_example=tmp_path / "reduced.json"))
    assert (whole["reduction"]["method"], reduced["reduction"]["method"]) == ("none", "pumer")
    answers = [[e["answer"] for e in read_json(tmp_path / f"{run}.json")["examples"]] for run in ("whole", "reduced")]
    same = sum(one == other for one, other in zip(*answers, strict=True))
    assert reduced["difference"]["agreement"] == same / 12 < 1


def invoke(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_line(llava, photographs, tmp_path):
    prompt = "{question}\nshort"
    expected = answers_by_hand(llava, VQAv2.read(photographs, "val"), CONFIG, prompt)
    agreeing(photographs, expected)
    given = (SETTING, 'prompt="{question}\\nshort"', f"max_new_tokens={TOKENS}", "batch_size=5", "workers=0")
    shown = invoke("evaluate", llava, f"data.root={photographs}", *given, f"output={tmp_path / 'result.json'}",
                   f"submission={tmp_path / 'answers.json'}", "limit=6")  # fmt: skip
    result = read_json(tmp_path / "result.json")
    assert "question type what colour" in shown and result["prompt"] == prompt and result["questions"] == 6
    assert all(entry["answer"] == expected[entry["question_id"]] for entry in read_json(tmp_path / "answers.json"))
    model, predictions = saved("llava", tmp_path / "model", CONFIG), tmp_path / "predictions.json"
    invoke("predict", model, "split=val", f"data.root={photographs}", *given[1:], "--out", predictions)
    assert {entry["question_id"]: entry["answer"] for entry in read_json(predictions)} == expected
    files = ["--annotations", photographs / ANNOTATIONS, "--predictions", predictions, "--json"]
    evaluated = EvaluateConfig(
        model=str(model), data=EvaluationData(root=photographs), prompt=prompt, max_new_tokens=TOKENS
    )
    scored = json.loads(invoke("score", "vqav2", *files))
    assert scored["accuracy"] == run(evaluated)["accuracy"] and scored["accuracy"]["mean"] > 0


def test_fewer_pixels(photographs, tmp_path):
    model = saved("qwen2_5_vl", tmp_path / "model")
    config = {"model": str(model), "data": EvaluationData(root=photographs), "max_new_tokens": TOKENS, "limit": 6}
    run(EvaluateConfig(**config, max_pixels=1024, per_example=tmp_path / "fewer.json", output=tmp_path / "result.json"))
    assert read_json(tmp_path / "result.json")["max_pixels"] == 1024
    predictor = Predictor(model, max_new_tokens=TOKENS, max_pixels=1024)
    examples = {each.id: each for each in VQAv2.read(photographs, "val")}
    for entry in read_json(tmp_path / "fewer.json")["examples"]:
        image, text = examples[entry["id"]].images[0], examples[entry["id"]].text
        assert normalise(predictor(image, text)) == entry["answer"]
        inputs = predictor.session.collate([Item(0, examples[entry["id"]])])
        assert inputs["image_grid_thw"].prod() * (PATCH // 2) ** 2 <= 1024
    assert predictor.session.processor.image_processor.size["longest_edge"] == 1024


def test_a_list_of_questions_and_a_predictor(llava, photographs, tmp_path):
    examples = VQAv2.read(photographs, "val")[:5]
    with (tmp_path / "q.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "question"), *((each.images[0], each.text) for each in examples)])
    invoke("predict", llava, "--questions", tmp_path / "q.csv", "--out", tmp_path / "a.csv", "max_new_tokens=3")
    rows = list(csv.DictReader((tmp_path / "a.csv").open(newline="")))
    predictor = Predictor(llava, max_new_tokens=3)
    assert predictor.inputs is None
    for row, (answer, _) in zip(rows, by_hand(llava, examples), strict=True):
        assert row["answer"] == predictor(row["image"], row["question"])
        assert normalise(row["answer"]) == answer
    texts = ["what is it?", "is this red?"]
    assert predictor(noise(30, 40), texts) == [predictor(noise(30, 40), text) for text in texts]
    with pytest.raises(InputError, match="vqav2 does not rank"):
        predictor.scores([noise(30, 40)], texts)
    with pytest.raises(InputError, match="not 2"):
        predictor([noise(30, 40)] * 2, "what?")


@pytest.mark.parametrize("task", [NLVR2, SNLIVE])
def test_fixed_labels_are_the_only_answers(task, monkeypatch, request, tmp_path):
    monkeypatch.setattr("tiny.processors.WORDS", LABELS[task])
    model, root = saved("llava", tmp_path / "model"), request.getfixturevalue(f"tiny_{task.name}")
    for number, path in enumerate(sorted(root.rglob("*.jpg")) + sorted(root.rglob("*.png"))):
        noise(40, 32, number).save(path, "PNG")
    out, result = tmp_path / "predictions", tmp_path / "result.json"
    column = {label: 3 + LABELS[task].index(label) for label in task.fixed_labels}
    asked = by_hand(model, task.read(root, "val"), prompt=PROMPTS[task.name])
    expected = [max(column, key=lambda label: logits[column[label]]) for _, logits in asked]
    assert len(set(expected)) > 1
    given = (f"task={task.name}", f"data.root={root}", "split=val", "batch_size=4")
    invoke("evaluate", model, *given, f"output={result}")
    invoke("predict", model, *given, "--out", out)
    assert [answer for _, answer in task.read_submission(out)] == expected
    annotations = root / {NLVR2: "dev.json", SNLIVE: "snli_ve_dev.jsonl"}[task]
    scored = json.loads(invoke("score", task.name, "--annotations", annotations, "--predictions", out, "--json"))
    assert scored["accuracy"] == read_json(result)["accuracy"]


def test_fixed_labels_after_prompts_that_are_shortened(monkeypatch, tiny_snli_ve, tmp_path):
    monkeypatch.setattr("tiny.processors.WORDS", LABELS[SNLIVE])
    session = GenerativeSession.open(saved("llava", tmp_path / "model"), "snli_ve")
    pumer.patch(session.model, NoReduction(before=DivPruneConfig(prune_ratio=0.5)))
    examples = SNLIVE.read(tiny_snli_ve, "val")
    answers = predict(session, examples, 4)
    assert set(answers) <= set(SNLIVE.fixed_labels)
    assert answers == predict(session, examples, 1)


def test_labels_of_several_tokens_are_written_to_their_end():
    following = _one_of([[5, 6, END], [5, 7, 8, END], [5, END], [9, END]])
    written = {(): {5, 9}, (5,): {6, 7, END}, (5, 7): {8}, (5, 7, 8): {END}, (9,): {END}, (9, END, 0): {END}}
    for said, expected in written.items():
        assert set(following(0, torch.tensor([1, 1, *said]))) == expected


def test_an_answer_is_the_first_line_and_scored_in_the_normal_form(llava, monkeypatch):
    session = GenerativeSession.open(llava)
    said = ["\n Two red T-shirts. \nbecause", "Yes", "", "a\n"]
    inputs = session.collate([Item(0, Example(0, (noise(30, 40),), "what?"))] * 4)
    monkeypatch.setattr(session.processor, "batch_decode", lambda ids, **settings: said)
    answers = session.answer(inputs)
    assert answers == ["Two red T-shirts.", "Yes", "", "a"]
    assert session.official(answers) == ["2 red t shirts", "yes", "", ""]
    nlvr2 = GenerativeSession.open(llava, "nlvr2")
    assert nlvr2.official(["True"]) == ["True"]


def test_logits_that_are_nan_are_no_answers(llava):
    predictor = Predictor(llava)
    predictor.model.lm_head.weight.data[5] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        predictor(noise(30, 40), "what?")


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"text_length": 8}, "text_length=8"),
        ({"resize": "square"}, "resize=square"),
        ({"image_size": 64}, "image_size=64"),
        ({"blank": "image"}, "blank=image"),
        ({"task": "flickr30k"}, "task flickr30k"),
        ({"task": "nlvr2", "rule": "published"}, "rule=published"),
        ({"galleries": "2x2"}, "galleries"),
        ({"prompt": "what is it?"}, "{question}"),
    ],
)
def test_what_a_generative_model_has_no_use_for_is_named(llava, tiny_vqa, monkeypatch, setting, named):
    monkeypatch.setattr("pumer.evaluation.evaluate.predict", None)
    with pytest.raises(InputError, match=named):
        run(EvaluateConfig(model=str(llava), data=EvaluationData(root=tiny_vqa), **setting))


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"compile": True}, "compile=True"),
        ({"image_size": 0}, "image_size=0"),
        ({"max_new_tokens": 0}, "not 0"),
        ({"max_pixels": 1024}, "max_pixels is 1024"),
    ],
)
def test_what_a_predictor_has_no_use_for_is_named(llava, setting, named):
    with pytest.raises(InputError, match=named):
        Predictor(llava, **setting)


@pytest.mark.parametrize("setting", [{"prompt": "{question}"}, {"max_new_tokens": 3}, {"max_pixels": 9}])
def test_what_a_classifier_has_no_use_for_is_named(tiny_vilt, tiny_vqa, setting):
    with pytest.raises(InputError, match=f"{tiny_vilt} does not generate.*{next(iter(setting))}"):
        run(EvaluateConfig(model=str(tiny_vilt), data=EvaluationData(root=tiny_vqa), **setting))


def test_a_folder_without_processor_or_template_is_refused_in_one_line(tiny_vqa, tmp_path):
    pumer.save(DECODERS["llava"].model(), tmp_path / "model")
    for named in ("processor.save_pretrained", "chat_template"):
        result = CliRunner().invoke(app, ["evaluate", str(tmp_path / "model"), f"data.root={tiny_vqa}"])
        assert result.exit_code == 2 and len(result.stderr.strip().splitlines()) == 1
        assert named in result.stderr
        processor = PROCESSORS["llava"]()
        processor.chat_template = None
        processor.save_pretrained(tmp_path / "model")


def test_a_question_that_cannot_be_asked_is_named(llava):
    with pytest.raises(InputError, match="examples 0 to 0"):
        Predictor(llava)(noise(30, 40), "\ud83d")
