"""One reader of texts: what text files of the world hold is read as it was meant, or refused in one line."""

import json
import os
import signal
import subprocess
import sys

import pytest

from pumer.utils import files
from pumer.utils.errors import InputError
from pumer.utils.files import (
    read_config,
    read_csv,
    read_json,
    read_json_lines,
    read_lines,
    read_text,
    remove_leftovers,
    write_json,
    write_text,
)

CONTENT = {"question": "où est l'été? 🐈", "numbers": [1, 2.5, -3], "none": None}
MARKED = ["utf-8", "utf-8-sig", "utf-16"]  # "utf-16" writes its byte-order mark
ENDS = ["\n", "\r\n", "\r"]
READERS = [read_json, read_config, read_json_lines]


def refusal(reader, path):
    with pytest.raises(InputError) as caught:
        reader(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 400
    return message


@pytest.mark.parametrize("escaped", [True, False])
@pytest.mark.parametrize("encoding", MARKED)
@pytest.mark.parametrize("end", ENDS)
def test_byte_order_marks_and_line_ends(tmp_path, encoding, end, escaped):
    path = tmp_path / "file"
    path.write_bytes(json.dumps(CONTENT, indent=1, ensure_ascii=escaped).replace("\n", end).encode(encoding))
    assert read_json(path) == read_config(path) == CONTENT
    line = json.dumps(CONTENT, ensure_ascii=escaped)
    path.write_bytes(end.join([line, "", line]).encode(encoding))
    assert read_json_lines(path) == [(1, CONTENT), (3, CONTENT)]
    path.write_bytes(end.join(["ça", "a\u2028b", "", "d"]).encode(encoding))
    assert read_lines(path) == ["ça", "a\u2028b", "", "d"]
    path.write_bytes(end.join(["a,b", '"x, ""y""",ü', "", "1,2"]).encode(encoding) + end.encode(encoding)[-len(end) :])
    if encoding != "utf-16":  # whose last line end would need two bytes
        assert read_csv(path) == [(1, ["a", "b"]), (2, ['x, "y"', "ü"]), (4, ["1", "2"])]


def test_a_text_keeps_its_line_ends(tmp_path):
    (tmp_path / "file").write_bytes(b"a\r\nb\rc\n")
    assert read_text(tmp_path / "file") == "a\r\nb\rc\n"


def test_a_line_end_inside_quotes_belongs_to_the_value(tmp_path):
    (tmp_path / "file").write_bytes(b'a,b\r\n"x\r\ny",z\r\n')
    assert read_csv(tmp_path / "file") == [(1, ["a", "b"]), (3, ["x\r\ny", "z"])]


@pytest.mark.parametrize("reader", [*READERS, read_text, read_lines, read_csv])
def test_what_is_no_text_file(tmp_path, reader):
    assert "does not exist" in refusal(reader, tmp_path / "nothing")
    assert "does not exist" in refusal(reader, tmp_path / "nothing" / "below")
    assert "directory" in refusal(reader, tmp_path)
    path = tmp_path / "file"
    path.write_bytes(b'{"a": "\xe9"}')
    assert "UTF-8" in refusal(reader, path)
    path.write_bytes(b"\xff\xfe{")  # half of a UTF-16 character
    assert "UTF-16" in refusal(reader, path)
    with pytest.raises(InputError):
        reader("\0")
    with pytest.raises(InputError):
        reader("x" * 5000)
    assert "device" in refusal(reader, "/dev/zero")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "JSON"),
        ('{"a": 1,}', "line 1"),
        ('{"a":' * 200_000, "deep"),
        ("[" * 200_000, "deep"),
        ('{"a": NaN}', "NaN"),
        ('{"a": [Infinity]}', "Infinity"),
        ('{"a": -Infinity}', "-Infinity"),
        ('{"a": 1' + "0" * 5000 + "}", "4300 digits"),
    ],
)
def test_broken_json(tmp_path, reader, text, named):
    if reader is read_json_lines and not text:
        return
    (tmp_path / "file").write_text(text)
    assert named in refusal(reader, tmp_path / "file")


@pytest.mark.parametrize("reader", [read_json, read_json_lines])
def test_half_of_a_surrogate_pair_is_no_character(tmp_path, reader):
    path = tmp_path / "file"
    for text in ('{"a": ["\\ud83d"]}', '{"\\udC08": 1}', '{"a": "\\ude00\\ud83d"}'):
        path.write_text(text)
        assert "surrogate" in refusal(reader, path)
    path.write_text('{"a": "\\ud83d\\ude00 \\\\ud83d"}')
    assert reader(path) in ({"a": "😀 \\ud83d"}, [(1, {"a": "😀 \\ud83d"})])


def test_the_broken_one_of_many_lines_is_named(tmp_path):
    (tmp_path / "file").write_text('{}\n\n{"a": }\n{}')
    message = refusal(read_json_lines, tmp_path / "file")
    assert "line 3" in message
    assert "line 1" not in message
    (tmp_path / "file").write_text("{}\n{}\n{\n}\n")
    assert "line 3" in refusal(read_json_lines, tmp_path / "file")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"method": "pumer", "method": "tome"}', "'method'"),
        ('{"a": {"ratio": 1, "b": 2, "ratio": 1}}', "'ratio'"),
        ('{"ratio": 1e999}', "1e999"),
        ("[1]", "list"),
        ('"a"', "str"),
    ],
)
def test_a_config_is_an_object_with_each_key_once(tmp_path, text, named):
    (tmp_path / "file").write_text(text)
    assert named in refusal(read_config, tmp_path / "file")


@pytest.mark.parametrize(("reader", "limit"), [(read_config, "MAX_CONFIG_BYTES"), (read_json, "MAX_BYTES")])
def test_larger_files_are_refused_unread(tmp_path, reader, limit, monkeypatch):
    path = tmp_path / "file"
    path.write_text("{}")
    monkeypatch.setattr(files, limit, 2)
    assert reader(path) == {}
    path.write_text("{} ")
    message = refusal(reader, path)
    assert "3 bytes" in message
    assert "at most 2" in message


def test_the_remedy_is_the_callers(tmp_path):
    with pytest.raises(InputError, match=r"; give the official file$"):
        read_json(tmp_path / "nothing", "give the official file")


@pytest.mark.parametrize("text", ['a,b\n"x,1\ny,2\n', 'a,b\n"x"y,1\n', "a," + "b" * 200_000])
def test_csv_whose_quotes_do_not_close_is_not_read_as_one_value(tmp_path, text):
    (tmp_path / "file").write_text(text)
    refusal(read_csv, tmp_path / "file")


def test_a_pipe_is_read(tmp_path):
    read, write = os.pipe()
    os.write(write, b'\xef\xbb\xbf{"a": 1}')
    os.close(write)
    assert read_json(f"/dev/fd/{read}") == {"a": 1}
    os.close(read)


def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("before")
    refusal(lambda path: write_text(path, "x"), tmp_path / "file" / "below")

    def full(path, *_, **__):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    assert "No space left" in refusal(lambda path: write_text(path, "x"), tmp_path / "file")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "before")]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    code = """
import os, signal, sys
from pumer.utils.files import replacing
with replacing(sys.argv[1], whole=True) as folder:
    (folder / "part").write_text("half")
    os.kill(os.getpid(), signal.SIGTERM)
"""
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    assert killed.returncode == -signal.SIGTERM and len(list(tmp_path.iterdir())) == 1
    others = [tmp_path / name for name in (".out.settings", ".outer.0123abcd", "out")]
    for folder in (*others, tmp_path / ".out.0123abcd-before"):
        folder.mkdir()
    remove_leftovers(tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_a_folder_that_was_away_when_its_process_was_killed_is_put_back(tmp_path):
    code = """
import os, signal, sys
from pathlib import Path
from pumer.utils.files import replacing
moved = Path.replace
def killed(self, target):
    moved(self, target)
    os.kill(os.getpid(), signal.SIGKILL)
Path.replace = killed
with replacing(sys.argv[1], whole=True) as folder:
    (folder / "file").write_text("new")
"""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("old")
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    assert not (tmp_path / "out").exists()
    remove_leftovers(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "file").read_text() == "old"


def test_a_file_name_in_another_encoding_is_written(tmp_path):
    write_json(tmp_path / "file", {"root": "/data/\udce9t\udce9"})
    assert read_config(tmp_path / "file") == {"root": "/data/\udce9t\udce9"}
