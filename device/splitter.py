"""Where the encoder is cut for the next window: the splitters that need no learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from common.actions import LOCAL
from common.policy import Observation, scale_round_trip, scale_uplink


@dataclass(frozen=True, slots=True)
class Decision:
    """`cut`: where the device stands next (L when `local`). `action`: the one of `mask`. `reason`: for people.

    `policy_version`: of the policy that decided, 0 where none did; `log_prob` is below 0 only where it drew.
    """

    cut: int
    local: bool
    mask: tuple[bool, ...]
    action: int
    log_prob: float
    reason: str
    policy_version: int = 0


class Splitter(Protocol):
    """What the device loop asks before every step."""

    def decide(self, observation: Observation, mask: tuple[bool, ...]) -> Decision:
        """Choose one of the actions `mask` allows; ValueError when it allows none."""
        ...

    def reconsider(self, observation: Observation, mask: tuple[bool, ...]) -> Decision | None:
        """Where a cut would be chosen now, if what the last decision rests on has changed; None: it holds.

        Asked while a step is waited for, and no window is to be decided on: it is no decision that anybody learns from,
        and what comes next is decided anew.
        """
        ...

    def step_over(self) -> None:
        """A step ended: the next window is the first of another."""
        ...


class FixedSplitter:
    """Always the same cut; where it is not allowed, the nearest that is (the deeper of two); else a local step."""

    def __init__(self, cut: int) -> None:
        self._cut = cut

    def decide(self, observation: Observation, mask: tuple[bool, ...]) -> Decision:  # noqa: ARG002 (the interface)
        """See `Splitter`."""
        return _nearest(mask, self._cut, "fixed")

    def reconsider(self, observation: Observation, mask: tuple[bool, ...]) -> Decision | None:  # noqa: ARG002
        """See `Splitter`: nothing is news."""
        return None

    def step_over(self) -> None:
        """See `Splitter`: it does not matter here."""


class HeuristicSplitter:
    """Threshold rules: a poor link moves the cut deeper, a labouring processor shallower, a calm device back to `cut`.

    Every condition is entered at its first threshold and left only at the second, so that a value near one of them does
    not toggle it; how long a cut must be kept is the mask's business. The link's rules win over the processor's: bytes
    that cannot travel are lost, late compute is only late. `queue` and `cpu` are fractions, `heat` as in `Observation`.
    """

    def __init__(
        self,
        *,
        cut: int,
        cpu: tuple[float, float] = (0.90, 0.70),
        heat: tuple[float, float] = (0.95, 0.85),
        queue: tuple[float, float] = (0.50, 0.20),
        uplink_mbps: tuple[float, float] = (1.0, 2.0),
        round_trip_ms: tuple[float, float] = (500.0, 250.0),
    ) -> None:
        self._cut = cut
        self._cpu = _Latch(*cpu)
        self._heat = _Latch(*heat)
        self._queue = _Latch(*queue)
        # A rate is bad when it is low: its latch sees how much is missing.
        self._slow = _Latch(1.0 - scale_uplink(uplink_mbps[0]), 1.0 - scale_uplink(uplink_mbps[1]))
        self._far = _Latch(scale_round_trip(round_trip_ms[0]), scale_round_trip(round_trip_ms[1]))

    def decide(self, observation: Observation, mask: tuple[bool, ...]) -> Decision:
        """See `Splitter`. One block at a time; the current cut is the observation's."""
        link = self._named(
            ("slow uplink", self._slow, 1.0 - observation.uplink), ("far", self._far, observation.round_trip)
        )
        processor = self._named(
            ("busy processor", self._cpu, observation.cpu),
            ("heat", self._heat, observation.heat),
            ("full queue", self._queue, observation.queue),
        )
        current = round(observation.cut * (len(mask) - 2))
        if link:
            return _next(mask, current, +1, link)
        if processor:
            return _next(mask, current, -1, processor)
        if current == self._cut:
            return _nearest(mask, current, "calm")
        return _next(mask, current, +1 if self._cut > current else -1, "calm")

    def reconsider(self, observation: Observation, mask: tuple[bool, ...]) -> Decision | None:  # noqa: ARG002
        """See `Splitter`: the next window is decided by itself anyway."""
        return None

    def step_over(self) -> None:
        """See `Splitter`: every window is decided by itself."""

    @staticmethod
    def _named(*conditions: tuple[str, _Latch, float]) -> str:
        # Every latch must see every value: a list, not any().
        return ", ".join([name for name, latch, value in conditions if latch.update(value)])


class PlannedSplitter:
    """The cut that the trainer planned, or the nearest that is allowed; by `fallback` as long as there is no plan."""

    def __init__(self, fallback: Splitter) -> None:
        self._fallback = fallback
        self._planned: int | None = None

    def offer(self, planned: int | None) -> None:
        """Go by this cut from now on; None: there is no plan (any more)."""
        self._planned = planned

    def decide(self, observation: Observation, mask: tuple[bool, ...]) -> Decision:
        """See `Splitter`."""
        if self._planned is None:
            return self._fallback.decide(observation, mask)
        return _nearest(mask, self._planned, "planned")

    def reconsider(self, observation: Observation, mask: tuple[bool, ...]) -> Decision | None:  # noqa: ARG002
        """See `Splitter`: a plan is the trainer's to change."""
        return None

    def step_over(self) -> None:
        """See `Splitter`."""
        self._fallback.step_over()


class _Latch:
    """On from `enter` upwards, off from `leave` downwards, unchanged between."""

    def __init__(self, enter: float, leave: float) -> None:
        if not leave < enter:
            raise ValueError(f"a condition entered at {enter} must be left below it, not at {leave}")
        self._enter = enter
        self._leave = leave
        self._on = False

    def update(self, value: float) -> bool:
        self._on = value >= self._enter or (self._on and value > self._leave)
        return self._on


def _cuts(mask: tuple[bool, ...]) -> list[int]:
    return [cut for cut, allowed in enumerate(mask[:-1]) if allowed]


def _nearest(mask: tuple[bool, ...], wanted: int, reason: str) -> Decision:
    cuts = _cuts(mask)
    if not cuts:
        return _local(mask, f"{reason}: no cut is allowed")
    cut = min(cuts, key=lambda candidate: (abs(candidate - wanted), -candidate))
    return _at(mask, cut, reason if cut == wanted else f"{reason}: cut {wanted} is not allowed")


def _next(mask: tuple[bool, ...], current: int, direction: int, reason: str) -> Decision:
    beyond = [cut for cut in _cuts(mask) if (cut - current) * direction > 0]
    if not beyond:
        return _nearest(mask, current, f"{reason}: no further cut is allowed")
    return _at(mask, min(beyond, key=lambda cut: abs(cut - current)), reason)


def _at(mask: tuple[bool, ...], cut: int, reason: str) -> Decision:
    return Decision(cut=cut, local=False, mask=mask, action=cut, log_prob=0.0, reason=reason)


def _local(mask: tuple[bool, ...], reason: str) -> Decision:
    if not mask[LOCAL]:
        raise ValueError("the mask allows no action")
    return Decision(cut=len(mask) - 2, local=True, mask=mask, action=LOCAL, log_prob=0.0, reason=reason)
