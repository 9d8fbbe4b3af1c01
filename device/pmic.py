"""The energy of a Raspberry Pi 5 by its power management chip (PMIC): `vcgencmd pmic_read_adc`, sampled and summed up.

The power is the sum over the rails of which the chip tells both current and voltage; the Wi-Fi's is among them
(`3V7_WL_SW`). It is less than what the plug gives: what takes its 5 V past the chip is not in it (USB devices, so a USB
microphone, HATs, NVMe). Against a meter in the USB-C cable, one board gave plug = 1.1451 times the sum + 0.5879 W
(github.com/jfikar/RPi5-power). Joules here are the sum's, not corrected by another board's line.
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from device.telemetry import output_of

# A second, where a window lasts 0.96: samples walk through the window and meet computing and waiting in their shares.
EVERY_S = 1.0
# Beyond a sample's second and the two in which `output_of` gives the program up: nobody samples any more.
MOST_AGE_S = 5.0
# ` 3V7_WL_SW_A current(0)=0.09759300A`, `3V7_WL_SW_V volt(8)=3.70534400V`; the numbers in brackets do not pair them.
READING = re.compile(r"\s*(\w+)_([AV])\s+\w+\([0-9]+\)=([0-9]+(?:\.[0-9]+)?)\2\s*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Sample:
    """``joules`` until ``at_s``; from then on the board is taken to draw ``watts``."""

    at_s: float
    watts: float
    joules: float

    def joules_at(self, now_s: float) -> float:
        """Joules until ``now_s``, which is not before ``at_s``.

        The power before a sample is held, where a trapezoid would wait for the sample after: so there is a figure for
        any moment, and it never shrinks. Over a run the two differ by half a sample at either end.
        """
        return self.joules + self.watts * (now_s - self.at_s)


class Pmic:
    """Joules since it was made, sampled in a thread of its own from `start` to the end of the process.

    Not in the device's loop: the program takes some milliseconds, hangs at worst, and the loop would ask always at the
    same point of a step. ``read_watts``: the board's power now; OSError, ValueError or SubprocessError where it is not
    known, from here as well.
    """

    def __init__(self, read_watts: Callable[[], float], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._read_watts = read_watts
        self._clock = clock
        watts = read_watts()
        self._last = Sample(clock(), watts, 0.0)  # replaced as a whole: who reads it elsewhere sees no half of it
        self._failure = ""
        self._ended = threading.Event()

    def start(self) -> None:
        """Sample from now on."""
        threading.Thread(target=self._follow, name="pmic", daemon=True).start()

    def sample(self) -> None:
        """Read the power once; where that fails the power stays what it was, for as long as `joules` allows."""
        try:
            watts = self._read_watts()
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            self._failure = f": {error}"
            return
        self._failure = ""
        now_s = self._clock()
        # A late sample counts as any other: the board was on, and this clock stands still while it sleeps.
        self._last = Sample(now_s, watts, self._last.joules_at(now_s))

    def joules(self) -> float:
        """Joules so far; asks nothing, so it never waits.

        Raises OSError where the last sample is older than `MOST_AGE_S`: its program fails or hangs.
        """
        last = self._last
        now_s = self._clock()
        if now_s - last.at_s > MOST_AGE_S:
            self._ended.set()  # should the program come back, nobody needs it any more
            raise OSError(f"the PMIC was last read {now_s - last.at_s:.0f} s ago{self._failure}")
        return last.joules_at(now_s)

    def _follow(self) -> None:
        while not self._ended.wait(EVERY_S):
            self.sample()


def find_pmic(
    *,
    find_program: Callable[[str], str | None] = shutil.which,
    run_program: Callable[[Sequence[str]], str] = output_of,
    clock: Callable[[], float] = time.monotonic,
) -> Pmic | None:
    """The board's PMIC, not started; None where there is none or this user may not ask it (group ``video`` may)."""
    program = find_program("vcgencmd")
    if program is None:
        return None

    def read_watts() -> float:
        watts = parse_watts(run_program([program, "pmic_read_adc"]))
        if not watts:  # a board that answers draws something
            raise ValueError("no rail that draws anything")
        return watts

    try:
        return Pmic(read_watts, clock=clock)
    except (OSError, ValueError, subprocess.SubprocessError):
        # Not an error: a board before the Pi 5 has the program and no such rails.
        return None


def parse_watts(text: str) -> float | None:
    """Watts of all rails with both current and voltage in what the program printed; None where there are none."""
    amperes: dict[str, float] = {}
    volts: dict[str, float] = {}
    for rail, unit, value in (found.groups() for found in map(READING.fullmatch, text.splitlines()) if found):
        (amperes if unit == "A" else volts)[rail] = float(value)
    rails = amperes.keys() & volts.keys()
    watts = sum(amperes[rail] * volts[rail] for rail in rails)
    return watts if rails and math.isfinite(watts) else None
