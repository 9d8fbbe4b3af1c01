"""Makes samples of what devices report: decisions joined by (device, boot, decision_seq), with what each was worth.

The reward of a decision is in the counters' change between its telemetry and the one before, so a decision counts only
between two others that follow each other; where one is missing the trajectory is cut. Decisions that no policy made
(pins, fallback, no link) cut it as well, and so does a pause; those of policies more than `OLDEST` versions back are
dropped.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.actions import LOCAL
from common.messages import Telemetry
from common.policy import OBSERVATION_NAMES
from trainer.link_traces import STEP_S
from trainer.reward import RewardWeights, reward, utility, with_dropped

OLDEST = 2
PAUSE_S = 8.0  # by which telemetry may be later than its windows account for: a slow board, a slow link
MOST_OPEN = 1_024  # decisions of one device that follow each other; nobody may ever draw one, and so ask for them
MOST_KEPT = 20_000  # decisions waiting to be learned from; older ones are dropped
# No splitter draws what it finds less likely than e to this: a policy so sure has no other action to draw.
LEAST_LOG_PROB = -20.0
# What the model gives is below its idle power by the jitter of telemetry at most; what a Pi 5's power chip measures is
# half of what the profile states for the whole board, and would count as no energy at all.
RECENT_WATTS = 64
ENOUGH_WATTS = 16
PLAINLY_LESS = 0.9
IDLE_QUANTILE = 0.05
LEAST_PASSED_S = 1.0  # between two messages, for their time to say anything of power
# Advantages are normalised over all devices: one that says it spent a terajoule would leave nothing of the others'. The
# worst decision in the simulator is worth -7.3 (`mobile`, 46,080 decisions on 24 traces, random ones among them).
# Nothing is needed above: without delay, energy and bytes a decision is worth its utility.
LEAST_WORTH = -8.0


@dataclass(frozen=True, slots=True)
class Reported:
    """One decision. `action`: an index into the mask; `drawn`: by chance, so that it can teach the policy."""

    device: str
    observation: tuple[float, ...]
    mask: tuple[bool, ...]
    action: int
    log_prob: float
    policy_version: int
    reward: float

    @property
    def drawn(self) -> bool:
        """A decision that took the likeliest action has a log-probability of 0: it was certain."""
        return self.log_prob < 0.0


class Experience:
    """Collects trajectories.

    Args:
        parts_per_step: windows of a step in this fleet.
        actions: how many the policy has; decisions among another number of them are dropped.

    Attributes:
        drawn: how many decisions wait from which a policy can learn.
        idle_watts: by device, what its board is stated to spend without computing; where that is not known or 0, the
            device's energy counts as 0.
    """

    def __init__(self, *, parts_per_step: int, weights: RewardWeights, actions: int) -> None:
        self._parts = parts_per_step
        self._actions = actions
        self._weights = weights
        self._last: dict[str, Telemetry] = {}
        self._heard_s: dict[str, float] = {}
        self._cuts: dict[str, int] = {}  # where devices stand: a local step leaves the cut where it is
        self._open: dict[str, list[Reported]] = {}
        self._closed: list[list[Reported]] = []
        self.drawn = 0
        self.idle_watts: dict[str, float] = {}
        self._watts: dict[str, deque[float]] = {}

    def offer(self, device: str, telemetry: Telemetry, *, at_s: float) -> Reported | None:
        """Take a device's telemetry, which came ``at_s`` on a monotonic clock; the decision it completed, if it did."""
        last = self._last.get(device)
        if telemetry.embedding_ms is None and (last is None or telemetry.steps_sent <= last.steps_sent):
            return None  # news of load, link or cut: how the decision went is told when its step is over, or never
        if last is not None and last.boot == telemetry.boot and telemetry.decision_seq <= last.decision_seq:
            return None  # said again, or late
        follows = last is not None and (last.boot, last.decision_seq + 1) == (telemetry.boot, telemetry.decision_seq)
        waited_s = at_s - self._heard_s.get(device, at_s)
        stood = self._cuts.get(device)
        self._last[device], self._heard_s[device] = telemetry, at_s
        if telemetry.action != LOCAL:
            self._cuts[device] = telemetry.action
        if last is not None and last.boot != telemetry.boot:
            self._watts.pop(device, None)
        if last is None or not follows or not self._usable(telemetry) or _paused(last, telemetry, waited_s):
            self._cut(device)
            return None
        moved = stood is not None and telemetry.action not in {LOCAL, stood}
        worth = self._worth(device, last, telemetry, moved=moved, passed_s=waited_s)
        if worth is None:
            self._cut(device)
            return None
        place = len(telemetry.mask) - 1 if telemetry.action == LOCAL else telemetry.action
        if not (0 <= place < len(telemetry.mask) and telemetry.mask[place]):
            self._cut(device)
            return None
        made = Reported(
            device, telemetry.observation, telemetry.mask, place, telemetry.log_prob, telemetry.policy_version, worth
        )
        trajectory = self._open.setdefault(device, [])
        trajectory.append(made)
        self.drawn += made.drawn
        if len(trajectory) >= MOST_OPEN:
            self._cut(device)
        return made

    def _usable(self, telemetry: Telemetry) -> bool:
        """Whether it can be what a policy of this fleet decided."""
        return (
            telemetry.policy_version > 0
            and len(telemetry.observation) == len(OBSERVATION_NAMES)
            and len(telemetry.mask) == self._actions
            and telemetry.log_prob >= LEAST_LOG_PROB
        )

    def take(self, *, version: int) -> list[list[Reported]]:
        """All trajectories of two decisions and more, by `version` or up to `OLDEST` before it; then forgotten."""
        for device in list(self._open):
            self._cut(device)
        taken, self._closed, self.drawn = self._closed, [], 0
        recent = [_without_old(trajectory, version - OLDEST) for trajectory in taken]
        return [part for parts in recent for part in parts if len(part) > 1]

    def _cut(self, device: str) -> None:
        trajectory = self._open.pop(device, [])
        if len(trajectory) > 1:
            self._closed.append(trajectory)
        else:
            self._forget(trajectory)
        while sum(map(len, self._closed)) > MOST_KEPT:
            self._forget(self._closed.pop(0))

    def _forget(self, trajectory: list[Reported]) -> None:
        self.drawn -= sum(one.drawn for one in trajectory)

    def _worth(self, device: str, before: Telemetry, now: Telemetry, *, moved: bool, passed_s: float) -> float | None:
        """The decision's reward; None where nothing can be said of it."""
        dropped = max(0, now.windows_dropped - before.windows_dropped)
        windows = now.windows - before.windows + dropped
        if windows <= 0:
            return None
        spent_joules = self._above_idle(device, now.energy_joules - before.energy_joules, passed_s)
        moved_bytes = now.bytes_up - before.bytes_up + now.bytes_down - before.bytes_down
        answered = _share(self._parts * (now.steps_answered - before.steps_answered), windows)
        # A step that nobody answered has embedded nothing: its windows are as late as dropped ones.
        embedded = 0.0 if now.embedding_ms is None else 1.0 - _share(dropped, windows)
        local = min(_share(self._parts * (now.local_steps - before.local_steps), windows), 1.0 - answered)
        w = self._weights
        worth = reward(
            utility=utility(
                _one(answered),
                _one(local),
                _one(now.uncertainty if now.uncertainty is not None else 0.5),
                local_utility=w.local_utility,
                uncertainty_weight=w.uncertainty_weight,
            ),
            latency_ms=with_dropped(_one(now.embedding_ms or 0.0), _one(embedded), w=w),
            energy_joules=_one(spent_joules / windows),
            bytes_moved=_one(max(0, moved_bytes) / windows),
            moved=_one(float(moved)),
            w=w,
        )
        return max(LEAST_WORTH, float(worth[0]))

    def _above_idle(self, device: str, joules: float, passed_s: float) -> float:
        """Joules above idle, as stated; where a device measures itself, and so does with less, what it hardly ever
        spends less than. Without a statement nothing can be told: 0.
        """
        stated = self.idle_watts.get(device, 0.0)
        if passed_s < LEAST_PASSED_S or stated == 0.0:
            return 0.0
        recent = self._watts.setdefault(device, deque(maxlen=RECENT_WATTS))
        recent.append(joules / passed_s)
        measured = len(recent) >= ENOUGH_WATTS and float(np.median(recent)) < PLAINLY_LESS * stated
        idle = float(np.quantile(recent, IDLE_QUANTILE)) if measured else stated
        return max(0.0, joules - idle * passed_s)


def _paused(before: Telemetry, now: Telemetry, waited_s: float) -> bool:
    """Whether the device did nothing for a while, a pause or a silent microphone: its idle energy went on."""
    dropped = max(0, now.windows_dropped - before.windows_dropped)
    return waited_s > (now.windows - before.windows + dropped) * STEP_S + PAUSE_S


def _without_old(trajectory: list[Reported], oldest: int) -> list[list[Reported]]:
    parts: list[list[Reported]] = [[]]
    for one in trajectory:
        if one.policy_version >= oldest:
            parts[-1].append(one)
        else:
            parts.append([])
    return parts


def _share(part: int, whole: int) -> float:
    return min(max(part / whole, 0.0), 1.0)


def _one(value: float) -> NDArray[np.float64]:
    return np.array([value], dtype=np.float64)
