"""A folder of recordings as a stream: clip after clip, shuffled anew in each pass, with a cache of decoded clips."""

from __future__ import annotations

import logging
import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.audio_file import AUDIO_SUFFIXES, AudioFileError, audio_seconds, read_audio
from common.errors import ConfigError
from device.captions import CaptionsOf
from device.sources import Order
from device.windows import CONTEXT_S, Clip, Replay, SourceState, Speed, Window, shuffled_clip, stream_clip

# A long recording is played in pieces of at most this: bounds the memory for decoding, and lets its parts be shuffled.
PIECE_S = 30.0
CACHE_BYTES = 256 * 2**20

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Piece:
    path: Path
    start_s: float
    length_s: float


class FolderSource:
    """Replays the recordings under `folder` (or those of `list_file`: one path a line, relative to the folder).

    `stream` plays each clip from start to end, from a random start within the time that its windows leave over;
    `shuffled` takes one random window of each clip in turn, each a segment of its own. Both go through the clips in a
    new order each pass; without `repeat` the source is exhausted after one. The same seed gives the same windows.
    `captions` gives each recording's; how many have none is logged.
    A recording that cannot be read is logged once and left out. Raises ConfigError for a folder or list that cannot be
    used, where not one recording has a caption, and later when not one can be decoded.
    """

    def __init__(
        self,
        folder: Path,
        *,
        list_file: Path | None = None,
        order: Order = "stream",
        repeat: bool = True,
        seed: int = 0,
        speed: Speed = "fast",
        context_s: float = CONTEXT_S,
        captions: CaptionsOf | None = None,
        cache_bytes: int = CACHE_BYTES,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._folder = folder
        self._order = order
        self._repeat = repeat
        self._captions = captions
        self._rng = np.random.default_rng(seed)
        self._decoded = _DecodedClips(cache_bytes)
        paths = _listed(folder, list_file) if list_file else _found(folder)
        if captions is not None:
            _check_captions(folder, paths, captions)
        self._pieces = _pieces(folder, paths)
        self._replay = Replay(self._clips(), speed=speed, context_s=context_s, clock=clock, wait=wait)

    @property
    def state(self) -> SourceState:
        """`ok` or `exhausted`."""
        return self._replay.state

    @property
    def dropped(self) -> int:
        """Windows lost because a replay in real time was not followed."""
        return self._replay.dropped

    @property
    def waiting(self) -> int:
        """Windows whose time has come and that were not taken yet."""
        return self._replay.waiting

    def next_window(self, timeout_s: float) -> Window | None:
        """The next window; None when its time is beyond `timeout_s`, or after the last one. Raises ConfigError."""
        return self._replay.next_window(timeout_s)

    def close(self) -> None:
        """Forgets what was decoded."""
        self._decoded.clear()

    def _clips(self) -> Iterator[Clip]:
        begin = stream_clip if self._order == "stream" else shuffled_clip
        while True:
            pieces = self._pieces
            for number in self._rng.permutation(len(pieces)):
                piece = pieces[number]
                try:
                    samples = self._decoded.read(piece)
                except AudioFileError as error:
                    self._leave_out(piece, error)
                    continue
                clip = begin(samples, self._rng)
                yield replace(clip, captions=self._captions(piece.path)) if self._captions else clip
            if not self._repeat:
                return

    def _leave_out(self, broken: _Piece, error: AudioFileError) -> None:
        if any(piece.path == broken.path for piece in self._pieces):
            _log.warning("left out: %s", error)
        self._pieces = [piece for piece in self._pieces if piece.path != broken.path]
        if not self._pieces:
            raise ConfigError(
                f"{self._folder}: not one of its recordings can be decoded (last: {error.why})"
            ) from error


class _DecodedClips:
    """The clips used last, as 16-bit integers, within a budget of bytes: small folders are decoded once."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._held_bytes = 0
        self._held: OrderedDict[_Piece, NDArray[np.int16]] = OrderedDict()

    def read(self, piece: _Piece) -> NDArray[np.float32]:
        held = self._held.pop(piece, None)
        if held is None:
            samples = read_audio(piece.path, start_s=piece.start_s, length_s=piece.length_s)
            # Through 16 bits at the first reading too, so that a clip is the same whether the cache had it or not.
            held = np.round(np.clip(samples, -1.0, 32_767 / 32_768) * 32_768.0).astype(np.int16)
            self._held_bytes += held.nbytes
        self._held[piece] = held
        while self._held_bytes > self._budget_bytes:
            self._held_bytes -= self._held.popitem(last=False)[1].nbytes
        return held.astype(np.float32) / np.float32(32_768.0)

    def clear(self) -> None:
        self._held.clear()
        self._held_bytes = 0


def _found(folder: Path) -> list[Path]:
    try:
        if not folder.is_dir():
            wrong = "is not a folder" if folder.exists() else "there is no such folder"
            raise ConfigError(f"source.path {folder}: {wrong}; allowed: a folder of recordings")
        # os.walk passes over what it may not read; here that must be said.
        next(folder.iterdir(), None)
    except OSError as error:
        raise ConfigError(f"source.path {folder}: cannot be read ({error.strerror})") from error
    found = [
        Path(parent) / name
        for parent, _, names in os.walk(folder)
        for name in names
        if not name.startswith(".") and Path(name).suffix.lower() in AUDIO_SUFFIXES
    ]
    if not found:
        raise ConfigError(f"source.path {folder}: holds no recordings ({', '.join(sorted(AUDIO_SUFFIXES))})")
    return sorted(found)


def _check_captions(folder: Path, paths: Sequence[Path], captions: CaptionsOf) -> None:
    without = [path for path in paths if not captions(path)]
    if len(without) == len(paths):
        raise ConfigError(f"{folder}: not one of its {len(paths)} recordings has a caption, {without[0]} for instance")
    if without:
        _log.warning("%d of %d recordings have no caption, %s for instance", len(without), len(paths), without[0])


def _listed(folder: Path, list_file: Path) -> list[Path]:
    try:
        lines = list_file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{list_file}: cannot be read ({error})") from error
    listed = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    missing = [
        f"{list_file}:{number}: {folder / name}: no such file"
        for number, name in listed
        if not (folder / name).is_file()
    ]
    if missing:
        raise ConfigError("\n".join(missing))
    if not listed:
        raise ConfigError(f"{list_file}: lists no recordings")
    return [folder / name for _, name in listed]


def _pieces(folder: Path, paths: list[Path]) -> list[_Piece]:
    pieces: list[_Piece] = []
    for path in paths:
        try:
            seconds = audio_seconds(path)
        except AudioFileError as error:
            _log.warning("left out: %s", error)
            continue
        count = math.ceil(seconds / PIECE_S)
        pieces += [_Piece(path, number * seconds / count, seconds / count) for number in range(count)]
    if not pieces:
        raise ConfigError(f"{folder}: not one of its {len(paths)} recordings can be read (see the log)")
    return pieces
