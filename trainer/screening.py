"""Which parts are not computed with, because their device cannot be believed.

Two tests, both against what the fleet itself says, so that they need no constants of an encoder:

- *scale*: behind a normalisation the activations of all devices have nearly the same root mean square and peak at a cut
  (`mobile`, ESC-10, cuts 3 and 5: within 5 % and 40 %), so what lies far from the fleet's median is no sound.
- *kinship*: the two views of a window are more alike than views of different windows of that device. Of noise they are
  not: its positives win half of the comparisons, whatever its scale. A device that stays at half while the others do
  not is left out for a while, and then tried again.

A quiet room, or one with a steady fan, fails the second test as well: its windows all sound alike. How alike they are
does not tell it from noise: the mean cosine of such a room's projections is 0.94 to 0.97, that of noise 0.82 to 0.97
(`mobile` trained on ESC-10, eight runs, five kinds of noise, cuts 3 and 5); of livelier sound it is 0.77 within a
window and 0.18 between windows. So nobody is left out for long, and who is heard to be related again is forgiven.

What passes both has bounded influence: projections have unit length, which bounds the gradient of every window alike,
and no device has more windows in a batch than a step has parts. Honest devices' numbers are only looked at.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor

from trainer.batcher import Part

LOG = logging.getLogger(__name__)
LAPSE_BATCHES = 32  # a device that sent nothing at a cut for as long has no vote there any more
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
LONGEST_QUARANTINE_BATCHES = 256  # noise is in 7 % of the batches then, and an honest device is soon back


@dataclass(slots=True)
class _Heard:
    """What one device sent at one cut, and in which batch the latest of it."""

    rms: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    peak: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    batch: int = 0

    @property
    def values(self) -> tuple[deque[float], deque[float]]:
        return self.rms, self.peak


class ScaleScreen:
    """Root mean square and peak of every view, compared with the fleet's. Every device has one vote."""

    def __init__(self) -> None:
        self._heard: dict[int, dict[str, _Heard]] = {}
        self._batches = 0
        self._bounds: dict[int, tuple[tuple[float, float], ...]] = {}

    def judge(self, device: str, cut: int, activations: Tensor) -> str:
        """Why activations [2, ...] at ``cut`` are refused; empty: they are not. They count either way."""
        flat = activations.flatten(1)
        views = (
            flat.square().mean(dim=1).clamp_min(1e-24).sqrt().log().tolist(),
            flat.abs().amax(dim=1).clamp_min(1e-24).log().tolist(),
        )
        heard = self._heard.setdefault(cut, {}).setdefault(device, _Heard())
        heard.batch = self._batches
        for values, mine in zip(views, heard.values, strict=True):
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
        """Make new bounds from what came; called once a batch.

        Where too few devices are left to vote there are none: the encoder learns on, and old ones would refuse honest
        activations for good.
        """
        self._batches += 1
        for cut, devices in self._heard.items():
            for device in [name for name, heard in devices.items() if self._batches - heard.batch > LAPSE_BATCHES]:
                del devices[device]
            voters = [heard.values for heard in devices.values() if len(heard.rms) >= FEWEST_VALUES]
            if len(voters) >= FEWEST_DEVICES:
                self._bounds[cut] = tuple(_bound([kept[i] for kept in voters], NARROWEST[i]) for i in range(2))
            else:
                self._bounds.pop(cut, None)

    def forget(self, device: str) -> None:
        """A device is gone."""
        for devices in self._heard.values():
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
        self._gone: set[str] = set()

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
        self._gone.discard(device)
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
        present = self._compared.keys() - self._gone - {device}
        others = [score for name in present if (score := self.score(name)) is not None]
        return own is not None and own < UNRELATED and len(others) >= 2 and median(others) > LEARNED

    def forget(self, device: str) -> None:
        """Judge it anew."""
        self._compared.pop(device, None)

    def leave(self, device: str) -> None:
        """A device is gone: the others are not measured by it. Its own score waits, or leaving would wipe it out."""
        if device in self._compared:
            self._gone.add(device)


class Screening:
    """Both tests, and who is left out for how long. A device is known by its name: a new boot changes nothing."""

    def __init__(self) -> None:
        self._scale = ScaleScreen()
        self._kinship = Kinship()
        self._batches = 0
        self._until: dict[str, int] = {}  # device -> batch at which it is tried again
        self._times: Counter[str] = Counter()
        self._related: Counter[str] = Counter()  # windows by which a device has shown itself related
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
        for device, windows in Counter(devices).items():
            if self._kinship.unrelated(device):
                self._leave_out(device)
            elif (self._kinship.score(device) or 0.0) > LEARNED:
                self._forgive(device, windows)

    def _leave_out(self, device: str) -> None:
        batches = min(LONGEST_QUARANTINE_BATCHES, FIRST_QUARANTINE_BATCHES * 2 ** self._times[device])
        LOG.warning("%s is left out for %d batches: its windows' views are unrelated", device, batches)
        self._until[device] = self._batches + batches
        self._times[device] += 1
        self._related[device] = 0
        self._kinship.forget(device)

    def _forgive(self, device: str, windows: int) -> None:
        """One time less counts against a device for as many related windows as would have condemned it."""
        self._related[device] += windows
        if self._related[device] >= ENOUGH_WINDOWS:
            self._related[device] = 0
            self._times[device] = max(0, self._times[device] - 1)

    def forget(self, device: str) -> None:
        """A device is gone: it has no vote any more, in neither test. What was held against it is kept."""
        self._scale.forget(device)
        self._kinship.leave(device)

    def _quarantined(self, device: str) -> bool:
        return self._until.get(device, 0) > self._batches
