"""Versions of the fleet's weights: who trained which block on how many windows, and how their changes are merged.

``new = master + sum_p w_p * change_p`` for each block, over its participants:
each device whose cut lies above it and the trainer for the devices whose cut lies below (DESIGN section 4). ``w_p`` is
the participant's share of the windows that the trainer counted, discounted by staleness: what a stale change loses goes
to nobody. Devices are not trusted: their changes are clipped (`clipping`), trimmed where there are three or more
(`robust_mean`), and the windows that they say they learned from alone count as far as they can have captured them
(`captured`). What is published is rounded; the rounding error stays in ``master`` and is published later.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from common.change_blob import State
from common.encoder import Encoder
from common.split import block_state, client_names, load_block, names
from trainer.batcher import Part
from trainer.captured import Captured
from trainer.clipping import Clipping, length
from trainer.merge_optimizer import MergeOptimizer
from trainer.robust_mean import weighted_sum

SERVER = ""  # the trainer's own name among the participants: no device can be called this
DEVICES_REMEMBERED = 1_024  # as many as a manifest can name
# So many merges in a row a change is left out because one of its blocks has no windows. Then that block counts as one
# window: of a block that a device has given up, windows may never be counted again, and the rest must not wait for it.
LEFT_OUT_AT_MOST = 2
# Windows that a device may have captured beyond those that the trainer sees pass: a step or two on their way.
CAPTURED_SLACK = 16
# A change that would count for less than this is passed over: merging it would teach nothing, and yet its device would
# drop it. On the newest version the same change counts in full.
LEAST_FRESHNESS = 1e-3


@dataclass(frozen=True, slots=True)
class Contribution:
    """A device's change as it arrived; one without blocks says that there is nothing worth sending."""

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
        trim: float,
        captured: Captured,
        optimizer: MergeOptimizer | None = None,
        merged: Mapping[str, tuple[str, int]] | None = None,
        rounds: bool = False,
        away_windows: float = 0.0,
        periods: Mapping[str, int] | None = None,
    ) -> None:
        """``rounds``: no parts are seen (mode federated); the others' claims bound what a device can have captured.

        ``optimizer``: takes that change as summed gradients, and a step with them; None: the change itself is taken.
        ``away_windows``: that passed while there was no trainer. ``periods``: block -> in every how many-th version it
        goes out where the trainer alone has trained it; None: in every one.
        """
        self._rounds = rounds
        self._optimizer = optimizer
        self._encoder = encoder
        self._discount = discount
        self._local_cap = local_cap
        self._trim = trim
        self._captured = captured
        self._since: dict[str, float] = {}  # device -> windows that had passed at its last merge
        self._start = captured.windows() - away_windows
        self._judged: dict[str, dict[str, tuple[float, float]]] = {}
        self.clipping = Clipping()
        self._master = {name: block_state(encoder, name) for name in names(encoder)}
        self._windows: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self._batches: Counter[str] = Counter()  # block -> batches since it was last merged
        self._answered: Counter[str] = Counter()  # windows since a device's last merge, of whatever blocks
        self._offered: dict[str, Contribution] = {}
        self._left_out: dict[str, int] = {}  # device -> merges in a row
        # Of every device, not only of this version's: one that misses a version must still learn what was merged in it.
        self.merged: dict[str, tuple[str, int]] = dict(merged or {})
        self._merged_in = dict.fromkeys(self.merged, version)
        self.version = version
        self._periods = dict(periods or {})
        self._kept_back: frozenset[str] = frozenset()  # moved by the trainer alone, and not due
        self.moved = frozenset(self._master)  # the blocks that go out with the latest version

    def count(self, parts: Sequence[Part]) -> None:
        """Count a batch: each part for its device below its cut and for the trainer from there on."""
        self._captured.count(parts)
        every = names(self._encoder)
        self._batches.update(every)
        for part in parts:
            self._answered[part.device] += 1
            own = client_names(part.cut)
            for name in every:
                self._windows[name][part.device if name in own else SERVER] += 1

    def offer(self, contribution: Contribution) -> None:
        """Take a device's whole unsent change; a newer one replaces it.

        One that was packed before the device saw the version with its previous change holds that change a second time.
        It is passed over: the device keeps it as unsent, offers the rest of it next time, and is not waited for. So is
        one on a version that was never made, as a change of another run's weights, and one on a version so old that it
        would hardly count.
        """
        base = contribution.base_version
        known = self._merged_in.get(contribution.device, 0) <= base <= self.version
        if known and self._discount ** (self.version - base) >= LEAST_FRESHNESS:
            self._offered[contribution.device] = contribution
        else:
            self._offered.setdefault(contribution.device, replace(contribution, blocks={}))

    @property
    def offered(self) -> tuple[str, ...]:
        """The devices whose change waits for the next merge."""
        return tuple(sorted(self._offered))

    def preview(self, learning_rate: float = 0.0) -> dict[str, State]:
        """What the next merge would make of every block; nothing is changed.

        ``learning_rate``: of the step that devices which accumulate leave to the merge.
        """
        self._judged = {}
        if self._optimizer is not None:
            self._optimizer.drop()
        return {name: self._merged_block(name, learning_rate) for name in names(self._encoder)}

    def commit(self, merged: dict[str, State]) -> None:
        """Make ``merged`` the next version and start counting anew for those that took part."""
        self._master = {name: {key: value.clone() for key, value in state.items()} for name, state in merged.items()}
        waiting = self._kept_back | {name for name in merged if self._weights(name)}
        self.moved = frozenset(name for name in waiting if self._goes_out(name))
        self._kept_back = waiting - self.moved
        if self._optimizer is not None:
            self._optimizer.settle()
        self._next_version()

    def refuse(self) -> None:
        """Publish the last good weights again instead: devices drop a refused change that ``merged`` names."""
        self.moved, self._kept_back = frozenset(self._master), frozenset()
        self._next_version()

    def _goes_out(self, name: str) -> bool:
        """Devices that follow a block need not have the trainer's every step of it, but what they gave is named."""
        by_devices = any(self._changes(device, name) for device in self._taken())
        return by_devices or (self.version + 1) % self._periods.get(name, 1) == 0

    def _next_version(self) -> None:
        taken = self._taken()
        self.clipping.remember(self._judged)
        for name, state in self._master.items():
            load_block(self._encoder, name, state)
        self.version += 1
        for device in taken:
            one = self._offered[device]
            self.merged.pop(device, None)  # so that the order is that of the merges
            self.merged[device] = (one.boot, one.seq)
            self._merged_in[device] = self.version
            self._since[device] = self._captured.windows()
        while len(self.merged) > DEVICES_REMEMBERED:
            self._since.pop(next(iter(self.merged)), None)
            del self._merged_in[next(iter(self.merged))]
            del self.merged[next(iter(self.merged))]
        self._forget(taken)

    def _forget(self, taken: Sequence[str]) -> None:
        """Count anew for those who took part; a change that was left out stays unsent on its device."""
        for name, counted in self._windows.items():
            changed_by = [device for device in taken if self._changes(device, name)]
            for participant in (SERVER, *changed_by):
                counted.pop(participant, None)
            if changed_by:
                del self._batches[name]
        for device in taken:
            del self._answered[device]
        for device in self._offered:
            self._left_out[device] = 0 if device in taken else self._left_out.get(device, 0) + 1
        self._offered = {}

    def _merged_block(self, name: str, learning_rate: float) -> State:
        master = self._master[name]
        weights = self._weights(name)
        if set(weights) <= {SERVER}:
            return block_state(self._encoder, name)
        merged = weighted_sum(
            [(weights[device], change) for device, change in self._clipped(name, weights.keys() - {SERVER}).items()],
            trim=self._trim,
        )
        own, live = weights.get(SERVER, 0.0), block_state(self._encoder, name)
        rate = 1.0
        if self._optimizer is not None:  # a step with the devices' mean, of which their share of the windows counts
            mean = {key: value / (1.0 - own) for key, value in merged.items()}
            batches = max(1, self._batches[name])
            merged, rate = self._optimizer.propose(name, master, mean, learning_rate, batches=batches), 1.0 - own
        for key, value in merged.items():  # the trainer's own change is never trimmed away
            value.mul_(rate).add_(live[key] - master[key], alpha=own).add_(master[key])
        return merged

    def _clipped(self, name: str, devices: Iterable[str]) -> dict[str, State]:
        changes = {device: self._offered[device].blocks[name] for device in sorted(devices)}
        windows = {device: self._counted(device, name) for device in changes}
        scales = self.clipping.scales(name, changes, windows, block_length=length(self._master[name]))
        self._judged[name] = {device: (length(change), scales[device]) for device, change in changes.items()}
        return {
            device: change if scales[device] == 1.0 else {key: v * scales[device] for key, v in change.items()}
            for device, change in changes.items()
        }

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
            if self._offered[device].blocks
            and all(self._counted(device, name) for name in self._offered[device].blocks)
        ]

    def _changes(self, device: str, name: str) -> bool:
        return name in self._offered[device].blocks

    def _counted(self, device: str, name: str) -> int:
        """The windows for which a device's change of a block counts."""
        counted = self._windows[name].get(device, 0) + self._learned_alone(device)
        if counted == 0 and self._left_out.get(device, 0) >= LEFT_OUT_AT_MOST:
            return int(any(device in others for others in self._windows.values()))
        return counted

    def _learned_alone(self, device: str) -> int:
        """The windows that a device says it learned from alone, as far as it can have captured them beside the rest."""
        passed = self._passed(device) + CAPTURED_SLACK
        possible = int(passed) - self._answered[device]
        return max(0, min(self._offered[device].local_windows, self._local_cap, possible))

    def _passed(self, device: str) -> float:
        """Windows that have passed for everybody since this device's last merge."""
        if self._rounds:
            return statistics.median(one.local_windows for one in self._offered.values())
        return self._captured.windows() - self._since.get(device, self._start)

    def _freshness(self, participant: str) -> float:
        if participant == SERVER:
            return 1.0
        return self._discount ** (self.version - self._offered[participant].base_version)
