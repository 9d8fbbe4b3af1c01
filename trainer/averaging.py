"""A slowly moving average of the published weights, for runs without an end.

With a constant learning rate the last step's noise stays in the weights; their average over the latest merges has less
of it (Polyak & Juditsky 1992; Izmailov et al. 2018). Client segments on the devices are never the averaged ones, so it
trains nothing and answers nothing: `evaluate` restores it from a checkpoint of a run with ``schedule: constant``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from common.encoder import Encoder

DECAY = 0.9  # about the last ten merges


class AveragedEncoder:
    """The average of the weights after each merge, the latest counting most; begins with the first it is given."""

    def __init__(self, *, decay: float = DECAY) -> None:
        self._decay = decay
        self._weights: dict[str, Tensor] = {}
        self._merges = 0

    @torch.no_grad()
    def update(self, encoder: Encoder) -> None:
        """Take the weights of a merge. Early ones count less than ``decay`` says: the first weights are random."""
        self._merges += 1
        kept = min(self._decay, self._merges / (self._merges + 9)) if self._weights else 0.0
        for name, value in encoder.state_dict().items():
            old = self._weights.get(name)
            self._weights[name] = value.clone() if old is None else old.lerp(value, 1.0 - kept)

    def state_dict(self) -> dict[str, object]:
        """For the checkpoint."""
        return {"weights": dict(self._weights), "merges": self._merges}

    def load_state_dict(self, state: Mapping[str, object], like: Encoder) -> None:
        """Go on from a checkpoint, where ``like`` computes."""
        weights, merges = state["weights"], state["merges"]
        assert isinstance(weights, Mapping)
        assert isinstance(merges, int)
        place = next(like.parameters()).device
        self._weights = {name: value.to(place) for name, value in weights.items()}
        self._merges = merges
