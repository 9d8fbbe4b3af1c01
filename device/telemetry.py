"""What the device can tell of itself: load, heat and battery through psutil, and what its link carries.

A sensor this machine lacks is None, never a made-up number. A sensor that is there but fails is logged once and is None
from then on.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

log = logging.getLogger(__name__)

# Sensors of the processor itself, by the names Linux gives them: Raspberry Pi, Jetson, Intel, AMD.
PROCESSOR_SENSORS = ("cpu_thermal", "cpu-thermal", "thermal-fan-est", "coretemp", "k10temp")
JUMP = 2.0
PLAUSIBLE_C = (-40.0, 130.0)
THROTTLED_FILE = Path("/sys/devices/platform/soc/soc:firmware/get_throttled")
# Bits 0 to 3 of the Raspberry Pi's word are "now": under-voltage, frequency capped, throttled, soft temperature limit.
# Bits 16 to 19 say the same of some time since start-up and are of no use to a decision.
THROTTLED_NOW = 0xF


@dataclass(frozen=True, slots=True)
class Resources:
    """One sample. `cpu`, `memory`, `battery`: fractions in [0, 1]; None: this machine has no such sensor."""

    cpu: float
    memory: float
    temperature_c: float | None
    throttled: bool | None
    battery: float | None


class Sampler(Protocol):
    """Whoever knows the state of the board."""

    def sample(self, but_for_s: float = 0.0) -> Resources:
        """As it is now; ``but_for_s`` seconds of a core since the sample before count neither as load nor as time."""
        ...


class ResourceSampler:
    """Samples this machine; `cpu` is the mean load of all cores since the sample before (the first: since here)."""

    def __init__(
        self,
        *,
        throttled_file: Path = THROTTLED_FILE,
        find_program: Callable[[str], str | None] = shutil.which,
        run_program: Callable[[Sequence[str]], str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._throttling = _throttling_source(throttled_file, find_program, run_program or output_of)
        self._clock = clock
        self._cores = psutil.cpu_count() or 1
        self._sampled_s = clock()
        psutil.cpu_percent(interval=None)

    def sample(self, but_for_s: float = 0.0) -> Resources:
        """Read every sensor once; takes about a millisecond, a few more where `vcgencmd` must be asked."""
        return Resources(
            cpu=self._load(but_for_s),
            memory=_fraction(psutil.virtual_memory().percent),
            temperature_c=processor_temperature_c(),
            throttled=self._throttled(),
            battery=_battery(),
        )

    def _load(self, but_for_s: float) -> float:
        before_s, self._sampled_s = self._sampled_s, self._clock()
        passed_s = self._sampled_s - before_s
        percent = psutil.cpu_percent(interval=None)
        return share_but_for(percent / 100.0 * passed_s * self._cores, passed_s * self._cores, but_for_s)

    def _throttled(self) -> bool | None:
        if self._throttling is None:
            return None
        try:
            return parse_throttled(self._throttling())
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            log.warning("throttling cannot be read, reported as unknown from now on: %s", error)
            self._throttling = None
            return None


class LinkEstimate:
    """Rate and round trip as moving averages (weight `alpha` for the newest), each None until first observed.

    A rate beyond a factor of `JUMP` of the average is at first passed over: single readings of the kernel stray. The
    second in a row on the same side is a link that has changed, and the average starts anew from it.
    """

    def __init__(self, *, alpha: float) -> None:
        if not 0.0 < alpha <= 1.0:
            raise ValueError(f"alpha is {alpha}, allowed is above 0 up to 1")
        self._alpha = alpha
        self._uplink_mbps: float | None = None
        self._strayed = 0
        self._round_trip_ms: float | None = None

    def uplink(self, mbps: float) -> None:
        """The link has lately carried `mbps` upwards."""
        _not_negative(mbps=mbps)
        known, side = self._uplink_mbps, _side(mbps, self._uplink_mbps)
        if side == 0:
            self._uplink_mbps = self._mean(known, mbps)
        elif side == self._strayed:
            self._uplink_mbps, side = mbps, 0
        self._strayed = side

    def round_trip(self, ms: float) -> None:
        """To the broker and back it takes `ms` now."""
        _not_negative(ms=ms)
        self._round_trip_ms = self._mean(self._round_trip_ms, ms)

    @property
    def uplink_mbps(self) -> float | None:
        """Megabits per second upwards."""
        return self._uplink_mbps

    @property
    def round_trip_ms(self) -> float | None:
        """Milliseconds to the broker and back."""
        return self._round_trip_ms

    def _mean(self, old: float | None, new: float) -> float:
        return new if old is None else (1.0 - self._alpha) * old + self._alpha * new


def _side(value: float, mean: float | None) -> int:
    """-1 or 1 where `value` is far below or above `mean`, else 0."""
    if mean is None or mean / JUMP <= value <= mean * JUMP:
        return 0
    return -1 if value < mean else 1


def processor_temperature_c() -> float | None:
    """The hottest reading of the processor's own sensor, else of any sensor; None where there is none (macOS)."""
    read = getattr(psutil, "sensors_temperatures", None)
    sensors = read() if read is not None else {}
    groups = [sensors[name] for name in PROCESSOR_SENSORS if sensors.get(name)] or list(sensors.values())
    low, high = PLAUSIBLE_C
    readings = [entry.current for group in groups for entry in group if low <= entry.current <= high]
    return max(readings, default=None)


def parse_throttled(text: str) -> bool:
    """The Raspberry Pi's word, `50000` (sysfs) or `throttled=0x50005` (vcgencmd); ValueError for anything else."""
    word = int(text.strip().removeprefix("throttled="), base=16)
    return bool(word & THROTTLED_NOW)


def _throttling_source(
    throttled_file: Path,
    find_program: Callable[[str], str | None],
    run_program: Callable[[Sequence[str]], str],
) -> Callable[[], str] | None:
    if throttled_file.is_file():
        return throttled_file.read_text
    program = find_program("vcgencmd")
    return None if program is None else lambda: run_program([program, "get_throttled"])


def output_of(command: Sequence[str]) -> str:
    """What a program prints; OSError, ValueError or SubprocessError where it fails or takes more than two seconds."""
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=2.0).stdout


def _battery() -> float | None:
    read = getattr(psutil, "sensors_battery", None)
    state = read() if read is not None else None
    return None if state is None else _fraction(state.percent)


def share_but_for(busy_s: float, all_s: float, but_for_s: float) -> float:
    """The busy share of cores' time, in [0, 1], as if ``but_for_s`` of it had not been: what is left is the others'."""
    left_s = all_s - but_for_s
    return min(max((busy_s - but_for_s) / left_s, 0.0), 1.0) if left_s > 0.0 else 0.0


def _fraction(percent: float) -> float:
    return min(max(percent / 100.0, 0.0), 1.0)


def _not_negative(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0.0:
            raise ValueError(f"{name} is {value}, allowed is 0 or more")
