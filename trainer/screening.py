"""Which parts are not computed with, because their device cannot be believed.

Two tests, both against what the fleet itself says, so that they need no constants of an encoder:

- *scale*: behind a normalisation the activations of all devices have nearly the same root mean square and peak at a cut
  (`mobile`, ESC-10, cuts 3 and 5: within 5 % and 40 %), so what lies far from the fleet's median is no sound.
- *kinship*: the two views of a window are more alike than views of different windows of that device. Of noise they are
  not: its positives win half of the comparisons, whatever its scale. A device that stays at half while the others do
  not is left out for a while, and then tried again.

What passes both has bounded influence: projections have unit length, which bounds the gradient of every window alike,
and no device has more windows in a batch than a step has parts. Honest devices' numbers are only looked at.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from trainer.batcher import Part

LOG = logging.getLogger(__name__)
KEPT = 32  # values of a device and cut that its median is of: 16 parts of two views
FEWEST_DEVICES = 3  # with values at a cut: of two, nobody can tell which one is wrong
FEWEST_VALUES = 8  # of a device, before it counts among them
NARROWEST = (0.4, 1.0)  # allowed distance of log RMS and log peak from the median, at least
SPREADS = 10.0  # and as many times the fleet's own median distance
JUDGED = 64  # latest parts of a device of which
MOST_REFUSED = 0.25  # may be refused for its changes of the weights still to be taken
MEMORY_WINDOWS = 384.0  # after as many windows of its own a comparison has faded to 1/e
ENOUGH_WINDOWS = 160.0  # before a device's kinship is judged: then noise is at 0.50 +- 0.02
UNRELATED = 0.55  # ESC-10, devices of one class each: at least 0.64 once the encoder has learned
LEARNED = 0.7  # the others' median, before which nothing is said: an untrained encoder tells rain apart by 0.53
FIRST_QUARANTINE_BATCHES = 128
LONGEST_QUARANTINE_BATCHES = 4096


class ScaleScreen:
    """Root mean square and peak of every view, compared with the fleet's. Every device has one vote."""

    def __init__(self) -> None:
        self._values: dict[int, dict[str, tuple[deque[float], deque[float]]]] = {}
        self._bounds: dict[int, tuple[tuple[float, float], ...]] = {}

    def judge(self, device: str, cut: int, activations: Tensor) -> str:
        """Why activations [2, ...] at ``cut`` are refused; empty: they are not. They count either way."""
        flat = activations.flatten(1)
        views = (
            flat.square().mean(dim=1).clamp_min(1e-24).sqrt().log().tolist(),
            flat.abs().amax(dim=1).clamp_min(1e-24).log().tolist(),
        )
        kept = self._values.setdefault(cut, {}).setdefault(device, (deque(maxlen=KEPT), deque(maxlen=KEPT)))
        for values, mine in zip(views, kept, strict=True):
            mine.extend(values)
        for what, values, (low, high) in zip(("RMS", "peak"), views, self._bounds.get(cut, ()), strict=False):
            for value in values:
                if not low <= value <= high:
                    return (
                        f"screened: {what} of the activations is {math.exp(value):.3g}, the fleet's lie within "
                        f"{math.exp(low):.3g} to {math.exp(high):.3g}"
                    )
        return ""

    def renew(self) -> None:
        """Make new bounds from what came; called once a batch."""
        for cut, devices in self._values.items():
            voters = [kept for kept in devices.values() if len(kept[0]) >= FEWEST_VALUES]
            if len(voters) >= FEWEST_DEVICES:
                self._bounds[cut] = tuple(_bound([kept[i] for kept in voters], NARROWEST[i]) for i in range(2))

    def forget(self, device: str) -> None:
        """A device is gone."""
        for devices in self._values.values():
            devices.pop(device, None)


def _bound(voters: Sequence[Sequence[float]], narrowest: float) -> tuple[float, float]:
    middle = median(median(values) for values in voters)
    spread = median(median(abs(value - middle) for value in values) for values in voters)
    reach = max(narrowest, SPREADS * spread)
    return middle - reach, middle + reach


@dataclass(slots=True)
class _Compared:
    won: float = 0.0
    of: float = 0.0
    windows: float = 0.0


class Kinship:
    """How often a window's other view is more alike to it than the views of its device's other windows: 0.5 is chance.

    It compares a device with itself alone, so that it does not matter what a device hears.
    """

    def __init__(self) -> None:
        self._compared: dict[str, _Compared] = {}

    def observe(self, devices: Sequence[str], projections: Tensor) -> None:
        """Take a batch: N device names, and view A then view B, ``[2, N, d]`` of unit length."""
        alike = (projections[0] @ projections[1].T).cpu()
        codes = {device: code for code, device in enumerate(dict.fromkeys(devices))}
        code = torch.tensor([codes[device] for device in devices])
        other = (code[:, None] == code[None, :]).fill_diagonal_(False)
        own = alike.diagonal()
        won = torch.zeros(len(devices))
        for rows in (alike, alike.T):
            won += (((own[:, None] > rows) + 0.5 * (own[:, None] == rows)) * other).sum(dim=1)
        compared = 2.0 * other.sum(dim=1)
        for device, number in codes.items():
            mine = code == number
            if float(compared[mine].sum()):
                self._add(device, float(won[mine].sum()), float(compared[mine].sum()), int(mine.sum()))

    def _add(self, device: str, won: float, of: float, windows: int) -> None:
        known = self._compared.setdefault(device, _Compared())
        fade = math.exp(-windows / MEMORY_WINDOWS)
        known.won = fade * known.won + won
        known.of = fade * known.of + of
        known.windows = fade * known.windows + windows

    def score(self, device: str) -> float | None:
        """The share of comparisons won; None before there were enough."""
        known = self._compared.get(device)
        return None if known is None or known.windows < ENOUGH_WINDOWS else known.won / known.of

    def unrelated(self, device: str) -> bool:
        """Whether it is at chance while the others, by their median, are not."""
        own = self.score(device)
        others = [score for name in self._compared if name != device and (score := self.score(name)) is not None]
        return own is not None and own < UNRELATED and len(others) >= 2 and median(others) > LEARNED

    def forget(self, device: str) -> None:
        """Judge it anew."""
        self._compared.pop(device, None)


class Screening:
    """Both tests, and who is left out for how long. A device is known by its name: a new boot changes nothing."""

    def __init__(self) -> None:
        self._scale = ScaleScreen()
        self._kinship = Kinship()
        self._batches = 0
        self._until: dict[str, int] = {}  # device -> batch at which it is tried again
        self._times: Counter[str] = Counter()
        self._judged: dict[str, deque[bool]] = {}
        self.refused: Counter[str] = Counter()  # parts, by device

    def judge(self, part: Part) -> str:
        """Why a part of a device that is known as ready is refused; empty: it is not."""
        if self._quarantined(part.device):
            reason = "screened: its views of one window are no more alike than those of different windows"
        else:
            reason = self._scale.judge(part.device, part.cut, part.activations)
        judged = self._judged.setdefault(part.device, deque(maxlen=JUDGED))
        if reason and not any(judged):
            LOG.warning("%s: %s", part.device, reason)
        judged.append(bool(reason))
        self.refused[part.device] += bool(reason)
        return reason

    def trusts(self, device: str) -> bool:
        """Whether its changes of the weights are taken."""
        judged = self._judged.get(device, ())
        return not self._quarantined(device) and sum(judged) <= MOST_REFUSED * len(judged)

    def observe(self, devices: Sequence[str], projections: Tensor) -> None:
        """A batch was computed: view A then view B of its windows, ``[2, N, d]``, by N device names."""
        self._batches += 1
        self._scale.renew()
        self._kinship.observe(devices, projections)
        for device in dict.fromkeys(devices):
            if self._kinship.unrelated(device):
                batches = min(LONGEST_QUARANTINE_BATCHES, FIRST_QUARANTINE_BATCHES * 2 ** self._times[device])
                LOG.warning("%s is left out for %d batches: its windows' views are unrelated", device, batches)
                self._until[device] = self._batches + batches
                self._times[device] += 1
                self._kinship.forget(device)

    def forget(self, device: str) -> None:
        """A device is gone: it has no vote any more. What was held against it is kept."""
        self._scale.forget(device)

    def _quarantined(self, device: str) -> bool:
        return self._until.get(device, 0) > self._batches
