"""A trainer reduced to what a device sees of it: versions of the weights, in chunks and with a manifest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

from common.change_blob import State
from common.chunks import split
from common.codec import digest
from common.encoder import Encoder, build_encoder
from common.messages import Manifest, ManifestEntry, WeightsChunk
from common.mixture_memory import MIXTURE, MixtureMemory
from common.split import block_state, load_block, names
from common.state_blob import WeightsDtype, pack_state, unpack_state

FINGERPRINT = "f" * 64


@dataclass
class Published:
    """One version after another of the weights of one run."""

    run: str = "run-1"
    dtype: WeightsDtype = "fp32"
    version: int = 3
    encoder: Encoder = field(default_factory=lambda: build_encoder("mobile", seed=1))
    merged: dict[str, tuple[str, int]] = field(default_factory=dict)
    mixture: MixtureMemory | None = None

    def next(self, change: Mapping[str, State], merged: Mapping[str, tuple[str, int]] | None = None) -> None:
        """Make the next version by adding ``change``."""
        for name, state in change.items():
            now = block_state(self.encoder, name)
            load_block(self.encoder, name, {key: now[key] + state[key] for key in now})
        self.version += 1
        self.merged |= merged or {}

    def blob(self, name: str) -> bytes:
        if name == MIXTURE:
            assert self.mixture is not None
            return pack_state(self.mixture.state_dict(), "fp16")
        return pack_state(block_state(self.encoder, name), self.dtype)

    def state(self, name: str) -> State:
        """What a device makes of the published bytes."""
        shapes = {key: value.shape for key, value in block_state(self.encoder, name).items()}
        return unpack_state(self.blob(name), shapes)

    def chunks(self, blocks: Iterable[str] | None = None) -> list[WeightsChunk]:
        made = []
        for name in names(self.encoder) if blocks is None else blocks:
            pieces = split(self.blob(name))
            made += [WeightsChunk(self.run, self.version, name, i, len(pieces), data) for i, data in enumerate(pieces)]
        return made

    def manifest(self, fingerprint: str = FINGERPRINT) -> Manifest:
        mixture = () if self.mixture is None else (MIXTURE,)
        blobs = {name: self.blob(name) for name in (*names(self.encoder), *mixture)}
        entries = {name: ManifestEntry(digest(blob), len(split(blob)), len(blob)) for name, blob in blobs.items()}
        return Manifest(self.run, fingerprint, self.version, entries, dict(self.merged))


def everywhere(encoder: Encoder, value: float, blocks: Iterable[str]) -> dict[str, State]:
    """The same change of every parameter of some blocks."""
    return {
        name: {key: torch.full_like(tensor, value) for key, tensor in block_state(encoder, name).items()}
        for name in blocks
    }


def learn(encoder: Encoder, value: float, blocks: Iterable[str]) -> None:
    """An optimizer step, as far as weights can tell."""
    for name in blocks:
        now = block_state(encoder, name)
        load_block(encoder, name, {key: tensor + value for key, tensor in now.items()})


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def furthest(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    """The largest difference of any value."""
    return max(float((a[key] - b[key]).abs().max()) for key in a)
