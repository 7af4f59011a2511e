"""Training, evaluating, predicting and scoring through the command line, for every task and backbone."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import FOLDERS
from typer.testing import CliRunner

import pumer
from pumer.checkpoint import load_processor
from pumer.cli import app
from pumer.data.images import read_image
from pumer.evaluation.predict import Predictor, run
from pumer.settings.predict import PredictConfig
from pumer.tasks import NLVR2, TASKS, Example, Flickr30k
from pumer.tasks.base import model_inputs
from pumer.utils.errors import InputError

RECIPE = """
model: {model}
output: {output}
task: {task}
data: {{root: {root}, min_answer_count: 1}}
reduction: {{method: pumer, layers: {layers}, prune_ratio: 0.1, merge_ratio: 0.3, text_merge_ratio: 0.2}}
teacher: self
batch_size: 6
max_steps: 2
report_to: []
"""
LAYERS = {"vilt": "[2, 5]", "meter": "[0, 2]"}
ANNOTATIONS = {
    "vqav2": "v2_mscoco_val2014_annotations.json",
    "nlvr2": "dev.json",
    "snli_ve": "snli_ve_dev.jsonl",
    "flickr30k": "dataset_flickr30k.json",
    "coco": "dataset_coco.json",
}


def invoke(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("backbone", LAYERS)
@pytest.mark.parametrize("task", FOLDERS)
def test_train_evaluate_predict_score(task, backbone, tmp_path, request):
    root, checkpoint = request.getfixturevalue(FOLDERS[task]), request.getfixturevalue(f"tiny_{backbone}")
    recipe, model = tmp_path / "recipe.yaml", tmp_path / "out"
    text = RECIPE.format(model=checkpoint, output=model, task=task, root=root, layers=LAYERS[backbone])
    recipe.write_text(text)
    assert "accuracy" in invoke("train", recipe, *(["data.train=train+restval"] if task == "coco" else []))
    result, per_example = tmp_path / "result.json", tmp_path / "per-example.json"
    shown = invoke("evaluate", model, f"output={result}", f"per_example={per_example}")
    assert f"wrote {result}" in shown
    found = json.loads(result.read_text())
    assert found["reduction"]["method"] == "pumer"
    predictions = tmp_path / "predictions"
    assert f"{found['questions']} answers" in invoke("predict", model, "split=val", "--out", predictions)
    files = ["--annotations", root / ANNOTATIONS[task], "--predictions", predictions]
    files += ["--split", "val"] if task in ("flickr30k", "coco") else []
    scored = json.loads(invoke("score", task, *files, "--json", "--per-example", tmp_path / "scored.json"))
    for name in ("questions", "accuracy", *TASKS[task].groups):
        assert scored.get(name) == found.get(name)
    assert scored.get("figures") == found.get("figures")
    assert (
        json.loads((tmp_path / "scored.json").read_text())["examples"]
        == json.loads(per_example.read_text())["examples"]
    )
    if task in ("flickr30k", "coco"):
        invoke("evaluate", model, "galleries=2x2", "--force", f"output={result}", f"scores={tmp_path / 'scores'}")
        invoke("predict", model, "split=val", "galleries=2x2", "--force", "--out", predictions)
        for path in (predictions, tmp_path / "scores"):
            files = ("--annotations", root / ANNOTATIONS[task], "--predictions", path, "--split", "val")
            scored = json.loads(invoke("score", task, *files, "--galleries", "2x2", "--json"))
            assert scored["figures"] == json.loads(result.read_text())["figures"]
    if task == "nlvr2":
        assert found["figures"]["consistency"]["questions"] == 6
        assert "consistency" in shown
    if task in ("nlvr2", "snli_ve"):
        assert "best constant answer" in shown
        assert "template" not in shown


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_a_list_of_questions(tiny_vilt, tiny_vqa, tmp_path):
    names = [f"COCO_val2014_{number:012d}.{'png' if number % 2 else 'jpg'}" for number in range(3)]
    write_csv(
        tmp_path / "q.csv", [{"note": "a, b", "image": name, "question": "what colour is this?"} for name in names]
    )
    invoke("predict", tiny_vilt, "--questions", tmp_path / "q.csv", "--images", tiny_vqa / "val2014",
           "--out", tmp_path / "out.csv")  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "out.csv").open(newline="")))
    predictor = Predictor(tiny_vilt)
    assert [row["image"] for row in rows] == names
    assert rows[0]["note"] == "a, b"
    for row in rows:
        assert row["answer"] == predictor(tiny_vqa / "val2014" / row["image"], row["question"])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_list_as_spreadsheets_write_it(tiny_vilt, tiny_vqa, tmp_path, encoding):
    text = 'note,image,question\r\n"été, ""2""\r\n",COCO_val2014_000000000001.png,what is this?\r\n\r\n'
    (tmp_path / "q.csv").write_bytes(text.encode(encoding))
    files = {"questions": tmp_path / "q.csv", "images": tiny_vqa / "val2014"}
    assert run(PredictConfig(model=str(tiny_vilt), out=tmp_path / "a.csv", **files)) == 1
    (row,) = csv.DictReader(io.StringIO((tmp_path / "a.csv").read_bytes().decode(), newline=""))
    assert row["note"] == 'été, "2"\r\n'
    assert list(row) == ["note", "image", "question", "answer"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,colour\na.png,red\n", r"must have the columns image \(or image1, image2\) and question"),
        ("", "has no heading"),
        ("image,question\n", "holds no questions"),
        ("image,question\na.png\n", "line 2 has 1 values, not 2"),
        ("image,question\na.png,a,b\n", "line 2 has 3 values, not 2"),
        ("image,question,question\na.png,what,where\n", "2 columns 'question'"),
        ("image,question,,\na.png,what,1,2\n", "2 columns ''"),
        ("image,question,answer\na.png,what,cat\n", "a column 'answer'"),
        ('image,question\na.png,"what\na.png,where\n', "unexpected end of data"),
        ("image,question\na.png,what\n", r"a\.png does not exist"),
        ("image,question\na.png,what\n ,where\n", "line 3 has no image; give the name of a file in"),
    ],
)
def test_lists_that_cannot_be_answered(tiny_vilt, tmp_path, text, message):
    (tmp_path / "q.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        run(
            PredictConfig(model=str(tiny_vilt), out=tmp_path / "out.csv", questions=tmp_path / "q.csv", images=tmp_path)
        )
    assert not (tmp_path / "out.csv").exists()


def test_empty_questions_of_a_list_are_reported(tiny_vilt, tiny_vqa, tmp_path, caplog):
    name = "COCO_val2014_000000000001.png"
    write_csv(tmp_path / "q.csv", [{"image": name, "question": text} for text in ("what is this?", "", " ")])
    assert run(PredictConfig(model=str(tiny_vilt), out=tmp_path / "a.csv", questions=tmp_path / "q.csv",
                             images=tiny_vqa / "val2014")) == 3  # fmt: skip
    assert "2 questions are empty and answered from the image alone: line 3, line 4" in caplog.text


def test_a_list_and_a_split_do_not_go_together(tiny_vilt, tmp_path):
    with pytest.raises(InputError, match=r"limit.*split.*questions"):
        run(PredictConfig(model=str(tiny_vilt), out=tmp_path / "out.csv", questions=tmp_path / "q.csv", limit=3))


@pytest.fixture(scope="module")
def predictor(tiny_vilt):
    found = Predictor(tiny_vilt)
    examples = [Example(0, (read_image(NOISE),), question) for question in QUESTIONS]
    with torch.inference_mode():  # centred, the answers differ
        found.model.classifier[-1].bias -= found.model(**model_inputs(examples, found.inputs)).logits.mean(0)
    return found


NOISE = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
QUESTIONS = ["what is this?", "is it red?", "", "what colour is it?", "is it?"]


def test_paths_pil_images_and_arrays_are_images(predictor, tmp_path):
    path = tmp_path / "cat.png"
    Image.fromarray(NOISE).save(path)
    expected = [predictor(path, question) for question in QUESTIONS]
    assert len(set(expected)) > 1
    for image in (path, str(path), Image.open(path), NOISE, NOISE / 255, [path], (NOISE,)):
        assert [predictor(image, question) for question in QUESTIONS] == expected
        assert predictor(image, QUESTIONS) == predictor(image, tuple(QUESTIONS)) == expected
    assert predictor(path, QUESTIONS[:1]) == expected[:1]
    assert predictor(path, []) == []


@pytest.mark.parametrize(
    ("image", "text", "named"),
    [
        (NOISE, 3, "int"),
        (NOISE, ["what?", 3], "int"),
        (NOISE, [["what?", "where?"]], "list"),
        (NOISE, None, "NoneType"),
        (NOISE, b"what?", "bytes"),
        (NOISE, "\ud83d", "surrogate"),
        (NOISE, ["what?", "\ude00"], "surrogate"),
        (3, "what?", "int"),
        (b"cat.png", "what?", "bytes"),
        ([3], "what?", "int"),
        ([], "what?", "not 0"),
        (NOISE[None], "what?", "(1, 40, 30, 3)"),
        (NOISE.transpose(2, 0, 1), "what?", "(3, 40, 30)"),
        ([NOISE, NOISE], ["what?", "is it?"], "not 2"),
    ],
)
def test_what_is_no_image_and_no_question_is_named(predictor, image, text, named):
    with pytest.raises(InputError) as caught:
        predictor(image, text)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "setting", [{"text_length": 0}, {"text_length": 1}, {"text_length": 99}, {"resize": ""}, {"image_size": 0}]
)
def test_no_value_means_the_default_in_secret(tiny_vilt, setting):
    ((name, value),) = setting.items()
    with pytest.raises(InputError, match=rf"{name} .*{value}"):
        Predictor(tiny_vilt, **setting)


def test_another_reduction_takes_the_place_of_the_saved_one(tiny_vilt):
    half = {"method": "random", "layers": [2], "prune_ratio": 0.5}
    assert Predictor(tiny_vilt, reduction=half).session.reduction["prune_ratio"] == 0.5
    assert Predictor(tiny_vilt, reduction="none").session.reduction["method"] == "none"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"questions": Path("q.csv"), "out": Path("a.json")}, r"a\.json.*csv"),
        ({"out": Path("a.csv")}, r"a\.csv.*json"),
        ({"images": Path("photos")}, r"photos.*question"),
        ({"questions": Path("q.csv"), "on_error": "record"}, "on_error=record"),
    ],
)
def test_settings_that_do_not_go_together(settings, named):
    with pytest.raises(InputError, match=named):
        PredictConfig(model="model", **settings)


@pytest.mark.parametrize("label", [None, 3])
def test_a_column_without_a_name_is_named(tiny_vilt, tmp_path, label):
    shutil.copytree(tiny_vilt, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["id2label"] |= {"9": config["id2label"].pop("1")} if label is None else {"1": label}
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match="id2label"):
        Predictor(tmp_path / "model")


@pytest.mark.parametrize("batch_size", [0, -1, 10**6])
def test_batches_have_at_least_one_example(predictor, batch_size):
    with pytest.raises(InputError, match=rf"batch_size .* not {batch_size}"):
        predictor.answers([Example(0, (NOISE,), "what?")], batch_size)


def test_the_number_of_images_must_fit(predictor):
    with pytest.raises(InputError, match=r"task vqav2 looks at 1 image\(s\) at once, not 2"):
        predictor(["a.png", "b.png"], "what?")


def test_several_sentences_about_a_pair(tiny_meter, tmp_path):
    NLVR2.model(str(tiny_meter), NLVR2.fixed_labels).save_pretrained(tmp_path)
    load_processor(tiny_meter).save_pretrained(tmp_path)
    predictor = Predictor(tmp_path, "nlvr2")
    pair = [NOISE, Image.fromarray(255 - NOISE)]
    assert predictor(pair, QUESTIONS) == [predictor(pair, question) for question in QUESTIONS]
    with pytest.raises(InputError, match=r"looks at 2 image\(s\) at once, not 1"):
        predictor(NOISE, QUESTIONS[:2])


@pytest.mark.parametrize("backbone", LAYERS)
def test_images_and_captions_are_ranked(backbone, tmp_path, tiny_flickr, request):
    folder = tmp_path / "model"
    model = Flickr30k.model(str(request.getfixturevalue(f"tiny_{backbone}")), ())
    model.rank_output.weight.data.normal_()
    pumer.save(model, folder)
    load_processor(request.getfixturevalue(f"tiny_{backbone}")).save_pretrained(folder)
    predictor = Predictor(folder, "flickr30k")
    images = sorted((tiny_flickr / "flickr30k-images").iterdir())[:3]
    texts = ["it is red", "what", "this colour is blue?", "green it is"]
    scores = predictor.scores(images, texts, batch_size=2)
    assert scores.shape == (3, 4)
    assert scores.std() > 1e-3
    for row, image in enumerate(images):
        for column, text in enumerate(texts):
            assert abs(predictor.scores([image], [text])[0, 0] - scores[row, column]) < 1e-4
    opened = [Image.open(images[0]), np.asarray(Image.open(images[1])), str(images[2])]
    assert np.array_equal(predictor.scores(opened, texts, batch_size=2), scores)
    for given in ((images[0], texts), (str(images[0]), texts), (images, "it is red"), (images, [3]), (3, texts)):
        with pytest.raises(InputError, match=r"images|texts|list"):
            predictor.scores(*given)
    with pytest.raises(InputError, match=r"a model for flickr30k gives no answers; .* Predictor\(\.\.\.\)\.scores"):
        predictor(images[0], "it is red")
    with pytest.raises(InputError, match="a model for vqav2 does not rank"):
        Predictor(request.getfixturevalue(f"tiny_{backbone}")).scores(images, texts)
