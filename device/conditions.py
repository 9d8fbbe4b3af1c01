"""What happens to an emulated device while it works: its link changes, goes and comes back, others take its processor.

A file of conditions is a CSV with the columns of `Condition`; each line holds from its time until the next one's.
"""

from __future__ import annotations

import csv
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path

from common.errors import ConfigError
from device.emulation import ComputeStretch
from device.shaped_link import ShapedLink

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Condition:
    """What holds from ``at_s`` seconds after the start: the link, whether it is up, and what others do to the board.

    ``jitter_ms``: what a round trip takes longer at most, at random. ``others_cpu``: the share of all cores that others
    keep busy, 0 to 1, as telemetry sees it; ``slowdown``: how many times as long our own compute takes beside them.
    """

    at_s: float
    uplink_mbps: float
    downlink_mbps: float
    round_trip_ms: float
    jitter_ms: float = 0.0
    up: bool = True
    others_cpu: float = 0.0
    slowdown: float = 1.0


ALLOWED = {
    "at_s": (0.0, 1e9),
    "uplink_mbps": (1e-3, 1e5),
    "downlink_mbps": (1e-3, 1e5),
    "round_trip_ms": (0.0, 6e4),
    "jitter_ms": (0.0, 6e4),
    "up": (0.0, 1.0),
    "others_cpu": (0.0, 1.0),
    "slowdown": (1.0, 1e3),
}


def read_conditions(path: Path) -> tuple[Condition, ...]:
    """The conditions of a file, in the order of time; ``jitter_ms`` and what follows it may be left out.

    Raises:
        ConfigError: not such a file; says line, column and what is allowed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    reader = csv.DictReader(text.splitlines())
    unknown = sorted(set(reader.fieldnames or ()) - set(ALLOWED))
    missing = [name for name in list(ALLOWED)[:4] if name not in (reader.fieldnames or ())]
    if unknown or missing:
        raise ConfigError(f"{path}:1: columns {', '.join(unknown + missing)}: allowed are {', '.join(ALLOWED)}")
    found = tuple(_condition(path, number, row) for number, row in enumerate(reader, 2))
    if not found or any(later.at_s <= earlier.at_s for earlier, later in pairwise(found)):
        raise ConfigError(f"{path}: at_s must rise from line to line, with one line at least")
    return found


def write_conditions(path: Path, conditions: Sequence[Condition]) -> None:
    """The file that `read_conditions` reads."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Condition)])
        writer.writeheader()
        writer.writerows({**asdict(one), "up": int(one.up)} for one in conditions)


def _condition(path: Path, line: int, row: dict[str, str | None]) -> Condition:
    values: dict[str, float] = {}
    for name, (low, high) in ALLOWED.items():
        if name not in row:
            continue
        try:
            values[name] = float(row[name] or "")
        except (TypeError, ValueError):
            values[name] = math.nan
        if not low <= values[name] <= high:
            raise ConfigError(f"{path}:{line}: {name} is {row[name]!r}, allowed is {low:g} to {high:g}")
    return Condition(**{**values, "up": bool(values.get("up", 1.0))})  # type: ignore[arg-type]


class ConditionPlayer:
    """Plays conditions on a link and a processor, in a thread of its own; the last one stays.

    ``on_change`` is told of each as it begins, in that thread.
    """

    def __init__(
        self,
        conditions: Sequence[Condition],
        *,
        link: ShapedLink,
        stretch: ComputeStretch,
        on_change: Callable[[Condition], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._conditions = tuple(conditions)
        self._link = link
        self._stretch = stretch
        self._on_change = on_change
        self._clock = clock
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._play, name="conditions", daemon=True)
        self._up = True
        self.others_cpu = 0.0

    def start(self) -> None:
        """Time 0 is now."""
        self._thread.start()

    def stop(self) -> None:
        """Leave link and processor as they are."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _play(self) -> None:
        start_s = self._clock()
        for condition in self._conditions:
            if self._stopped.wait(max(0.0, start_s + condition.at_s - self._clock())):
                return
            self._apply(condition)

    def _apply(self, condition: Condition) -> None:
        self._on_change(condition)
        self._link.shape(condition.uplink_mbps, condition.downlink_mbps, condition.round_trip_ms, condition.jitter_ms)
        if condition.up != self._up:
            self._up = condition.up
            if condition.up:
                self._link.restore()
            else:
                self._link.cut()
        self._stretch.shared = condition.slowdown
        self.others_cpu = condition.others_cpu
        LOG.info("conditions: %s", condition)
