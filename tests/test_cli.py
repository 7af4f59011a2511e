"""What a user can do wrong, through the real command line: one clear line and exit code 2."""

import errno
import inspect
import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny.commands import every_command
from typer.testing import CliRunner

import pumer
from benchmarks.__main__ import app as experiments
from pumer.checkpoint import load_processor
from pumer.cli import app
from pumer.settings.common import PRESETS
from pumer.tasks import NLVR2
from pumer.utils.config import described
from pumer.utils.locks import only_one

ROOT = Path(__file__).parents[1]
RECIPE = """
model: {model}
output: {output}
data: {{root: {root}, min_answer_count: 1}}
reduction: {{method: pumer, layers: [2, 5, 8], prune_ratio: 0.1, merge_ratio: 0.3, text_merge_ratio: 0.2}}
batch_size: 4
max_steps: 2
report_to: []
"""


@pytest.fixture
def recipe(tiny_vilt, tiny_vqa, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(model=tiny_vilt, output=tmp_path / "out", root=tiny_vqa))
    return path


def invoke(*arguments):
    own = experiments if arguments[0] in ("pretrain", "reproduce") else app
    return CliRunner().invoke(own, [str(argument) for argument in arguments])


def refused(result, *parts):
    """The command ended with exit code 2 and one line of error that holds all `parts`."""
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert result.exit_code == 2, result.output
    assert len(errors) == 1
    assert result.stderr.rstrip().endswith(errors[0])
    for part in parts:
        assert part in errors[0]


def test_train_then_evaluate(recipe, tmp_path):
    result = invoke("train", recipe, "teacher=self")
    assert result.exit_code == 0, result.output
    assert "accuracy" in result.stdout
    assert "max_steps: 2" not in result.stderr
    result = invoke("evaluate", tmp_path / "out", "split=val", f"output={tmp_path}/result.json")
    assert result.exit_code == 0, result.output
    assert f"wrote {tmp_path}/result.json" in result.stdout
    assert "question type what colour" in result.stdout
    assert json.loads((tmp_path / "result.json").read_text())["reduction"]["method"] == "pumer"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_too_large_a_batch(recipe, monkeypatch, error):
    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr("pumer.training.run.run", full)
    refused(invoke("train", recipe), str(error).removesuffix("."), "lower batch_size")


def test_a_defect_keeps_its_traceback(recipe, monkeypatch):
    monkeypatch.setattr("pumer.training.run.run", lambda *args, **kwargs: torch.zeros(2) @ torch.zeros(3))
    assert isinstance(invoke("train", recipe).exception, RuntimeError)


def test_missing_data_folder(recipe):
    refused(invoke("train", recipe, "data.root=/nowhere"), "data.root /nowhere does not exist")


def test_broken_json(recipe, tiny_vqa):
    (tiny_vqa / "v2_mscoco_val2014_annotations.json").write_text('{"annotations": [{]}')
    refused(invoke("train", recipe), "v2_mscoco_val2014_annotations.json", "not valid JSON")


def test_question_whose_image_is_missing(recipe, tiny_vqa):
    path = tiny_vqa / "train2014" / "COCO_train2014_000000000004.jpg"
    path.unlink()
    refused(invoke("train", recipe), f"image {path} does not exist", "pumer data check")


@pytest.mark.parametrize("workers", [0, 1])
def test_truncated_jpeg(recipe, tiny_vqa, workers):
    path = tiny_vqa / "train2014" / "COCO_train2014_000000000004.jpg"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:400])
    refused(invoke("train", recipe, "max_steps=6", f"workers={workers}"), str(path), "cannot be decoded")


def test_unknown_recipe_key(recipe):
    recipe.write_text(recipe.read_text() + "epochz: 3\n")
    refused(invoke("train", recipe), "key 'epochz' is unknown in train config; did you mean 'epochs'?")


def test_unknown_setting(recipe):
    refused(invoke("train", recipe, "optimizer.rl=1"), "key 'optimizer.rl' is unknown", "'optimizer.lr'")


def test_setting_without_value(recipe):
    refused(invoke("train", recipe, "epochs"), "'epochs' is not of the form key=value")


def test_missing_recipe(tmp_path):
    refused(invoke("train", tmp_path / "nope.yaml"), "nope.yaml does not exist")


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_checkpoint_of_another_model_type(recipe, tiny_vqa, tmp_path, command):
    from transformers import BertConfig, BertForMaskedLM

    folder = tmp_path / "bert"
    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertForMaskedLM(config).save_pretrained(folder)
    if command == "train":
        refused(invoke("train", recipe, f"model={folder}"), "is a 'bert' model", "'vilt'")
    else:
        refused(invoke("evaluate", folder, f"data.root={tiny_vqa}"), "Bert", "Vilt")


def test_layer_12_of_12(recipe, tiny_vilt, tiny_vqa):
    refused(invoke("train", recipe, "reduction.layers=[2,12]"), "12", "0")
    settings = ["reduction={method: pumer, layers: [12], merge_ratio: 0.3}", f"data.root={tiny_vqa}"]
    refused(invoke("evaluate", tiny_vilt, *settings), "12")


def test_ratio_1(recipe):
    refused(invoke("train", recipe, "reduction.merge_ratio=1.0"), "merge_ratio", "1.0", "not including 1")


def test_unknown_reduction_key(recipe):
    refused(invoke("train", recipe, "reduction.merge_ration=0.2"), "'merge_ration'", "'merge_ratio'")


def test_missing_model(tiny_vqa):
    refused(invoke("evaluate", "/nowhere", f"data.root={tiny_vqa}"), "/nowhere")


def test_broken_reduction_file(tiny_vilt, tiny_vqa, tmp_path):
    pumer.save(pumer.load(tiny_vilt), tmp_path / "model")
    (tmp_path / "model" / "reduction.json").write_text('{"method": "pumer", "version": 99}')
    refused(invoke("evaluate", tmp_path / "model", f"data.root={tiny_vqa}"), "version 99")


def test_interrupt_exits_130(recipe, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pumer.training.run.run", interrupt)
    assert invoke("train", recipe).exit_code == 130


def test_defect_keeps_its_traceback(recipe, monkeypatch):
    def defect(*_):
        raise RuntimeError("a defect")

    monkeypatch.setattr("pumer.training.run.run", defect)
    result = invoke("train", recipe)
    assert result.exit_code == 1
    assert isinstance(result.exception, RuntimeError)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["train"], ["Missing argument", "train --help"]),
        (["trian"], ["'trian'", "'train'"]),
        (["train", "x.yaml", "--epochs", "3"], ["--epochs", "epochs=3"]),
        (["evaluate", "small:vilt", "--batch-size=5"], ["--batch-size", "batch_size=5"]),
        (["predict", "small:vilt", "--question", "x.csv"], ["--questions", "--images"]),
        (["convert", "EMPTY.ckpt", "out", "--size", "3"], ["--size", "convert --help"]),
        (["evaluate", "small:vlt"], ["'small:vlt'", "'small:vilt'", "small:meter"]),
        (["plan", "preset:vilt-b23"], ["'vilt-b23'", "'vilt-b32'"]),
        (["train", "vilt/vqa2-pumer"], ["'vilt/vqa2-pumer'", "'vilt/vqav2-pumer'"]),
        (["train", "FOLDER"], ["recipe FOLDER is a folder"]),
        (["train", "EMPTY.yaml"], ["EMPTY.yaml is empty"]),
        (["visualize", "small:vilt", "x.png", "what", "is", "it"], ['"what is it"']),
        (["visualize", "small:vilt", "x.png", "what", "colour", "resize=square"], ['"what colour"']),
        (["visualize", "small:vilt", "x.png", "y.png", "what?"], ["x.png does not exist"]),
        (["convert", "EMPTY.ckpt", "out"], ["EMPTY.ckpt is empty"]),
        (["convert", "cat.jpg", "out"], ["cat.jpg is not a checkpoint", ".ckpt"]),
        (["data", "world", "FOLDER", "tasks=vqav2"], ["tasks=[vqav2]"]),
        (["data", "prepare", "vqav2", "FOLDER", "FOLDER/out"], ["FOLDER/out lies in the input folder"]),
        (["train", "vilt/world-vqav2-original", "data.root=FOLDER", "output=."], [". holds other files", "EMPTY.ckpt"]),
        (["evaluate", "small:vilt", "data.root=cat.jpg"], ["data.root cat.jpg is a file"]),
        (["score", "vqav2", "--annotations", "FOLDER", "--predictions", "cat.jpg"], ["annotations FOLDER is a folder"]),
    ],
)
def test_a_mistake_is_one_line_with_a_way_out(tmp_path, monkeypatch, arguments, parts):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FOLDER").mkdir()
    for name in ("EMPTY.yaml", "EMPTY.ckpt"):
        (tmp_path / name).write_text("")
    (tmp_path / "cat.jpg").write_bytes(b"\xff\xd8\xff")
    result = invoke(*arguments)
    refused(result, *parts)
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_wrong_file_of_annotations_is_no_data_folder(tmp_path):
    (tmp_path / "wrong.json").write_text('{"images": []}')
    result = invoke(
        "score", "vqav2", "--annotations", tmp_path / "wrong.json", "--predictions", tmp_path / "wrong.json"
    )
    refused(result, "wrong.json holds no list 'annotations'")
    assert "data folder" not in result.stderr


def test_help_names_every_command():
    shown = invoke("--help").stdout
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert commands >= {"train", "evaluate", "predict", "score", "benchmark", "visualize", "plan", "convert", "demo"}
    for command in (*commands, "data"):
        assert f"{command} " in shown


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["evaluate"], ["galleries\n    for retrieval", "data.root\n", "[default: 64]"]),
        (["train"], ["distillation.temperature\n", "optimizer.lr\n", "[default: 0.0001]"]),
        (["plan"], [f"preset:{name}" for name in PRESETS]),
        (["benchmark"], [f"preset:{name}" for name in PRESETS]),
        (["data", "world"], ["[default: [vqav2, nlvr2, snli_ve, flickr30k, coco]]"]),
    ],
)
def test_help_tells_the_settings(command, shown):
    help_text = invoke(*command, "--help").stdout
    for part in shown:
        assert part in help_text


def test_every_command_with_settings_tells_all_of_them_with_their_meaning():
    groups = [app, *(group.typer_instance for group in app.registered_groups)]
    for command in (command for group in groups for command in group.registered_commands):
        name = command.name or command.callback.__name__
        if "settings" in inspect.signature(command.callback).parameters or name == "visualize":
            told = described(command.cls.config_type)
            assert told, name
            assert all(len(meaning.partition("[default")[0]) > 5 for meaning in told.values()), told


def test_any_character_is_a_question(tiny_vilt, tiny_vqa, tmp_path):
    picture = tiny_vqa / "val2014" / "COCO_val2014_000000000000.jpg"
    result = invoke("visualize", tiny_vilt, picture, "what is \U0001f600?", "--out", tmp_path / "tokens.png")
    assert result.exit_code == 0, result.output
    refused(
        invoke("visualize", tiny_vilt, picture, "what?", "--out", tmp_path / "tokens.jpg"),
        "must end in .png, .svg or .gif",
    )


def test_a_question_longer_than_a_file_name_can_be(tiny_vilt, tiny_vqa, tmp_path):
    picture, out = tiny_vqa / "val2014" / "COCO_val2014_000000000000.jpg", tmp_path / "tokens.png"
    result = invoke("visualize", tiny_vilt, picture, "is it " * 100, "text_length=9", "--out", out)
    assert result.exit_code == 0 and out.exists(), result.output


def test_visualize_compares_questions(tiny_vilt, tiny_vqa, tmp_path):
    picture, out = tiny_vqa / "val2014" / "COCO_val2014_000000000000.jpg", tmp_path / "tokens.svg"
    given = ["--question", "what colour is this?", "--question", "x=y", "text_length=9", "--out", out]
    result = invoke("visualize", tiny_vilt, picture, *given)
    assert result.exit_code == 0 and len(result.stdout.split(", ")) == 2, result.output
    refused(invoke("visualize", tiny_vilt, picture, "where?", *given), '"where?" is no image')
    refused(invoke("visualize", tiny_vilt, picture), "question is missing")


def test_visualize_writes_the_picture(tiny_vilt, tiny_vqa, tmp_path):
    picture = tiny_vqa / "val2014" / "COCO_val2014_000000000000.jpg"
    settings = ["reduction={method: pumer, layers: [2, 5], prune_ratio: 0.2}", "--out", tmp_path / "tokens.png"]
    result = invoke("visualize", tiny_vilt, picture, "what colour is this?", *settings)
    assert result.exit_code == 0, result.output
    assert Image.open(tmp_path / "tokens.png").width > 0
    printed = invoke("visualize", "--json", tiny_vilt, picture, "what?", *settings, "--force").stdout
    (((entered, left, last),),) = json.loads(printed)["tokens"]
    assert [row["after"] for row in (entered, left, last)] == ["input", "layer 2", "layer 5"]
    assert entered["image"] - left["image"] == left["pruned"] > 0
    refused(invoke("visualize", tiny_vilt, "/nowhere.jpg", "what?"), "/nowhere.jpg does not exist")
    refused(
        invoke("visualize", tiny_vilt, picture, picture, "what?", "task=vqav2"), "looks at 1 image(s) at once, not 2"
    )


@pytest.mark.parametrize("backbone", ["vilt", "meter"])
def test_visualize_draws_both_pictures_of_a_pair(backbone, tiny_nlvr2, tmp_path, request):
    folder, out = request.getfixturevalue(f"tiny_{backbone}"), tmp_path / "tokens.png"
    reduction = pumer.PuMerConfig(layers=(0, 2), prune_ratio=0.2)
    pumer.save(pumer.patch(NLVR2.model(str(folder), NLVR2.fixed_labels), reduction), tmp_path / "model")
    load_processor(folder).save_pretrained(tmp_path / "model")
    pair = [tiny_nlvr2 / "images" / "dev" / f"dev-1-1-img{number}.png" for number in range(2)]
    result = invoke("visualize", tmp_path / "model", *pair, "is this red?", "task=nlvr2", "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(("True (", "False ("))
    drawn = Image.open(out)
    inputs = [drawn.getpixel((50, height)) for height in (drawn.height // 4, 3 * drawn.height // 4)]
    assert inputs == [Image.open(path).convert("RGB").getpixel((0, 0)) for path in pair]
    refused(invoke("visualize", tmp_path / "model", pair[0], "is this red?"), "task vqav2 needs", "give task=nlvr2")


@pytest.mark.parametrize("model", ["small:vilt", "small:meter"])
def test_visualize_names_a_reduction_that_works(model, tmp_path, caplog):
    given = ["docs/images/scene.png", "what is it?", "--out", tmp_path / "tokens.png", "--force"]
    assert invoke("visualize", model, *given).exit_code == 0
    (said,) = [message for message in caplog.messages if "not reduced" in message]
    assert said.startswith(f"{model} ")
    caplog.clear()
    setting = said.partition("'")[2].removesuffix("'")
    assert invoke("visualize", model, *given, setting).exit_code == 0
    assert not [message for message in caplog.messages if "not reduced" in message]


@pytest.mark.parametrize("command", ["visualize", "evaluate", "predict", "train", "export", "serve", "app", "tune"])
def test_a_preset_is_only_to_be_measured(command, tmp_path):
    arguments = {
        "visualize": ["preset:vilt-b32", "docs/images/scene.png", "what?"],
        "evaluate": ["preset:vilt-b32", "data.root=x"],
        "train": ["vilt/vqav2-pumer", "model=preset:vilt-b32"],
        **{key: ["preset:vilt-b32", tmp_path / "out"] for key in ("export", "tune")},
    }.get(command, ["preset:vilt-b32"])
    refused(invoke(command, *arguments), "preset:vilt-b32", "plan, benchmark and info")


def test_an_exported_program_is_not_drawn(tiny_vilt, tmp_path):
    shutil.copytree(tiny_vilt, tmp_path / "program")
    (tmp_path / "program" / "export.json").write_text("{}")
    said = [str(tmp_path / "program"), "is an exported program"]
    refused(invoke("visualize", tmp_path / "program", "docs/images/scene.png", "what?"), *said)
    refused(invoke("export", tmp_path / "program", tmp_path / "out"), *said)


def test_plan_counts_before_any_run(tiny_vilt):
    result = invoke("plan", f"model={tiny_vilt}", "reduction={method: pumer, layers: [2], prune_ratio: 0.5}")
    assert result.exit_code == 0, result.output
    assert "ideal speed-up" in result.stdout
    refused(invoke("plan", "model=preset:nothing"), "preset 'nothing' is unknown")


def test_data_world_writes_what_train_reads(tmp_path, tiny_vilt):
    result = invoke("data", "world", tmp_path / "world", "train=12", "val=6", "test=3", "heldout=6")
    assert result.exit_code == 0, result.output
    result = invoke("evaluate", tiny_vilt, f"data.root={tmp_path}/world/vqav2")
    assert result.exit_code == 0, result.output
    refused(invoke("data", "world", tmp_path / "other", "trian=3"), "did you mean 'train'")
    (tmp_path / "file").write_text("")
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "coco").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "some"):
        refused(invoke("data", "world", folder), "is a file")
    assert [path.name for path in (tmp_path / "some").iterdir()] == ["coco"]


def test_convert_refuses_what_is_no_checkpoint(tmp_path):
    refused(invoke("convert", tmp_path, tmp_path / "out"), "config.json")


def test_the_version_and_the_settings_on_request(tiny_vilt):
    assert invoke("--version").stdout == f"pumer {version('pumer')}\n"
    for arguments in (["--verbose", "plan", tiny_vilt], ["plan", tiny_vilt, "--verbose", "text_length=9"]):
        result = invoke(*arguments)
        assert result.exit_code == 0, result.output
        assert f"model: {tiny_vilt}" in result.stderr
    assert invoke("plan", tiny_vilt).stderr == ""


@pytest.mark.parametrize("place", [0, 1, 2])
def test_json_stands_anywhere_and_an_error_prints_none(tiny_vilt, place):
    arguments = ["info", tiny_vilt]
    arguments.insert(place, "--json")
    result = invoke(*arguments)
    assert json.loads(result.stdout)["architecture"] == "ViltForQuestionAnswering" and result.stderr == ""
    wrong = invoke(*arguments, "one too many")
    assert wrong.exit_code == 2 and wrong.stdout == ""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("train vilt/vqav2-p", {"vilt/vqav2-pumer"}),
        ("info small:v", {"small:vilt", "small:vilt-wide"}),
        ("benchmark preset:smol", {"preset:smolvlm-2.2b"}),
        ("data check nl", {"nlvr2"}),
        ("list rec", {"recipes"}),
        ("evaluate small:vilt spl", {"split="}),
        ("evaluate small:vilt reduction=pumer", {"reduction=pumer", "reduction=pumer-released"}),
        ("conv", {"convert"}),
    ],
)
def test_shells_complete_names(words, expected):
    asked = {"_PUMER_COMPLETE": "complete_bash", "COMP_WORDS": f"pumer {words}", "COMP_CWORD": str(len(words.split()))}
    assert set(CliRunner().invoke(app, [], prog_name="pumer", env=asked).stdout.split()) == expected


EARLY = """
import sys
from typer.testing import CliRunner
from benchmarks.__main__ import app as experiments
from pumer.cli import app
for command in {commands!r}:
    shown = CliRunner().invoke(app, [*command.split(), "--help"])
    assert shown.exit_code == 0 and "Examples:" in shown.stdout, command
assert "omegaconf" not in sys.modules
for arguments, said in {arguments!r}:
    result = CliRunner().invoke(experiments if arguments[0] in ("pretrain", "reproduce") else app, arguments)
    assert result.exit_code == 2 and said in result.stderr, (arguments, result.output)
print({{"torch", "transformers", "numpy", "PIL", "datasets", "ray"}} & set(sys.modules))
"""


def test_help_and_mistakes_are_told_before_anything_heavy_is_loaded(recipe, tiny_vilt, tiny_vqa, tmp_path):
    model, train = str(tiny_vilt), ["train", str(recipe)]
    picture = str(next((tiny_vqa / "val2014").iterdir()))
    mistakes = [
        ([*train, "epochz=3"], "epochz"),
        ([*train, "optimizer.rl=3"], "optimizer.rl"),
        ([*train, "reduction.merge_ration=0.2"], "merge_ration"),
        ([*train, "seed=18446744073709551616"], "seed"),
        ([*train, "model=/nowhere"], "/nowhere"),
        ([*train, "data.root=/nowhere"], "/nowhere"),
        (["evaluate", model, "spilt=val"], "spilt"),
        (["evaluate", "/nowhere"], "/nowhere"),
        (["evaluate", model, "text_length=0"], "text_length"),
        (["evaluate", model, f"output={model}"], "is a folder"),
        (["predict", model, "batch_size=1000000"], "batch_size"),
        (["predict", model, "--questions", "/nowhere.csv"], "/nowhere.csv"),
        (["score", "vqa", "--annotations", "a", "--predictions", "p"], "'vqa'"),
        (["score", "vqav2", "--annotations", "/nowhere", "--predictions", "p"], "/nowhere"),
        (["benchmark", model, "pears=3"], "pears"),
        (["visualize", model, "/nowhere.jpg", "what?"], "/nowhere.jpg"),
        (["visualize", model, picture, "what?", "text_length=0"], "text_length"),
        (["visualize", model, picture, "what?", "image_size=16384"], "16384"),
        (["plan", model, "image_size=320000"], "image_size"),
        (["plan", model, "text_length=0"], "text_length"),
        (["convert", model, str(recipe / "x")], str(recipe)),
        (["data", "world", str(tmp_path / "w"), "train=-3"], "train"),
        (["data", "prepare", "vqav2", "/nowhere", str(tmp_path / "p")], "/nowhere"),
        (["data", "check", "vqav2", str(tiny_vqa), "workers=-1"], "workers"),
        (["pretrain", "minutes=-1"], "minutes"),
        (["demo", "qestions=3"], "qestions"),
        (["tune", model, str(tmp_path / "t"), "budget.spedup=2"], "budget.spedup"),
        (["tune", model, str(tmp_path / "t")], "budget.speedup"),
        (["tune", "/nowhere", str(tmp_path / "t"), "budget.speedup=2"], "/nowhere"),
        (["tune", model, str(tmp_path / "t"), "budget.speedup=2", "methods=[tomee]"], "tomee"),
        (["reproduce", "--cells", "vilt/vqa"], "vilt/vqa"),
        (["train", "vilt/vqav2-pumr"], "vilt/vqav2-pumr"),
        (["predict", model, "--questions", picture, "repliccas=2"], "repliccas"),
        (["benchmark", "preset:vilt-b23"], "vilt-b23"),
        (["plan", "preset:vilt-b32", "reduction=tomee"], "tomee"),
        (["export", model, str(tmp_path / "e"), "--to", "onyx"], "onyx"),
        (["export", "small:vlt", str(tmp_path / "e")], "small:vlt"),
        (["serve", model, "prt=1"], "prt"),
        (["serve", "small:vlt"], "small:vlt"),
        (["app", "prt=1"], "prt"),
        (["app", "small:vlt"], "small:vlt"),
        (["convert", model, str(tmp_path / "c"), "--task", "vqa"], "vqa"),
        (["data", "prepare", "vqav3", str(tiny_vqa), str(tmp_path / "p")], "vqav3"),
        (["data", "check", "vqav2", str(tiny_vqa), "splits=[vall]"], "vall"),
        (["data", "world", str(tmp_path / "w"), "tasks=[vqa]"], "vqa"),
        (["list", "methds"], "methds"),
        (["info", "small:vlt"], "small:vlt"),
    ]
    command = [sys.executable, "-c", EARLY.format(commands=list(every_command()), arguments=mistakes)]
    assert {arguments[0] for arguments, _ in mistakes} >= {command.split()[0] for command in every_command()}
    told = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert told.stdout == "set()\n", told.stderr[-2000:]


INTERRUPT = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == MODULE:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from pumer.__main__ import main
sys.argv = ["pumer", "plan", "model=preset:vilt-b32"]
main()
"""


@pytest.mark.parametrize("module", ["pumer.cli", "torch"])
def test_an_interrupt_while_modules_are_loaded(module):
    code = INTERRUPT.replace("MODULE", repr(module))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "interrupted\n")


def test_interrupts_raise_in_a_program_that_imports_the_package():
    import signal

    before = signal.getsignal(signal.SIGINT)
    invoke("plan", "model=preset:vilt-b32", "text_length=9")
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "out"),
        (OSError(errno.EFBIG, "File too large", "model.bin"), "model.bin"),
        (PermissionError(errno.EACCES, "Permission denied", "images"), "images"),
        (OSError(errno.EROFS, "Read-only file system"), "out"),
        (OSError("Caught OSError in DataLoader worker process 0.\nOSError: [Errno 28] No space left"), "out"),
        (OSError("Caught\nPermissionError: [Errno 13] Permission denied: '/data/x'\n"), "/data/x"),
        (RuntimeError("Error while serializing: IoError(Os { code: 28, kind: StorageFull })"), "out"),
        (MemoryError("Unable to allocate 9 TiB"), "Unable to allocate 9 TiB; lower batch_size"),
    ],
)
def test_what_the_system_refuses_is_one_line(recipe, monkeypatch, error, place):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("pumer.training.run.run", fail)
    refused(invoke("train", recipe), place)


def test_other_errors_of_the_system_are_defects(recipe, monkeypatch):
    def fail(*args, **kwargs):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "asset.json")

    monkeypatch.setattr("pumer.training.run.run", fail)
    assert isinstance(invoke("train", recipe).exception, FileNotFoundError)


def test_a_name_that_is_too_long(tiny_vilt, tiny_vqa):
    refused(invoke("evaluate", tiny_vilt, f"data.root={tiny_vqa}", f"output={'x' * 300}/x"), "xxx", "too long")
    refused(invoke("evaluate", f"/{'x' * 300}", f"data.root={tiny_vqa}"), "xxx", "too long")


@pytest.fixture
def writers(recipe, tiny_vilt, tiny_vqa, tmp_path):
    """Every command that writes, with what it writes."""
    folder, file = tmp_path / "out", tmp_path / "file"
    picture = next((tiny_vqa / "val2014").iterdir())
    root = f"data.root={tiny_vqa}"
    return {
        "evaluate": (["evaluate", tiny_vilt, root, f"output={file}"], file),
        "evaluate per_example": (["evaluate", tiny_vilt, root, f"per_example={file}"], file),
        "evaluate submission": (["evaluate", tiny_vilt, root, f"submission={file}"], file),
        "predict": (["predict", tiny_vilt, root, "split=val", "--out", file], file),
        "visualize": (["visualize", tiny_vilt, picture, "what?", "--out", f"{file}.png"], tmp_path / "file.png"),
        "benchmark": (["benchmark", tiny_vilt, f"output={file}"], file),
        "check": (["data", "check", "vqav2", tiny_vqa, f"output={file}"], file),
        "score": (["score", "vqav2", "--annotations", recipe, "--predictions", recipe, "--per-example", file], file),
        "world": (["data", "world", folder, "tasks=[coco]", "train=5", "val=5", "test=25"], folder / "coco"),
        "convert": (["convert", tiny_vilt, folder], folder),
        "prepare": (["data", "prepare", "vqav2", tiny_vqa, folder], folder),
        "pretrain": (["pretrain", f"out={folder}"], folder),
        "demo": (["demo", f"output={folder}"], folder),
        "train": (["train", recipe], folder),
    }


FILES = [
    "evaluate",
    "evaluate per_example",
    "evaluate submission",
    "predict",
    "visualize",
    "benchmark",
    "check",
    "score",
]
FOLDERS = ["world", "convert", "prepare", "pretrain", "demo", "train"]


@pytest.mark.parametrize("command", [*FILES, *FOLDERS])
def test_a_second_process_is_refused(writers, command):
    arguments, place = writers[command]
    with only_one(place):
        refused(invoke(*arguments), "another process", str(place))
    assert not place.exists()


@pytest.mark.parametrize("command", FILES)
def test_no_result_is_replaced_unasked(writers, command):
    arguments, place = writers[command]
    place.write_text("kept")
    refused(invoke(*arguments), str(place), "--force")
    assert place.read_text() == "kept"


@pytest.mark.parametrize(("command", "file"), [("world", "scenes.json"), ("convert", "config.json")])
def test_no_folder_is_replaced_unasked(writers, command, file):
    arguments, place = writers[command]
    place.mkdir(parents=True)
    (place / file).write_text("kept")
    refused(invoke(*arguments), str(place), "--force")
    assert (place / file).read_text() == "kept"
    assert "--force" not in invoke(*arguments, "--force").stderr


def test_force_replaces_a_result(writers):
    arguments, place = writers["predict"]
    place.write_text("old")
    assert invoke(*arguments, "--force").exit_code == 0
    assert json.loads(place.read_text())


def test_an_input_is_never_overwritten(tiny_vilt, tiny_vqa, tmp_path):
    picture = tmp_path / "x.png"
    Image.new("RGB", (40, 40)).save(picture)
    before = picture.read_bytes()
    refused(invoke("visualize", tiny_vilt, picture, "what?", "--out", picture, "--force"), str(picture))
    assert picture.read_bytes() == before


def test_a_list_of_answers_ends_in_csv(tiny_vilt, tiny_vqa, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = next((tiny_vqa / "val2014").iterdir()).name
    (tmp_path / "q.csv").write_text(f"image,question\n{name},what?\n")
    result = invoke("predict", tiny_vilt, "--questions", "q.csv", "--images", tiny_vqa / "val2014")
    assert result.exit_code == 0, result.output
    assert "predictions.csv" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["predictions.csv", "q.csv"]


def test_plan_takes_a_folder_as_other_commands_do(tiny_vilt):
    named = invoke("plan", f"model={tiny_vilt}", "text_length=9")
    given = invoke("plan", tiny_vilt, "text_length=9")
    assert given.exit_code == 0, given.output
    assert given.stdout == named.stdout
    assert invoke("plan", "text_length=9").exit_code == 0
    refused(invoke("benchmark", "model=/nowhere"), "/nowhere")
    refused(invoke("benchmark", "pairs=0"), "pairs")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["convert", "absent.ckpt", "out"], ["absent.ckpt does not exist"]),
        (["convert", "MODEL", "out"], ["MODEL", "transformers checkpoint already"]),
        (["convert", "MODEL", "out", "--task", "vqa"], ["'task'", "'vqa'", "vqa2"]),
        (["train", "RECIPE", "data.eval=null"], ["val2014_annotations.json", "data.eval"]),
    ],
)
def test_hints_lead_on(recipe, tiny_vilt, tiny_vqa, arguments, parts):
    (tiny_vqa / "v2_mscoco_val2014_annotations.json").unlink()
    names = {"MODEL": str(tiny_vilt), "RECIPE": str(recipe)}
    result = invoke(*(names.get(argument, argument) for argument in arguments))
    refused(result, *(names.get(part, part) for part in parts))


def test_results_never_take_the_place_of_what_is_read(tiny_vilt, tiny_vqa, tmp_path):
    folder = shutil.copytree(tiny_vilt, tmp_path / "model")
    before = (folder / "config.json").read_bytes()
    at, image = f"data.root={tiny_vqa}", tiny_vqa / "val2014" / "COCO_val2014_000000000000.jpg"
    for command in (
        ["evaluate", str(folder), "task=vqav2", at, f"output={folder / 'config.json'}", "--force"],
        ["predict", str(folder), "task=vqav2", at, "split=val", "--out", str(folder / "config.json"), "--force"],
        ["benchmark", str(folder), f"output={folder / 'config.json'}", "--force"],
        ["predict", str(folder), "task=vqav2", at, "split=val", "--images", str(image.parent)],
        ["predict", str(folder), "--questions", ""],
        ["data", "world", ""],
    ):
        ended = invoke(*command)
        assert ended.exit_code == 2 and len(ended.stderr.strip().splitlines()) == 1, command
    assert (folder / "config.json").read_bytes() == before
