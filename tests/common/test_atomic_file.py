from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from common.atomic_file import SUFFIX, write_atomically


def test_a_file_is_made_and_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    for content in (b"first", b"", b"another" * 1_000):
        write_atomically(path, content)
        assert path.read_bytes() == content
        assert list(tmp_path.iterdir()) == [path]


def test_a_crash_before_the_rename_leaves_the_old_file_and_the_next_write_clears_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    write_atomically(path, b"old")

    def crash(_: Path, target: Path) -> None:
        raise KeyboardInterrupt(str(target))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert (tmp_path / f"a.bin{SUFFIX}").read_bytes() == b"new"
    write_atomically(path, b"newer")
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == {"a.bin": b"newer"}


def test_the_file_is_on_the_disk_before_its_name_and_the_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        happened.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def noted_replace(self: Path, target: Path) -> Path:
        happened.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    write_atomically(tmp_path / "a.bin", b"content")
    assert happened == ["file", "rename", "folder"]


def test_of_a_write_that_the_disk_refuses_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_atomically(tmp_path / "folder", b"content")
    assert [one.name for one in tmp_path.iterdir()] == ["folder"]
