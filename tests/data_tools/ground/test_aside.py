"""Under a final name there is the whole content or none."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from data_tools.ground import aside
from data_tools.ground.aside import remove_leftovers, write_text_aside, written_aside


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "report.html"
    for text in ("one", "two"):
        write_text_aside(path, text)
        assert path.read_text() == text and names(path.parent) == ["report.html"]


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    with written_aside(tmp_path / "part") as folder:
        (folder / "inner").mkdir(parents=True)
        (folder / "inner" / "file").write_text("x")
        assert not (tmp_path / "part").exists()
    assert names(tmp_path) == ["part"] and (tmp_path / "part" / "inner" / "file").exists()


@pytest.mark.parametrize("is_folder", [False, True])
def test_an_error_leaves_what_was_there(tmp_path: Path, is_folder: bool) -> None:
    path = tmp_path / "data"
    path.write_text("before")
    with pytest.raises(RuntimeError), written_aside(path) as place:
        if is_folder:
            place.mkdir()
        (place / "x" if is_folder else place).write_text("half")
        raise RuntimeError
    assert names(tmp_path) == ["data"] and path.read_text() == "before"


def test_everything_is_synced_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(aside, "_fsync", lambda path: synced.append(Path(path).name))
    rename = os.replace

    def replace(source: Path, target: Path) -> None:
        synced.append("renamed")
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with written_aside(tmp_path / "part") as folder:
        folder.mkdir()
        (folder / "file").write_text("x")
    assert synced == ["file", folder.name, "renamed", tmp_path.name]


def test_a_file_system_that_cannot_sync_folders_is_no_error_and_a_broken_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (errno.EINVAL, errno.EIO):

        def refuse(path: Path, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(aside, "_fsync", refuse)
        if number == errno.EINVAL:
            aside.sync_folder(tmp_path)
        else:
            with pytest.raises(OSError, match="Input/output"):
                aside.sync_folder(tmp_path)


def test_what_killed_writers_left_is_removed_and_nothing_of_others(tmp_path: Path) -> None:
    mine = [".out[1].0123abcd.tmp", ".out[1].deadbeef.tmp"]
    others = [".out1.0123abcd.tmp", ".out[1].tmp", ".out[1].config.tmp", "out[1]"]
    (tmp_path / mine[0]).mkdir()
    (tmp_path / mine[0] / "weights").touch()
    for name in (mine[1], *others):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "out[1]")
    assert names(tmp_path) == sorted(others)
