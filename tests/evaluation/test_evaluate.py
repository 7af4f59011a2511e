import json
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import ViltForMaskedLM

import pumer
from pumer.checkpoint import load_processor
from pumer.evaluation.evaluate import predict, run
from pumer.settings.data import PrepareConfig
from pumer.settings.evaluate import EvaluateConfig, EvaluationData
from pumer.tasks import VQAv2
from pumer.tasks.prepare import run as prepare
from pumer.tasks.session import Session
from pumer.utils.errors import InputError
from pumer.utils.files import read_json

REDUCTION = {"method": "pumer", "layers": [2, 5], "prune_ratio": 0.2, "merge_ratio": 0.4}


@pytest.fixture
def config(tiny_vilt, tiny_vqa):
    return EvaluateConfig(model=str(tiny_vilt), data=EvaluationData(root=tiny_vqa), batch_size=5)


def test_answers_equal_those_of_one_question_at_a_time(tiny_vilt, tiny_vqa):
    session = Session.open(tiny_vilt, text_length=12)
    examples = VQAv2.read(tiny_vqa, "val")
    answers = predict(session, examples, batch_size=5)
    for example, answer in zip(examples, answers, strict=True):
        with torch.no_grad():
            logits = session.model(**session.task.collate([example], session.inputs)["inputs"]).logits[0]
        assert answer == session.model.config.id2label[int(logits.argmax())]


def test_result_file(config, tmp_path):
    config = EvaluateConfig(**vars(config) | {"output": tmp_path / "sub" / "result.json"})
    result = run(config)
    assert read_json(config.output) == json.loads(json.dumps(result))
    assert result["questions"] == 12
    assert result["reduction"]["method"] == "none"
    assert set(result["answer_type"]) == {"other", "yes/no"}
    assert {"device", "dtype", "versions", "commit", "config"} <= result.keys()
    # "what colour" has three equally frequent answers, "is it red?" is mostly no
    assert result["constant_per_template"]["mean"] == pytest.approx((2 + 4) / 12)


def test_runs_are_compared_question_by_question(config, tmp_path):
    first = vars(config) | {"per_example": tmp_path / "a.json"}
    result = run(EvaluateConfig(**first))
    entries = read_json(tmp_path / "a.json")["examples"]
    assert len(entries) == 12
    assert sum(entry["score"] for entry in entries) / 12 == pytest.approx(result["accuracy"]["mean"])
    again = run(EvaluateConfig(**vars(config) | {"against": tmp_path / "a.json"}))
    assert again["difference"]["agreement"] == 1
    assert again["difference"]["difference"] == {"mean": 0, "low": 0, "high": 0}
    with pytest.raises(InputError, match="same split and limit"):
        run(EvaluateConfig(**vars(config) | {"against": tmp_path / "a.json", "limit": 3}))


def test_reduction_without_fine_tuning(config, tmp_path):
    result = run(EvaluateConfig(**vars(config) | {"reduction": REDUCTION}))
    assert result["reduction"]["method"] == "pumer"
    assert [step["layer"] for step in result["reduction"]["schedule"]] == [2, 5]
    model = pumer.patch(pumer.load(config.model), pumer.PuMerConfig(layers=(2,), merge_ratio=0.3))
    pumer.save(model, tmp_path)
    load_processor(config.model).save_pretrained(tmp_path)
    assert run(EvaluateConfig(**vars(config) | {"model": str(tmp_path)}))["reduction"]["method"] == "pumer"
    off = run(EvaluateConfig(**vars(config) | {"model": str(tmp_path), "reduction": "none"}))
    assert off["reduction"]["method"] == "none"
    assert off["accuracy"] == run(config)["accuracy"]


def test_table_and_submission(config, tmp_path, capsys):
    config = EvaluateConfig(**vars(config) | {"submission": tmp_path / "submission.json"})
    run(config, Console(width=100))
    shown = capsys.readouterr().out
    assert "question type what colour" in shown
    assert "best constant per template" in shown
    submission = read_json(tmp_path / "submission.json")
    assert len(submission) == 12
    assert submission[0].keys() == {"question_id", "answer"}


def test_what_a_prepared_folder_lacks_is_counted(config, tiny_vqa, tmp_path, caplog):
    assert run(config)["left_out"] == 0
    (tiny_vqa / "val2014" / "COCO_val2014_000000000000.jpg").unlink()
    prepare(PrepareConfig(task="vqav2", root=tiny_vqa, out=tmp_path / "prepared"), progress=False)
    given = {"data": EvaluationData(root=tmp_path / "prepared"), "submission": tmp_path / "submission.json"}
    result = run(EvaluateConfig(**vars(config) | given))
    assert (result["questions"], result["answered"], result["left_out"]) == (10, 10, 2)
    assert caplog.text.count("submission.json lacks 2 examples, whose images are missing or broken") == 1


def test_settings_of_the_training_are_the_defaults(config, tmp_path):
    model = pumer.load(config.model)
    pumer.save(model, tmp_path)
    load_processor(config.model).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"give data\.root=FOLDER"):
        run(EvaluateConfig(model=str(tmp_path)))
    trained = {"data": {"root": str(config.data.root)}, "task": "vqav2", "blank": "image", "text_length": 5}
    (tmp_path / "run.json").write_text(json.dumps({"config": trained}))
    result = run(EvaluateConfig(model=str(tmp_path)))
    blind = run(EvaluateConfig(**vars(config) | {"blank": "image", "text_length": 5}))
    assert result["accuracy"] == blind["accuracy"]
    with pytest.raises(InputError, match="checkpoint out/of/sight "):
        run(EvaluateConfig(model="out/of/sight"))


def test_split_without_train_files_has_no_constants(config, tiny_vqa):
    (tiny_vqa / "v2_mscoco_train2014_annotations.json").unlink()
    assert "constant_per_template" not in run(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, r"batch_size.* \[1, 65536\], not 0"),
        ({"workers": -2}, r"workers.* \[0, 1024\], not -2"),
        ({"galleries": "2x2"}, "galleries and scores are for retrieval, not for task vqav2"),
        ({"output": Path("/")}, "/ is a folder; give the name of a file"),
        ({"against": Path(__file__)}, "is not valid JSON"),
        ({"split": "test"}, "split test has no public answers; give submission=FILE alone"),
    ],
)
def test_what_cannot_work_is_refused_before_it_takes_long(config, tiny_vqa, monkeypatch, change, message):
    for name in ("v2_OpenEnded_mscoco_test2015_questions.json", "test2015"):
        source = tiny_vqa / name.replace("test2015", "val2014")
        if source.is_dir():
            shutil.copytree(source, tiny_vqa / name)
        else:
            shutil.copy(source, tiny_vqa / name)
    for path in (tiny_vqa / "test2015").iterdir():
        path.rename(path.with_name(path.name.replace("val2014", "test2015")))
    monkeypatch.setattr("pumer.evaluation.evaluate.predict", None)
    with pytest.raises(InputError, match=message):
        run(EvaluateConfig(**vars(config) | change))


def test_a_file_that_is_no_other_run_is_refused(config, tmp_path):
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(InputError, match="no per_example file"):
        run(EvaluateConfig(**vars(config) | {"against": tmp_path / "other.json"}))


@pytest.mark.parametrize("content", ["[]", "null", '{"config": "x"}', '{"config": {"data": "x"}}'])
def test_a_broken_record_of_the_training_is_named(config, tmp_path, content):
    folder = shutil.copytree(config.model, tmp_path / "model")
    (folder / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"run\.json is no record of a training; remove it"):
        run(EvaluateConfig(model=str(folder)))


def test_another_run_is_looked_at_before_anything_is_answered(config, tmp_path, monkeypatch):
    run(EvaluateConfig(**vars(config) | {"per_example": tmp_path / "a.json"}))
    monkeypatch.setattr("pumer.evaluation.evaluate.predict", None)
    with pytest.raises(InputError, match="same split and limit"):
        run(EvaluateConfig(**vars(config) | {"against": tmp_path / "a.json", "limit": 3}))
    (tmp_path / "a.json").write_text('{"model": "m", "examples": [{"answer": "red"}]}')
    with pytest.raises(InputError, match="no per_example file"):
        run(EvaluateConfig(**vars(config) | {"against": tmp_path / "a.json"}))


def test_logits_that_are_no_numbers_are_no_answers(config, tmp_path):
    model = pumer.load(config.model)
    model.classifier[-1].bias.data.fill_(float("nan"))
    pumer.save(model, tmp_path)
    load_processor(config.model).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"not finite: classifier\.3\.bias"):
        run(EvaluateConfig(**vars(config) | {"model": str(tmp_path)}))


def test_the_number_format_is_told_as_it_was(config, tmp_path):
    pumer.save(pumer.load(config.model).to(torch.bfloat16), tmp_path)
    load_processor(config.model).save_pretrained(tmp_path)
    assert run(EvaluateConfig(**vars(config) | {"model": str(tmp_path)}))["dtype"] == "bfloat16"


def test_model_of_another_kind_is_refused(config, tmp_path):
    ViltForMaskedLM.from_pretrained(config.model).save_pretrained(tmp_path)
    load_processor(config.model).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is a ViltForMaskedLM; task vqav2 needs a ViltForQuestionAnswering"):
        run(EvaluateConfig(**vars(config) | {"model": str(tmp_path)}))
