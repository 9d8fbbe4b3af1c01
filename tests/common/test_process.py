from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import ConfigError
from common.process import claimed_folder, prepare_folder


def test_a_state_directory_is_made_with_the_folders_above_it(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "a" / "b", "state_directory")
    prepare_folder(tmp_path / "a" / "b", "state_directory")
    assert (tmp_path / "a" / "b").is_dir()


def test_a_file_in_the_way_of_a_state_directory_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"state_directory .*Not a directory; allowed: a folder to write in"):
        prepare_folder(tmp_path / "file" / "state", "state_directory")
    with pytest.raises(ConfigError, match=r"state_directory .*File exists"):
        prepare_folder(tmp_path / "file", "state_directory")


def test_a_folder_that_is_claimed_is_nobody_elses_until_it_is_given_back(tmp_path: Path) -> None:
    first = claimed_folder(tmp_path / "state", "state_directory")
    first.__enter__()
    with pytest.raises(ConfigError, match="another process works there"):
        claimed_folder(tmp_path / "state", "state_directory").__enter__()
    first.__exit__(None, None, None)
    with claimed_folder(tmp_path / "state", "state_directory"):
        pass


def test_a_folder_that_takes_no_file_is_refused_whoever_asks() -> None:
    with pytest.raises(ConfigError, match=r"state_directory /proc/self: .*allowed: a folder to write in"):
        prepare_folder(Path("/proc/self"), "state_directory")
