"""Proximal policy optimisation (Schulman et al. 2017) with masked actions, for arrays of environments and for samples.

The same update learns from the simulator and from what a fleet reports: a sample is an observation, a mask, the action
taken with its log-probability, an advantage and a return. Which of them may move the policy is said by `learn`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Values = NDArray[np.float64]

HIDDEN = 64
GRADIENT_NORM = 0.5
VALUE_WEIGHT = 0.5
VALUE_RATE = 3e-3  # of learning the value alone, which no policy has to follow slowly
MOST_LOG_RATIO = 20.0  # far beyond every clipping range, and its exponential is finite: a sample may say anything


class ActorCritic(nn.Module):
    """Two small networks beside each other: logits of the actions, and the value."""

    def __init__(self, inputs: int, actions: int, *, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.actor = _mlp(inputs, actions, gain=0.01)
            self.critic = _mlp(inputs, 1, gain=1.0)

    def log_probs(self, observation: Tensor, mask: Tensor) -> Tensor:
        """Log-probabilities [B, A] of the allowed actions; -inf for the others."""
        logits: Tensor = self.actor(observation)
        return torch.log_softmax(logits.masked_fill(~mask, -torch.inf), dim=1)

    def value(self, observation: Tensor) -> Tensor:
        """The value [B] of what is observed."""
        made: Tensor = self.critic(observation)
        return made[:, 0]


@dataclass(frozen=True, slots=True)
class Samples:
    """Decisions to learn from, `[N]` or `[N, F]` and `[N, A]`; `learn`: where the action was drawn from a policy."""

    observation: Tensor
    mask: Tensor
    action: Tensor
    log_prob: Tensor
    advantage: Tensor
    returns: Tensor
    value: Tensor
    learn: Tensor


@dataclass(frozen=True, slots=True)
class Settings:
    """How one update goes about it. `entropy`: weight of the bonus; `stop_kl`: no further epoch above it."""

    learning_rate: float = 1.5e-3
    epochs: int = 4
    minibatch: int = 512
    clip: float = 0.2
    entropy: float = 0.03
    stop_kl: float = 0.03


@dataclass(frozen=True, slots=True)
class Health:
    """Whether an update can be trusted.

    Attributes:
        approx_kl: mean of `ratio - 1 - log ratio`, from the old policy to the new.
        clip_fraction: share of samples whose ratio left the clipping range.
        explained_variance: of the returns, by the value before the update; 1 is all, 0 none.
        entropy: of the policy in nats, mean over samples.
    """

    approx_kl: float
    clip_fraction: float
    explained_variance: float
    entropy: float


def advantages(
    reward: Values, value: Values, after: Values, done: NDArray[np.bool_], *, discount: float, decay: float
) -> Values:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) over `[T, B]`.

    `after` [T, B]: the value of the state that follows; `done`: a trajectory is cut off after this decision.
    """
    estimate = np.zeros_like(reward)
    running = np.zeros(reward.shape[1])
    for step in reversed(range(len(reward))):
        error = reward[step] + discount * after[step] - value[step]
        running = error + discount * decay * np.where(done[step], 0.0, running)
        estimate[step] = running
    return estimate


class Learner:
    """An actor-critic with its optimizer."""

    def __init__(self, model: ActorCritic, settings: Settings, *, seed: int) -> None:
        self.model = model
        self.settings = settings
        self._entropy_weight = settings.entropy
        self._optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, eps=1e-5)
        self._value_optimizer = torch.optim.Adam(model.critic.parameters(), lr=VALUE_RATE, eps=1e-5)
        self._generator = torch.Generator().manual_seed(seed)

    def state(self) -> dict[str, Any]:
        """A copy of all that learning changes, for `restore`; not of the order in which samples are drawn."""
        return copy.deepcopy(
            {
                "model": self.model.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "value_optimizer": self._value_optimizer.state_dict(),
            }
        )

    def restore(self, state: dict[str, Any]) -> None:
        """Stand where `state` was taken."""
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._value_optimizer.load_state_dict(state["value_optimizer"])

    def pace(self, share: float) -> None:
        """Set learning rate and entropy bonus to this share of those it was made with."""
        self._entropy_weight = share * self.settings.entropy
        for group in self._optimizer.param_groups:
            group["lr"] = share * self.settings.learning_rate

    def fit_value(self, samples: Samples) -> None:
        """One epoch of the value alone."""
        order = torch.randperm(len(samples.action), generator=self._generator)
        for chosen in order.split(self.settings.minibatch):
            loss = (self.model.value(samples.observation[chosen]) - samples.returns[chosen]).square().mean()
            self._step(loss, self._value_optimizer)

    def update(self, samples: Samples) -> Health:
        """Learn from the samples. The value learns from all of them, the policy from those with `learn`."""
        count = len(samples.action)
        learned = samples.advantage[samples.learn]
        scale = learned.std(correction=0) + 1e-8 if len(learned) > 1 else torch.tensor(1.0)
        mean = learned.mean() if len(learned) else torch.tensor(0.0)
        normalised = (samples.advantage - mean) / scale
        for _ in range(self.settings.epochs):
            order = torch.randperm(count, generator=self._generator)
            kls = [self._descend(samples, normalised, chosen) for chosen in order.split(self.settings.minibatch)]
            if np.mean(kls) > self.settings.stop_kl:
                break
        return self.health(samples)

    def _descend(self, samples: Samples, advantage: Tensor, chosen: Tensor) -> float:
        learn = samples.learn[chosen].float()
        total = learn.sum().clamp(min=1.0)
        log_probs = self.model.log_probs(samples.observation[chosen], samples.mask[chosen])
        log_ratio = _log_ratio(log_probs, samples.action[chosen], samples.log_prob[chosen])
        ratio = torch.where(samples.learn[chosen], log_ratio, 0.0).exp()
        clipped = ratio.clamp(1.0 - self.settings.clip, 1.0 + self.settings.clip)
        gain = torch.minimum(ratio * advantage[chosen], clipped * advantage[chosen])
        policy_loss = -(gain * learn).sum() / total
        entropy = (_entropy(log_probs) * learn).sum() / total
        value_loss = (self.model.value(samples.observation[chosen]) - samples.returns[chosen]).square().mean()
        loss = policy_loss + VALUE_WEIGHT * value_loss - self._entropy_weight * entropy
        self._step(loss, self._optimizer)
        return float((((ratio - 1.0) - ratio.log()) * learn).sum().detach() / total)

    def _step(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), GRADIENT_NORM)
        optimizer.step()

    def health(self, samples: Samples) -> Health:
        """How far the policy has moved from the one that drew the samples, and how well they were foreseen."""
        with torch.no_grad():
            log_probs = self.model.log_probs(samples.observation, samples.mask)
            log_ratio = _log_ratio(log_probs, samples.action, samples.log_prob)[samples.learn]
            ratio = log_ratio.exp()
            outside = (ratio - 1.0).abs() > self.settings.clip
            spread = samples.returns.var(correction=0)
            unexplained = (samples.returns - samples.value).var(correction=0)
            return Health(
                approx_kl=_mean((ratio - 1.0) - log_ratio),
                clip_fraction=_mean(outside.float()),
                explained_variance=float(1.0 - unexplained / spread) if spread > 0 else 0.0,
                entropy=_mean(_entropy(log_probs)[samples.learn]),
            )


def _mlp(inputs: int, outputs: int, *, gain: float) -> nn.Sequential:
    layers = [nn.Linear(inputs, HIDDEN), nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, outputs)]
    for layer, scale in zip(layers, (2.0**0.5, 2.0**0.5, gain), strict=True):
        nn.init.orthogonal_(layer.weight, scale)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


def _log_ratio(log_probs: Tensor, action: Tensor, before: Tensor) -> Tensor:
    taken = log_probs.gather(1, action[:, None])[:, 0]
    return (taken - before).clamp(-MOST_LOG_RATIO, MOST_LOG_RATIO)


def _entropy(log_probs: Tensor) -> Tensor:
    # 0 * -inf is nan: what is not allowed adds nothing.
    return -(log_probs.exp() * log_probs.clamp(min=-1e9)).sum(dim=1)


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else 0.0
