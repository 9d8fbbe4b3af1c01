"""What quantised changes lose and weigh: ``python -m tests.bench.change_codec [--devices 4] [--merges 4] [--json]``

Devices learn on soundscapes of their own with the device's own learner; every 25 steps their changes are averaged, and
the codecs are compared on what was recorded: the same changes through each codec with error feedback, up as the replica
does and down as the publisher does. ``merged`` is the error of the merged change of one merge, relative to it (mean
over merges), ``sum`` that of all merges together, which error feedback keeps from growing. Client blocks of `mobile`,
cut 5.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.block_optimizer import BlockOptimizers
from common.change_blob import State, pack_blocks, unpack_blocks
from common.encoder import build_encoder
from common.log_mel import LogMel
from common.mixture_memory import MixtureMemory
from common.packed_change import ChangeCodec
from common.split import WINDOW_BYTES, block_state, client_names, load_block, names
from common.views import Views
from device.edge_learner import EdgeLearner
from device.mixture_replica import MixtureReplica
from device.sources import open_source

CODECS: tuple[ChangeCodec, ...] = ("fp16", "int8", "int4", "ecsq", "ternary")
STEPS, WINDOWS, CUT = 25, 8, 5
LEARNING_RATE = 2e-3
Blocks = dict[str, State]


class Learner:
    """One device that learns by itself from its own soundscape."""

    def __init__(self, seed: int) -> None:
        self.encoder = build_encoder("mobile", seed=0)
        optimizers = BlockOptimizers(self.encoder, kind="adamw", weight_decay=1e-4, warmup_steps=20)
        mixture = MixtureReplica(MixtureMemory(), boot="0" * 16, fingerprint="", path=Path("never-written"))
        self._learner = EdgeLearner(self.encoder, optimizers, mixture, temperature=0.1, learning_rate=LEARNING_RATE)
        self._source = open_source("soundscape", seed=seed, speed="fast")
        self._views = Views(LogMel(), np.random.default_rng(seed))

    def change(self, start: Blocks) -> Blocks:
        """What so many steps from ``start`` move."""
        for name, state in start.items():
            load_block(self.encoder, name, state)
        for _ in range(STEPS):
            windows = [self._source.next_window(1.0) for _ in range(WINDOWS)]
            heard = [window for window in windows if window is not None]
            views = [self._views(window) for window in heard]
            times = [window.closed_s for window in heard]
            self._learner.step(views, segments=[window.segment for window in heard], times_s=times)
        return {name: _minus(block_state(self.encoder, name), state) for name, state in start.items()}


def record(devices: int, merges: int) -> list[list[Blocks]]:
    """The changes of every device at every merge, merged exactly."""
    learners = [Learner(seed) for seed in range(devices)]
    encoder = learners[0].encoder
    weights = {name: block_state(encoder, name) for name in names(encoder)}
    recorded = []
    for _ in range(merges):
        changes = [learner.change(weights) for learner in learners]
        merged = _mean(changes)
        weights = {name: _plus(state, merged[name]) for name, state in weights.items()}
        recorded.append([{name: change[name] for name in client_names(CUT)} for change in changes])
    return recorded


def replay(recorded: Sequence[Sequence[Blocks]], codec: ChangeCodec) -> dict[str, Any]:
    """Send what was recorded through a codec, with error feedback: up from every device, merged, and down."""
    unsent = [_zeros(change) for change in recorded[0]]
    exact, master, published = (_zeros(recorded[0][0]) for _ in range(3))
    errors, up_bytes, down_bytes = [], [], []
    for changes in recorded:
        arrived = []
        for number, change in enumerate(changes):
            unsent[number] = _each(_plus, unsent[number], change)
            blob, decoded = _through(unsent[number], codec)
            unsent[number] = _each(_minus, unsent[number], decoded)
            arrived.append(decoded)
            up_bytes.append(len(blob))
        wanted, merged = _mean(changes), _mean(arrived)
        errors.append(_length(_each(_minus, merged, wanted)) / _length(wanted))
        exact, master = _each(_plus, exact, wanted), _each(_plus, master, merged)
        blob, decoded = _through(_each(_minus, master, published), codec)
        published = _each(_plus, published, decoded)
        down_bytes.append(len(blob))
    both = sum(up_bytes) / len(up_bytes) + sum(down_bytes) / len(down_bytes)
    return {
        "merged": sum(errors) / len(errors),
        "sum": _length(_each(_minus, master, exact)) / _length(exact),
        "published": _length(_each(_minus, published, exact)) / _length(exact),
        "up_bytes": up_bytes[-1],
        "down_bytes": down_bytes[-1],
        "of_pcm16": both / (STEPS * WINDOWS * WINDOW_BYTES),
    }


def _through(change: Blocks, codec: ChangeCodec) -> tuple[bytes, Blocks]:
    blob = pack_blocks(change, codec)
    return blob, unpack_blocks(blob, change)


def _plus(a: State, b: State) -> State:
    return {key: a[key] + b[key] for key in a}


def _minus(a: State, b: State) -> State:
    return {key: a[key] - b[key] for key in a}


def _each(of: Any, a: Blocks, b: Blocks) -> Blocks:
    return {name: of(a[name], b[name]) for name in a}


def _zeros(blocks: Blocks) -> Blocks:
    return {name: {key: torch.zeros_like(value) for key, value in state.items()} for name, state in blocks.items()}


def _mean(changes: Sequence[Blocks]) -> Blocks:
    total = _zeros(changes[0])
    for change in changes:
        total = _each(_plus, total, change)
    return {name: {key: value / len(changes) for key, value in state.items()} for name, state in total.items()}


def _length(blocks: Blocks) -> float:
    return math.sqrt(sum(float(value.double().square().sum()) for state in blocks.values() for value in state.values()))


def main() -> int:
    """Record once, replay through every codec; one JSON object on the last line with ``--json``."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.change_codec", description=__doc__)
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--merges", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    recorded = record(options.devices, options.merges)
    results = {codec: replay(recorded, codec) for codec in CODECS}
    for codec, one in results.items():
        print(
            f"{codec}: error of one merge {one['merged']:.2%}, of all {one['sum']:.2%}, as published "
            f"{one['published']:.2%}; {one['up_bytes']:,} B up, {one['down_bytes']:,} B down, both "
            f"{one['of_pcm16']:.2%} of PCM16"
        )
    if options.json:
        print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
