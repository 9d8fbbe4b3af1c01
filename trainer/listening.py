"""Makes both views of windows that arrived as sound, for the server-only baseline: what devices do in every other mode.

A device has half a second of sound on either side of a window (COLA: the whole recording). Here there is what was sent:
the windows before, if they are of the same segment and nothing is missing between, and of those after it what arrived
in the same step. The last window of a step, and one that is a segment of its own (`shuffled` order), therefore have
less to crop view B from.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from common.log_mel import SAMPLE_RATE_HZ, WINDOW_SAMPLES
from common.views import Views
from trainer.batcher import Part


@dataclass(frozen=True, slots=True, eq=False)
class Overheard:
    """A window with its neighbourhood as far as it was sent; see `common.views.Excerpt`."""

    samples: NDArray[np.float32]
    context: NDArray[np.float32]
    offset: int
    segment: int


class Listening:
    """One source of augmentations a device, each seeded by the run's seed and the device's name. One thread only.

    Args:
        make_views: from a generator, what makes a device's views.
        context_s: sound on either side of a window that they may use.
        seed: of the run.
    """

    def __init__(self, make_views: Callable[[np.random.Generator], Views], *, context_s: float, seed: int) -> None:
        self._make_views = make_views
        self._reach = round(context_s * SAMPLE_RATE_HZ)
        self._kept = math.ceil(self._reach / WINDOW_SAMPLES)
        self._seed = seed
        self._views: dict[str, Views] = {}
        self._past: dict[str, deque[Part]] = {}

    def __call__(self, batch: Sequence[Part]) -> list[Part]:
        """The same parts, in the same order, with views [2, 1, 64, 96] in the place of samples [15360].

        The parts of a device stand together, in their order.
        """
        return [
            replace(part, activations=views)
            for device, parts in groupby(batch, key=lambda part: part.device)
            for part, views in self._of(device, list(parts))
        ]

    def _of(self, device: str, parts: Sequence[Part]) -> list[tuple[Part, Tensor]]:
        if device not in self._views:
            self._views[device] = self._make_views(np.random.default_rng([self._seed, *device.encode()]))
            self._past[device] = deque(maxlen=self._kept)
        views, past = self._views[device], self._past[device]
        heard = [*past, *parts]
        made = [(part, views(self._overheard(heard, len(past) + i))) for i, part in enumerate(parts)]
        past.extend(parts)
        return made

    def _overheard(self, heard: Sequence[Part], place: int) -> Overheard:
        first = last = place
        while first > 0 and place - first < self._kept and _follows(heard[first - 1], heard[first]):
            first -= 1
        while last + 1 < len(heard) and last - place < self._kept and _follows(heard[last], heard[last + 1]):
            last += 1
        samples = heard[place].activations.numpy()
        before = np.concatenate([samples[:0], *(part.activations.numpy() for part in heard[first:place])])
        after = np.concatenate([samples[:0], *(part.activations.numpy() for part in heard[place + 1 : last + 1])])
        before, after = before[max(0, len(before) - self._reach) :], after[: self._reach]
        return Overheard(samples, np.concatenate([before, samples, after]), len(before), heard[place].segment)


def _follows(one: Part, other: Part) -> bool:
    """Whether no sound is missing between two windows of a device."""
    return (other.boot, other.segment, other.window_index) == (one.boot, one.segment, one.window_index + 1)
