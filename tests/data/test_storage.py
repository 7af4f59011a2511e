"""Prepared folders that are broken, and folders that cannot be listed."""

import os

import pytest

from pumer.data.storage import images_in, missing_images, storage_of
from pumer.utils.errors import InputError


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
