"""A microphone as a source of windows.

`python -m device.sources.microphone [CARD]` lists the cards and shows the level of one.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError
from common.log_mel import SAMPLE_RATE_HZ
from device.sources.card import ALSA_CARDS, BLOCK_S, Block, Capture, Card, import_sounddevice, input_cards, matching
from device.sources.resampler import StreamResampler
from device.windows import CONTEXT_S, WINDOW_S, LiveWindows, SourceState, Window

# One step of 16-bit samples: what never moves further is a muted or missing microphone, not a quiet room.
DIGITAL_SILENCE = 1.5 / 32_768

# Blocks that are taken when the time is up, three windows' worth: whoever asks often falls behind with no timeout at
# all, and where blocks come faster than they are taken it still returns.
MOST_LATE_BLOCKS = round(3.0 * WINDOW_S / BLOCK_S)

_log = logging.getLogger(__name__)


class MicrophoneSource:
    """Live windows from the card called `card`: part of its name, or its ALSA id; None is the default card.

    A card that is not there, dies, or sends nothing for `stalled_s` is closed and tried again: after `retry_s`, then
    twice that and so on up to a minute. After `no_audio_s` of nothing or of digital silence the state is `no-audio` and
    there are no windows. Every gap starts a new segment. At most `capacity_s` of audio wait to be taken; what is lost
    beyond is counted in `overruns` (times) and `dropped` (windows).
    Raises ConfigError without sounddevice, and at the start when several cards go by that name.
    """

    def __init__(
        self,
        *,
        card: str | None = None,
        context_s: float = CONTEXT_S,
        capacity_s: float = 8.0,
        no_audio_s: float = 3.0,
        stalled_s: float = 2.0,
        retry_s: float = 1.0,
        sounddevice: Any = None,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
        alsa_cards: Path = ALSA_CARDS,
    ) -> None:
        self.state: SourceState = "ok"
        self._sounddevice = import_sounddevice() if sounddevice is None else sounddevice
        self._wanted = card
        self._capacity_s = capacity_s
        self._no_audio_s = no_audio_s
        self._stalled_s = stalled_s
        self._first_retry_s = self._retry_s = retry_s
        self._clock = clock
        self._wait = wait
        self._alsa_cards = alsa_cards
        self._windows = LiveWindows(context_s=context_s)
        self._capture: Capture | None = None
        self._resampler = StreamResampler(SAMPLE_RATE_HZ, SAMPLE_RATE_HZ)
        self._overruns_before, self._lost_s_before = 0, 0.0
        self._try_at_s = self._heard_s = clock()
        self._said = ""
        self._refuse_ambiguity()

    @property
    def overruns(self) -> int:
        """How often samples were lost because they were not taken in time."""
        return self._overruns_before + (self._capture.overruns if self._capture else 0)

    @property
    def dropped(self) -> int:
        """The lost audio, in whole windows."""
        return int((self._lost_s_before + (self._capture.lost_s if self._capture else 0.0)) / WINDOW_S)

    @property
    def waiting(self) -> int:
        """Windows that have closed, cut or still in the card's queue, and were not taken yet."""
        queued_s = 0.0 if self._capture is None else self._capture.waiting_s
        return self._windows.waiting + int(queued_s / WINDOW_S)

    def next_window(self, timeout_s: float) -> Window | None:
        """The next window that closes within `timeout_s`; None otherwise, and while there is no audio."""
        end_s = self._clock() + timeout_s
        late = 0
        while True:
            window = self._windows.pop()
            if window is not None:
                return window
            if self._capture is None and self._clock() >= self._try_at_s:
                self._open()
            left_s = end_s - self._clock()
            block = self._next_block(left_s)
            if block is not None:
                self._take(block)
                late += left_s <= 0.0
                if late >= MOST_LATE_BLOCKS:
                    return self._windows.pop()
                continue
            self._check_card()
            if left_s <= 0.0:
                return None

    def close(self) -> None:
        """Lets go of the card."""
        if self._capture is not None:
            self._overruns_before += self._capture.overruns
            self._lost_s_before += self._capture.lost_s
            self._capture.close()
            self._capture = None
        self._windows.gap()

    def _next_block(self, left_s: float) -> Block | None:
        """Waits in short turns, so that a dead card is noticed and a missing one tried again in the meantime."""
        turn_s = min(max(left_s, 0.0), 0.25)
        if self._capture is not None:
            return self._capture.next_block(turn_s)
        if turn_s > 0.0:
            self._wait(turn_s)
        return None

    def _take(self, block: Block) -> None:
        assert self._capture is not None
        self._retry_s = self._first_retry_s
        if block.samples.shape[0] and float(np.ptp(block.samples)) > DIGITAL_SILENCE:
            self._heard_s = block.arrived_s
        self._note_silence(block.arrived_s)
        if block.gap:
            self._begin_segment(self._capture.card)
        if self.state == "ok":
            self._windows.push(self._resampler.push(block.samples), block.arrived_s)

    def _check_card(self) -> None:
        """Nothing is waiting: is that the card's end? A slow main thread, or a full queue, proves nothing."""
        now_s = self._clock()
        self._note_silence(now_s)
        if self._capture is None:
            return
        stalled = now_s - self._capture.called_s >= self._stalled_s
        if self._capture.alive and not stalled:
            return
        self._say(f"{self._capture.card.name}: {'sends nothing' if stalled else 'is gone'}; trying again")
        self.close()
        self._later(now_s)

    def _note_silence(self, now_s: float) -> None:
        lost_at_s = -math.inf if self._capture is None else self._capture.lost_at_s
        silent = now_s - max(self._heard_s, lost_at_s) >= self._no_audio_s
        if silent and self.state == "ok" and self._capture is not None:
            _log.warning("microphone: digital silence for %g s: muted, or not plugged in?", self._no_audio_s)
            self._begin_segment(self._capture.card)  # once: a resampler takes longer to build than a block lasts
        self.state = "no-audio" if silent else "ok"

    def _begin_segment(self, card: Card) -> None:
        self._windows.gap()
        self._resampler = StreamResampler(card.rate_hz, SAMPLE_RATE_HZ)

    def _open(self) -> None:
        now_s = self._clock()
        try:
            card = self._choose(input_cards(self._sounddevice, alsa_cards=self._alsa_cards))
            self._capture = Capture(self._sounddevice, card, capacity_s=self._capacity_s, clock=self._clock)
        except (self._sounddevice.PortAudioError, LookupError) as error:
            self._say(f"{error.args[0] if error.args else error}; trying again")
            self._later(now_s)
            return
        self._begin_segment(card)
        self._say(f"listening to {card.name} at {card.rate_hz} Hz", level=logging.INFO)

    def _choose(self, cards: list[Card]) -> Card:
        if self._wanted is None:
            number = self._sounddevice.default.device[0]
            found = [card for card in cards if card.number == number] or cards[:1]
        else:
            found = matching(cards, self._wanted)
        if len(found) == 1:
            return found[0]
        # Several only after a second one came: rather none than the wrong room.
        name = (
            "no microphone" if self._wanted is None else f'{"several cards" if found else "no card"} "{self._wanted}"'
        )
        raise LookupError(f"{name}; there are: {', '.join(card.name for card in cards) or 'none'}")

    def _refuse_ambiguity(self) -> None:
        if self._wanted is None:
            return
        found = matching(input_cards(self._sounddevice, alsa_cards=self._alsa_cards), self._wanted)
        if len(found) > 1:
            names = "; ".join(f"{card.name} [{card.alsa_id or '-'}]" for card in found)
            raise ConfigError(f'card "{self._wanted}" is not the only one of that name: {names}')

    def _later(self, now_s: float) -> None:
        self._try_at_s = now_s + self._retry_s
        self._retry_s = min(2.0 * self._retry_s, 60.0)

    def _say(self, text: str, level: int = logging.WARNING) -> None:
        if text != self._said:
            _log.log(level, "microphone: %s", text)
        self._said = text


def main(arguments: list[str] | None = None) -> int:
    """Lists the cards; with a card's name, shows its level until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m device.sources.microphone", description=main.__doc__)
    parser.add_argument("card", nargs="?", help="part of a card's name, or its ALSA id")
    wanted = parser.parse_args(arguments).card
    try:
        sounddevice = import_sounddevice()
        cards = input_cards(sounddevice)
        for card in cards:
            print(f"{card.name}  [{card.alsa_id or '-'}]  {card.channels} channels, {card.rate_hz} Hz")
        if not cards:
            print("no card with an input")
        if wanted is None:
            return 0
        found = matching(cards, wanted)
        if len(found) != 1:
            raise ConfigError(f'card "{wanted}" names {len(found)} cards')
        _watch(Capture(sounddevice, found[0], capacity_s=8.0))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 78
    except KeyboardInterrupt:
        print()
    return 0


def _watch(capture: Capture) -> None:
    parts: list[NDArray[np.float32]] = []
    while capture.alive:
        block = capture.next_block(1.0)
        if block is None:
            print("\rnothing arrives", " " * 60, end="", flush=True)
            continue
        parts.append(block.samples)
        if sum(part.shape[0] for part in parts) >= capture.card.rate_hz // 5:
            print("\r" + level_line(np.concatenate(parts)), end="", flush=True)
            parts.clear()


def level_line(samples: NDArray[np.float32]) -> str:
    """A bar for samples [n]: from -60 dB of full scale to 0, and in words when they are digital silence or clip."""
    if float(np.ptp(samples)) <= DIGITAL_SILENCE:
        return f"{'digital silence: muted, or not plugged in?':<64}"
    level_db = 10.0 * math.log10(max(float(np.mean(np.square(samples))), 1e-12))
    length = min(50, max(0, round((level_db + 60.0) / 60.0 * 50)))
    clipping = "  clips" if float(np.abs(samples).max()) >= 0.999 else ""
    return f"{level_db:6.1f} dB {'#' * length:<50}{clipping:<7}"


if __name__ == "__main__":
    sys.exit(main())
