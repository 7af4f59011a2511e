"""Training, evaluating, predicting and scoring through the command line, for every task and backbone."""

import csv
import json

import pytest
from PIL import Image
from tiny import FOLDERS
from typer.testing import CliRunner

import pumer
from pumer.checkpoint import load_processor
from pumer.cli import app
from pumer.errors import InputError
from pumer.predict import Predictor
from pumer.tasks import TASKS, Flickr30k

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
        invoke("evaluate", model, "galleries=2x2", f"output={result}", f"scores={tmp_path / 'scores'}")
        invoke("predict", model, "split=val", "galleries=2x2", "--out", predictions)
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,colour\na.png,red\n", r"must have the columns image \(or image1, image2\) and question"),
        ("", "has no heading"),
        ("image,question\n", "holds no questions"),
        ("image,question\na.png\n", "line 2 has not 2 values"),
        ("image,question\na.png,what\n", r"a\.png does not exist"),
    ],
)
def test_lists_that_cannot_be_answered(tiny_vilt, tmp_path, text, message):
    from pumer.predict import PredictConfig, run

    (tmp_path / "q.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        run(PredictConfig(str(tiny_vilt), tmp_path / "out.csv", questions=tmp_path / "q.csv", images=tmp_path))
    assert not (tmp_path / "out.csv").exists()


def test_a_list_and_a_split_do_not_go_together(tiny_vilt, tmp_path):
    from pumer.predict import PredictConfig, run

    with pytest.raises(InputError, match="limit would be of a split, whose place questions take"):
        run(PredictConfig(str(tiny_vilt), tmp_path / "out.csv", questions=tmp_path / "q.csv", limit=3))


def test_pictures_are_given_as_files(tiny_vilt):
    with pytest.raises(InputError, match="images must be the names of image files, not Image"):
        Predictor(tiny_vilt)(Image.new("RGB", (8, 8)), "what?")


def test_the_number_of_images_must_fit(tiny_vilt):
    with pytest.raises(InputError, match=r"task vqav2 looks at 1 image\(s\) at once, not 2"):
        Predictor(tiny_vilt)(["a.png", "b.png"], "what?")


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
    with pytest.raises(InputError, match=r"a model for flickr30k gives no answers; .* Predictor\(\.\.\.\)\.scores"):
        predictor(images[0], "it is red")
    with pytest.raises(InputError, match="a model for vqav2 does not rank"):
        Predictor(request.getfixturevalue(f"tiny_{backbone}")).scores(images, texts)
