"""The splitter's network as a device runs it: plain NumPy, a few kilobytes, checked before it is used.

On the wire: a magic word, the number of layers, the sizes, then weights and biases in half precision, layer by layer. A
digest of these bytes travels beside them (`common.messages.PolicyUpdate`).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from common.errors import MessageError

MAGIC = b"SSP1"
MOST_LAYERS = 4
MOST_UNITS = 256
MOST_BYTES = 56 * 1024
HALF = np.dtype("<f2")

Layer = tuple[NDArray[np.float32], NDArray[np.float32]]


class PolicyNetwork:
    """A stack of dense layers with tanh between them: probabilities of actions from an observation.

    Args:
        layers: (weights [outputs, inputs], biases [outputs]) in order.

    Raises:
        ValueError: no layers, or layers that do not fit each other.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        if not layers:
            raise ValueError("a policy network without layers")
        sizes = [layers[0][0].shape[1]]
        for weights, biases in layers:
            if weights.shape != (len(biases), sizes[-1]):
                raise ValueError(f"weights {weights.shape} and biases {biases.shape} after {sizes[-1]} values")
            sizes.append(len(biases))
        self.sizes = tuple(sizes)
        self._layers = [(np.ascontiguousarray(w, dtype=np.float32), b.astype(np.float32)) for w, b in layers]
        self._input = np.zeros(sizes[0], dtype=np.float32)
        self._outputs = [np.zeros(size, dtype=np.float32) for size in sizes[1:]]

    @property
    def layers(self) -> Sequence[Layer]:
        """See the constructor."""
        return self._layers

    def probabilities(self, observation: Sequence[float], mask: Sequence[bool]) -> NDArray[np.float64]:
        """Probabilities of all actions, 0 where the mask does not allow; the array is the caller's to keep.

        `observation`: as many values as the first layer takes; `mask`: as many as the last one gives, one at least
        True.
        """
        values = self._input
        values[:] = observation
        last = len(self._layers) - 1
        for number, (weights, biases) in enumerate(self._layers):
            made = self._outputs[number]
            np.dot(weights, values, out=made)
            made += biases
            if number < last:
                np.tanh(made, out=made)
            values = made
        allowed = np.asarray(mask, dtype=bool)
        logits = np.where(allowed, values, -np.inf).astype(np.float64)
        logits -= logits.max()
        np.exp(logits, out=logits)
        logits /= logits.sum()
        return logits


def pack_network(network: PolicyNetwork) -> bytes:
    """The bytes of a network; ValueError where it is too large to travel, or its values for half precision."""
    sizes = network.sizes
    if len(sizes) - 1 > MOST_LAYERS or max(sizes) > MOST_UNITS:
        raise ValueError(f"a network of {len(sizes) - 1} layers and sizes {sizes}: too large")
    parts = [MAGIC, struct.pack(f"<B{len(sizes)}H", len(sizes) - 1, *sizes)]
    for weights, biases in network.layers:
        for values in (weights, biases):
            if not np.abs(values).max() < np.finfo(HALF).max:
                raise ValueError("weights beyond half precision")
            parts.append(values.astype(HALF).tobytes())
    packed = b"".join(parts)
    if len(packed) > MOST_BYTES:
        raise ValueError(f"{len(packed)} bytes, at most {MOST_BYTES} travel")
    return packed


def unpack_network(data: bytes, *, inputs: int, actions: int) -> PolicyNetwork:
    """The network that takes `inputs` values and gives `actions`.

    Raises:
        MessageError: not such a network: another format, other sizes, too short or long, NaN or infinity.
    """
    if data[: len(MAGIC)] != MAGIC or len(data) < len(MAGIC) + 1:
        raise MessageError("policy: not a policy network")
    count = data[len(MAGIC)]
    start = len(MAGIC) + 1 + 2 * (count + 1)
    if not 1 <= count <= MOST_LAYERS or len(data) < start:
        raise MessageError(f"policy: {count} layers in {len(data)} bytes")
    sizes = struct.unpack_from(f"<{count + 1}H", data, len(MAGIC) + 1)
    if not all(1 <= size <= MOST_UNITS for size in sizes) or (sizes[0], sizes[-1]) != (inputs, actions):
        raise MessageError(f"policy: sizes {sizes}, wanted {inputs} values in and {actions} actions out")
    values = sum((before + 1) * after for before, after in pairwise(sizes))
    if len(data) != start + HALF.itemsize * values:
        raise MessageError(f"policy: {len(data)} bytes for sizes {sizes}")
    numbers = np.frombuffer(data, dtype=HALF, offset=start).astype(np.float32)
    if not np.isfinite(numbers).all():
        raise MessageError("policy: NaN or infinity")
    return PolicyNetwork(_split(numbers, sizes))


def _split(numbers: NDArray[np.float32], sizes: Sequence[int]) -> list[Layer]:
    layers, at = [], 0
    for before, after in pairwise(sizes):
        weights = numbers[at : at + before * after].reshape(after, before)
        at += before * after
        layers.append((weights, numbers[at : at + after]))
        at += after
    return layers
