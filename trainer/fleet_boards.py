"""Which boards a fleet's devices are, as they say and as was measured: what the simulator judges a new policy by.

A device says at its start how fast it is, and its observation repeats that for ever; what a window really takes there
is in its telemetry. Where the two differ (a hot board, another model under the same name) a policy has to be judged on
the board as it is, seen as it says it is.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from common.messages import Telemetry
from common.policy import FORWARD_MS, OBSERVATION_NAMES
from trainer.link_traces import TraceKind, generate
from trainer.simulated_costs import Board, CutCosts, Tables, tables

MEASURED = 64  # windows' times kept of each device: about eight minutes of decisions
ENOUGH = 8  # of them, before they are believed
IDLE_PERCENT = 25  # another load makes a window slower, nothing makes it quicker: the low ones tell the board
STEP = 1.1  # speeds are told apart in steps of this factor, that noise does not change the fleet
SLOWDOWNS = (0.1, 100.0)  # what is believed of a measurement
SLOWNESS = OBSERVATION_NAMES.index("slowness")


@dataclass(frozen=True, slots=True)
class FleetBoard:
    """A device's board as it is, and the `said_ms` that a window takes there by what the device says."""

    board: Board
    said_ms: float


@dataclass(slots=True)
class _Device:
    profile: str
    boot: str
    said_ms: float | None = None
    ratios: deque[float] = field(default_factory=lambda: deque(maxlen=MEASURED))


class FleetBoards:
    """Listens to who is there and how quick it is.

    Args:
        shipped: the boards whose power is known; a device of another one gets that of the nearest in speed.
        costs: of the fleet's encoder.
    """

    def __init__(self, shipped: Mapping[str, Board], costs: CutCosts) -> None:
        self._shipped = shipped
        self._costs = costs
        self._devices: dict[str, _Device] = {}

    def join(self, device: str, profile: str, boot: str) -> None:
        """A device has come, or come back; what was measured is forgotten where it has booted anew."""
        known = self._devices.get(device)
        if known is None or known.boot != boot:
            self._devices[device] = _Device(profile, boot)

    def leave(self, device: str) -> None:
        """A device has gone for good."""
        self._devices.pop(device, None)

    def hear(self, device: str, telemetry: Telemetry) -> None:
        """What a device says and measured of its speed; of one that has not joined nothing is kept."""
        known = self._devices.get(device)
        if known is None or len(telemetry.observation) != len(OBSERVATION_NAMES):
            return
        low, high = FORWARD_MS
        known.said_ms = low * (high / low) ** telemetry.observation[SLOWNESS]
        if telemetry.client_ms is not None and 0 <= telemetry.action <= self._costs.depth:
            slowest, quickest = SLOWDOWNS[1], SLOWDOWNS[0]
            ratio = telemetry.client_ms / (self._costs.client_ms[telemetry.action] * known.said_ms)
            known.ratios.append(min(max(float(ratio), quickest), slowest))

    def boards(self) -> tuple[FleetBoard, ...]:
        """One for each device that said how quick it is, the quickest first."""
        made = [self._board(one, one.said_ms) for one in self._devices.values() if one.said_ms is not None]
        return tuple(sorted(made, key=lambda one: (one.board.forward_ms, one.said_ms, one.board.name)))

    def _board(self, device: _Device, said_ms: float) -> FleetBoard:
        ratio = float(np.percentile(device.ratios, IDLE_PERCENT)) if len(device.ratios) >= ENOUGH else 1.0
        forward_ms = _rounded(said_ms * ratio)
        nearest = min(self._shipped.values(), key=lambda one: abs(math.log(one.forward_ms / forward_ms)))
        like = self._shipped.get(device.profile, nearest)
        return FleetBoard(replace(like, forward_ms=forward_ms), _rounded(said_ms))


def judged_on(
    boards: Sequence[FleetBoard], traces: Sequence[tuple[TraceKind, int]], costs: CutCosts, *, steps: int
) -> list[Tables]:
    """A table for each trace; every board gets its share of them, in order. ValueError without boards."""
    if not boards:
        raise ValueError("no boards to judge a policy on")
    of_trace = [boards[place * len(boards) // len(traces)] for place in range(len(traces))]
    return [
        replace(tables(generate(kind, seed, steps=steps), one.board, costs), forward_ms=one.said_ms)
        for (kind, seed), one in zip(traces, of_trace, strict=True)
    ]


def _rounded(forward_ms: float) -> float:
    return float(STEP ** round(math.log(forward_ms) / math.log(STEP)))
