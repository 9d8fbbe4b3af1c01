"""Versions of the fleet's weights: who trained which block on how many windows, and how their changes are merged.

``new = master + sum_p w_p * change_p`` for each block, over its participants: each device whose cut lies above it and
the trainer for the devices whose cut lies below (DESIGN section 4). ``w_p`` is the participant's share of the windows
that the trainer counted, discounted by staleness: what a stale change loses goes to nobody. What is published is
rounded to the weights' dtype; the rounding error stays in ``master`` and is published later.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
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
# So many merges in a row a change is left out because one of its blocks has no windows. Then that block counts as one
# window: of a block that a device has given up, windows may never be counted again, and the rest must not wait for it.
LEFT_OUT_AT_MOST = 2


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
        self._left_out: dict[str, int] = {}  # device -> merges in a row
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
        It is passed over: the device keeps it as unsent, and offers the rest of it next time. So is one on a version
        that was never made: it is a change of another run's weights.
        """
        oldest = self._merged_in.get(contribution.device, 0)
        if oldest <= contribution.base_version <= self.version:
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
        taken = self._taken()
        for name, state in self._master.items():
            load_block(self._encoder, name, state)
        self.version += 1
        for device in taken:
            one = self._offered[device]
            self.merged.pop(device, None)  # so that the order is that of the merges
            self.merged[device] = (one.boot, one.seq)
            self._merged_in[device] = self.version
        while len(self.merged) > DEVICES_REMEMBERED:
            del self._merged_in[next(iter(self.merged))]
            del self.merged[next(iter(self.merged))]
        self._forget(taken)

    def _forget(self, taken: Sequence[str]) -> None:
        """Count anew for those who took part; a change that was left out stays unsent on its device."""
        for participant in (SERVER, *taken):
            for counted in self._windows.values():
                counted.pop(participant, None)
        for device in self._offered:
            self._left_out[device] = 0 if device in taken else self._left_out.get(device, 0) + 1
        self._offered = {}

    def _merged_block(self, name: str) -> State:
        master = self._master[name]
        weights = self._weights(name)
        if set(weights) <= {SERVER}:
            return block_state(self._encoder, name)
        merged = {key: value.clone() for key, value in master.items()}
        for participant, weight in weights.items():
            change = self._change(participant, name)
            for key, value in merged.items():
                value.add_(change[key], alpha=weight)
        return merged

    def _change(self, participant: str, name: str) -> State:
        master = self._master[name]
        if participant != SERVER:
            return _clipped(self._offered[participant].blocks[name], LONGEST_CHANGE * _length(master))
        live = block_state(self._encoder, name)
        return {key: live[key] - master[key] for key in live}

    def _weights(self, name: str) -> dict[str, float]:
        """Participant -> share of the windows, discounted by how many versions old its base is."""
        own = self._windows[name].get(SERVER, 0)
        windows = {SERVER: own} if own else {}
        windows |= {device: self._counted(device, name) for device in self._taken() if self._changes(device, name)}
        total = sum(windows.values())
        return {who: count / total * self._freshness(who) for who, count in windows.items()}

    def _taken(self) -> list[str]:
        """Whose change is merged: wholly or not at all, since its device drops it wholly or not at all."""
        return [
            device
            for device in self.offered
            if self._freshness(device) > 0.0
            and all(self._counted(device, name) for name in self._offered[device].blocks)
        ]

    def _changes(self, device: str, name: str) -> bool:
        return name in self._offered[device].blocks

    def _counted(self, device: str, name: str) -> int:
        """The windows for which a device's change of a block counts."""
        counted = self._windows[name].get(device, 0) + min(self._offered[device].local_windows, self._local_cap)
        if counted == 0 and self._left_out.get(device, 0) >= LEFT_OUT_AT_MOST:
            return int(any(device in others for others in self._windows.values()))
        return counted

    def _freshness(self, participant: str) -> float:
        if participant == SERVER:
            return 1.0
        return self._discount ** (self.version - self._offered[participant].base_version)


def _length(state: State) -> float:
    """Over all tensors together, in double precision: what a device sends may square beyond single."""
    return math.sqrt(sum(float(value.double().square().sum()) for value in state.values()))


def _clipped(change: State, longest: float) -> State:
    length = _length(change)
    return change if length <= longest else {key: value * (longest / length) for key, value in change.items()}
