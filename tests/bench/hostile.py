"""A device that means harm, for a whole run: an honest device's loop behind a link that changes what it says.

So it keeps step with the fleet, and harms by what can get through: activations that are noise, or huge; changes of the
weights that are noise, or huge, said to be of very many windows; and by what must not get through: NaN, and bytes that
are no change at all. Its label stands on every message: it is signed on as a device of the fleet.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from common import messages
from common.change_blob import pack_blocks
from common.codec import Codec, EncodedTensor, digest, encode
from common.encoder import Encoder
from common.link import Link
from common.split import block_state, client_names
from common.topics import Kind, parse

NAN_EVERY_STEPS = 50
"""A step that is refused whole holds the fleet up until a deadline: more of them cost time and harm no more."""

HUGE = 6e4  # just below what fp16 can say
NOISE_OF_WEIGHTS = 0.1  # a weight of `mobile` is of that size
MANY_WINDOWS = 2**40


class HostileLink:
    """Has the public face of the link it hides; ``cut`` is that of the device behind it."""

    def __init__(self, link: Link, encoder: Encoder, *, cut: int, seed: int) -> None:
        self._link = link
        self._blocks = {name: block_state(encoder, name) for name in client_names(cut)}
        self._rng = np.random.default_rng(seed)
        self._updates = 0

    def __getattr__(self, name: str) -> Any:
        """Everything but what is published stays as it is."""
        return getattr(self._link, name)

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, expiry_s: float | None = None) -> bool:
        """Publish something worse."""
        kind = parse(topic).kind
        if kind is Kind.ACTIVATIONS:
            payload = self._activations(messages.decode(messages.Activations, payload))
        elif kind is Kind.UPDATE:
            chunk = messages.decode(messages.UpdateChunk, payload)
            if chunk.index:  # what it says instead fits into the first
                return True
            payload = self._update(chunk)
        return self._link.publish(topic, payload, qos=qos, expiry_s=expiry_s)

    def _activations(self, part: messages.Activations) -> bytes:
        shape = part.tensor.shape
        if part.step % NAN_EVERY_STEPS == NAN_EVERY_STEPS - 1:
            data = np.full(shape, np.nan, np.float16).tobytes()
            return messages.encode(replace(part, tensor=EncodedTensor("fp16", shape, b"", data)))
        size = HUGE if part.step % 2 else 1.0
        noise = torch.from_numpy(self._rng.uniform(-size, size, shape).astype(np.float32))
        return messages.encode(replace(part, tensor=encode(noise, Codec.parse("fp16"))))

    def _update(self, chunk: messages.UpdateChunk) -> bytes:
        self._updates += 1
        blob = self._rng.bytes(20_000)
        if self._updates % 3:
            size = HUGE if self._updates % 3 == 1 else NOISE_OF_WEIGHTS
            blob = pack_blocks(
                {
                    name: {
                        key: torch.from_numpy(self._rng.normal(0.0, size, value.shape).astype(np.float32))
                        for key, value in state.items()
                    }
                    for name, state in self._blocks.items()
                },
                "int4",
            )
        lie = replace(chunk, count=1, data=blob, digest=digest(blob), local_windows=MANY_WINDOWS)
        return messages.encode(lie)
