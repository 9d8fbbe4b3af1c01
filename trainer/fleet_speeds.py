"""How quick a fleet's boards turn out to be, by what their telemetry says that a window took.

A profile states how quick a board is, and a policy was learned for that; in a warm box, with another power supply or
beside other work it is something else. Boards are corrected by kind: the kind's median, so that no single device says
what the others are.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median_high, median_low

import numpy as np

from common.messages import Telemetry
from common.policy import OBSERVATION_NAMES, unscale_forward
from trainer.simulated_costs import CutCosts
from trainer.simulated_fleet import Speed

MOVED = 1.3  # times as much, or as little, as was assumed
BUSY = 0.5  # share of the processor in use above which a measurement says more of other work than of the board
KEPT, ENOUGH = 64, 16  # measurements of a device; how many it takes
# Of a device's measurements: nearly its quickest, since other work only ever makes a window slower.
QUICK = 0.1
BELIEVED = 100.0  # times as slow or as quick as the profile states, at most
SLOWNESS = OBSERVATION_NAMES.index("slowness")


@dataclass(slots=True)
class _Device:
    board: str
    boot: str = ""
    said_ms: float = 0.0
    taken_ms: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))

    @property
    def speed(self) -> Speed | None:
        """As far as it is known."""
        if len(self.taken_ms) < ENOUGH:
            return None
        return Speed(self.said_ms, float(np.quantile(self.taken_ms, QUICK)))


class FleetSpeeds:
    """What is known of the boards of a fleet.

    Args:
        costs: of the fleet's encoder.
        stated: what the simulator assumes, by the name of the board; devices on other boards are not followed.
    """

    def __init__(self, costs: CutCosts, stated: Mapping[str, Speed]) -> None:
        self._costs = costs
        self._stated = dict(stated)
        self._devices: dict[str, _Device] = {}
        self.assumed = dict(stated)

    def join(self, device: str, board: str) -> None:
        """A device is there, on this board."""
        if board in self._stated:
            self._devices[device] = _Device(board)

    def leave(self, device: str) -> None:
        """A device has gone."""
        self._devices.pop(device, None)

    def hear(self, device: str, told: Telemetry) -> bool:
        """Take what a device measured; whether boards are so unlike what is assumed that `correct` is due."""
        known = self._devices.get(device)
        if known is None or told.client_ms is None or not 0 <= told.action <= self._costs.depth:
            return False
        if told.cpu > BUSY or len(told.observation) != len(OBSERVATION_NAMES):
            return False
        if told.boot != known.boot:
            known.boot = told.boot
            known.taken_ms.clear()
        stated = self._stated[known.board].taken_ms
        taken_ms = told.client_ms / float(self._costs.train_ms[told.action])
        known.taken_ms.append(min(max(taken_ms, stated / BELIEVED), stated * BELIEVED))
        known.said_ms = unscale_forward(told.observation[SLOWNESS])
        return self._due()

    def correct(self) -> dict[str, Speed]:
        """Assume what the fleet's boards turned out to be; the speeds of all boards, those not heard of as before."""
        self.assumed |= self._measured()
        return dict(self.assumed)

    def _due(self) -> bool:
        """Not before half of the devices are known: each correction costs a lesson."""
        known = sum(len(one.taken_ms) >= ENOUGH for one in self._devices.values())
        if 2 * known < len(self._devices):
            return False
        return any(_moved(self.assumed[board], now) for board, now in self._measured().items())

    def _measured(self) -> dict[str, Speed]:
        """The median of every board of whose devices at least half are known."""
        boards: dict[str, list[Speed | None]] = {}
        for one in self._devices.values():
            boards.setdefault(one.board, []).append(one.speed)
        found = {}
        for board, speeds in boards.items():
            known = [speed for speed in speeds if speed is not None]
            if 2 * len(known) >= len(speeds):
                assumed = self.assumed[board]
                found[board] = Speed(
                    _middle([one.said_ms for one in known], assumed.said_ms),
                    _middle([one.taken_ms for one in known], assumed.taken_ms),
                )
        return found


def _middle(values: Sequence[float], assumed: float) -> float:
    """The median; between two of an even number of values the one nearer to what is assumed, so that two must agree."""
    return min((median_low(values), median_high(values)), key=lambda value: abs(math.log(value / assumed)))


def _moved(before: Speed, now: Speed) -> bool:
    pairs = ((before.said_ms, now.said_ms), (before.taken_ms, now.taken_ms))
    return any(abs(math.log(b / a)) > math.log(MOVED) for a, b in pairs)
