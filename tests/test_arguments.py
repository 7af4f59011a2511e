from pathlib import Path

import pytest

from pumer.arguments import at_least, writable, writable_folders
from pumer.errors import InputError


def test_settings_below_their_minimum_are_named():
    at_least(1, batch_size=1, limit=None)
    with pytest.raises(InputError, match="workers must be at least 0, not -1"):
        at_least(0, batch_size=3, workers=-1)


def test_files_that_cannot_be_written_are_refused_beforehand(tmp_path):
    writable(None, tmp_path / "new.json", tmp_path / "new" / "folder" / "new.json")
    (tmp_path / "file").write_text("")
    writable(tmp_path / "file")
    with pytest.raises(InputError, match="is a folder; give the name of a file"):
        writable(tmp_path)
    with pytest.raises(InputError, match=r"file/x\.json cannot be written, for .*file is no folder"):
        writable(tmp_path / "file" / "x.json")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that takes no files")
def test_folders_that_take_no_files_are_found_out():
    with pytest.raises(InputError, match="for /proc is no folder to write to"):
        writable(Path("/proc/x.csv"))


def test_folders_that_cannot_be_made(tmp_path):
    writable_folders(tmp_path, tmp_path / "new" / "folder")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(InputError, match="file is no folder to write to"):
            writable_folders(folder)
