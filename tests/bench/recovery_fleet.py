"""Simulated devices that real ones cannot be told from by their messages: status, telemetry, and they obey policies.

Each decides with a `PolicySplitter` of its own, in the world of `trainer.simulator`; what came of a decision is told as
a device's counters tell it. A decision holds for a step of windows, and telemetry is published when the step is over;
without a link at its beginning it is not, and the trainer sees a gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from common import messages
from common.actions import LOCAL
from common.link import Link
from common.messages import DeviceStatus, PolicyUpdate, Telemetry
from common.policy import Observation
from common.topics import Topics
from device.policy_splitter import PolicySplitter
from device.splitter import Decision, FixedSplitter
from trainer.link_traces import STEP_S
from trainer.reward import RewardWeights
from trainer.simulated_costs import WINDOWS, Board, CutCosts, Tables
from trainer.simulated_device import Counts, Outcome
from trainer.simulator import Simulator

Values = NDArray[np.float64]
State = Literal["ready", "lost"]

LEAST_KEPT = 1 / 8  # of the windows: a decision lasts until a step of windows was taken, however many were dropped


@dataclass(frozen=True, slots=True)
class Counted:
    """One device's share of an `Outcome`, and where it stands: a local step moves nothing in the simulator."""

    kept: float
    answered: float
    local: float
    latency_ms: float
    energy_joules: float
    bytes_moved: float
    cut: int


def counted(outcome: Outcome, cut: Counts) -> list[Counted]:
    """By device, in order."""
    columns = zip(
        outcome.kept.tolist(),
        outcome.answered.tolist(),
        outcome.local.tolist(),
        outcome.latency_ms.tolist(),
        outcome.energy_joules.tolist(),
        outcome.bytes_moved.tolist(),
        cut.tolist(),
        strict=True,
    )
    return [Counted(*row) for row in columns]


class Device:
    """One device as the fleet knows it: its counters since its boot, and its splitter.

    Args:
        board: what it runs on; the profile that it names, whatever its speed.
        exploration: share of its decisions that are drawn.
    """

    def __init__(self, name: str, board: Board, costs: CutCosts, *, exploration: float, seed: int) -> None:
        self.name = name
        self.splitter = PolicySplitter(
            FixedSplitter(costs.depth),
            encoder="mobile",
            depth=costs.depth,
            windows=1,  # a decision of the simulator is a step already
            exploration=exploration,
            seed=seed,
        )
        self._costs = costs
        self._boots = 0
        self.boot_on(board)

    def boot_on(self, board: Board) -> None:
        """Begin anew on this board: every counter at 0."""
        self._board = board
        self._boots += 1
        self._decisions = self._answered = self._sent = 0
        self._bytes = self._joules = self._dropped = self._alone = 0.0

    def status(self, state: State) -> DeviceStatus:
        """What it says of itself."""
        return DeviceStatus(state, self._boot, self._boots, "0", "f" * 16, self._board.name, "", ())

    def window_ms(self, cut: int, load: float) -> float:
        """What computing a window cut there takes, beside other work."""
        return float(self._costs.computed_ms[cut]) * self._board.forward_ms / (1.0 - load)

    @property
    def _boot(self) -> str:
        return f"{self._boots:016x}"

    def tell(self, seen: Observation, decision: Decision, came: Counted, *, load: float) -> Telemetry:
        """Count what came of a decision, and say it; `load`: of others on the processor meanwhile."""
        taken = WINDOWS / max(came.kept, LEAST_KEPT)  # windows that pass while a step of them is taken
        self._decisions += 1
        self._dropped += taken - WINDOWS
        self._bytes += came.bytes_moved * taken
        self._joules += came.energy_joules * taken + self._idle_watts * WINDOWS * STEP_S
        self._alone += came.local
        self._sent += not decision.local
        self._answered += came.answered > 0.5
        return Telemetry(
            boot=self._boot,
            decision_seq=self._decisions,
            policy_version=decision.policy_version,
            observation=seen.values(),
            mask=decision.mask,
            action=decision.action,
            log_prob=decision.log_prob,
            cpu=seen.cpu,
            memory=seen.memory,
            temperature_c=None,
            throttled=None,
            uplink_mbps=None,
            round_trip_ms=None,
            battery=seen.battery,
            queue_depth=0,
            windows_dropped=round(self._dropped),
            messages_dropped=0,
            energy_joules=self._joules,
            uncertainty=seen.uncertainty,
            cut=came.cut,
            windows=WINDOWS * self._decisions,
            steps_sent=self._sent,
            steps_answered=self._answered,
            steps_late=0,
            steps_stale=0,
            steps_lost=self._sent - self._answered,
            local_steps=int(self._alone + 1e-6),
            loss=None,
            bytes_up=round(self._bytes),
            bytes_down=0,
            embedding_ms=came.latency_ms,
            gradient_ms=None,
            weights_version=1,
            client_ms=self.window_ms(came.cut, load) if came.answered == 1.0 else None,
        )

    @property
    def _idle_watts(self) -> float:
        return self._board.power.idle_watts + self._board.power.capture_watts


class Fleet:
    """Devices in groups of one board each, and the link that they share.

    Args:
        worlds: by group, its board and what every action costs along each trace there.
        devices: how many in all; groups take turns.
        link: where they publish and hear of policies; None: they are alone, and keep the policy that they have.

    Attributes:
        decisions: of every device so far.
    """

    def __init__(
        self,
        worlds: Sequence[tuple[Board, Sequence[Tables]]],
        costs: CutCosts,
        *,
        devices: int,
        first_cut: int,
        min_cut: int,
        weights: RewardWeights,
        exploration: float,
        link: Link | None,
        topics: Topics,
        seed: int,
    ) -> None:
        self._first_cut, self._min_cut, self._weights = first_cut, min_cut, weights
        self._link, self._topics, self._seed = link, topics, seed
        self.decisions = 0
        self._groups = [
            [
                Device(f"pi-{number}", board, costs, exploration=exploration, seed=1000 * seed + number)
                for number in range(place, devices, len(worlds))
            ]
            for place, (board, _) in enumerate(worlds)
        ]
        self._by_topic = {topics.policy(one.name): one for group in self._groups for one in group}
        if link is not None:
            link.start()
            for topic in self._by_topic:
                link.subscribe(topic, qos=1)
        self.move_to(worlds)

    def move_to(self, worlds: Sequence[tuple[Board, Sequence[Tables]]]) -> None:
        """Every device boots on its group's new board."""
        self._tables = [tables for _, tables in worlds]
        self._simulators = [
            Simulator(
                tables,
                batch=len(group),
                min_cut=self._min_cut,
                first_cut=self._first_cut,
                weights=self._weights,
                seed=100 * self._seed + number,
            )
            for number, (group, (_, tables)) in enumerate(zip(self._groups, worlds, strict=True))
        ]
        for group, (board, _) in zip(self._groups, worlds, strict=True):
            for device in group:
                self._say(device, "lost")
                device.boot_on(board)
                self._say(device, "ready")

    def _say(self, device: Device, state: State) -> None:
        self._publish(self._topics.status(device.name), messages.encode(device.status(state)))

    def take(self, update: PolicyUpdate) -> None:
        """Every device begins with this policy."""
        for device in self._by_topic.values():
            device.splitter.offer(update)

    def obey(self) -> None:
        """Take over what came on ``down/policy``."""
        while self._link is not None and (incoming := self._link.receive(0.0)) is not None:
            self._by_topic[incoming.topic].splitter.offer(messages.decode(PolicyUpdate, incoming.payload))

    def step(self) -> Values:
        """One decision of every device; their rewards as the simulator pays them, `[devices]`, group by group."""
        self.decisions += 1
        groups = zip(self._groups, self._simulators, self._tables, strict=True)
        return np.concatenate([self._step(*group) for group in groups])

    def _step(self, group: Sequence[Device], simulator: Simulator, tables: Sequence[Tables]) -> Values:
        seen = [Observation(*row) for row in simulator.observe().tolist()]
        masks = [tuple(row) for row in simulator.mask().tolist()]
        decided = [device.splitter.decide(one, mask) for device, one, mask in zip(group, seen, masks, strict=True)]
        local = simulator.actions - 1
        places = zip(simulator.trace.tolist(), simulator.decision.tolist(), strict=True)
        loads = [float(tables[trace].last_load[place]) for trace, place in places]
        stepped = simulator.step(np.array([local if one.action == LOCAL else one.action for one in decided]))
        if self._link is not None:
            came = counted(stepped.outcome, simulator.cut)
            for device, one, decision, counts, load in zip(group, seen, decided, came, loads, strict=True):
                told = device.tell(one, decision, counts, load=load)
                if any(decision.mask[:-1]):
                    self._publish(self._topics.telemetry(device.name), messages.encode(told))
        return stepped.reward

    def _publish(self, topic: str, payload: bytes) -> None:
        if self._link is not None:
            self._link.publish(topic, payload)
