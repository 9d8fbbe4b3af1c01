"""One optimizer per block, so that a block can change hands: moments are per block and never travel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import nn

from common.encoder import Encoder
from common.split import block_parameters

Kind = Literal["adamw", "sgd"]


class BlockOptimizers:
    """An optimizer for each block this end has taken over, made when the block is first stepped.

    Whoever takes over a block starts its moments anew, with the learning rate rising linearly over ``warmup_steps``
    steps (0 = none). The same on the device and on the trainer, so that both train a block alike. ``own``: modules
    beside the encoder that this end alone trains, by names that no block has; they are stepped like blocks.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        kind: Kind,
        weight_decay: float,
        warmup_steps: int,
        momentum: float = 0.0,
        own: Mapping[str, nn.Module] | None = None,
    ) -> None:
        if kind not in ("adamw", "sgd"):
            raise ValueError(f"unknown optimizer {kind!r}, allowed: adamw, sgd")
        self._encoder = encoder
        self._kind = kind
        self._weight_decay = weight_decay
        self._warmup_steps = warmup_steps
        self._momentum = momentum
        self._own = dict(own or {})
        # The first optimizer of a process imports for a second or more: better now than in the middle of a step.
        torch.optim.SGD([torch.zeros(1, requires_grad=True)])
        self._optimizers: dict[str, torch.optim.Optimizer] = {}
        self._steps: dict[str, int] = {}

    @property
    def taken(self) -> tuple[str, ...]:
        """The blocks this end has stepped and not released."""
        return tuple(self._optimizers)

    def step(self, names: Iterable[str], learning_rate: float, *, batches: int = 1) -> None:
        """One optimizer step on these blocks with the gradients they hold; a block not taken yet is taken over.

        ``batches``: how many are in the gradients; so many steps of the warm-up are over.
        """
        for name in names:
            optimizer = self._optimizers.get(name) or self._take(name)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * self._warmup(name, batches)
            optimizer.step()
            self._steps[name] += batches

    def zero(self, names: Iterable[str]) -> None:
        """Drop the gradients of these blocks."""
        for name in names:
            for parameter in self._parameters(name):
                parameter.grad = None

    def gradient_length(self, names: Iterable[str]) -> float:
        """Of all gradients that these blocks hold, together; NaN or infinity where an optimizer would choke on one."""
        gradients = [p.grad for name in names for p in self._parameters(name) if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def release(self, names: Iterable[str]) -> None:
        """Give these blocks up: moments and warm-up are forgotten."""
        for name in names:
            self._optimizers.pop(name, None)
            self._steps.pop(name, None)

    def state_dict(self) -> dict[str, Any]:
        """A copy of the moments and step counts of every block taken, for a checkpoint of one's own."""
        return {
            name: {"steps": self._steps[name], "optimizer": deepcopy(optimizer.state_dict())}
            for name, optimizer in self._optimizers.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`, which stays as it is; blocks that are not in it are released."""
        self.release(self.taken)
        for name, saved in state.items():
            # torch takes the moments themselves, not copies of them, and every step changes them in place.
            self._take(name).load_state_dict(deepcopy(saved["optimizer"]))
            self._steps[name] = saved["steps"]

    def _parameters(self, name: str) -> Sequence[nn.Parameter]:
        own = self._own.get(name)
        return block_parameters(self._encoder, name) if own is None else list(own.parameters())

    def _warmup(self, name: str, batches: int) -> float:
        if self._warmup_steps <= 0:
            return 1.0
        return min(1.0, (self._steps[name] + batches) / self._warmup_steps)

    def _take(self, name: str) -> torch.optim.Optimizer:
        parameters = self._parameters(name)
        optimizer: torch.optim.Optimizer
        if self._kind == "adamw":
            # fused: one call a block instead of a dozen a parameter, which counts for small blocks on small machines
            optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=self._weight_decay, fused=True)
        else:
            optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=self._momentum, weight_decay=self._weight_decay)
        self._optimizers[name] = optimizer
        self._steps[name] = 0
        return optimizer
