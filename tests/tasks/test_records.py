"""Entries of official files, in every task: each one once, numbers that are numbers, files that can be listed."""

import json
import os

import pytest
from tiny import FOLDERS

from pumer.data.storage import images_in, missing_images, storage_of
from pumer.tasks import TASKS
from pumer.tasks.records import hold, once
from pumer.utils.errors import InputError

VALUES = {  # task: file, key of its list, and what must be there once: a key of an entry, or of one below it
    "vqav2": [
        ("v2_OpenEnded_mscoco_val2014_questions.json", "questions", ["question_id"]),
        ("v2_mscoco_val2014_annotations.json", "annotations", ["question_id"]),
    ],
    "nlvr2": [("dev.json", None, ["identifier"])],
    "snli_ve": [("snli_ve_dev.jsonl", None, ["pairID"])],
    "flickr30k": [
        ("dataset_flickr30k.json", "images", ["imgid"]),
        ("dataset_flickr30k.json", "images", ["sentences", 0, "sentid"]),
    ],
    "coco": [
        ("dataset_coco.json", "images", ["imgid"]),
        ("dataset_coco.json", "images", ["sentences", 0, "sentid"]),
    ],
}
CASES = [(task, *case) for task, cases in VALUES.items() for case in cases]


def repeat(path, key, place):
    """Give the last entry the value of the one before, and return it."""
    text = path.read_text()
    content = json.loads(text) if key else [json.loads(line) for line in text.splitlines()]
    one, other = (content[key] if key else content)[-2:]
    for step in place[:-1]:
        one, other = one[step], other[step]
    other[place[-1]] = one[place[-1]]
    path.write_text(json.dumps(content) if key else "\n".join(map(json.dumps, content)))
    return one[place[-1]]


def test_every_task_is_here():
    assert VALUES.keys() == FOLDERS.keys() == TASKS.keys()


@pytest.mark.parametrize(("task", "file", "key", "place"), CASES)
def test_what_is_there_twice_is_refused_wherever_examples_are_read(task, file, key, place, request):
    root = request.getfixturevalue(FOLDERS[task])
    questions = root / file if key == "questions" else None
    annotations = root / (file if questions is None else VALUES["vqav2"][1][0])
    TASKS[task].read(root, "val")
    TASKS[task].truth(annotations, questions, "val")
    value = repeat(root / file, key, place)
    for read in (
        lambda: TASKS[task].read(root, "val"),
        lambda: TASKS[task].read(root, "val", limit=1),
        lambda: TASKS[task].truth(annotations, questions, "val"),
    ):
        with pytest.raises(InputError) as caught:
            read()
        assert f"{root / file} has {place[-1]} {value} 2 times" in str(caught.value)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("task", FOLDERS)
def test_files_as_other_systems_write_them(task, encoding, end, request):
    root = request.getfixturevalue(FOLDERS[task])
    before = TASKS[task].read(root, "val")
    for path in root.glob("*.json*"):
        path.write_bytes(path.read_text().replace("\n", end).encode(encoding))
    assert TASKS[task].read(root, "val") == before


@pytest.mark.parametrize("value", [True, 1.0, "1", None, [1]])
def test_only_integers_are_numbers(value):
    with pytest.raises(InputError, match=r"entry 3 has no 'id' \(int\)"):
        hold({"id": value}, {"id": int}, "entry 3")
    with pytest.raises(InputError, match=r"entry 3 has no 'id' \(int\)"):
        hold([value], {"id": int}, "entry 3")


def test_once(tmp_path):
    once(tmp_path, "id", range(5))
    with pytest.raises(InputError, match="id 3 2 times"):
        once(tmp_path, "id", [1, 3, 2, 3])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "line 1"),
        ("", "line 1"),
        ("[]", "list"),
        ("{}", "'complete'"),
        ('{"complete": 1, "shards": 0}', "'complete'"),
        ('{"complete": true}', "'shards'"),
        ('{"complete": true, "complete": true}', "twice"),
        ('{"complete": false, "shards": 0}', "only in part"),
        ('{"complete": true, "shards": 2}', "0 of 2"),
    ],
)
def test_a_broken_record_of_a_prepared_folder_is_named(tmp_path, text, named):
    (tmp_path / "prepared.json").write_text(text)
    for read in (lambda: storage_of(tmp_path / "a.jpg"), lambda: images_in(tmp_path / "val2014")):
        with pytest.raises(InputError) as caught:
            read()
        assert named in str(caught.value)
        assert str(tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)


def arrow_columns(end=3, name="a.jpg"):
    """Two images, of which the first has three bytes and the second none; another `end` of the first lies beyond."""
    import pyarrow as pa

    offsets, nothing = pa.array([0, end, 3], pa.int32()).buffers()[1], pa.nulls(2, pa.string())
    data = pa.Array.from_buffers(pa.binary(), 2, [None, offsets, pa.py_buffer(b"abc")])
    image = pa.StructArray.from_arrays([data, nothing], ["bytes", "path"])
    return {"name": pa.array([name, "b.jpg"], pa.string()), "image": image, "problem": nothing}


@pytest.mark.parametrize(
    ("columns", "sound"),
    [
        (arrow_columns(), True),
        (arrow_columns(end=10**9), False),
        (arrow_columns(name=None), False),
        ({"name": arrow_columns()["name"]}, False),
    ],
    ids=["sound", "beyond its end", "no name", "other columns"],
)
def test_a_broken_arrow_file_is_named(tmp_path, columns, sound):
    import pyarrow as pa

    table = pa.table(columns)
    (tmp_path / "arrow").mkdir()
    with pa.ipc.new_stream(tmp_path / "arrow" / "00000-of-00001.arrow", table.schema) as file:
        file.write_table(table)
    (tmp_path / "prepared.json").write_text('{"complete": true, "shards": 1}')
    if sound:
        assert storage_of(tmp_path / "a.jpg").image("a.jpg") == b"abc"
        return
    with pytest.raises(InputError, match=r"00000-of-00001\.arrow is broken"):
        storage_of(tmp_path / "a.jpg")


def test_a_folder_that_may_not_be_listed_is_named(tmp_path, monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refused)
    with pytest.raises(InputError, match=r"val2014 cannot be listed \(Permission denied\)"):
        (tmp_path / "val2014").mkdir()
        missing_images([tmp_path / "val2014" / "a.jpg"])
    with pytest.raises(InputError, match="File name too long"):
        images_in(tmp_path / ("x" * 300))
    with pytest.raises(InputError, match="File name too long"):
        storage_of(tmp_path / ("x" * 300) / "a.jpg")
