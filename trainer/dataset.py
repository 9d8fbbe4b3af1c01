"""Which recordings there are, which are held out for evaluation, and how the rest is shared among devices."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from common.audio_file import AUDIO_SUFFIXES
from common.errors import ConfigError

ShardMode = Literal["iid", "by-class"]

PARTS = 5
"""Without folds in the names, one of this many parts of the files is held out."""

DIRICHLET = 0.3
"""Concentration of a class over the shards of ``by-class`` (usual in papers on federated learning: strongly uneven)."""

# ESC-10's "1-187207-A.ogg" and ESC-50's "1-100032-A-0.wav": fold, number of the source recording, take, class.
_ESC_NAME = re.compile(r"(?P<fold>[1-9])-(?P<source>\d+)-(?P<take>[A-Z])(-\d+)?")


@dataclass(frozen=True, slots=True)
class Clip:
    """One audio file: ``relative`` (to the searched folder, with ``/``), its class, fold and source recording.

    Fold and source come from its name, or from a published table.
    """

    path: Path
    relative: str
    label: str | None
    fold: int | None
    source: str | None


@dataclass(frozen=True, slots=True)
class Split:
    """Clips to train on, clips never trained on, and in words ``how`` they were chosen.

    ``missing``: recordings that a table names, with file and line, and that are not there.
    """

    training: list[Clip]
    held_out: list[Clip]
    how: str
    missing: list[str] = field(default_factory=list)


def find_clips(folder: Path) -> list[Clip]:
    """Find the audio files at any depth below ``folder``, sorted by relative path; hidden ones are skipped.

    If two or more folders directly below it hold audio, they are taken as classes: their names are the labels.

    Raises:
        ConfigError: no such folder, or no audio in it.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: not a folder of recordings")
    clips = [_clip(folder, path) for path in _audio_files(folder)]
    if not clips:
        raise ConfigError(f"{folder}: no audio in it; looked for {', '.join(sorted(AUDIO_SUFFIXES))} at any depth")
    classes = {clip.label for clip in clips} - {None}
    if len(classes) < 2:
        clips = [replace(clip, label=None) for clip in clips]
    return sorted(clips, key=lambda clip: clip.relative)


def hold_out(clips: Sequence[Clip], fold: int) -> Split:
    """Split off the clips to evaluate on; the same clips and fold always give the same split.

    If every clip has a fold, the whole ``fold`` is held out; what other folds have of its source recordings is left out
    altogether. Otherwise it is the ``fold``-th fifth (1 to 5) of the files, in the order of a hash of their relative
    paths and per label where there are labels, the takes of one source recording together.

    Raises:
        ConfigError: there is no such fold, or too few files to hold any out.
    """
    folds = sorted({clip.fold for clip in clips if clip.fold is not None})
    without = sum(clip.fold is None for clip in clips)
    if without or len(folds) < 2:
        return _hold_out_part(clips, fold, named=len(clips) - without)
    if fold not in folds:
        raise ConfigError(f"fold {fold}: the recordings have the folds {', '.join(map(str, folds))}")
    held = [clip for clip in clips if clip.fold == fold]
    heard = {clip.source for clip in held} - {None}
    training = [clip for clip in clips if clip.fold != fold and clip.source not in heard]
    torn = len(clips) - len(held) - len(training)
    also = f", {torn} of the same source recordings in other folds left out" if torn else ""
    return Split(training, held, f"fold {fold} of {', '.join(map(str, folds))} held out: {_count(held, clips)}{also}")


def shards(clips: Sequence[Clip], count: int, mode: ShardMode, seed: int) -> list[list[Clip]]:
    """Share ``clips`` among ``count`` devices: every clip in exactly one shard, no shard empty, repeatable by ``seed``.

    ``iid`` deals a shuffled deck; ``by-class`` gives each shard a Dirichlet(0.3) share of each class, so that devices
    hear different things.

    Raises:
        ConfigError: fewer clips than shards, or ``by-class`` without labels.
    """
    if count < 1 or len(clips) < count:
        raise ConfigError(f"{len(clips)} recordings cannot be shared among {count} devices: each needs at least one")
    rng = np.random.default_rng(seed)
    if mode == "iid":
        order = rng.permutation(len(clips))
        return [[clips[i] for i in order[shard::count]] for shard in range(count)]
    if any(clip.label is None for clip in clips):
        raise ConfigError("shards by class need labelled recordings: a folder with one folder per class")
    return _fill_empty(_by_class(clips, count, rng))


def _audio_files(folder: Path) -> Iterable[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if Path(name).suffix.lower() in AUDIO_SUFFIXES and not name.startswith("."):
                yield Path(parent) / name


def _clip(folder: Path, path: Path) -> Clip:
    relative = path.relative_to(folder)
    label = relative.parts[0] if len(relative.parts) > 1 else None
    name = _ESC_NAME.fullmatch(path.stem)
    if name is None:
        return Clip(path, relative.as_posix(), label, fold=None, source=None)
    return Clip(path, relative.as_posix(), label, fold=int(name["fold"]), source=name["source"])


def _hold_out_part(clips: Sequence[Clip], fold: int, *, named: int) -> Split:
    if not 1 <= fold <= PARTS:
        raise ConfigError(f"fold {fold}: the names carry no folds, so files are held out by fifths, 1 to {PARTS}")
    held_sources = {source for sources in _sources_by_label(clips).values() for source in _part_of(sources, fold - 1)}
    held = [clip for clip in clips if _source(clip) in held_sources]
    training = [clip for clip in clips if _source(clip) not in held_sources]
    if not held or not training:
        raise ConfigError(f"{len(clips)} recordings are too few to hold some out: at least two are needed")
    reason = f"only {named} of {len(clips)} names carry a fold" if named else "names carry no folds"
    reason = "all are of one fold" if named == len(clips) else reason
    stratified = ", chosen per class" if any(clip.label is not None for clip in clips) else ""
    return Split(
        training,
        held,
        f"fifth {fold} of {PARTS} of the files by a hash of their paths held out{stratified} ({reason}): "
        f"{_count(held, clips)}",
    )


def _sources_by_label(clips: Sequence[Clip]) -> dict[str | None, list[str]]:
    # A source heard under two labels counts under its first only, so that it is on one side of the split.
    label_of: dict[str, str | None] = {}
    for clip in clips:
        label_of.setdefault(_source(clip), clip.label)
    sources: dict[str | None, list[str]] = defaultdict(list)
    for source, label in label_of.items():
        sources[label].append(source)
    return sources


def _part_of(sources: list[str], part: int) -> list[str]:
    ordered = sorted(sources, key=lambda source: hashlib.sha256(source.encode()).digest())
    if len(ordered) < PARTS:  # too few for fifths: one of them, unless it is the only one
        return [ordered[part % len(ordered)]] if len(ordered) > 1 else []
    return ordered[part * len(ordered) // PARTS : (part + 1) * len(ordered) // PARTS]


def _source(clip: Clip) -> str:
    return clip.relative if clip.source is None else clip.source


def _count(held: Sequence[Clip], clips: Sequence[Clip]) -> str:
    return f"{len(held)} of {len(clips)} files"


def _by_class(clips: Sequence[Clip], count: int, rng: np.random.Generator) -> list[list[Clip]]:
    dealt: list[list[Clip]] = [[] for _ in range(count)]
    for label in sorted({str(clip.label) for clip in clips}):
        members = [clip for clip in clips if clip.label == label]
        shares = rng.dirichlet([DIRICHLET] * count)
        edges = np.rint(np.cumsum(shares) * len(members)).astype(int)
        order = rng.permutation(len(members))
        for shard, chosen in enumerate(np.split(order, edges[:-1])):
            dealt[shard] += [members[i] for i in chosen]
    return [[shard[i] for i in rng.permutation(len(shard))] for shard in dealt]


def _fill_empty(dealt: list[list[Clip]]) -> list[list[Clip]]:
    for shard in dealt:
        if not shard:
            shard.append(max(dealt, key=len).pop())
    return dealt
