from pathlib import Path

import pytest

from pumer.world.files import SIDECAR, whole


def written(root: Path) -> str:
    return (root / SIDECAR).read_text()


@pytest.mark.parametrize("renames", [0, 1])
def test_an_interrupt_while_a_world_is_replaced_keeps_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    root, replace = tmp_path / "world", Path.replace
    done: list[Path] = []

    def interrupted(path: Path, target: Path) -> Path:
        if len(done) == renames:
            done.append(path)
            raise KeyboardInterrupt
        done.append(path)
        return replace(path, target)

    with whole(root) as aside:
        (aside / SIDECAR).write_text("old")
    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), whole(root) as aside:
        (aside / SIDECAR).write_text("new")
    monkeypatch.undo()
    assert written(root) == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["world"]
    with whole(root) as aside:
        (aside / SIDECAR).write_text("new")
    assert written(root) == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["world"]
