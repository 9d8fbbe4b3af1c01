"""Learns a policy in the simulator: it imitates the oracle, then learns from rewards (`trainer.ppo`), if that helps."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from common.policy import OBSERVATION_NAMES
from common.policy_network import PolicyNetwork
from trainer.policy_file import take_over
from trainer.policy_imitation import imitate
from trainer.policy_oracle import TOGETHER, Oracle
from trainer.ppo import ActorCritic, Health, Learner, Samples, Settings, advantages
from trainer.reward import RewardWeights
from trainer.simulated_costs import Tables
from trainer.simulator import Simulator

Values = NDArray[np.float64]

DISCOUNT, DECAY = 0.98, 0.95
# Of the logits of what is handed out: the likeliest action stays, and what a device draws is not that alone. With 1 a
# fleet's learner hears of nothing else (measured: tests/bench/LOG.md, recovery).
SOFTENED = 0.1


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is learned: `rounds` of imitation, then `updates` from `steps` decisions of `batch` devices each.

    Devices begin at any cut from `min_cut` on. `unvalued`: of the updates, the first, which learn the value alone.
    """

    rounds: int = 400
    updates: int = 80
    unvalued: int = 20
    batch: int = 128
    steps: int = 64
    min_cut: int = 3


REFINING = Settings(learning_rate=3e-4, entropy=0.0)


@dataclass(frozen=True, slots=True)
class Progress:
    """After one update: its health, and the mean reward of a decision while it was collected."""

    update: int
    reward: float
    health: Health


@dataclass(frozen=True, slots=True)
class Learned:
    """`model` is the better of two; the others say what those earn a decision along the training traces, at the
    likeliest actions: `began` what imitation made or the network it began from, `refined` what rewards made of it.
    One that imitated is softened, so that devices draw other actions as well.
    """

    model: ActorCritic
    began: float
    refined: float


def pretrain(
    tables: Sequence[Tables],
    *,
    plan: Plan,
    weights: RewardWeights,
    seed: int,
    settings: Settings = REFINING,
    network: PolicyNetwork | None = None,
    report: Callable[[Progress], None] = lambda _: None,
    advance: Callable[[], None] = lambda: None,
) -> Learned:
    """Learn on `tables`: imitate the oracle, or begin with `network`, then learn from rewards by `settings`.

    `report` is called after every update, `advance` `before_updates` times before the first.
    """
    model = ActorCritic(len(OBSERVATION_NAMES), tables[0].depth + 2, seed=seed)
    if network is not None:
        take_over(model, network)
    else:
        oracle = Oracle(tables, min_cut=plan.min_cut, weights=weights, advance=advance)
        imitate(model, oracle, _fleet(tables, plan, weights, seed), rounds=plan.rounds, seed=seed, advance=advance)
    refined = _refined(copy.deepcopy(model), _fleet(tables, plan, weights, seed), plan, settings, seed, report)
    began, after = (greedy_reward(one, tables, min_cut=plan.min_cut, weights=weights) for one in (model, refined))
    better = refined if after > began else model
    if network is None:
        _soften(better)
    return Learned(better, began, after)


def _soften(model: ActorCritic) -> None:
    last = model.actor[-1]
    assert isinstance(last, torch.nn.Linear)
    with torch.no_grad():
        last.weight.mul_(SOFTENED)
        last.bias.mul_(SOFTENED)


def before_updates(tables: Sequence[Tables], plan: Plan) -> int:
    """Parts of the work of imitating an oracle, its own included."""
    return math.ceil(len(tables) / TOGETHER) + plan.rounds


def greedy_reward(
    model: ActorCritic, tables: Sequence[Tables], *, min_cut: int, weights: RewardWeights, first_cut: int = 5
) -> float:
    """The mean reward of a decision along all the traces, at the likeliest actions."""
    fleet = Simulator(
        tables, batch=len(tables), min_cut=min_cut, first_cut=max(first_cut, min_cut), weights=weights, seed=0,
        in_order=True,
    )  # fmt: skip
    total = 0.0
    for _ in range(len(tables[0])):
        with torch.inference_mode():
            log_probs = model.log_probs(torch.from_numpy(fleet.observe()).float(), torch.from_numpy(fleet.mask()))
        total += float(fleet.step(log_probs.argmax(dim=1).numpy()).reward.mean())
    return total / len(tables[0])


def _refined(
    model: ActorCritic,
    simulator: Simulator,
    plan: Plan,
    settings: Settings,
    seed: int,
    report: Callable[[Progress], None],
) -> ActorCritic:
    """What `plan.updates` make of the model; the learning rate falls linearly to nothing."""
    learner = Learner(model, settings, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for update in range(plan.updates):
        learner.pace(1.0 - update / plan.updates)
        samples, reward = collect(model, simulator, steps=plan.steps, generator=generator)
        if update < plan.unvalued:
            learner.fit_value(samples)
            report(Progress(update, reward, learner.health(samples)))
        else:
            report(Progress(update, reward, learner.update(samples)))
    return model


def _fleet(tables: Sequence[Tables], plan: Plan, weights: RewardWeights, seed: int) -> Simulator:
    return Simulator(tables, batch=plan.batch, min_cut=plan.min_cut, first_cut=None, weights=weights, seed=seed)


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
