"""How quick a fleet's boards turn out to be, by what their telemetry says that a window took.

A profile states how quick a board is, and a policy was learned for that; in a warm box, with another power supply or
beside other work it is something else. Boards are corrected by kind, by what more than half of the kind's devices say;
a device that is alone on its kind is believed within `BELIEVED`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median_high, median_low

from common.messages import Telemetry
from common.policy import OBSERVATION_NAMES, unscale_forward
from trainer.simulated_costs import CutCosts
from trainer.simulated_fleet import Speed

MOVED = 1.3  # times as much, or as little, as was assumed
APART_S = 600.0  # between two corrections: each costs a lesson
BUSY = 0.3  # share of the processor in use above which a measurement says more of other work than of the board
KEPT, ENOUGH = 64, 16  # measurements of a device; how many it takes
# Of a device's measurements: nearly its quickest, since other work only ever makes a window slower.
QUICK = 0.1
BELIEVED = 10.0  # times as slow or as quick as the profile states, at most
SLOWNESS = OBSERVATION_NAMES.index("slowness")


@dataclass(slots=True)
class _Device:
    board: str
    boot: str = ""
    seq: int = -1
    measured_ms: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    speed: Speed | None = None


class FleetSpeeds:
    """What is known of the boards of a fleet.

    Args:
        costs: of the fleet's encoder.
        stated: by the profiles, and what the simulator assumes at first, by the name of the board; devices on other
            boards are not followed.
    """

    def __init__(self, costs: CutCosts, stated: Mapping[str, Speed]) -> None:
        self._costs = costs
        self._stated = stated
        self._devices: dict[str, _Device] = {}
        self._corrected_s = -math.inf
        self.assumed = stated

    def join(self, device: str, board: str) -> None:
        """A device is there, on this board."""
        if board in self._stated:
            self._devices[device] = _Device(board)

    def leave(self, device: str) -> None:
        """A device has gone."""
        self._devices.pop(device, None)

    def hear(self, device: str, told: Telemetry, *, at_s: float) -> bool:
        """Take what a device measured, heard `at_s` on a monotonic clock; whether `correct` is due.

        Only what goes by a policy says how quick it takes itself to be.
        """
        known = self._devices.get(device)
        if known is None or told.client_ms is None or not 0 <= told.action <= self._costs.depth:
            return False
        if told.cpu > BUSY or told.policy_version == 0 or len(told.observation) != len(OBSERVATION_NAMES):
            return False
        if told.boot != known.boot:
            self._devices[device] = known = _Device(known.board, told.boot)
        if told.decision_seq <= known.seq:
            return False
        known.seq = told.decision_seq
        known.measured_ms.append(self._taken_ms(known.board, told.action, told.client_ms))
        if len(known.measured_ms) >= ENOUGH:
            quick = sorted(known.measured_ms)[int(QUICK * len(known.measured_ms))]
            known.speed = Speed(unscale_forward(told.observation[SLOWNESS]), quick)
        return self._due(at_s)

    def correct(self, at_s: float) -> Mapping[str, Speed]:
        """Assume what the fleet's boards turned out to be; the speeds of all boards, those not heard of as before."""
        self._corrected_s = at_s
        self.assumed = {**self.assumed, **self._measured()}
        return self.assumed

    def _taken_ms(self, board: str, cut: int, client_ms: float) -> float:
        stated = self._stated[board].taken_ms
        return min(max(client_ms / float(self._costs.computed_ms[cut]), stated / BELIEVED), stated * BELIEVED)

    def _due(self, at_s: float) -> bool:
        measuring = [one for one in self._devices.values() if one.measured_ms]
        known = sum(one.speed is not None for one in measuring)
        if at_s - self._corrected_s < APART_S or 2 * known <= len(measuring):
            return False
        return any(_moved(self.assumed[board], now) for board, now in self._measured().items())

    def _measured(self) -> dict[str, Speed]:
        """Of every board of whose devices, of those that measure at all, more than half are known."""
        boards: dict[str, list[Speed | None]] = {}
        for one in self._devices.values():
            if one.measured_ms:
                boards.setdefault(one.board, []).append(one.speed)
        found = {}
        for board, speeds in boards.items():
            known = [speed for speed in speeds if speed is not None]
            if 2 * len(known) > len(speeds):
                stated = self._stated[board]
                found[board] = Speed(
                    _middle([one.said_ms for one in known], stated.said_ms),
                    _middle([one.taken_ms for one in known], stated.taken_ms),
                )
        return found


def _middle(values: Sequence[float], stated: float) -> float:
    """The median; between two of an even number of values the one nearer to what is stated, so that two must agree."""
    return min((median_low(values), median_high(values)), key=lambda value: abs(math.log(value / stated)))


def _moved(before: Speed, now: Speed) -> bool:
    pairs = ((before.said_ms, now.said_ms), (before.taken_ms, now.taken_ms))
    return any(abs(math.log(b / a)) > math.log(MOVED) for a, b in pairs)
