"""What a trainer saves and where it goes on: everything that training changes, in one checkpoint."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from common.block_optimizer import BlockOptimizers
from common.encoder import Encoder
from common.mixture_memory import MixtureMemory
from trainer.averaging import AveragedEncoder
from trainer.checkpoint import Checkpoint
from trainer.merge_optimizer import MergeOptimizer
from trainer.objective import Objective


@dataclass(frozen=True, slots=True)
class State:
    """The objects that training changes; ``averaged``: only with a constant learning rate.

    ``merging``: only where devices accumulate.
    """

    encoder: Encoder
    optimizers: BlockOptimizers
    mixture: MixtureMemory
    objective: Objective
    averaged: AveragedEncoder | None
    merging: MergeOptimizer | None
    directions: torch.Generator
    rounding: torch.Generator
    negatives: torch.Generator


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come.

    ``ranks``: effective ranks of the accepted merges, for the collapse guard. ``merged``: device -> (boot, seq) of its
    latest change in these weights, so that it is not merged a second time. ``away_s``: since the checkpoint.
    """

    run: str
    weights_version: int
    steps: int
    windows: int
    ranks: tuple[float, ...]
    merged: dict[str, tuple[str, int]]
    away_s: float = 0.0


def fresh_run() -> Progress:
    """The beginning of a run with an identity of its own."""
    return Progress(secrets.token_hex(8), -1, 0, 0, (), {})


def to_checkpoint(
    state: State,
    run: str,
    fingerprint: str,
    weights_version: int,
    steps: int,
    windows: int,
    ranks: tuple[float, ...],
    merged: Mapping[str, tuple[str, int]],
) -> Checkpoint:
    """Everything of ``state`` as plain data."""
    rest: dict[str, object] = {
        "optimizers": state.optimizers.state_dict(),
        "mixture": state.mixture.state_dict(),
        "objective": state.objective.module.state_dict(),
        "directions": state.directions.get_state(),
        "rounding": state.rounding.get_state(),
        "negatives": state.negatives.get_state(),
        "ranks": list(ranks),
        "merged": dict(merged),
        "saved_s": time.time(),
    }
    if state.averaged is not None:
        rest["averaged"] = state.averaged.state_dict()
    if state.merging is not None:
        rest["merging"] = state.merging.state_dict()
    return Checkpoint(
        run=run,
        fingerprint=fingerprint,
        encoder_name=state.encoder.name,
        head=state.encoder.head_name,
        encoder=state.encoder.state_dict(),
        state=rest,
        weights_version=weights_version,
        steps=steps,
        windows=windows,
    )


def restore(saved: Checkpoint, state: State) -> Progress:
    """Put ``state`` where the checkpoint stood.

    Raises:
        ConfigError: the objective is configured otherwise than the checkpoint's.
    """
    rest: dict[str, Any] = saved.state
    state.encoder.load_state_dict(saved.encoder)
    # Before the optimizers: where another objective is configured, it says so in words.
    state.objective.module.load_state_dict(rest.get("objective", {}))  # absent: written before there were any
    state.optimizers.load_state_dict(rest["optimizers"])
    state.mixture.load_state_dict(rest["mixture"])
    state.directions.set_state(rest["directions"])
    state.rounding.set_state(rest["rounding"])
    if "negatives" in rest:  # not in checkpoints from before there were any
        state.negatives.set_state(rest["negatives"])
    if state.averaged is not None and "averaged" in rest:
        state.averaged.load_state_dict(rest["averaged"], state.encoder)
    if state.merging is not None and "merging" in rest:
        state.merging.load_state_dict(rest["merging"])
    merged = {device: (boot, seq) for device, (boot, seq) in rest["merged"].items()}
    away_s = max(0.0, time.time() - rest.get("saved_s", math.inf))  # a clock that was set back: not away
    return Progress(saved.run, saved.weights_version, saved.steps, saved.windows, tuple(rest["ranks"]), merged, away_s)
