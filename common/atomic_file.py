"""A file that is replaced at once and whole, whatever moment the power fails at."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

SUFFIX = ".new"  # of the file being written; one that a kill left behind is written over the next time


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``; when this returns, it is on the disk. The folder must be there.

    Interrupted at any moment it leaves the old file or the new one, never a half.

    Raises:
        OSError: the file cannot be written.
    """
    temporary = path.with_name(path.name + SUFFIX)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):  # what a full disk did take is room for others
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    # The rename itself is only on the disk once the folder is.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
