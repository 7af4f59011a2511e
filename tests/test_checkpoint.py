"""Saving and loading: what is written, what plain transformers makes of it, and what a broken folder says."""

import json
import os
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from tiny import GRIDS, HEADS, TINY, answer
from torch import nn

import pumer
from pumer import InputError, NoReduction, PuMerConfig
from pumer.checkpoint import load_processor
from pumer.utils.files import read_json, replacing, write_json

VILT = TINY["vilt"]
CONFIG = PuMerConfig(layers=(0, 2), prune_ratio=0.2, merge_ratio=0.3, text_merge_ratio=0.3)


@pytest.fixture
def folder(tmp_path):
    """A saved, patched model."""
    pumer.save(pumer.patch(VILT.build(), CONFIG), tmp_path / "model")
    return tmp_path / "model"


def content(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.mark.parametrize(("backbone", "example"), tiny.GRID, ids=tiny.label)
def test_round_trip_gives_the_same_bits(backbone, example, tmp_path):
    case = TINY[backbone]
    model, inputs = pumer.patch(case.build(), example.config), case.batch(GRIDS)
    pumer.save(model, tmp_path)
    loaded = pumer.load(tmp_path)
    assert pumer.reduction(loaded) == example.config and not loaded.training
    assert torch.equal(answer(loaded, inputs), answer(model, inputs))


@pytest.mark.parametrize(("backbone", "head"), HEADS)
def test_every_head_comes_back_as_its_own_class(backbone, head, tmp_path):
    case = TINY[backbone]
    model = pumer.patch(case.build(head), CONFIG)
    pumer.save(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [head]
    loaded = pumer.load(str(tmp_path))
    inputs = case.batch(GRIDS, head)
    assert type(pumer.unpatch(loaded)).__name__ == head
    before, after = model.state_dict(), pumer.patch(loaded, CONFIG).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    # Where a weight lies in memory decides how some processors add up a product with one column.
    assert torch.allclose(answer(loaded, inputs), answer(model, inputs), rtol=0, atol=1e-6)


def test_files_of_a_patched_model(folder):
    assert sorted(content(folder)) == ["config.json", "model.safetensors", "reduction.json"]
    assert json.loads((folder / "reduction.json").read_text()) == {
        "method": "pumer",
        "version": 1,
        "max_image_tokens": None,
        "proportional_attention": True,
        "schedule": [
            {"stack": "fusion", "layer": layer, "prune_ratio": 0.2, "merge_ratio": 0.3, "text_merge_ratio": 0.3}
            for layer in (0, 2)
        ],
    }


@pytest.mark.parametrize("auto", ["ViltForQuestionAnswering", "AutoModelForVisualQuestionAnswering", "AutoModel"])
def test_plain_transformers_loads_what_was_saved(folder, auto):
    cls = getattr(transformers, auto, None)
    if cls is None:
        pytest.skip(f"this transformers has no {auto}")
    plain = cls.from_pretrained(folder)
    assert pumer.reduction(plain) is None
    expected = dict(VILT.build().named_parameters())
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, expected[name if name in expected else f"vilt.{name}"]), name


def test_an_unpatched_model_is_saved_without_a_reduction(folder):
    pumer.save(VILT.build(), folder)
    assert sorted(content(folder)) == ["config.json", "model.safetensors"], "the stale reduction.json must go"
    assert pumer.reduction(pumer.load(folder)) is None


def test_saving_over_an_older_save(folder):
    (folder / "notes.txt").write_text("mine")
    other = pumer.patch(VILT.build(seed=4), NoReduction())
    pumer.save(other, folder)
    assert (folder / "notes.txt").read_text() == "mine"
    assert pumer.reduction(loaded := pumer.load(folder)) == NoReduction()
    assert torch.equal(answer(loaded, VILT.batch(GRIDS)), answer(other, VILT.batch(GRIDS)))


def test_weights_of_an_older_save_are_not_mistaken_for_this_one(folder):
    for name in ("model.safetensors.index.json", "model-00001-of-00002.safetensors"):
        (folder / name).write_text("old")
    pumer.save(VILT.build(), folder)
    assert sorted(content(folder)) == ["config.json", "model.safetensors"]


def test_a_failed_save_leaves_the_old_folder_intact(folder, monkeypatch):
    before = content(folder)

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(pumer.checkpoint, "write_reduction", fail)
    with pytest.raises(OSError, match="disk full"):
        pumer.save(pumer.patch(VILT.build(seed=9), NoReduction()), folder)
    assert content(folder) == before
    assert [file.name for file in folder.parent.iterdir()] == ["model"], "nothing half-written is left beside it"
    with pytest.raises(OSError, match="disk full"):
        pumer.save(VILT.build(), folder.parent / "new")
    assert [file.name for file in folder.parent.iterdir()] == ["model"]


def test_a_save_killed_halfway_leaves_nothing_that_loads(folder, monkeypatch):
    """The weights are new, and the reduction is not there yet, or still the old one's."""
    replace_file = Path.replace

    def killed(path, target):
        replace_file(path, target)
        if path.name == "model.safetensors":
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    for model in (VILT.build(seed=9), pumer.patch(VILT.build(seed=9), NoReduction())):
        with pytest.raises(KeyboardInterrupt):
            pumer.save(model, folder)
        with pytest.raises(InputError, match=r"config\.json"):
            pumer.load(folder)
    monkeypatch.undo()
    pumer.save(VILT.build(seed=9), folder)
    assert pumer.reduction(pumer.load(folder)) is None


def test_saving_into_the_working_directory_and_through_links(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pumer.save(pumer.patch(VILT.build(), CONFIG), ".")
    assert sorted(content(tmp_path)) == ["config.json", "model.safetensors", "reduction.json"]
    (tmp_path / "real").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "link")
    pumer.save(VILT.build(), "link")
    assert sorted(content(tmp_path / "real")) == ["config.json", "model.safetensors"]
    pumer.save(VILT.build(), "a/b/c")
    assert (tmp_path / "a" / "b" / "c" / "config.json").is_file()


def test_an_existing_folder_is_written_from_within(tmp_path):
    """It may be a mount: a rename from outside would cross file systems."""
    with replacing(tmp_path) as aside:
        assert aside.parent == tmp_path.resolve()
        (aside / "x").write_text("1")
    assert content(tmp_path) == {"x": b"1"}


def test_what_cannot_be_saved(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        pumer.save(VILT.build(), tmp_path / "file")
    with pytest.raises(InputError, match="Linear is not a transformers model"):
        pumer.save(nn.Linear(2, 2), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_compiled_model_is_saved_as_what_it_wraps(tmp_path):
    model = pumer.patch(VILT.build(), CONFIG)
    pumer.save(torch.compile(model), tmp_path)
    assert pumer.reduction(loaded := pumer.load(tmp_path)) == CONFIG
    assert list(loaded.state_dict()) == list(model.state_dict())


def test_options_reach_from_pretrained(folder):
    assert pumer.load(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_the_reduction_is_read_from_the_revision_asked_for(folder, monkeypatch):
    asked = []
    original = pumer.checkpoint.cached_file

    def spy(name, file, **options):
        asked.append(options)
        return original(name, file, **options)

    monkeypatch.setattr(pumer.checkpoint, "cached_file", spy)
    pumer.load(folder, revision="v2", dtype=torch.float32)
    assert asked[0]["revision"] == "v2" and "dtype" not in asked[0]


@pytest.mark.parametrize(
    ("reduction", "words"),
    [
        ('{"method": "tome-ish"}', ["'tome-ish'", "pumer"]),
        ('{"method": "pumer", "version": 7, "layers": [1]}', ["version 7"]),
        ('{"method": "pumer", "layer": [1]}', ["'layer'", "'layers'"]),
        ('{"method": "pumer", "layers": [1], "prune_ratio": 1.0}', ["prune_ratio", "1.0"]),
        ('{"method": "pumer", "layers": [12], "prune_ratio": 0.1}', ["layer 12"]),
        ('{"method": "pumer", "layers": [1], "prune_ratio": NaN}', ["NaN"]),
        ('{"method": "pumer", "layers": [1], "prune_ratio": 1e999}', ["1e999"]),
        ('{"method": "pumer", "layers": [1], "prune_ratio": 0.5, "prune_ratio": 0.1}', ["'prune_ratio' twice"]),
        ('{"method": "pumer", "layers": ' + "[" * 200_000, ["deeply"]),
        ("[1]", ["object", "list"]),
        ("null", ["object", "NoneType"]),
        ('{"method":', ["not valid JSON", "line 1"]),
        ("\udcff", ["reduction.json", "byte 0"]),
    ],
)
def test_wrong_reduction_json_is_named_in_one_line(folder, reduction, words):
    (folder / "reduction.json").write_bytes(reduction.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError) as caught:
        pumer.load(folder)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def truncate(path):
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: (d / "config.json").unlink(), "holds no config.json"),
        (lambda d: (d / "config.json").write_text('{"a":'), "is not valid JSON"),
        (lambda d: (d / "config.json").write_text("null"), "must hold a JSON object"),
        (lambda d: (d / "config.json").write_text("{}"), "model_type"),
        (lambda d: (d / "config.json").write_text('{"model_type": "vilt"}'), "architecture"),
        (lambda d: (d / "config.json").write_text('{"model_type":"vilt","architectures":["Trainer"]}'), "'Trainer'"),
        (lambda d: (d / "model.safetensors").unlink(), "model.safetensors"),
        (lambda d: (d / "model.safetensors").write_bytes(b""), "weights of"),
        (lambda d: truncate(d / "model.safetensors"), "weights of"),
    ],
)
def test_broken_checkpoints_end_in_one_line(folder, spoil, words):
    spoil(folder)
    with pytest.raises(InputError, match=words) as caught:
        pumer.load(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["no/such/folder", "./nowhere", "/nowhere/at/all"])
def test_missing_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="give a folder") as caught:
        pumer.load(name)
    assert name in str(caught.value)


def test_an_unknown_name_ends_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        pumer.load("nobody/no-such-model")
    assert "nobody/no-such-model" in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_is_not_a_checkpoint(folder):
    with pytest.raises(InputError, match="not a folder"):
        pumer.load(folder / "config.json")


def test_a_reduction_beside_another_type_of_model(folder):
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=9
    )
    transformers.BertModel(config).save_pretrained(folder)
    with pytest.raises(InputError, match="BertModel cannot be patched"):
        pumer.load(folder)


def test_missing_processor(folder):
    with pytest.raises(InputError, match=r"holds no processor; add one: processor\.save_pretrained"):
        load_processor(folder)
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(InputError, match=r"processor of .* cannot be read"):
        load_processor(folder)


def test_pickled_weights_that_run_code_are_refused(folder):
    """Weights come from safetensors, or from pickles that hold tensors only."""
    (folder / "model.safetensors").unlink()

    class Mean:
        def __reduce__(self):
            return os.mkdir, (str(folder / "run"),)

    torch.save({"classifier.0.weight": Mean()}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="weights of"):
        pumer.load(folder)
    assert not (folder / "run").exists()


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "result.json"
    write_json(path, {"answer": "grün"})
    assert read_json(path) == {"answer": "grün"} and "grün" in path.read_text(encoding="utf-8")
    with pytest.raises(TypeError):
        write_json(path, {"answer": object()})
    assert read_json(path) == {"answer": "grün"}
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]


def test_read_json_names_the_line(tmp_path):
    (tmp_path / "x.json").write_text('{\n"a": 1,\n"b": \n}')
    with pytest.raises(InputError, match=r"x\.json is not valid JSON: .* line 4"):
        read_json(tmp_path / "x.json")
    with pytest.raises(InputError, match=r"missing\.json"):
        read_json(tmp_path / "missing.json")
