"""What a policy has to beat in the simulator: chance, one cut for ever, the rules, a planner without memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from common.actions import LOCAL
from common.policy import OBSERVATION_NAMES, ROUND_TRIP_MS, UPLINK_MBPS, Observation
from device.splitter import HeuristicSplitter
from trainer.link_traces import STEP_S
from trainer.reward import RewardWeights, reward, utility
from trainer.simulated_costs import SERVER_S, Board, CutCosts
from trainer.simulated_device import Counts
from trainer.simulator import Simulator

Values = NDArray[np.float64]
PLACE = {name: number for number, name in enumerate(OBSERVATION_NAMES)}


def uniform(rng: np.random.Generator) -> Callable[[Simulator], Counts]:
    """Any allowed action."""

    def choose(fleet: Simulator) -> Counts:
        mask = fleet.mask()
        chosen: Counts = (rng.random(mask.shape) * mask).argmax(axis=1)
        return chosen

    return choose


def constant(cut: int) -> Callable[[Simulator], Counts]:
    """One cut; the present one until it may be taken, and a local step where there is no link."""

    def choose(fleet: Simulator) -> Counts:
        mask = fleet.mask()
        present = np.where(mask[np.arange(len(mask)), fleet.cut], fleet.cut, fleet.actions - 1)
        return np.where(mask[:, cut], cut, present)

    return choose


class Heuristic:
    """The rules of `device.splitter.HeuristicSplitter`, themselves: one for each device, for they have a memory."""

    def __init__(self, devices: int, *, cut: int) -> None:
        self._splitters = [HeuristicSplitter(cut=cut) for _ in range(devices)]

    def __call__(self, fleet: Simulator) -> Counts:
        chosen = []
        for splitter, seen, mask in zip(self._splitters, fleet.observe(), fleet.mask(), strict=True):
            decision = splitter.decide(Observation(*seen.tolist()), tuple(mask.tolist()))
            chosen.append(fleet.actions - 1 if decision.action == LOCAL else decision.action)
        return np.array(chosen)


class Planner:
    """Takes what would be best if what is measured now were true for ever and moving were free.

    It knows the board, the encoder and the reward exactly; of its surroundings what the device observes. Where rate or
    round trip are not known it takes the observation's stated value; downwards a link is as quick as upwards.
    """

    def __init__(self, boards: Sequence[Board], costs: CutCosts, *, weights: RewardWeights) -> None:
        self._boards, self._costs, self._weights = boards, costs, weights

    def __call__(self, fleet: Simulator) -> Counts:
        pairs = zip(self._boards, fleet.observe(), fleet.cut, fleet.mask(), strict=True)
        return np.array(
            [
                int(np.where(mask, self._worth(board, seen, int(cut)), -np.inf).argmax())
                for board, seen, cut, mask in pairs
            ]
        )

    def _worth(self, board: Board, seen: Values, cut: int) -> Values:
        """What every action is worth, `[L + 2]`; `cut` says how much of the load is our own."""
        costs, power = self._costs, board.power
        uplink_mbps = _back(seen[PLACE["uplink"]], *UPLINK_MBPS)
        round_trip_s = 1e-3 * _back(seen[PLACE["round_trip"]], *ROUND_TRIP_MS)
        train_s = 1e-3 * board.forward_ms * np.append(costs.train_ms, costs.train_ms[-1])
        embedded_s = 1e-3 * board.forward_ms * np.append(costs.forward_ms, costs.train_ms[-1])
        load = float(np.clip(seen[PLACE["cpu"]] - train_s[cut] / STEP_S / board.cores, 0.0, 0.95))
        sent = np.append(np.ones(costs.depth + 1), 0.0)
        answered = sent * (np.arange(costs.depth + 2) < costs.depth)
        answer_s = round_trip_s + SERVER_S + np.append(costs.up_bytes + costs.answer_bytes, 0.0) * 8e-6 / uplink_mbps
        up = np.append(costs.up_bytes + costs.exchange_bytes / 2, 0.0)
        down = np.append(costs.down_bytes + costs.exchange_bytes / 2, 0.0)
        radio = power.radio_joules_per_megabyte_up * up + power.radio_joules_per_megabyte_down * down
        delay_s = embedded_s / (1.0 - load) + answered * answer_s
        overload = np.maximum(train_s / (1.0 - load) / STEP_S - 1.0, 0.0)  # what cannot be kept up with grows late
        w = self._weights
        gain = utility(
            sent,
            1.0 - sent,
            np.full(sent.shape, seen[PLACE["uncertainty"]]),
            local_utility=w.local_utility,
            uncertainty_weight=w.uncertainty_weight,
        )
        return reward(
            utility=gain,
            latency_ms=1e3 * (delay_s + np.minimum(overload, 1.0) * 1e-3 * w.most_late * w.latency_budget_ms),
            energy_joules=power.compute_watts * train_s + 1e-6 * radio,
            bytes_moved=up + down,
            moved=np.zeros(sent.shape),
            w=w,
        )


def _back(scaled: float, low: float, high: float) -> float:
    """What a logarithmic scale was made from."""
    return float(low * (high / low) ** scaled)
