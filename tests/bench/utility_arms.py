"""The two things that can be done with captured windows, from the same weights: sending them, or learning alone.

Both arms take one optimizer step of each device for eight windows, at the same learning rate, and end with one encoder:
the mean of what the devices made of a block that they trained, the trainer's own where they did not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from common.block_optimizer import BlockOptimizers
from common.contrastive import info_nce, not_negatives
from common.encoder import Encoder
from common.log_mel import LogMel
from common.mixture_memory import MixtureMemory
from common.split import client_names, names
from common.views import views_of
from device.client_step import ClientStep
from device.edge_learner import NEIGHBOUR_S, EdgeLearner
from device.mixture_replica import MixtureReplica
from device.sources import open_source
from tests.client_steps import learn
from trainer.batcher import Part
from trainer.hybrid_loss import HybridLoss
from trainer.objective import Hybrid
from trainer.server_step import ServerStep
from trainer.temporal_buffer import TemporalBuffer

TEMPERATURE = 0.1
SW_WEIGHT = 5.0
LAPLACIAN_WEIGHT = 0.01
SW_PROJECTIONS = 50
FALSE_NEGATIVE_S = 6.0
STEP_WINDOWS = 8


@dataclass(frozen=True, slots=True)
class Heard:
    """A captured window: its views [2, 1, 64, 96] and where it comes from."""

    device: str
    segment: int
    time_s: float
    views: Tensor


Batch = Mapping[str, Sequence[Heard]]
"""Of each device the windows of one step."""


def capture(data: Path, list_file: Path, device: str, *, windows: int, seed: int) -> list[Heard]:
    """What a device of the default configuration hears of these recordings, contiguous windows of shuffled clips."""
    source = open_source("folder", path=data, list_file=list_file, seed=seed)
    views = views_of("hybrid", LogMel(), np.random.default_rng(seed))
    heard: list[Heard] = []
    while len(heard) < windows and (window := source.next_window(0.0)) is not None:
        heard.append(Heard(device, window.segment, window.closed_s, views(window)))
    source.close()
    return heard


def sent(start: Encoder, batches: Sequence[Batch], *, cut: int, learning_rate: float, seed: int) -> Encoder:
    """Every batch goes through the split step: client segments on the devices, the rest and the loss on the trainer."""
    server = deepcopy(start)
    loss = HybridLoss(
        temperature=TEMPERATURE, sw_weight=SW_WEIGHT, sw_projections=SW_PROJECTIONS, laplacian_weight=LAPLACIAN_WEIGHT
    )
    objective = Hybrid(
        loss,
        TemporalBuffer(),
        false_negative_s=FALSE_NEGATIVE_S,
        directions=torch.Generator().manual_seed(seed),
    )
    step = ServerStep(server, _optimizers(server), objective, compute=torch.device("cpu"))
    encoders = {device: deepcopy(start) for device in batches[0]}
    clients = {device: ClientStep(encoder, _optimizers(encoder).step) for device, encoder in encoders.items()}
    for number, batch in enumerate(batches):
        parts = [
            _part(one, clients[device].forward(one.views, part=place, cut=cut), step=number, place=place, cut=cut)
            for device, windows in batch.items()
            for place, one in enumerate(windows)
        ]
        gradients = step.run(parts, learning_rate=learning_rate).gradients
        for device, client in clients.items():
            own = {part.part: one for part, one in zip(parts, gradients, strict=True) if part.device == device}
            learn(client, own, learning_rate=learning_rate)
    return _merged(server, list(encoders.values()), client_names(cut))


def learned_alone(
    start: Encoder, batches: Sequence[Batch], mixture: MixtureMemory, *, learning_rate: float, seed: int
) -> Encoder:
    """Every device takes local steps on its own windows, as `EdgeLearner` does by default."""
    encoders = {device: deepcopy(start) for device in batches[0]}
    with TemporaryDirectory() as folder:
        for device, encoder in encoders.items():
            path = Path(folder) / device
            replica = MixtureReplica(deepcopy(mixture), boot="0" * 16, fingerprint="", path=path)
            learner = EdgeLearner(
                encoder,
                _optimizers(encoder),
                replica,
                temperature=TEMPERATURE,
                learning_rate=learning_rate,
                seed=seed,
            )
            for batch in batches:
                own = batch[device]
                learner.step(
                    [one.views for one in own],
                    segments=[one.segment for one in own],
                    times_s=[one.time_s for one in own],
                )
    return _merged(deepcopy(start), list(encoders.values()), names(start))


@torch.no_grad()
def held_out_loss(encoder: Encoder, batches: Sequence[Batch]) -> float:
    """Mean contrastive loss (nats) of batches of windows that no device trains on."""
    losses = []
    for batch in batches:
        windows = [one for own in batch.values() for one in own]
        losses.append(float(contrast(encoder, windows, within_s=FALSE_NEGATIVE_S).mean()))
    return float(np.mean(losses))


def contrast(encoder: Encoder, windows: Sequence[Heard], *, within_s: float = NEIGHBOUR_S) -> Tensor:
    """InfoNCE of each of N windows among each other: ``[N]``."""
    return contrast_of(encoder, embeddings(encoder, windows), windows, within_s=within_s)


def embeddings(encoder: Encoder, windows: Sequence[Heard]) -> Tensor:
    """Of both views of N windows, first every view A: ``[2 N, D]``."""
    found: Tensor = encoder(torch.stack([one.views for one in windows], dim=1).flatten(0, 1))
    return found


def contrast_of(encoder: Encoder, both: Tensor, windows: Sequence[Heard], *, within_s: float = NEIGHBOUR_S) -> Tensor:
    """`contrast` from what `embeddings` gave."""
    z_a, z_b = encoder.project(both).chunk(2)
    excluded = not_negatives(
        [one.device for one in windows],
        [one.segment for one in windows],
        [one.time_s for one in windows],
        [""] * len(windows),
        within_s=within_s,
    )
    return info_nce(z_a, z_b, temperature=TEMPERATURE, excluded=excluded).per_window


def _part(one: Heard, activations: Tensor, *, step: int, place: int, cut: int) -> Part:
    return Part(
        device=one.device,
        boot="",
        step=step,
        part=place,
        last=place == STEP_WINDOWS - 1,
        cut=cut,
        weights_version=0,
        deadline_s=0.0,
        segment=one.segment,
        window_index=0,
        time_s=one.time_s,
        room="",
        activations=activations,
    )


def _optimizers(encoder: Encoder) -> BlockOptimizers:
    # Without a warm-up: four steps of one would be next to nothing.
    return BlockOptimizers(encoder, kind="adamw", weight_decay=1e-4, warmup_steps=0)


@torch.no_grad()
def _merged(into: Encoder, encoders: Sequence[Encoder], blocks: Sequence[str]) -> Encoder:
    """``into`` with the mean of the encoders' weights in these blocks."""
    own = into.state_dict()
    prefixes = tuple(f"{name}." if name in ("stem", "head") else f"blocks.{name}." for name in blocks)
    for key, value in own.items():
        if key.startswith(prefixes):
            value.copy_(torch.stack([encoder.state_dict()[key] for encoder in encoders]).mean(dim=0))
    return into
