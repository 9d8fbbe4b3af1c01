"""A device's whole learning step in one call, for who has nothing to do between its parts."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from device.client_step import ClientStep, in_order


def learn(step: ClientStep, gradients: Mapping[int, Tensor], *, learning_rate: float) -> list[str]:
    """Backpropagate ``gradients`` by part, as the device's loop does, and learn; the blocks that learned."""
    for part in in_order(gradients):
        step.backward(part, gradients[part])
    return step.learn(learning_rate=learning_rate)
