"""The energy the device has spent since start: measured where the board can, else a power model; always said which.

RAPL counts a whole processor package, so every process of the machine, and nothing of its radio. A Raspberry Pi 5's
PMIC counts what it feeds, the radio among it (`device.pmic`). Who emulates another board than the one it runs on must
use neither (`measure=False`, no `pmic`): the host's joules say nothing of the board's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.power_model import PowerModel
from device.pmic import Pmic

LOG = logging.getLogger(__name__)
POWERCAP = Path("/sys/class/powercap")

Source = Literal["rapl", "rapl + radio model", "pmic", "pmic, then model", "pmic, then none", "model", "none"]


@dataclass(frozen=True, slots=True)
class Energy:
    """Joules since start and where the figure comes from; 0 joules where the source is `none`.

    `pmic, then none`: measured as long as that went, and nothing after it.
    """

    joules: float
    source: Source


class EnergyMeter:
    """Joules since it was made; RAPL where it can be read and `measure` is left on, else `pmic`, else `power`.

    `pmic` counts from when it was made itself: just before this.
    """

    def __init__(
        self,
        *,
        power: PowerModel | None,
        measure: bool = True,
        pmic: Pmic | None = None,
        powercap: Path = POWERCAP,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._power = power
        self._clock = clock
        self._start_s = clock()
        self._packages = rapl_packages(powercap) if measure else ()
        self._pmic = pmic
        self._above_model: float | None = None  # joules that the PMIC has counted more than the model; None: never read

    def read(self, *, busy_s: float, bytes_up: int, bytes_down: int) -> Energy:
        """The energy so far, given the seconds of compute and the bytes at the socket, all since start.

        Read it at least every few minutes: a RAPL counter starts over after some 250 kJ, and one turn is all that can
        be noticed. Raises OSError where a counter that could be read no longer can. Where the PMIC no longer can, the
        model goes on from what it measured, for good, and the log says so.
        """
        radio = None if self._power is None else self._power.radio_joules(bytes_up=bytes_up, bytes_down=bytes_down)
        if self._packages:
            package = sum(counter.joules() for counter in self._packages)
            return Energy(package, "rapl") if radio is None else Energy(package + radio, "rapl + radio model")
        model: float | None = None
        if self._power is not None and radio is not None:
            model = self._power.board_joules(elapsed_s=self._clock() - self._start_s, busy_s=busy_s) + radio
        measured = self._by_pmic()
        if measured is not None:
            self._above_model = measured - (model or 0.0)
            return Energy(measured, "pmic")
        if self._above_model is not None:
            joules = self._above_model + (model or 0.0)
            return Energy(joules, "pmic, then none" if model is None else "pmic, then model")
        return Energy(0.0, "none") if model is None else Energy(model, "model")

    def _by_pmic(self) -> float | None:
        if self._pmic is None:
            return None
        try:
            return self._pmic.joules()
        except OSError as error:
            LOG.warning("energy is no longer measured: %s", error)
            self._pmic = None
            return None


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
