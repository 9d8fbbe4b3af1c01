"""The captions of a device's windows: read from a sidecar file, or made from the names of class folders."""

from __future__ import annotations

import csv
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from common.captions import MOST_CHARACTERS, class_captions, travelling
from common.errors import ConfigError
from device.windows import Window

SIDECAR = "captions.csv"
COLUMNS = ("file", "caption")
CAPTION_STREAM = 0xC1A9  # drawn together with the device's seed: a stream of its own, so that no other draw moves

CaptionsOf = Callable[[Path], tuple[str, ...]]

_log = logging.getLogger(__name__)


class CaptionDraw:
    """Draws one of a window's captions; the same seed and windows give the same captions."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng([CAPTION_STREAM, seed])

    def __call__(self, window: Window) -> str | None:
        """One of them, or None where it has none."""
        if not window.captions:
            return None
        return window.captions[int(self._rng.integers(len(window.captions)))]


def captions_of_folder(folder: Path, sidecar: Path | None) -> CaptionsOf:
    """Captions by recording: of ``sidecar``, else of ``captions.csv`` in the folder, else of the class folders' names.

    A recording that the sidecar leaves out has none: class names are labels, and are not mixed in.

    Raises:
        ConfigError: neither file nor class folders, or everything wrong with the file.
    """
    found = folder / SIDECAR if sidecar is None and (folder / SIDECAR).is_file() else sidecar
    if found is not None:
        return _from_sidecar(folder, read_sidecar(found))
    classes = [path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    if len(classes) < 2:
        raise ConfigError(
            f"{folder}: the objective clap needs captions; allowed: a file {SIDECAR} with the columns "
            f"{','.join(COLUMNS)} in it, source.captions, or one folder of recordings per class"
        )
    _log.info("captions are made from the names of the class folders: the run is supervised")
    made = {name: class_captions(name) for name in classes}
    return lambda path: made.get(_within(folder, path).parts[0], ())


def read_sidecar(path: Path) -> dict[str, tuple[str, ...]]:
    """The captions of each file: a CSV with the columns ``file`` and ``caption``, a line for each caption.

    ``file`` is a path relative to the folder of recordings, or a bare name. A caption of more than 200 characters is
    cut between two words.

    Raises:
        ConfigError: unreadable, another header, or lines without file or caption; all of them at once.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            table = csv.reader(text, strict=True)
            header = [name.strip().lower() for name in next(table, [])]
            if not set(COLUMNS) <= set(header):
                raise ConfigError(f"{path}:1: columns {', '.join(header) or 'none'}; needed: {', '.join(COLUMNS)}")
            places = [header.index(name) for name in COLUMNS]
            rows = [(table.line_num, *_cells(row, places)) for row in table if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read as CSV ({error})") from error
    _complain(path, rows)
    captions: defaultdict[str, list[str]] = defaultdict(list)
    for _, name, caption in rows:
        captions[name].append(travelling(caption))
    return {name: tuple(dict.fromkeys(several)) for name, several in captions.items()}


def _cells(row: list[str], places: list[int]) -> tuple[str, str]:
    name, caption = (row[place].strip() if place < len(row) else "" for place in places)
    return name, caption


def _complain(path: Path, rows: list[tuple[int, str, str]]) -> None:
    empty = [f"{path}:{line}: no {'caption' if name else 'file'}" for line, name, text in rows if not (name and text)]
    if empty:
        raise ConfigError("\n".join(empty))
    if not rows:
        raise ConfigError(f"{path}: holds no captions")
    long = sum(len(caption) > MOST_CHARACTERS for _, _, caption in rows)
    if long:
        _log.warning("%s: %d captions are cut at %d characters", path, long, MOST_CHARACTERS)


def _within(folder: Path, path: Path) -> Path:
    """Where a recording lies in its folder; its bare name if it lies elsewhere, as one of ``source.list`` may."""
    return path.relative_to(folder) if path.is_relative_to(folder) else Path(path.name)


def _from_sidecar(folder: Path, captions: Mapping[str, tuple[str, ...]]) -> CaptionsOf:
    def of(path: Path) -> tuple[str, ...]:
        relative = _within(folder, path).as_posix()
        return captions.get(relative) or captions.get(path.name, ())

    return of
