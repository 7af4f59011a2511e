from pathlib import Path

import pytest

from pumer.utils.errors import InputError
from pumer.utils.places import check_input, check_new_files, check_new_folder


def test_files_that_are_there_are_kept(tmp_path):
    file, other = tmp_path / "a.json", tmp_path / "b.json"
    file.write_text("kept")
    check_new_files([other], inputs=[file])
    check_new_files([file], force=True)
    with pytest.raises(InputError, match=r"a\.json exists already; .*--force"):
        check_new_files([other, file])
    with pytest.raises(InputError, match=r"a\.json is read"):
        check_new_files([tmp_path / "x" / ".." / "a.json"], force=True, inputs=[file])
    with pytest.raises(InputError, match=r"b\.json is given for two results"):
        check_new_files([other, other])


def test_files_that_cannot_be_written_are_refused_beforehand(tmp_path):
    check_new_files([tmp_path / "new.json", tmp_path / "new" / "folder" / "new.json"])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a folder; give the name of a file"):
        check_new_files([tmp_path])
    with pytest.raises(InputError, match=r"file/x\.json cannot be written because .*file is a file"):
        check_new_files([tmp_path / "file" / "x.json"])


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that takes no files")
def test_folders_that_take_no_files_are_found_out():
    with pytest.raises(InputError, match="because /proc is not writable"):
        check_new_files([Path("/proc/x.csv")])


def test_folders_that_cannot_be_made(tmp_path):
    check_new_folder(tmp_path)
    check_new_folder(tmp_path / "new" / "folder")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(InputError, match="file is a file"):
            check_new_folder(folder)


def test_a_file_is_no_folder_and_a_folder_is_no_file(tmp_path):
    (tmp_path / "cat.jpg").write_text("")
    check_input("image", tmp_path / "cat.jpg")
    check_input("data.root", tmp_path, folder=True)
    for folder, path, said in (
        (False, tmp_path, "is a folder"),
        (False, tmp_path / "dog.jpg", "does not exist"),
        (True, tmp_path / "cat.jpg", "is a file"),
        (True, tmp_path / "dogs", "does not exist"),
    ):
        with pytest.raises(InputError, match=f"input .*{path.name} {said}"):
            check_input("input", path, folder)
