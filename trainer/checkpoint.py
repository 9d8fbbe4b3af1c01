"""Checkpoints that are whole or absent, whatever moment the trainer is killed at."""

from __future__ import annotations

import io
import logging
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.atomic_file import SUFFIX, write_atomically
from common.errors import ConfigError

log = logging.getLogger(__name__)

FORMAT_VERSION = 3
KEEP = 3
"""So many checkpoints stay; older ones are removed."""

_PATTERN = "checkpoint-*.pt"


class BrokenCheckpoint(ConfigError):
    """A checkpoint file that is torn, damaged or something else altogether."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All that a trainer resumes from.

    Attributes:
        run: identity of the run; a resumed run keeps it.
        fingerprint: of the settings both ends share; a checkpoint of another one is refused.
        encoder_name: what `build_encoder` takes.
        encoder: the encoder's ``state_dict``.
        state: everything else, nested dicts, lists and tuples of tensors, numbers, strings, booleans and None.
        weights_version: of these weights.
        steps: optimizer steps so far.
        windows: windows trained so far.
        head: what `build_encoder` takes; checkpoints written before there was a choice have the default.
    """

    run: str
    fingerprint: str
    encoder_name: str
    encoder: dict[str, Tensor]
    state: dict[str, object]
    weights_version: int
    steps: int
    windows: int
    head: str = "mlp"


def save(directory: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint into ``directory`` (made if absent) and remove all but the last three.

    When this returns, the file is on the disk. When it is interrupted, the earlier checkpoints are untouched.

    Raises:
        TypeError: the state holds something that is not plain data.
        ConfigError: the disk takes no file. Weights that are not on it must not be published.
    """
    path = directory / f"checkpoint-{checkpoint.weights_version:010d}-{checkpoint.steps:010d}.pt"
    content = {field.name: getattr(checkpoint, field.name) for field in fields(Checkpoint)}
    buffer = io.BytesIO()
    torch.save({"format_version": FORMAT_VERSION, **_plain(content, "checkpoint")}, buffer)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for stale in directory.glob("checkpoint-*" + SUFFIX):  # left by a kill between write and rename
            stale.unlink()
        write_atomically(path, buffer.getvalue())
        for old in _oldest_first(directory)[:-KEEP]:
            old.unlink()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written: {error}; make room and start again, it goes on from the checkpoint before"
        ) from error
    return path


def latest(directory: Path) -> Path | None:
    """The newest checkpoint file of ``directory`` by weights version and step, or None."""
    paths = _oldest_first(directory)
    return paths[-1] if paths else None


def load_latest(directory: Path, fingerprint: str) -> Checkpoint | None:
    """Load the newest readable checkpoint of ``directory``, or None where there is none.

    A damaged one is passed over with a warning and renamed to ``….broken`` so that it is met only once.

    Raises:
        ConfigError: there are checkpoints but none can be read (starting anew would silently lose them), or the newest
            readable one has another fingerprint or format.
    """
    broken: list[Path] = []
    for path in reversed(_oldest_first(directory)):
        try:
            checkpoint = load(path)
        except BrokenCheckpoint as error:
            log.warning("%s; trying the one before", error)
            broken.append(path)
            continue
        _check_fingerprint(path, checkpoint, fingerprint)
        for torn in broken:
            torn.rename(torn.with_suffix(".pt.broken"))
        return checkpoint
    if broken:
        raise ConfigError(
            f"{directory}: none of its {len(broken)} checkpoints can be read; move them away to start anew"
        )
    return None


def load_given(path: Path) -> tuple[Path, Checkpoint]:
    """The checkpoint of a file, or the newest of a folder, and which file that is.

    Raises:
        BrokenCheckpoint, ConfigError: as `load`; ConfigError also for a folder without any.
    """
    file = latest(path) if path.is_dir() else path
    if file is None:
        raise ConfigError(f"{path}: no checkpoint in this folder")
    return file, load(file)


def load(path: Path) -> Checkpoint:
    """Load one checkpoint onto the CPU.

    Raises:
        BrokenCheckpoint: torn, damaged, or not a checkpoint of ours.
        ConfigError: no such file, or of another format version.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such checkpoint file")
    _check_sums(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError as error:
        raise ConfigError(f"{path}: this machine has no room to load it") from error
    except Exception as error:  # torch.load raises a different type for almost every kind of damage
        raise BrokenCheckpoint(f"{path}: not a readable checkpoint: {error}") from error
    if not isinstance(content, dict) or "format_version" not in content:
        raise BrokenCheckpoint(f"{path}: a torch file, but not a StreamSplit checkpoint")
    version = content.pop("format_version")
    if version != FORMAT_VERSION:
        raise ConfigError(f"{path}: checkpoint format {version}, this StreamSplit reads format {FORMAT_VERSION}")
    content.setdefault("head", "mlp")
    if set(content) != {field.name for field in fields(Checkpoint)}:
        raise BrokenCheckpoint(f"{path}: not the fields of a checkpoint: {', '.join(sorted(map(str, content)))}")
    return Checkpoint(**content)


def _check_fingerprint(path: Path, checkpoint: Checkpoint, fingerprint: str) -> None:
    if checkpoint.fingerprint != fingerprint:
        raise ConfigError(
            f"{path}: written under other settings (fingerprint {checkpoint.fingerprint[:12]}, encoder "
            f"{checkpoint.encoder_name}), the fleet is now configured as {fingerprint[:12]}; "
            "restore the old settings, or use another state directory to start anew"
        )


def _check_sums(path: Path) -> None:
    # torch.load does not verify the checksums that torch.save writes into the archive.
    try:
        file = path.open("rb")
    except OSError as error:  # says nothing of what is in it
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        with file, zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, ValueError) as error:
        raise BrokenCheckpoint(f"{path}: torn or damaged: {error}") from error
    if damaged is not None:
        raise BrokenCheckpoint(f"{path}: damaged: wrong checksum of {damaged}")


def _oldest_first(directory: Path) -> list[Path]:
    return sorted(directory.glob(_PATTERN))


def _plain(value: object, where: str) -> Any:
    """Copy nested plain data: tensors detached, on the CPU and without the rest of a shared storage."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {_plain_key(key, where): _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    if value is None or type(value) in {bool, int, float, str, bytes}:
        return value
    raise TypeError(f"{where}: {type(value).__name__} is not plain data; a checkpoint holds none of it")


def _plain_key(key: object, where: str) -> str | int:
    if type(key) in {str, int}:
        return key  # type: ignore[return-value]
    raise TypeError(f"{where}: a key of type {type(key).__name__}; only str and int are plain")
