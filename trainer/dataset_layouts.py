"""Collections of recordings laid out as they were published, told apart by their files, or any folder of class folders.

========== ============================================================================ ================================
layout     files                                                                        held out
========== ============================================================================ ================================
ESC-50     ``audio/``, ``meta/esc50.csv``: filename, fold, category, src_file, esc10    one of five folds
Urban-     ``audio/fold1`` to ``fold10``, ``metadata/UrbanSound8K.csv``:                one of ten folds
Sound8K    slice_file_name, fsID, fold, class
FSD50K     ``FSD50K.dev_audio``, ``FSD50K.eval_audio``, ``FSD50K.ground_truth/dev.csv``  the evaluation set, always
           and ``eval.csv``: fname, labels
otherwise  any, one folder per class                                                    a fold of the names, or a fifth
========== ============================================================================ ================================

A clip of FSD50K has several labels, the classes above its own among them; it counts as its first, which is the most
specific one.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.errors import ConfigError
from trainer.dataset import Clip, Split, find_clips, hold_out

ESC50_TABLE = Path("meta", "esc50.csv")
URBANSOUND8K_TABLE = Path("metadata", "UrbanSound8K.csv")
FSD50K_TABLES = Path("FSD50K.ground_truth")
MOST_ERRORS = 20
"""So many wrong lines of a table are shown; a file of another kind has thousands."""

LONGEST_NAME_BYTES = 255
LISTED = 10
DATA_HELP = "recordings: ESC-50, UrbanSound8K or FSD50K as published, or one folder per class"
ESC10_HELP = "of ESC-50, only the ten classes of ESC-10"


@dataclass(frozen=True, slots=True)
class _Table:
    """The recordings that a CSV file names: those that are there, and in words those that are not."""

    clips: list[Clip]
    missing: list[str]


def split_recordings(folder: Path, fold: int, *, esc10: bool = False) -> Split:
    """Find the recordings of ``folder`` by its layout and split off those to evaluate on.

    With ``esc10`` only the ten classes of ESC-10 are taken from ESC-50. Recordings that a table names and that are not
    there are listed in the split.

    Raises:
        ConfigError: no recordings, a table that cannot be used (with file and line), no such fold, or ``esc10`` of
            anything but ESC-50.
    """
    if (folder / ESC50_TABLE).is_file():
        return _split_esc50(folder, fold, esc10)
    if esc10:
        raise ConfigError(f"{folder}: the classes of ESC-10 can be taken from ESC-50 only: there is no {ESC50_TABLE}")
    if (folder / URBANSOUND8K_TABLE).is_file():
        table = _read(folder, URBANSOUND8K_TABLE, ("slice_file_name", "fsID", "fold", "class"), _urbansound8k_clip)
        return _hold_out_fold("UrbanSound8K", table, URBANSOUND8K_TABLE, fold)
    if folder.is_dir() and any(folder.glob("FSD50K.*")):
        return _split_fsd50k(folder, fold)
    clips = find_clips(folder)
    classes = {clip.label for clip in clips if clip.label is not None}
    split = hold_out(clips, fold)
    layout = f"{len(classes)} class folders" if classes else "recordings without classes"
    return replace(split, how=f"{layout}: {split.how}")


def listed(what: str, names: Sequence[str]) -> list[str]:
    """One line for each of the first names, and one that counts the others."""
    more = [f"{what}: {len(names) - LISTED:,} more"] if len(names) > LISTED else []
    return [f"{what}: {name}" for name in names[:LISTED]] + more


def _split_esc50(folder: Path, fold: int, esc10: bool) -> Split:
    columns = ("filename", "fold", "category", "src_file", "esc10")

    def clip(row: Mapping[str, str]) -> Clip | None:
        if esc10 and not _flag(row["esc10"]):
            return None
        relative = Path("audio", _file_name(row["filename"]))
        return _clip(folder, relative, row["category"], fold=_fold(row["fold"]), source=row["src_file"])

    table = _read(folder, ESC50_TABLE, columns, lambda _, row: clip(row))
    return _hold_out_fold("ESC-10, of ESC-50" if esc10 else "ESC-50", table, ESC50_TABLE, fold)


def _urbansound8k_clip(folder: Path, row: Mapping[str, str]) -> Clip:
    fold = _fold(row["fold"])
    relative = Path("audio", f"fold{fold}", _file_name(row["slice_file_name"]))
    return _clip(folder, relative, row["class"], fold=fold, source=row["fsID"])


def _hold_out_fold(layout: str, table: _Table, name: Path, fold: int) -> Split:
    split = hold_out(table.clips, fold)
    return replace(split, how=f"{layout} as published: {split.how}{_absent(table, name)}", missing=table.missing)


def _split_fsd50k(folder: Path, fold: int) -> Split:
    if fold != 1:
        raise ConfigError(f"fold {fold}: FSD50K has one evaluation set and no folds; allowed is 1")
    tables = {}
    for part in ("dev", "eval"):
        name = FSD50K_TABLES / f"{part}.csv"
        if not (folder / name).is_file():
            raise ConfigError(f"{folder / name}: no such file; without it the recordings of FSD50K have no labels")
        tables[part] = _read(folder, name, ("fname", "labels"), _fsd50k_clip(f"FSD50K.{part}_audio"))
    dev, held = tables["dev"], tables["eval"]
    both = _Table(dev.clips + held.clips, dev.missing + held.missing)
    how = f"FSD50K as published: its evaluation set held out: {len(held.clips)} of {len(both.clips)} files"
    return Split(dev.clips, held.clips, how + _absent(both, FSD50K_TABLES), both.missing)


def _fsd50k_clip(audio: str) -> Callable[[Path, Mapping[str, str]], Clip]:
    def clip(folder: Path, row: Mapping[str, str]) -> Clip:
        label = row["labels"].split(",")[0].strip()
        return _clip(folder, Path(audio, _file_name(f"{row['fname']}.wav")), label, fold=None, source=row["fname"])

    return clip


def _absent(table: _Table, name: Path) -> str:
    return f"; {len(table.missing)} more are named in {name.as_posix()} and not there" if table.missing else ""


# -- tables -----------------------------------------------------------------------------------------------------------


def _read(
    folder: Path, name: Path, columns: tuple[str, ...], clip_of: Callable[[Path, Mapping[str, str]], Clip | None]
) -> _Table:
    """The clips of a table in order of their relative paths; every wrong line is an error, a missing file is not."""
    clips: dict[str, Clip] = {}
    missing, errors = [], []
    for line, row in _rows(folder / name, columns):
        try:
            clip = clip_of(folder, row)
            if clip is not None and clip.relative in clips:
                raise ValueError(f"{clip.relative} stands in an earlier line too")
        except ValueError as error:
            errors.append(f"{folder / name}:{line}: {error}")
            continue
        if clip is not None and clip.path.is_file():
            clips[clip.relative] = clip
        elif clip is not None:
            missing.append(f"{clip.relative} ({name.as_posix()}:{line})")
    if errors:
        more = [f"{folder / name}: {len(errors) - MOST_ERRORS} more such lines"] if len(errors) > MOST_ERRORS else []
        raise ConfigError("\n".join(errors[:MOST_ERRORS] + more))
    if not clips:
        raise ConfigError(f"{folder / name}: names {len(missing)} recordings, and none of them is there")
    return _Table([clips[relative] for relative in sorted(clips)], missing)


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and the wanted columns of every row, without blanks at the ends; columns may come in any order."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            absent = [column for column in columns if column not in (reader.fieldnames or ())]
            if absent:
                found = ", ".join(reader.fieldnames or ()) or "none"
                raise ConfigError(f"{path}:1: no column {', '.join(absent)}; its columns are: {found[:200]}")
            for row in reader:
                yield reader.line_num, {column: (row[column] or "").strip() for column in columns}
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8: {error}") from error
    except csv.Error as error:
        raise ConfigError(f"{path}:{reader.reader.line_num}: not a line of a CSV file: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error


def _clip(folder: Path, relative: Path, label: str, *, fold: int | None, source: str) -> Clip:
    if not label:
        raise ValueError("no label")
    return Clip(folder / relative, relative.as_posix(), label, fold, source or None)


def _file_name(text: str) -> str:
    # Nothing above or beside the collection's own folder, and nothing that no file system has.
    if not text or text == ".." or Path(text).name != text or len(text.encode()) > LONGEST_NAME_BYTES:
        raise ValueError(f"{text!r} is not the name of a file")
    return text


def _fold(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise ValueError(f"fold {text!r}: allowed are whole numbers from 1")
    return int(text)


def _flag(text: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise ValueError(f"esc10 {text!r}: allowed are True and False")
    return text.lower() == "true"
