import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pumer.checkpoint import load_processor
from pumer.tasks import NLVR2, Example
from pumer.tasks.loading import make_inputs
from pumer.utils.errors import InputError

TASK = NLVR2(("False", "True"))
LINES = [  # as in the official dev.json
    {
        "validation": {"61": "False"},
        "sentence": "The right image shows a curving walkway of dark glass circles embedded in dirt.",
        "left_url": "https://example.org/left.jpg",
        "writer": "61",
        "label": "False",
        "right_url": "https://example.org/right.jpg",
        "synset": "beer bottle",
        "query": "some beer bottles38",
        "identifier": "dev-850-0-0",
        "extra_validations": {"154": "False", "139": "False"},
    },
    {"sentence": "Two dogs.", "label": True, "identifier": "dev-850-2-1"},
]


def write(root, *lines, name="dev.json"):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def edit(path, change):
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    change(entries)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def test_reads_the_official_lines(tmp_path):
    write(tmp_path, *LINES)
    first, second = NLVR2.examples(tmp_path, "val")
    assert (first.id, first.text, first.answers) == ("dev-850-0-0", LINES[0]["sentence"], ("False",))
    assert first.images == tuple(tmp_path / "images" / "dev" / f"dev-850-0-img{number}.png" for number in (0, 1))
    assert second.answers == ("True",)
    assert NLVR2.truth(tmp_path / "dev.json")[0].answers == ("False",)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_reads_every_split(tiny_nlvr2, split):
    examples = NLVR2.read(tiny_nlvr2, split)
    assert len(examples) == (24 if split == "train" else 12)
    assert all(path.is_file() for example in examples for path in example.images)
    assert NLVR2.read(tiny_nlvr2, split, limit=3) == [examples[len(examples) * index // 3] for index in range(3)]


def test_files_may_lie_below_data(tiny_nlvr2):
    expected = NLVR2.read(tiny_nlvr2, "val")
    (tiny_nlvr2 / "data").mkdir()
    (tiny_nlvr2 / "dev.json").rename(tiny_nlvr2 / "data" / "dev.json")
    assert NLVR2.read(tiny_nlvr2, "val") == expected


def test_scores_are_grouped_by_subset(tiny_nlvr2):
    lines = (tiny_nlvr2 / "dev.json").read_text().splitlines(keepends=True)
    for name, part in (("balanced", lines[:4]), ("unbalanced", lines[4:])):
        (tiny_nlvr2 / name).mkdir()
        (tiny_nlvr2 / name / f"{name}_dev.json").write_text("".join(part))
    examples = NLVR2.read(tiny_nlvr2, "val")
    assert [example.groups["subset"] for example in examples] == ["balanced"] * 4 + ["unbalanced"] * 8
    for subset, part in (("balanced", examples[:4]), ("unbalanced", examples[4:])):
        assert NLVR2.read(tiny_nlvr2, f"val-{subset}") == [replace(example, groups={}) for example in part]
    with pytest.raises(InputError, match=r"test-balanced is in balanced/balanced_test1\.json, which .* lacks"):
        NLVR2.read(tiny_nlvr2, "test-balanced")
    (tiny_nlvr2 / "dev.json").unlink()
    with pytest.raises(InputError, match=r"dev\.json does not exist; add it, or give split val-balanced or val-unb"):
        NLVR2.read(tiny_nlvr2, "val")
    assert len(NLVR2.read(tiny_nlvr2, "val-balanced")) == 4


@pytest.mark.parametrize("character", ["\u2028", "\u0085"])
def test_a_line_ends_with_a_line_feed_only(tmp_path, character):
    line = json.dumps({**LINES[1], "sentence": f"Two{character}dogs."}, ensure_ascii=False)
    (tmp_path / "dev.json").write_bytes(f"{json.dumps(LINES[0])}\r\n{line}\r\n".encode())
    assert [example.text for example in NLVR2.examples(tmp_path, "val")][1] == f"Two{character}dogs."


def test_a_split_without_labels_is_read_but_not_scored(tiny_nlvr2):
    edit(tiny_nlvr2 / "test1.json", lambda entries: [entry.pop("label") for entry in entries])
    example = NLVR2.read(tiny_nlvr2, "test")[0]
    assert example.answers == ()
    assert TASK.targets([example]).tolist() == [-100]
    with pytest.raises(InputError, match="test1-0-0-0 has no public label"):
        TASK.score(example, "True")


def test_a_batch_has_two_images_per_sentence(tiny_nlvr2, tiny_vilt, tiny_meter):
    examples = NLVR2.read(tiny_nlvr2, "val")[1:4]
    for folder in (tiny_vilt, tiny_meter):
        inputs = make_inputs(load_processor(folder), 12)
        batch = TASK.collate(examples, inputs)
        assert batch["inputs"]["pixel_values"].shape == (3, 2, 3, 32, 32)
        assert batch["inputs"]["input_ids"].shape[0] == 3
        assert batch["targets"].tolist() == [1, 0, 1]
        for row, example in enumerate(examples):
            alone = inputs.pixels(example.images)["pixel_values"]
            assert torch.equal(batch["inputs"]["pixel_values"][row], alone)
    assert "pixel_mask" not in batch["inputs"]
    assert TASK.collate(examples, make_inputs(load_processor(tiny_vilt), 12))["inputs"]["pixel_mask"].shape[:2] == (
        3,
        2,
    )


def test_loss_is_the_cross_entropy():
    logits = torch.randn(3, 2)
    expected = -sum(logits[row].log_softmax(0)[column] for row, column in enumerate((1, 0, 0))) / 3
    assert TASK.loss(logits, {"targets": torch.tensor([1, 0, 0])}).item() == pytest.approx(expected.item())


def test_consistency_counts_sentences_that_are_right_for_all_their_pairs():
    truth = {"dev-1-0-0": "True", "dev-1-1-0": "False", "dev-1-0-1": "True", "dev-1-3-1": "True", "dev-2-0-0": "False"}
    examples = [Example(number, (), "", (label,)) for number, label in truth.items()]
    answers = ["True", "False", "True", "False", "True"]
    assert TASK.scores(examples, answers).tolist() == [1, 1, 1, 0, 0]
    assert TASK.metrics(examples, answers) == {"consistency": [(1.0, "dev-1"), (0.0, "dev-1"), (0.0, "dev-2")]}


def test_result_file(tmp_path):
    examples = [Example(line["identifier"], (), "") for line in LINES]
    TASK.write_submission(tmp_path / "out.csv", examples, ["False", "True"])
    assert (tmp_path / "out.csv").read_text() == "dev-850-0-0,False\ndev-850-2-1,True\n"
    assert NLVR2.read_submission(tmp_path / "out.csv") == [("dev-850-0-0", "False"), ("dev-850-2-1", "True")]
    (tmp_path / "out.csv").write_text("dev-850-0-0,true\n\ndev-850-2-1, false\n")
    assert NLVR2.read_submission(tmp_path / "out.csv") == [("dev-850-0-0", "True"), ("dev-850-2-1", "False")]
    (tmp_path / "out.csv").write_text("dev-850-0-0,maybe\n")
    with pytest.raises(InputError, match="line 1 must be 'identifier,True' or"):
        NLVR2.read_submission(tmp_path / "out.csv")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"sentence": "x", "label": "True"}], r"dev\.json: line 1 has no 'identifier' \(str\)"),
        ([LINES[0], {"identifier": "dev-1-1-1", "label": "True"}], r"dev\.json: line 2 has no 'sentence'"),
        ([{**LINES[0], "label": "yes"}], "label of example dev-850-0-0 must be True or False, not 'yes'"),
        ([{**LINES[0], "identifier": "850"}], "identifier '850' is not of the form"),
    ],
)
def test_damage_is_named_in_one_line(tmp_path, lines, message):
    write(tmp_path, *lines)
    with pytest.raises(InputError, match=message) as caught:
        NLVR2.examples(tmp_path, "val")
    assert "\n" not in str(caught.value)


def test_missing_files_are_named(tiny_nlvr2, tmp_path):
    (tiny_nlvr2 / "dev.json").write_text("{")
    with pytest.raises(InputError, match=r"dev\.json: line 1 is not valid JSON"):
        NLVR2.read(tiny_nlvr2, "val")
    (tiny_nlvr2 / "dev.json").unlink()
    with pytest.raises(InputError, match=r"dev\.json does not exist"):
        NLVR2.read(tiny_nlvr2, "val")
    with pytest.raises(InputError, match=r"data folder .*nowhere does not exist"):
        NLVR2.read(tmp_path / "nowhere", "val")
    with pytest.raises(InputError, match=r"split must be one of train, val, test, val-balanced, .* not 'dev'"):
        NLVR2.read(tiny_nlvr2, "dev")
    with pytest.raises(InputError, match="not 'train-balanced'"):
        NLVR2.read(tiny_nlvr2, "train-balanced")
    with pytest.raises(InputError, match=r"none\.csv does not exist"):
        NLVR2.read_submission(tmp_path / "none.csv")
    edit(tiny_nlvr2 / "train.json", lambda entries: entries[0].pop("directory"))
    with pytest.raises(InputError, match=r"train-0-0-0 of NLVR2's train split .* has no 'directory'"):
        NLVR2.read(tiny_nlvr2, "train")


def test_labels_of_another_task_are_refused():
    with pytest.raises(
        InputError, match=r"the model answers with 2 labels \(red, blue\), but task nlvr2 has False, True"
    ):
        NLVR2(("red", "blue"))
    assert NLVR2(("True", "False")).targets([Example("a-0-0-0", (), "", ("True",))]).tolist() == [0]
    assert NLVR2.vocabulary(Path("nowhere"), 9) == ("False", "True")
