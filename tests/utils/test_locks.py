import subprocess
import sys

import pytest

from pumer.utils.errors import InputError
from pumer.utils.locks import only_one

HOLD = """
import sys
from pumer.utils.locks import only_one
with only_one(sys.argv[1]):
    print("held", flush=True)
    input()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that writes tmp_path/out."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_until_the_first_one_dies(holder, tmp_path):
    with pytest.raises(InputError, match=f"writes {tmp_path}/out;"), only_one(tmp_path / "out"):
        pass
    with only_one(tmp_path / "other"):
        pass
    holder.kill()
    holder.wait()
    with only_one(tmp_path / "out"):
        pass


def test_nothing_is_left_and_nothing_is_made(tmp_path):
    for place in (tmp_path / "new", tmp_path / "file.json", tmp_path / "a" / "b" / "new"):
        with only_one(place):
            assert not place.exists()
    (tmp_path / "folder").mkdir()
    with pytest.raises(KeyError), only_one(tmp_path / "folder"):
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_folders_of_a_result_stay(tmp_path):
    with only_one(tmp_path / "a" / "b" / "file.json"):
        (tmp_path / "a" / "b" / "file.json").write_text("{}")
    assert (tmp_path / "a" / "b" / "file.json").is_file()


def test_the_same_place_by_another_name_is_the_same_place(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with only_one(tmp_path / "out"), pytest.raises(InputError), only_one(tmp_path / "x" / ".." / "link"):
        pass


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/out cannot be written"), only_one(tmp_path / "file" / "out"):
        pass


def test_of_several_processes_of_one_job_the_first_holds_the_lock_for_all(tmp_path, monkeypatch):
    with only_one(tmp_path / "out"):
        monkeypatch.setenv("RANK", "1")
        with only_one(tmp_path / "out"):
            pass
