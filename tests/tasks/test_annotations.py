"""Annotation files of every task: entries and keys that occur once, numbers that are numbers, encodings."""

import json

import pytest
from tiny import FOLDERS

from pumer.tasks import TASKS
from pumer.tasks.annotations import check_unique, checked
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
        checked({"id": value}, {"id": int}, "entry 3")
    with pytest.raises(InputError, match=r"entry 3 has no 'id' \(int\)"):
        checked([value], {"id": int}, "entry 3")


def test_check_unique(tmp_path):
    check_unique(tmp_path, "id", range(5))
    with pytest.raises(InputError, match="id 3 2 times"):
        check_unique(tmp_path, "id", [1, 3, 2, 3])


@pytest.mark.parametrize("task", FOLDERS)
def test_a_key_that_occurs_twice_is_refused(task, request):
    root = request.getfixturevalue(FOLDERS[task])
    file = VALUES[task][0][0]
    text = (root / file).read_text()
    name = next(field for field in ("question", "sentence2", "sentence", "filename") if f'"{field}"' in text)
    (root / file).write_text(text.replace(f'"{name}"', f'"{name}": "", "{name}"', 1))
    with pytest.raises(InputError, match=rf"holds '{name}' twice"):
        TASKS[task].read(root, "val")
