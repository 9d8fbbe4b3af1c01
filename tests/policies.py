"""Policies for tests: networks that want what a test says, whatever they see."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from common.messages import PolicyUpdate
from common.policy import OBSERVATION_NAMES
from common.policy_network import PolicyNetwork, pack_network
from common.state_blob import digest

DEPTH = 8
LOCAL_PLACE = DEPTH + 1


def wanting(logits: Mapping[int, float]) -> bytes:
    """The bytes of a network with these logits for places of the mask (9 is local), 0 for all others."""
    biases = np.array([logits.get(place, 0.0) for place in range(DEPTH + 2)], dtype=np.float32)
    return pack_network(PolicyNetwork([(np.zeros((DEPTH + 2, len(OBSERVATION_NAMES)), np.float32), biases)]))


def update(version: int, data: bytes, *, encoder: str = "mobile") -> PolicyUpdate:
    """The message that carries them."""
    return PolicyUpdate(version, encoder, digest(data), data)
