"""Learns a policy in the simulator: rollouts of many devices at once, and proximal policy optimisation on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from common.policy import OBSERVATION_NAMES
from common.policy_network import PolicyNetwork
from trainer.policy_file import take_over
from trainer.ppo import ActorCritic, Health, Learner, Samples, Settings, advantages
from trainer.reward import RewardWeights
from trainer.simulated_costs import MERGE_BATCHES, Tables
from trainer.simulator import Simulator

Values = NDArray[np.float64]

DISCOUNT, DECAY = 0.98, 0.95


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is learned: `updates` of `batch` devices with `steps` decisions each, which begin at any cut.

    A move deeper fetches weights: it is dear at once and pays over many decisions, and what a policy that tries things
    out has fetched is out of date with the next version. So one that meets versions at their true pace from the start
    gives up moving before it has seen what it is worth (measured: tests/bench/LOG.md). For the first `easy` of its
    updates they come as seldom as `easy_merges` says.
    """

    updates: int = 400
    batch: int = 128
    steps: int = 64
    min_cut: int = 3
    easy: float = 0.6
    easy_merges: int = 48

    def merge_every(self, update: int) -> int:
        """Decisions between two versions while this update is collected."""
        return self.easy_merges if update < self.easy * self.updates else MERGE_BATCHES


@dataclass(frozen=True, slots=True)
class Progress:
    """After one update: its health, and the mean reward of a decision while it was collected."""

    update: int
    reward: float
    health: Health


def pretrain(
    tables: Sequence[Tables],
    *,
    plan: Plan,
    settings: Settings,
    weights: RewardWeights,
    seed: int,
    network: PolicyNetwork | None = None,
    report: Callable[[Progress], None] = lambda _: None,
) -> ActorCritic:
    """An actor-critic that has learned on `tables`, from `network` on if there is one.

    The learning rate falls linearly to nothing.
    """
    simulator = Simulator(tables, batch=plan.batch, min_cut=plan.min_cut, first_cut=None, weights=weights, seed=seed)
    model = ActorCritic(len(OBSERVATION_NAMES), simulator.actions, seed=seed)
    if network is not None:
        take_over(model, network)
    learner = Learner(model, settings, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for update in range(plan.updates):
        simulator.merge_every = plan.merge_every(update)
        learner.pace(1.0 - update / plan.updates)
        samples, reward = collect(model, simulator, steps=plan.steps, generator=generator)
        report(Progress(update, reward, learner.update(samples)))
    return model


def collect(
    model: ActorCritic, simulator: Simulator, *, steps: int, generator: torch.Generator
) -> tuple[Samples, float]:
    """`steps` decisions of every simulated device, drawn from the policy; and their mean reward."""
    kept: dict[str, list[torch.Tensor]] = {name: [] for name in ("observation", "mask", "action", "log_prob", "value")}
    rewards, dones = [], []
    for _ in range(steps):
        observation = torch.from_numpy(simulator.observe()).float()
        mask = torch.from_numpy(simulator.mask())
        with torch.inference_mode():
            log_probs, value = model.log_probs(observation, mask), model.value(observation)
            action = torch.multinomial(log_probs.exp(), 1, generator=generator)[:, 0]
        stepped = simulator.step(action.numpy())
        log_prob = log_probs.gather(1, action[:, None])[:, 0]
        for name, made in zip(kept, (observation, mask, action, log_prob, value), strict=True):
            kept[name].append(made)
        rewards.append(stepped.reward)
        dones.append(stepped.done)
    with torch.inference_mode():
        last = model.value(torch.from_numpy(simulator.observe()).float())
    reward, done = np.stack(rewards), np.stack(dones)
    values = torch.stack(kept["value"]).double().numpy()
    after = np.concatenate([values[1:], last.double().numpy()[None]])
    # A trace that ends is cut off: what would have followed is worth about what the last state was.
    after = np.where(done, values, after)
    advantage = advantages(reward, values, after, done, discount=DISCOUNT, decay=DECAY)
    flat = {name: torch.cat(made) for name, made in kept.items()}
    samples = Samples(
        **flat,
        advantage=torch.from_numpy(advantage).float().flatten(),
        returns=torch.from_numpy(advantage + values).float().flatten(),
        learn=torch.ones(reward.size, dtype=torch.bool),
    )
    return samples, float(reward.mean())
