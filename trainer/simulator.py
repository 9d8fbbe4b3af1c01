"""A fleet of simulated devices that decide at once, and the same device alone as a Gymnasium environment.

A decision stands for a step of 8 windows, as on a device. What a decision sees is what the device would measure: moving
means of the link with noise, nothing of a link that is not used, an uncertainty that ages. The numbers are those of
`common.policy.observe`, computed for whole arrays (tests/trainer/test_simulator.py holds the two together).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from common.policy import FORWARD_MS, HALF_AGE_S, LINK_SMOOTHING, OBSERVATION_NAMES, ROUND_TRIP_MS, UPLINK_MBPS
from trainer.link_traces import STEP_S
from trainer.reward import RewardWeights
from trainer.simulated_costs import MERGE_BATCHES, WINDOWS, Tables
from trainer.simulated_device import DWELL, QUEUE_CAPACITY, Counts, Next, Outcome, Row, advance, is_merge

Values = NDArray[np.float64]
Masks = NDArray[np.bool_]

DECISION_S = WINDOWS * STEP_S
WARMED = 0.4  # by a busy processor, of the scale of `heat`
AMBIENT = (0.0, 0.5)  # what an idle one shows, by where it stands
RATE_NOISE, ROUND_TRIP_NOISE, CPU_NOISE, UNCERTAINTY_NOISE, VERSION_NOISE = 0.15, 0.1, 0.03, 0.05, 0.05
COSTS = ("service_s", "delay_s", "answered", "local", "bytes_moved", "joules")
PER_STEP = (*COSTS, "replied", "busy")
PER_DECISION = ("online", "last_load", "uplink_mbps", "round_trip_ms", "uncertainty", "last_uncertainty")


@dataclass(frozen=True, slots=True)
class Stepped:
    """What a decision of every device led to: `[B]`; `actions` are those taken, `done` begins a new trace."""

    reward: Values
    done: NDArray[np.bool_]
    actions: Counts
    outcome: Outcome


class Simulator:
    """`batch` devices, each on a trace drawn at random; at its end the next is drawn.

    Args:
        tables: what every action costs along each trace, all of one length and depth.
        min_cut: the privacy floor; `first_cut`: where a device begins, None: anywhere from the floor on.
        seed: of everything random: which traces, where they begin, the noise of what is measured.
        in_order: device `i` takes trace `i`, from its beginning: for evaluation, with `batch` = the number of traces.

    Attributes:
        cut: where each device is cut; ``trace`` and ``decision``: on which trace it is, and at which of its decisions.
        merge_every: decisions between two versions of the weights; who learns from rewards alone may begin with more.
    """

    def __init__(
        self,
        tables: Sequence[Tables],
        *,
        batch: int,
        min_cut: int,
        first_cut: int | None,
        weights: RewardWeights,
        seed: int,
        in_order: bool = False,
    ) -> None:
        if in_order and batch != len(tables):
            raise ValueError(f"{batch} devices for {len(tables)} traces: in order there is one each")
        self._rng = np.random.default_rng(seed)
        self._columns = {name: np.stack([getattr(table, name) for table in tables]) for name in PER_STEP + PER_DECISION}
        self._forward = _logarithmic(np.array([table.forward_ms for table in tables]), *FORWARD_MS)
        self._fetch_joules = np.array([table.fetch_joules for table in tables])
        self._follows = np.array([table.follows for table in tables])
        self._whole_bytes = tables[0].whole_bytes
        self._length, self.depth = len(tables[0]), tables[0].depth
        self._weights, self._min_cut, self._first_cut = weights, min_cut, first_cut
        self._in_order = in_order
        self.merge_every = MERGE_BATCHES
        self.trace = np.arange(batch) if in_order else np.zeros(batch, dtype=np.intp)
        self.decision, self._left, self.cut, self._since, self._queue, self._held = (
            np.zeros(batch, dtype=np.intp) for _ in range(6)
        )
        (
            self._rate,
            self._round_trip_ms,
            self._seen,
            self._age_s,
            self._cpu,
            self._memory,
            self._battery,
            self._version_age,
            self._ambient,
        ) = (np.zeros(batch) for _ in range(9))
        self._begin(np.ones(batch, dtype=bool))

    @property
    def actions(self) -> int:
        """How many actions there are: every cut, and local last."""
        return self.depth + 2

    def mask(self) -> Masks:
        """What each device may do now, `[B, L + 2]`, as `common.actions.allowed_mask` says it."""
        cuts = np.arange(self.depth + 1)
        free = (self._since >= DWELL)[:, None] | (cuts == self.cut[:, None])
        online = self._columns["online"][self.trace, self.decision]
        mask = np.ones((len(self.cut), self.actions), dtype=bool)
        mask[:, :-1] = (cuts >= self._min_cut) & free & online[:, None]
        return mask

    def observe(self) -> Values:
        """What each device measures now, `[B, len(OBSERVATION_NAMES)]`."""
        fields = {
            "uncertainty": np.where(np.isnan(self._seen), 0.5, np.clip(self._seen, 0.0, 1.0)),
            "uncertainty_age": np.where(np.isnan(self._seen), 1.0, self._age_s / (self._age_s + HALF_AGE_S)),
            "cpu": self._cpu,
            "memory": self._memory,
            "heat": np.where(np.isnan(self._ambient), 0.0, self._ambient + WARMED * self._cpu),
            "uplink": _known(_logarithmic(self._rate, *UPLINK_MBPS)),
            "round_trip": _known(_logarithmic(self._round_trip_ms, *ROUND_TRIP_MS)),
            "battery": self._battery,
            "queue": np.minimum(self._queue / QUEUE_CAPACITY, 1.0),
            "cut": self.cut / self.depth,
            "slowness": self._forward[self.trace],
            "held": self._held / self.depth,
            "version_age": np.minimum(self._version_age / 2.0, 1.0),
            "follows": self._follows[self.trace].astype(float),
        }
        return np.stack([fields[name] for name in OBSERVATION_NAMES], axis=1)

    def step(self, actions: Counts) -> Stepped:
        """Let every device take its action (an index into the mask); one that is not allowed is an error of the caller.

        Raises:
            ValueError: an action that its mask does not allow.
        """
        devices = np.arange(len(self.cut))
        if not self.mask()[devices, actions].all():
            raise ValueError("an action that is not allowed")
        after = self.peek(actions)
        self.cut, self._since, self._queue, self._held = after.cut, after.since, after.queue, after.held
        self._measure(actions)
        self.decision += 1
        self._left -= 1
        done = (self._left == 0) | (self.decision == self._length)
        if done.any():
            self._begin(done)
        return Stepped(after.reward, done, actions, after.outcome)

    def peek(self, actions: Counts) -> Next:
        """Where these actions would lead, allowed or not; nothing changes."""
        at = self.trace, self.decision, actions
        return advance(
            Row(
                **{name: self._columns[name][at] for name in COSTS},
                uncertainty=self._columns["uncertainty"][at[:2]],
                fetch_joules=self._fetch_joules[self.trace],
                follows=self._follows[self.trace],
            ),
            action=actions,
            cut=self.cut,
            since=self._since,
            queue=self._queue,
            held=self._held,
            whole_bytes=self._whole_bytes,
            merged=is_merge(self.decision, self.merge_every),
            weights=self._weights,
        )

    def _measure(self, actions: Counts) -> None:
        """What the devices learn of their surroundings while they carry out what they decided."""
        replied, busy = (self._columns[name][self.trace, self.decision, actions] for name in ("replied", "busy"))
        now = {name: self._columns[name][self.trace, self.decision] for name in PER_DECISION}
        noise = self._rng.standard_normal((5, len(actions)))
        online = now["online"].astype(bool)
        rate = now["uplink_mbps"] * np.exp(RATE_NOISE * noise[0])
        self._rate = np.where(online & (actions <= self.depth), _smoothed(self._rate, rate), self._rate)
        round_trip_ms = now["round_trip_ms"] * np.exp(ROUND_TRIP_NOISE * np.abs(noise[1]))
        self._round_trip_ms = np.where(online, _smoothed(self._round_trip_ms, round_trip_ms), self._round_trip_ms)
        self._cpu = np.clip(now["last_load"] + busy + CPU_NOISE * noise[2], 0.0, 1.0)
        seen = np.clip(now["last_uncertainty"] + UNCERTAINTY_NOISE * noise[3], 0.0, 1.0)
        self._seen = np.where(replied, seen, self._seen)
        self._age_s = np.where(replied, 0.0, self._age_s + DECISION_S)
        self._version_age = self._due(self.decision + 1) * np.exp(VERSION_NOISE * noise[4])

    def _due(self, step: Counts) -> Values:
        """Decisions since the newest version that was seen, over those that one lasts: 1 just before the next."""
        due: Values = ((step - 1) % self.merge_every + 1) / self.merge_every
        return due

    def _begin(self, which: NDArray[np.bool_]) -> None:
        """A new trace for the devices in `which`."""
        count = int(which.sum())
        traces, length = len(self._forward), self._length
        if not self._in_order:
            self.trace[which] = self._rng.integers(traces, size=count)
        # A beginning anywhere: else devices that start together would meet every version together.
        start = np.zeros(count, dtype=np.intp) if self._in_order else self._rng.integers(length // 2, size=count)
        self.decision[which], self._left[which] = start, length - start
        first = self._first_cut
        self.cut[which] = self._rng.integers(self._min_cut, self.depth + 1, count) if first is None else first
        self._held[which] = np.where(self._follows[self.trace[which]], self.depth, self.cut[which])
        self._since[which], self._queue[which] = DWELL, 0
        for unknown in (self._rate, self._round_trip_ms, self._seen):
            unknown[which] = np.nan
        self._age_s[which] = 0.0
        self._version_age[which] = self._due(start)
        self._cpu[which] = self._columns["last_load"][self.trace[which], self.decision[which]]
        self._memory[which] = self._rng.uniform(0.2, 0.8, count)
        self._battery[which] = np.where(self._rng.random(count) < 0.5, 1.0, self._rng.random(count))
        # Half have no thermometer: a policy that took heat for load would be blind there.
        self._ambient[which] = np.where(self._rng.random(count) < 0.5, np.nan, self._rng.uniform(*AMBIENT, count))


class SplitterEnv(gymnasium.Env[NDArray[np.float32], np.int64]):
    """One simulated device: observation `[len(OBSERVATION_NAMES)]` in 0..1, action an index into the mask.

    An action that is not allowed is taken as local, which always is. `info["action_mask"]` says what is.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  Gymnasium's own attribute

    def __init__(
        self,
        tables: Sequence[Tables],
        *,
        min_cut: int,
        first_cut: int,
        weights: RewardWeights = RewardWeights(),  # noqa: B008  frozen
    ) -> None:
        self._tables, self._min_cut, self._first_cut, self._weights = tables, min_cut, first_cut, weights
        self._simulator = self._fresh(0)
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (len(OBSERVATION_NAMES),), np.float32)
        self.action_space = gymnasium.spaces.Discrete(self._simulator.actions)

    def _fresh(self, seed: int) -> Simulator:
        return Simulator(
            self._tables,
            batch=1,
            min_cut=self._min_cut,
            first_cut=self._first_cut,
            weights=self._weights,
            seed=seed,
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """See `gymnasium.Env.reset`; ``options`` are not used."""
        super().reset(seed=seed, options=options)
        self._simulator = self._fresh(int(self.np_random.integers(2**31)))
        return self._observation(), self._info()

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """See `gymnasium.Env.step`; the end of a trace is a truncation, since a device goes on for ever."""
        mask = self._simulator.mask()[0]
        taken = int(action) if mask[int(action)] else self._simulator.actions - 1
        stepped = self._simulator.step(np.array([taken]))
        return self._observation(), float(stepped.reward[0]), False, bool(stepped.done[0]), self._info()

    def action_masks(self) -> NDArray[np.bool_]:
        """What is allowed now, by the name that sb3-contrib's masked PPO looks for."""
        mask: NDArray[np.bool_] = self._simulator.mask()[0]
        return mask

    def _observation(self) -> NDArray[np.float32]:
        seen: NDArray[np.float32] = self._simulator.observe()[0].astype(np.float32)
        return seen

    def _info(self) -> dict[str, Any]:
        return {"action_mask": self.action_masks()}


def _smoothed(old: Values, new: Values) -> Values:
    mean: Values = np.where(np.isnan(old), new, (1.0 - LINK_SMOOTHING) * old + LINK_SMOOTHING * new)
    return mean


def _known(values: Values) -> Values:
    return np.where(np.isnan(values), 0.5, values)


def _logarithmic(values: Values, low: float, high: float) -> Values:
    scaled: Values = np.log(np.clip(values, low, high) / low) / np.log(high / low)
    return scaled
