from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from common.torchaudio_setup import remove_unloadable_extension

WANTED = "OSError: libc10_cuda.so: cannot open shared object file"


def library_directory(path: Path) -> Path:
    (path / "__init__.py").touch()
    for name in ("_torchaudio.abi3.so", "libtorchaudio.abi3.so"):
        (path / name).write_bytes(b"ELF")
    return path


def fails_while_extension_stands(directory: Path) -> Callable[[], str | None]:
    return lambda: WANTED if any(directory.glob("*.so")) else None


def test_an_extension_that_wants_cuda_is_removed_beside_a_cpu_torch(tmp_path: Path) -> None:
    directory = library_directory(tmp_path)
    removed = remove_unloadable_extension(
        directory, torch_cuda=None, import_error=fails_while_extension_stands(directory)
    )
    assert [path.name for path in removed] == ["_torchaudio.abi3.so", "libtorchaudio.abi3.so"]
    assert [path.name for path in directory.iterdir()] == ["__init__.py"]


def test_a_second_call_changes_nothing(tmp_path: Path) -> None:
    directory = library_directory(tmp_path)
    error = fails_while_extension_stands(directory)
    remove_unloadable_extension(directory, torch_cuda=None, import_error=error)
    assert remove_unloadable_extension(directory, torch_cuda=None, import_error=error) == ()


@pytest.mark.parametrize("torch_cuda", [None, "13.0"])
def test_a_torchaudio_that_works_is_left_alone(tmp_path: Path, torch_cuda: str | None) -> None:
    directory = library_directory(tmp_path)
    assert remove_unloadable_extension(directory, torch_cuda=torch_cuda, import_error=lambda: None) == ()
    assert len(list(directory.glob("*.so"))) == 2


def test_beside_a_torch_with_cuda_a_failing_import_is_reported_and_nothing_is_deleted(tmp_path: Path) -> None:
    directory = library_directory(tmp_path)
    with pytest.raises(RuntimeError, match="not for want of CUDA"):
        remove_unloadable_extension(directory, torch_cuda="13.0", import_error=lambda: WANTED)
    assert len(list(directory.glob("*.so"))) == 2


def test_an_import_that_fails_for_another_reason_is_reported_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="No module named 'numpy'"):
        remove_unloadable_extension(tmp_path, torch_cuda=None, import_error=lambda: "No module named 'numpy'")


def test_an_import_that_still_fails_afterwards_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="even without its compiled extension"):
        remove_unloadable_extension(library_directory(tmp_path), torch_cuda=None, import_error=lambda: WANTED)


def test_torchaudio_can_be_imported_here() -> None:
    import torchaudio

    assert torchaudio.transforms.MelSpectrogram is not None
