import json

import pytest

from pumer.tasks.karpathy import read_pictures
from pumer.utils.errors import InputError

FILE = "dataset_flickr30k.json"


def read(root, split="val"):
    return read_pictures(root / FILE, "flickr30k-images", split)


def edit(root, change):
    content = json.loads((root / FILE).read_text())
    change(content)
    (root / FILE).write_text(json.dumps(content))


def test_reads_a_split_in_file_order(tiny_flickr):
    pictures = read(tiny_flickr)
    assert [picture.id for picture in pictures] == [6, 7, 8, 9]
    assert pictures[0].path == tiny_flickr / "flickr30k-images" / "1006.jpg"
    assert pictures[0].captions[1] == (31, "it is red it")
    assert [len(read(tiny_flickr, split)) for split in ("train", "test", "train+val")] == [6, 8, 10]


def test_folders_of_coco(tiny_flickr):
    (tiny_flickr / "flickr30k-images").rename(tiny_flickr / "train2014")
    (tiny_flickr / "val2014").mkdir()

    def change(content):
        for entry in content["images"]:
            entry["filepath"] = "train2014"
        last = content["images"][-1]
        last |= {"split": "restval", "filepath": "val2014"}
        last["sentences"] += [sentence | {"sentid": 900 + sentence["sentid"]} for sentence in last["sentences"][:2]]
        (tiny_flickr / "train2014" / last["filename"]).rename(tiny_flickr / "val2014" / last["filename"])

    edit(tiny_flickr, change)
    assert len(read(tiny_flickr, "train")) == 6
    both = read(tiny_flickr, "train+restval")
    assert len(both) == 7
    assert both[-1].path.parent.name == "val2014"
    assert len(both[-1].captions) == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("images"), "no list 'images'"),
        (lambda content: content["images"][6].pop("filename"), r"entry 6 of 'images' has no 'filename' \(str\)"),
        (lambda content: content["images"][6].update(filepath=3), "'filepath' of image 1006.jpg must be text, not 3"),
        (lambda content: content["images"][6].update(sentences=[]), "image 1006.jpg has no captions"),
        (lambda content: content["images"][6]["sentences"][0].pop("raw"), "1006.jpg has no 'raw'"),
    ],
)
def test_what_is_wrong_is_named(tiny_flickr, change, message):
    edit(tiny_flickr, change)
    with pytest.raises(InputError, match=message):
        read(tiny_flickr)


def test_missing_or_broken_file(tiny_flickr):
    with pytest.raises(
        InputError, match="must be one of train, val, test, restval, or several joined by '\\+', not 'al'"
    ):
        read(tiny_flickr, "train+al")
    (tiny_flickr / FILE).write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        read(tiny_flickr)
    (tiny_flickr / FILE).unlink()
    with pytest.raises(InputError, match=r"does not exist; the data folder must hold"):
        read(tiny_flickr)
