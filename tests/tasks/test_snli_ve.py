import json

import pytest

from pumer.checkpoint import load_processor
from pumer.tasks import SNLIVE
from pumer.tasks.loading import make_inputs
from pumer.utils.errors import InputError

LABELS = ("contradiction", "neutral", "entailment")
TASK = SNLIVE(LABELS)


def edit(path, change):
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    change(entries)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


@pytest.mark.parametrize(("split", "count"), [("train", 18), ("val", 9), ("test", 9)])
def test_reads_every_split_but_for_what_annotators_did_not_agree_on(tiny_snli_ve, split, count):
    examples = SNLIVE.read(tiny_snli_ve, split)
    assert len(examples) == count
    assert {example.answers for example in examples} == {(label,) for label in LABELS}


def test_an_example(tiny_snli_ve):
    example = SNLIVE.read(tiny_snli_ve, "val")[1]
    assert (example.id, example.text, example.answers) == ("100.jpg#0r1c", "it is blue", ("contradiction",))
    assert example.images == (tiny_snli_ve / "flickr30k-images" / "100.jpg",)
    assert SNLIVE.truth(tiny_snli_ve / "snli_ve_dev.jsonl")[1].id == example.id


def test_image_numbers_and_png_files(tiny_snli_ve):
    expected = SNLIVE.read(tiny_snli_ve, "val")
    edit(tiny_snli_ve / "snli_ve_dev.jsonl", lambda lines: [line.update(Flickr30K_ID=100) for line in lines[:1]])
    assert SNLIVE.read(tiny_snli_ve, "val") == expected
    (tiny_snli_ve / "flickr30k-images" / "100.jpg").rename(tiny_snli_ve / "flickr30k-images" / "100.png")
    assert SNLIVE.read(tiny_snli_ve, "val")[0].images[0].name == "100.png"


def test_limit_counts_what_has_a_label(tiny_snli_ve):
    everything = SNLIVE.read(tiny_snli_ve, "val")
    assert SNLIVE.read(tiny_snli_ve, "val", limit=3) == [everything[index] for index in (0, 3, 6)]


def test_batch(tiny_snli_ve, tiny_vilt):
    examples = SNLIVE.read(tiny_snli_ve, "val")[:3]
    batch = TASK.collate(examples, make_inputs(load_processor(tiny_vilt), 12))
    assert batch["inputs"]["pixel_values"].shape == (3, 3, 32, 32)
    assert batch["targets"].tolist() == [2, 0, 1]
    assert TASK.scores(examples, ["entailment", "neutral", "neutral"]).tolist() == [1, 0, 1]


def test_result_file(tiny_snli_ve, tmp_path):
    examples = SNLIVE.read(tiny_snli_ve, "val")[:2]
    TASK.write_submission(tmp_path / "out.json", examples, ["neutral", "entailment"])
    assert json.loads((tmp_path / "out.json").read_text()) == [
        {"pairID": "100.jpg#0r1e", "gold_label": "neutral"},
        {"pairID": "100.jpg#0r1c", "gold_label": "entailment"},
    ]
    assert SNLIVE.read_submission(tmp_path / "out.json") == [
        ("100.jpg#0r1e", "neutral"),
        ("100.jpg#0r1c", "entailment"),
    ]


def test_an_unknown_label_in_a_result_file(tmp_path):
    (tmp_path / "out.json").write_text('[{"pairID": "1.jpg#0r1e", "gold_label": "entails"}]')
    with pytest.raises(InputError, match=r"gold_label of 1\.jpg#0r1e must be contradiction, .* not 'entails'"):
        SNLIVE.read_submission(tmp_path / "out.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gold_label": "maybe"}, r"gold_label of 100\.jpg#0r1e must be contradiction, neutral, .* not 'maybe'"),
        ({"sentence2": None}, r"snli_ve_dev\.jsonl: line 1 has no 'sentence2' \(str\)"),
        ({"Flickr30K_ID": None}, r"100\.jpg#0r1e has no 'Flickr30K_ID'"),
    ],
)
def test_damage_is_named_in_one_line(tiny_snli_ve, change, message):
    edit(tiny_snli_ve / "snli_ve_dev.jsonl", lambda lines: lines[0].update(change))
    with pytest.raises(InputError, match=message) as caught:
        SNLIVE.read(tiny_snli_ve, "val")
    assert "\n" not in str(caught.value)


def test_missing_files_are_named(tiny_snli_ve, tmp_path):
    (tiny_snli_ve / "snli_ve_dev.jsonl").unlink()
    with pytest.raises(InputError, match=r"snli_ve_dev\.jsonl does not exist; give the official"):
        SNLIVE.read(tiny_snli_ve, "val")
    with pytest.raises(InputError, match=r"data folder .*nowhere does not exist"):
        SNLIVE.read(tmp_path / "nowhere", "val")
    with pytest.raises(InputError, match="split must be one of train, val, test, not 'dev'"):
        SNLIVE.read(tiny_snli_ve, "dev")
