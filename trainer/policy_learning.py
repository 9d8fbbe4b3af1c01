"""Goes on learning a policy from what a fleet reports; what it makes is published only if the simulator agrees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from common.policy import OBSERVATION_NAMES
from common.policy_network import PolicyNetwork
from trainer.policy_experience import Reported
from trainer.policy_file import network_of, take_over
from trainer.policy_pretraining import DISCOUNT, Plan, pretrain
from trainer.ppo import ActorCritic, Health, Learner, Samples, Settings, advantages
from trainer.reward import RewardWeights
from trainer.simulated_costs import Tables
from trainer.simulator import Simulator

ONLINE = Settings(learning_rate=1e-4, epochs=8, minibatch=256, clip=0.2, entropy=0.003, stop_kl=0.03)
# A policy travels without its value, and a fleet that changes is worth something else at once: before a decision is
# called better or worse than expected, the value learns what to expect. Targets are computed anew in every round.
VALUE_ROUNDS, VALUE_EPOCHS = 4, 5
# Shorter than in the simulator: a fleet draws a few hundred decisions where the simulator draws thousands, and what
# comes after a decision is mostly the link's doing.
ONLINE_DECAY = 0.8

# In a simulator that was corrected: 30 s, and as good there as learning anew (measured: tests/bench/LOG.md).
TEACHING = Plan(rounds=0, updates=50)
TEACHER = Settings(entropy=ONLINE.entropy)
WORTH_TELLING = 0.002  # reward a decision: a policy that earns no more than this on top is not handed out


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one update led to. `accepted`: the simulator does not find the new policy worse; else the old one stays."""

    decisions: int
    drawn: int
    reward: float
    health: Health
    simulated_change: float
    accepted: bool


@dataclass(frozen=True, slots=True)
class _Told:
    """A trajectory as arrays, `[T]` or `[T, F]` and `[T, A]`; `reward` in units of a value, which is a mean then."""

    observation: torch.Tensor
    mask: torch.Tensor
    action: torch.Tensor
    log_prob: torch.Tensor
    drawn: torch.Tensor
    reward: NDArray[np.float64]


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
        teaching: Plan = TEACHING,
    ) -> None:
        self._min_cut, self._first_cut, self._weights = min_cut, first_cut, weights
        self._tolerance, self._seed, self._settings = tolerance, seed, settings
        self._teaching = replace(teaching, min_cut=min_cut)
        self._begin(network, tables)

    def _begin(self, network: PolicyNetwork, tables: Sequence[Tables]) -> None:
        self._tables, self.network = tables, network
        self._model = ActorCritic(len(OBSERVATION_NAMES), network.sizes[-1], seed=self._seed)
        take_over(self._model, network)
        self._learner = Learner(self._model, self._settings, seed=self._seed)
        self._first = self.simulated(network)

    def teach(self, tables: Sequence[Tables], *, judged_by: Sequence[Tables]) -> bool:
        """Learn on in a simulator that has become another one, and be judged by it from now on; whether that helped.

        The value begins anew: what a decision is worth has changed.
        """
        learned = pretrain(
            tables, plan=self._teaching, settings=TEACHER, weights=self._weights, seed=self._seed, network=self.network
        )
        helped = learned.refined > learned.began + WORTH_TELLING
        self._begin(network_of(learned.model) if helped else self.network, judged_by)
        return helped

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
        told = [_told(trajectory) for trajectory in trajectories]
        before = self._learner.state()
        for _ in range(VALUE_ROUNDS):
            known = self._samples(told)
            for _ in range(VALUE_EPOCHS):
                self._learner.fit_value(known)
        samples = self._samples(told)
        health = self._learner.update(samples)
        candidate = network_of(self._model)
        change = self.simulated(candidate) - self._first
        accepted = change >= -self._tolerance
        if accepted:
            self.network = candidate
        else:  # the value and the optimizers' momentum learned from the same decisions
            self._learner.restore(before)
        rewards = [one.reward for trajectory in trajectories for one in trajectory]
        drawn = int(samples.learn.sum())
        return Lesson(len(rewards), drawn, float(np.mean(rewards)), health, change, accepted)

    def _samples(self, told: Sequence[_Told]) -> Samples:
        """Trajectories as samples; the last decision of each has no successor and only says what came after."""
        parts = [self._of(one) for one in told]
        return Samples(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})

    def _of(self, told: _Told) -> dict[str, torch.Tensor]:
        with torch.inference_mode():
            value = self._model.value(told.observation).double().numpy()
        done = np.zeros((len(value) - 1, 1), dtype=bool)
        done[-1] = True
        before, after = value[:-1, None], value[1:, None]
        advantage = advantages(told.reward[:-1, None], before, after, done, discount=DISCOUNT, decay=ONLINE_DECAY)[:, 0]
        return {
            "observation": told.observation[:-1],
            "mask": told.mask[:-1],
            "action": told.action[:-1],
            "log_prob": told.log_prob[:-1],
            "advantage": torch.from_numpy(advantage).float(),
            "returns": torch.from_numpy(advantage + before[:, 0]).float(),
            "value": torch.from_numpy(before[:, 0]).float(),
            "learn": told.drawn[:-1],
        }


def _told(trajectory: Sequence[Reported]) -> _Told:
    return _Told(
        observation=torch.tensor([one.observation for one in trajectory], dtype=torch.float32),
        mask=torch.tensor([one.mask for one in trajectory]),
        action=torch.tensor([one.action for one in trajectory]),
        log_prob=torch.tensor([one.log_prob for one in trajectory], dtype=torch.float32),
        drawn=torch.tensor([one.drawn for one in trajectory]),
        reward=(1.0 - DISCOUNT) * np.array([one.reward for one in trajectory]),
    )
