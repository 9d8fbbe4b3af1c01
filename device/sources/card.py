"""Sound cards through sounddevice: finding one by a name that stays, and capturing from it into a bounded queue.

Nothing here touches torch: the callback runs on PortAudio's own thread.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import queue
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError

ALSA_CARDS = Path("/proc/asound/cards")
BLOCK_S = 0.02


@dataclass(frozen=True, slots=True)
class Card:
    """An input: PortAudio's number for it now (changes when cards come and go), its names, its channels and rate."""

    number: int
    name: str
    alsa_id: str
    channels: int
    rate_hz: int


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """What one callback brought: samples [n] float32 of the first channel, when, and if some before it are missing."""

    samples: NDArray[np.float32]
    gap: bool
    arrived_s: float


def import_sounddevice() -> Any:
    """The library, or ConfigError with what to install."""
    try:
        return importlib.import_module("sounddevice")
    except ModuleNotFoundError as error:
        raise ConfigError('a microphone needs the extra "microphone": make setup EXTRAS=microphone') from error
    except OSError as error:  # the package is there, the library it loads is not
        raise ConfigError(f"a microphone needs PortAudio ({error}): apt install libportaudio2") from error


def input_cards(sounddevice: Any, *, alsa_cards: Path = ALSA_CARDS) -> list[Card]:
    """Every input there is now. PortAudio looks for cards only when it starts, so it is started anew."""
    with contextlib.suppress(sounddevice.PortAudioError):  # the start before this one failed: nothing is to be ended
        sounddevice._terminate()  # noqa: SLF001 - the only way to see a card that was plugged in since
    sounddevice._initialize()  # noqa: SLF001
    ids = _alsa_ids(alsa_cards)
    return [
        Card(
            number=number,
            name=str(entry["name"]),
            alsa_id=ids.get(_alsa_number(str(entry["name"])), ""),
            channels=int(entry["max_input_channels"]),
            rate_hz=round(float(entry["default_samplerate"])),
        )
        for number, entry in enumerate(sounddevice.query_devices())
        if int(entry["max_input_channels"]) > 0
    ]


def matching(cards: list[Card], wanted: str) -> list[Card]:
    """Those that are called exactly so (name or ALSA id), else those whose name contains it, in any case of letters."""
    key = wanted.casefold()
    exact = [card for card in cards if key in {card.name.casefold(), card.alsa_id.casefold()}]
    return exact or [card for card in cards if key in card.name.casefold()]


def _alsa_number(name: str) -> int:
    found = re.search(r"\(hw:(\d+),", name)
    return int(found.group(1)) if found else -1


def _alsa_ids(alsa_cards: Path) -> dict[int, str]:
    try:
        text = alsa_cards.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    return {int(number): name.strip() for number, name in re.findall(r"^\s*(\d+)\s+\[([^\]]+)\]", text, re.MULTILINE)}


class Capture:
    """An open stream of one card. The callback copies its block into a queue of `capacity_s` of audio and returns.

    A block that finds the queue full is lost; so are samples the driver reports lost. Both count as `overruns` and mark
    the next block with a gap. Raises what sounddevice raises when the card does not open.
    """

    def __init__(
        self, sounddevice: Any, card: Card, *, capacity_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.card = card
        self.overruns = 0
        self.lost_s = 0.0
        # When a block was lost last: something came then, though nobody knows what.
        self.lost_at_s = -math.inf
        # When the card last called, whether or not its block found room.
        self.called_s = clock()
        self._clock = clock
        self._blocks: queue.Queue[Block] = queue.Queue(maxsize=max(1, round(capacity_s / BLOCK_S)))
        self._gap = False
        self._stream = self._open(sounddevice)

    @property
    def alive(self) -> bool:
        """False once PortAudio has ended the stream, as when a card is pulled out."""
        return bool(self._stream.active)

    @property
    def waiting_s(self) -> float:
        """Seconds of audio that nobody has taken yet."""
        return self._blocks.qsize() * BLOCK_S

    def next_block(self, timeout_s: float) -> Block | None:
        """The oldest block, or None when none came within `timeout_s`."""
        try:
            return self._blocks.get(timeout=timeout_s) if timeout_s > 0.0 else self._blocks.get_nowait()
        except queue.Empty:
            return None

    def close(self) -> None:
        """Ends the stream; a card that is gone may complain, which changes nothing."""
        try:
            self._stream.close()
        except Exception:  # noqa: BLE001, S110 - PortAudioError, without importing an optional library for its name
            pass

    def _open(self, sounddevice: Any) -> Any:
        # Raw ALSA cards with two channels refuse one: then all of them are opened and the first is used.
        for channels in dict.fromkeys((1, self.card.channels)):
            try:
                stream = sounddevice.InputStream(
                    device=self.card.number,
                    samplerate=self.card.rate_hz,
                    channels=channels,
                    blocksize=round(self.card.rate_hz * BLOCK_S),
                    dtype="float32",
                    callback=self._receive,
                )
                stream.start()
                return stream
            except sounddevice.PortAudioError:
                if channels == self.card.channels:
                    raise
        raise ConfigError(f"{self.card.name}: has no inputs")

    def _receive(self, indata: NDArray[np.float32], frames: int, _time: object, status: Any) -> None:
        self.called_s = self._clock()
        if status and status.input_overflow:
            self.overruns += 1
            self._gap = True
        try:
            self._blocks.put_nowait(Block(samples=indata[:, 0].copy(), gap=self._gap, arrived_s=self.called_s))
            self._gap = False
        except queue.Full:
            self.overruns += 1
            self.lost_at_s = self.called_s
            self.lost_s += frames / self.card.rate_hz
            self._gap = True
