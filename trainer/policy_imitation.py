"""Learns from the oracle what every action loses, at the states that the policy itself comes to.

AggreVaTe (Ross and Bagnell 2014, arXiv 1406.5979): the network is fitted to the expert's cost to go, on states drawn by
the learner's own decisions; what it has fitted is, as logits, the policy. The expert knows the trace and the network
only what a device measures, so it learns what an action loses in the mean of all that may follow. Policy gradients from
scratch come to rest at one cut: what a move fetches is out of date before it has paid (measured: tests/bench/LOG.md).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from trainer.policy_oracle import Oracle
from trainer.ppo import ActorCritic
from trainer.simulator import Simulator

TEMPERATURE = 0.02  # of the logits, in reward: what loses this much more is taken e times as seldom
# A loss beyond it counts as it; a move back too soon loses up to 5, and seldom: at 0.15 its mean was taken for less.
WORST = 5.0
STRAYED = 0.1  # share of decisions drawn from all that is allowed
DECISIONS = 32  # of every device in a round
KEPT = 40  # rounds that are fitted
FITTED, MINIBATCH = 24_576, 512  # states fitted after every round
RATE, LAST_RATE = 3e-3, 0.02  # of learning; at the end this share of it

Fitted = tuple[Tensor, Tensor, Tensor]


def imitate(
    model: ActorCritic,
    oracle: Oracle,
    simulator: Simulator,
    *,
    rounds: int,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Fit the actor; `simulator` must be made of the traces that the oracle knows."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.actor.parameters(), lr=RATE, eps=1e-5)
    kept: deque[Fitted] = deque(maxlen=KEPT * DECISIONS)
    for number in range(rounds):
        optimizer.param_groups[0]["lr"] = RATE * max(1.0 - number / rounds, LAST_RATE)
        for _ in range(DECISIONS):
            kept.append(_decide(model, oracle, simulator, generator))
        seen, mask, losses = (torch.cat(made) for made in zip(*kept, strict=True))
        chosen = torch.randperm(len(seen), generator=generator)[:FITTED]
        for some in chosen.split(MINIBATCH):
            _fit(model, optimizer, seen[some], mask[some], losses[some])
        advance()


def _decide(model: ActorCritic, oracle: Oracle, simulator: Simulator, generator: torch.Generator) -> Fitted:
    """One decision of every device by the policy, now and then by chance: observation, mask, losses."""
    seen, mask = torch.from_numpy(simulator.observe()).float(), torch.from_numpy(simulator.mask())
    losses = torch.from_numpy(np.minimum(oracle.losses(simulator), WORST)).float()
    with torch.inference_mode():
        likely = model.log_probs(seen, mask).exp()
    any_allowed = mask / mask.sum(dim=1, keepdim=True)
    action = torch.multinomial((1.0 - STRAYED) * likely + STRAYED * any_allowed, 1, generator=generator)[:, 0]
    simulator.step(action.numpy())
    return seen, mask, losses


def _fit(model: ActorCritic, optimizer: torch.optim.Optimizer, seen: Tensor, mask: Tensor, losses: Tensor) -> None:
    """One step on the squared error in units of `TEMPERATURE`; only differences of allowed actions mean anything."""
    allowed = mask.float()
    error = (model.actor(seen) + losses / TEMPERATURE) * allowed
    error = (error - error.sum(dim=1, keepdim=True) / allowed.sum(dim=1, keepdim=True)) * allowed
    optimizer.zero_grad(set_to_none=True)
    error.square().sum(dim=1).mean().backward()
    optimizer.step()
