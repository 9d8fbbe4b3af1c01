"""The cut the planner finds for every device that told what its blocks cost, kept up with what its telemetry says.

A device's link is its own estimate; how fast it computes is what it told at first, times a running factor: what a
window was measured to take at the cut in use, over what was told. Planned anew when either moved, and told to the
device only where another cut is worth the move.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

from common.compute_profile import ComputeProfile
from common.messages import ComputeTimes, DeviceStatus, Telemetry
from common.policy import UPLINK_MBPS
from trainer.chain_plan import ChainPlan
from trainer.partition_prices import LinkState, Wire

LOG = logging.getLogger(__name__)
MOVED = 1.25  # times as much, or as little: the plan is looked at again
BETTER = 0.95  # of the delay of the cut in use: what another one has to get below
APART_S = 2.0  # between two plans of a device
NEWEST = 0.3  # weight of the newest measurement in the running factor
SLOWDOWNS = (0.1, 100.0)  # what is believed of a measurement


@dataclass(slots=True)
class _Device:
    compute: ComputeTimes
    cuts: frozenset[int]
    plan: ChainPlan
    slowdown: float = 1.0
    link: LinkState | None = None
    planned_for: tuple[LinkState, float] | None = None
    planned_s: float = 0.0
    cut: int | None = None


class PlannedCuts:
    """The plans of a fleet.

    Args:
        server: what the encoder's blocks cost on this machine.
        wire: of the fleet's codecs.
        local_iterations: windows of a device between two exchanges of weights.
        allowed_cuts: by the operator; empty: all. A wish that leaves a device nothing is void, as on the device.
        min_cut: the privacy floor of a device that does not say its cuts.
    """

    def __init__(
        self,
        server: ComputeProfile,
        wire: Wire,
        *,
        local_iterations: int,
        allowed_cuts: Collection[int],
        min_cut: int,
    ) -> None:
        self._server = server
        self._wire = wire
        self._local_iterations = local_iterations
        self._allowed_cuts = frozenset(allowed_cuts)
        self._min_cut = min_cut
        self._devices: dict[str, _Device] = {}

    def cut(self, device: str) -> int | None:
        """The planned cut; None as long as times or link of the device are not known."""
        known = self._devices.get(device)
        return None if known is None else known.cut

    def join(self, device: str, status: DeviceStatus, *, now_s: float) -> None:
        """A device has come, or come back: what is known of its link is from before, its times and cuts are new."""
        before = self._devices.pop(device, None)
        if status.compute is None:
            return
        cuts = self._cuts(status)
        if before is not None and (before.compute, before.cuts) == (status.compute, cuts):
            known = before
        else:
            try:
                plan = ChainPlan(
                    status.compute, self._server, self._wire, cuts=cuts, local_iterations=self._local_iterations
                )
            except ValueError as error:
                LOG.warning("no cut is planned for %s: %s", device, error)
                return
            known = _Device(status.compute, cuts, plan, link=before.link if before else None)
        self._devices[device] = known
        if known.link is not None:
            self._plan(device, known, known.link, now_s)

    def hear(self, device: str, told: Telemetry, *, now_s: float) -> bool:
        """Take what a device measured; whether another cut is planned for it now."""
        known = self._devices.get(device)
        if known is None:
            return False
        if told.client_ms is not None and 0 <= told.action <= self._server.depth:
            _refine(known, told.action, told.client_ms)
        if told.uplink_mbps is not None:
            low, high = UPLINK_MBPS
            mbps = min(max(told.uplink_mbps, low), high)
            known.link = LinkState(mbps, mbps, told.round_trip_ms or 0.0)
        if known.link is None or not self._due(known, known.link, now_s):
            return False
        return self._plan(device, known, known.link, now_s)

    def _cuts(self, status: DeviceStatus) -> frozenset[int]:
        every = frozenset(range(self._server.depth + 1))
        own = every & frozenset(status.cuts) or frozenset(range(self._min_cut, self._server.depth + 1))
        return own & self._allowed_cuts or own

    def _due(self, known: _Device, link: LinkState, now_s: float) -> bool:
        if known.planned_for is None:
            return True
        before, slowdown = known.planned_for
        moved = (
            _moved(before.uplink_mbps, link.uplink_mbps)
            or _moved(before.round_trip_ms, link.round_trip_ms)
            or _moved(slowdown, known.slowdown)
        )
        return moved and now_s - known.planned_s >= APART_S

    def _plan(self, device: str, known: _Device, link: LinkState, now_s: float) -> bool:
        known.planned_for, known.planned_s = (link, known.slowdown), now_s
        best = known.plan.best_cut(link, slowdown=known.slowdown)
        if best == known.cut:
            return False
        best_ms = known.plan.delay_ms(best, link, slowdown=known.slowdown)
        if known.cut is not None:
            kept_ms = known.plan.delay_ms(known.cut, link, slowdown=known.slowdown)
            if best_ms > BETTER * kept_ms:
                return False
        LOG.info("%s: cut %d is planned, %.0f ms a window at %.2f Mbit/s", device, best, best_ms, link.uplink_mbps)
        known.cut = best
        return True


def _refine(known: _Device, cut: int, measured_ms: float) -> None:
    told_ms = known.plan.client_ms(cut)
    if told_ms > 0:
        low, high = SLOWDOWNS
        known.slowdown += NEWEST * (min(max(measured_ms / told_ms, low), high) - known.slowdown)


def _moved(before: float, now: float) -> bool:
    return not before / MOVED <= now <= before * MOVED
