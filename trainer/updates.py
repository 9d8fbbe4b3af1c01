"""Puts the devices' changes together from their chunks."""

from __future__ import annotations

import torch

from common.change_blob import State, most_bytes, unpack_blocks
from common.chunks import Assembler
from common.codec import digest
from common.errors import MessageError
from common.messages import UpdateChunk
from trainer.weights import Contribution


class Updates:
    """One assembler a device; a chunk of a newer change drops the older one's."""

    def __init__(self, shapes: dict[str, State], *, run: str, compute: torch.device) -> None:
        self._shapes = shapes
        self._run = run
        self._compute = compute
        self._most_bytes = most_bytes(shapes)
        self._assemblers: dict[str, Assembler] = {}

    def forget(self, device: str) -> None:
        """Drop the chunks of a device that is gone."""
        self._assemblers.pop(device, None)

    def offer(self, device: str, chunk: UpdateChunk) -> Contribution | None:
        """Take one chunk; the whole change once it is complete.

        Raises:
            MessageError: a change of another run's weights, bytes that do not match their digest, unknown blocks, wrong
                shapes, NaN or infinity.
        """
        if chunk.run != self._run:
            raise MessageError(f"update {chunk.seq} of {device}: a change of run {chunk.run!r}, this is {self._run!r}")
        assembler = self._assemblers.setdefault(device, Assembler(max_bytes=self._most_bytes))
        blob = assembler.add((chunk.boot, chunk.seq), chunk.index, chunk.count, chunk.data)
        if blob is None:
            return None
        if digest(blob) != chunk.digest:
            raise MessageError(f"update {chunk.seq} of {device}: the bytes do not match their digest")
        blocks = unpack_blocks(blob, self._shapes)
        placed = {
            name: {key: value.to(self._compute) for key, value in state.items()} for name, state in blocks.items()
        }
        return Contribution(device, chunk.boot, chunk.seq, chunk.base_version, chunk.local_windows, placed)
