"""The energy the device has spent since start: measured where the board can, else a power model; always said which.

RAPL counts a whole processor package, so every process of the machine, and nothing of its radio. Who emulates another
board than the one it runs on must not use it (`measure=False`): the host's joules say nothing of the board's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.power_model import PowerModel

POWERCAP = Path("/sys/class/powercap")

Source = Literal["rapl", "rapl + radio model", "model", "none"]


@dataclass(frozen=True, slots=True)
class Energy:
    """Joules since start and where the figure comes from; 0 joules where the source is `none`."""

    joules: float
    source: Source


class EnergyMeter:
    """Joules since it was made; RAPL where its counters can be read and `measure` is left on, else `power`."""

    def __init__(
        self,
        *,
        power: PowerModel | None,
        measure: bool = True,
        powercap: Path = POWERCAP,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._power = power
        self._clock = clock
        self._start_s = clock()
        self._packages = rapl_packages(powercap) if measure else ()

    def read(self, *, busy_s: float, bytes_up: int, bytes_down: int) -> Energy:
        """The energy so far, given the seconds of compute and the bytes at the socket, all since start.

        Read it at least every few minutes: a RAPL counter starts over after some 250 kJ, and one turn is all that can
        be noticed. Raises OSError where a counter that could be read no longer can.
        """
        radio = None if self._power is None else self._power.radio_joules(bytes_up=bytes_up, bytes_down=bytes_down)
        if self._packages:
            package = sum(counter.joules() for counter in self._packages)
            return Energy(package, "rapl") if radio is None else Energy(package + radio, "rapl + radio model")
        if self._power is None or radio is None:
            return Energy(0.0, "none")
        elapsed_s = self._clock() - self._start_s
        return Energy(self._power.board_joules(elapsed_s=elapsed_s, busy_s=busy_s) + radio, "model")


class RaplPackage:
    """One package's counter in sysfs, made continuous; OSError or ValueError where it cannot be read."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "energy_uj"
        self._range_uj = int((directory / "max_energy_range_uj").read_text())
        self._last_uj = int(self._file.read_text())
        self._total_uj = 0

    def joules(self) -> float:
        """Joules since this object was made."""
        now_uj = int(self._file.read_text())
        step_uj = now_uj - self._last_uj
        self._total_uj += step_uj if step_uj >= 0 else step_uj + self._range_uj
        self._last_uj = now_uj
        return self._total_uj * 1e-6


def rapl_packages(powercap: Path) -> tuple[RaplPackage, ...]:
    """The packages whose counters this user may read (most kernels let only root): all of them, or none."""
    # intel-rapl:0 is a package, intel-rapl:0:1 a part of it that would be counted twice.
    directories = sorted(path for path in powercap.glob("intel-rapl:*") if path.name.count(":") == 1)
    packages = [directory for directory in directories if _is_package(directory)]
    try:
        return tuple(RaplPackage(directory) for directory in packages)
    except (OSError, ValueError):
        # Not an error: the caller says "model" instead of "rapl".
        return ()


def _is_package(directory: Path) -> bool:
    # "psys", the whole platform, contains the packages.
    name = directory / "name"
    return name.is_file() and name.read_text().startswith("package")
