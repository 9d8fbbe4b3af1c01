"""The optimizer step that a merge takes with the gradients that devices summed up (FedOpt, Reddi et al. 2021).

Devices that accumulate take plain gradient steps, so short that their weights hardly move: their change *is* their
summed gradient, and no device wanders off from the others. With a merge after every batch the fleet's client segment is
trained as one encoder in one place would be; a block that takes part in every K-th, as with a batch K times as large.
"""

from __future__ import annotations

import copy
from typing import Any

from common.block_optimizer import BlockOptimizers, Kind
from common.change_blob import State
from common.encoder import Encoder
from common.split import block, block_state, load_block

# The devices' rate while they accumulate: what they send is divided by it. Short enough that the gradients of all of a
# merge's batches are those of the same weights, long enough that float32 holds the change beside the weight.
ACCUMULATION_RATE = 1e-3


class MergeOptimizer:
    """Proposes steps of whole blocks; only what is settled leaves a trace in its moments."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        kind: Kind,
        weight_decay: float,
        warmup_steps: int,
    ) -> None:
        """``encoder``: gives the shapes; ``warmup_steps``: in batches."""
        self._encoder = copy.deepcopy(encoder)
        self._optimizers = BlockOptimizers(
            self._encoder, kind=kind, weight_decay=weight_decay, warmup_steps=warmup_steps
        )
        self._settled = self._optimizers.state_dict()

    def propose(self, name: str, master: State, change: State, learning_rate: float, *, batches: int) -> State:
        """How far a step moves block ``name`` from ``master``, where ``change`` is the devices' mean change of it.

        ``batches``: of how many it is the sum.
        """
        load_block(self._encoder, name, master)
        for key, parameter in block(self._encoder, name).named_parameters():
            parameter.grad = change[key] / -ACCUMULATION_RATE
        self._optimizers.step([name], learning_rate, batches=batches)
        return {key: value - master[key] for key, value in block_state(self._encoder, name).items()}

    def settle(self) -> None:
        """What was proposed was taken."""
        self._settled = self._optimizers.state_dict()

    def drop(self) -> None:
        """What was proposed since was not taken: the moments are again what they were."""
        self._optimizers.load_state_dict(self._settled)

    def forget(self) -> None:
        """Begin anew: no moments, and the warm-up once more."""
        self._optimizers.release(self._optimizers.taken)
        self.settle()

    def state_dict(self) -> dict[str, Any]:
        """The settled moments, for a checkpoint."""
        return self._settled

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._optimizers.load_state_dict(state)
        self.settle()
