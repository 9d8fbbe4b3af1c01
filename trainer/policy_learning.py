"""Goes on learning a policy from what a fleet reports; what it makes is published only if the simulator agrees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from common.policy import OBSERVATION_NAMES
from common.policy_network import PolicyNetwork
from trainer.policy_experience import Reported
from trainer.policy_file import network_of, take_over
from trainer.policy_pretraining import DECAY, DISCOUNT
from trainer.ppo import ActorCritic, Health, Learner, Samples, Settings, advantages
from trainer.reward import RewardWeights
from trainer.simulated_costs import Tables
from trainer.simulator import Simulator

ONLINE = Settings(learning_rate=1e-3, epochs=8, minibatch=256, clip=0.2, entropy=0.003, stop_kl=0.03)


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one update led to. `accepted`: the simulator does not find the new policy worse; else the old one stays."""

    decisions: int
    drawn: int
    reward: float
    health: Health
    simulated_change: float
    accepted: bool


class FleetLearner:
    """A policy that learns from trajectories of devices.

    Args:
        network: where it begins.
        tables: what the simulator judges by; `tolerance`: reward a decision that a new policy may lose there against
            the one it began with, since a fleet may be unlike the simulator.
    """

    def __init__(
        self,
        network: PolicyNetwork,
        tables: Sequence[Tables],
        *,
        min_cut: int,
        first_cut: int,
        weights: RewardWeights,
        tolerance: float,
        seed: int,
        settings: Settings = ONLINE,
    ) -> None:
        self._tables, self._min_cut, self._first_cut, self._weights = tables, min_cut, first_cut, weights
        self._tolerance = tolerance
        self.network = network
        self._model = ActorCritic(len(OBSERVATION_NAMES), network.sizes[-1], seed=seed)
        take_over(self._model, network)
        self._learner = Learner(self._model, settings, seed=seed)
        self._first = self.simulated(network)

    def simulated(self, network: PolicyNetwork) -> float:
        """Mean reward of a decision of this policy in the simulator, along every trace once, always the same ones."""
        fleet = Simulator(
            self._tables,
            batch=len(self._tables),
            min_cut=self._min_cut,
            first_cut=self._first_cut,
            weights=self._weights,
            seed=0,
            in_order=True,
        )
        total = 0.0
        for _ in range(len(self._tables[0])):
            pairs = zip(fleet.observe().tolist(), fleet.mask().tolist(), strict=True)
            chosen = [int(network.probabilities(seen, mask).argmax()) for seen, mask in pairs]
            total += float(fleet.step(np.array(chosen)).reward.mean())
        return total / len(self._tables[0])

    def learn(self, trajectories: Sequence[Sequence[Reported]]) -> Lesson:
        """One update; ValueError without trajectories."""
        if not trajectories:
            raise ValueError("nothing to learn from")
        samples = self.samples(trajectories)
        health = self._learner.update(samples)
        candidate = network_of(self._model)
        change = self.simulated(candidate) - self._first
        accepted = change >= -self._tolerance
        if accepted:
            self.network = candidate
        else:
            take_over(self._model, self.network)
        rewards = [one.reward for trajectory in trajectories for one in trajectory]
        drawn = int(samples.learn.sum())
        return Lesson(len(rewards), drawn, float(np.mean(rewards)), health, change, accepted)

    def samples(self, trajectories: Sequence[Sequence[Reported]]) -> Samples:
        """Trajectories as samples; the last decision of each has no successor and only says what came after."""
        parts = [self._of(trajectory) for trajectory in trajectories]
        return Samples(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})

    def _of(self, trajectory: Sequence[Reported]) -> dict[str, torch.Tensor]:
        observation = torch.tensor([one.observation for one in trajectory], dtype=torch.float32)
        with torch.inference_mode():
            value = self._model.value(observation).double().numpy()
        worth: NDArray[np.float64] = np.array([one.reward for one in trajectory])[:-1, None]
        done = np.zeros(worth.shape, dtype=bool)
        done[-1] = True
        before, after = value[:-1, None], value[1:, None]
        advantage = advantages(worth, before, after, done, discount=DISCOUNT, decay=DECAY)[:, 0]
        kept = trajectory[:-1]
        return {
            "observation": observation[:-1],
            "mask": torch.tensor([one.mask for one in kept]),
            "action": torch.tensor([one.action for one in kept]),
            "log_prob": torch.tensor([one.log_prob for one in kept], dtype=torch.float32),
            "advantage": torch.from_numpy(advantage).float(),
            "returns": torch.from_numpy(advantage + before[:, 0]).float(),
            "value": torch.from_numpy(before[:, 0]).float(),
            "learn": torch.tensor([one.drawn for one in kept]),
        }
