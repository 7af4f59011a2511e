from pathlib import Path

import pytest

from pumer.utils.errors import InputError
from pumer.utils.places import file_there, folder_there, new_files, writable_folders


def test_files_that_are_there_are_kept(tmp_path):
    file, other = tmp_path / "a.json", tmp_path / "b.json"
    file.write_text("kept")
    new_files(None, other, inputs=[file, None])
    new_files(file, force=True)
    with pytest.raises(InputError, match=r"a\.json exists already; .*--force"):
        new_files(other, file)
    with pytest.raises(InputError, match=r"a\.json is read"):
        new_files(tmp_path / "x" / ".." / "a.json", force=True, inputs=[file])
    with pytest.raises(InputError, match=r"b\.json is given for two results"):
        new_files(other, other)


def test_files_that_cannot_be_written_are_refused_beforehand(tmp_path):
    new_files(None, tmp_path / "new.json", tmp_path / "new" / "folder" / "new.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a folder; give the name of a file"):
        new_files(tmp_path)
    with pytest.raises(InputError, match=r"file/x\.json cannot be written because .*file is a file"):
        new_files(tmp_path / "file" / "x.json")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that takes no files")
def test_folders_that_take_no_files_are_found_out():
    with pytest.raises(InputError, match="because /proc is not writable"):
        new_files(Path("/proc/x.csv"))


def test_folders_that_cannot_be_made(tmp_path):
    writable_folders(None, tmp_path, tmp_path / "new" / "folder")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(InputError, match="file is a file"):
            writable_folders(folder)


def test_a_file_is_no_folder_and_a_folder_is_no_file(tmp_path):
    (tmp_path / "cat.jpg").write_text("")
    file_there("image", tmp_path / "cat.jpg")
    folder_there("data.root", tmp_path)
    for check, path, said in (
        (file_there, tmp_path, "is a folder"),
        (file_there, tmp_path / "dog.jpg", "does not exist"),
        (folder_there, tmp_path / "cat.jpg", "is a file"),
        (folder_there, tmp_path / "dogs", "does not exist"),
    ):
        with pytest.raises(InputError, match=f"input .*{path.name} {said}"):
            check("input", path)
        check("input", None)
