"""Versions of the fleet's weights: who trained which block on how many windows, and how their changes are merged.

``new = master + sum_p w_p * change_p`` for each block, over its participants: each device whose cut lies above it and
the trainer for the devices whose cut lies below (DESIGN section 4). ``w_p`` is the participant's share of the windows
that the trainer counted, discounted by staleness. What is published is rounded to the weights' dtype; the rounding
error stays in ``master`` and is published later.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from common.change_blob import State
from common.encoder import Encoder
from common.split import block_state, client_names, load_block, names
from trainer.batcher import Part

SERVER = ""  # the trainer's own name among the participants: no device can be called this
# A change is clipped to this many times the length of the block it changes. AdamW at 2e-3 moves `resnet18`'s smallest
# weights by six times their own size in 25 steps; beyond ten it is no learning, and would soon be beyond fp16.
LONGEST_CHANGE = 10.0
DEVICES_REMEMBERED = 1_024  # as many as a manifest can name


@dataclass(frozen=True, slots=True)
class Contribution:
    """A device's change as it arrived."""

    device: str
    boot: str
    seq: int
    base_version: int
    local_windows: int
    blocks: dict[str, State]


class WeightsLedger:
    """The merged weights, and what was counted and offered since. ``encoder`` is the live one of the trainer."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        version: int,
        discount: float,
        local_cap: int,
        merged: Mapping[str, tuple[str, int]] | None = None,
    ) -> None:
        self._encoder = encoder
        self._discount = discount
        self._local_cap = local_cap
        self._master = {name: block_state(encoder, name) for name in names(encoder)}
        self._windows: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self._offered: dict[str, Contribution] = {}
        # Of every device, not only of this version's: one that misses a version must still learn what was merged in it.
        self.merged: dict[str, tuple[str, int]] = dict(merged or {})
        self._merged_in = dict.fromkeys(self.merged, version)
        self.version = version

    def count(self, parts: Sequence[Part]) -> None:
        """Count a batch: each part for its device below its cut and for the trainer from there on."""
        every = names(self._encoder)
        for part in parts:
            own = client_names(part.cut)
            for name in every:
                self._windows[name][part.device if name in own else SERVER] += 1

    def offer(self, contribution: Contribution) -> None:
        """Take a device's whole unsent change; a newer one replaces it.

        One that was packed before the device saw the version with its previous change holds that change a second time.
        It is passed over: the device keeps it as unsent, and offers the rest of it next time.
        """
        if contribution.base_version >= self._merged_in.get(contribution.device, 0):
            self._offered[contribution.device] = contribution

    @property
    def offered(self) -> tuple[str, ...]:
        """The devices whose change waits for the next merge."""
        return tuple(sorted(self._offered))

    def preview(self) -> dict[str, State]:
        """What the next merge would make of every block; nothing is changed."""
        return {name: self._merged_block(name) for name in names(self._encoder)}

    def commit(self, merged: dict[str, State]) -> None:
        """Make ``merged`` the next version and start counting anew for those that took part."""
        self._master = {name: {key: value.clone() for key, value in state.items()} for name, state in merged.items()}
        self._next_version()

    def refuse(self) -> None:
        """Publish the last good weights again instead: devices drop a refused change that ``merged`` names."""
        self._next_version()

    def _next_version(self) -> None:
        for name, state in self._master.items():
            load_block(self._encoder, name, state)
        self.version += 1
        for device, one in self._offered.items():
            self.merged.pop(device, None)  # so that the order is that of the merges
            self.merged[device] = (one.boot, one.seq)
            self._merged_in[device] = self.version
        while len(self.merged) > DEVICES_REMEMBERED:
            del self._merged_in[next(iter(self.merged))]
            del self.merged[next(iter(self.merged))]
        self._forget([SERVER, *self._offered])

    def _forget(self, participants: Iterable[str]) -> None:
        for participant in participants:
            for counted in self._windows.values():
                counted.pop(participant, None)
        self._offered = {}

    def _merged_block(self, name: str) -> State:
        master = self._master[name]
        weights = self._weights(name)
        total = sum(weights.values())
        if set(weights) <= {SERVER}:
            return block_state(self._encoder, name)
        merged = {key: value.clone() for key, value in master.items()}
        for participant, weight in weights.items():
            change = self._change(participant, name)
            for key, value in merged.items():
                value.add_(change[key], alpha=weight / total)
        return merged

    def _change(self, participant: str, name: str) -> State:
        master = self._master[name]
        if participant != SERVER:
            return _clipped(self._offered[participant].blocks[name], LONGEST_CHANGE * _length(master))
        live = block_state(self._encoder, name)
        return {key: live[key] - master[key] for key in live}

    def _weights(self, name: str) -> dict[str, float]:
        """Participant -> windows, discounted by how many versions old its base is."""
        counted = self._windows[name]
        weights = {SERVER: float(counted[SERVER])} if counted.get(SERVER) else {}
        for device in self.offered:
            offer = self._offered[device]
            if name in offer.blocks:
                local = min(offer.local_windows, self._local_cap)
                lag = max(0, self.version - offer.base_version)
                weights[device] = (counted.get(device, 0) + local) * self._discount**lag
        return {participant: weight for participant, weight in weights.items() if weight > 0.0}


def _length(state: State) -> float:
    """Over all tensors together, in double precision: what a device sends may square beyond single."""
    return math.sqrt(sum(float(value.double().square().sum()) for value in state.values()))


def _clipped(change: State, longest: float) -> State:
    length = _length(change)
    return change if length <= longest else {key: value * (longest / length) for key, value in change.items()}
