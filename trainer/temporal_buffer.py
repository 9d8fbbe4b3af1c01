"""The latest projections of every device's running segment, and the temporal graph that joins a batch to them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

WINDOW = 100
NEIGHBOURS = 5
SCALE_S = 2.0
MAX_DEVICES = 1024


@dataclass(frozen=True, slots=True)
class Edges:
    """A directed k-nearest-neighbours graph in time.

    Attributes:
        sources: long ``[E]``, windows of the batch.
        targets: long ``[E]``, below N windows of the batch, from N on rows of ``constants``.
        weights: ``[E]``, ``exp(-|dt| / scale)``.
        constants: ``[K, d]``, projections of earlier batches, without gradient.
    """

    sources: Tensor
    targets: Tensor
    weights: Tensor
    constants: Tensor


@dataclass(frozen=True, slots=True)
class _Track:
    segment: int
    times_s: Tensor  # [n] float64
    projections: Tensor  # [n, d]


class TemporalBuffer:
    """Keeps up to ``window`` detached projections of each device's running segment.

    A segment ends at every gap or clip, so another segment number of a device replaces what was kept of it; beyond
    ``max_devices`` the device that has been silent longest is forgotten.
    """

    def __init__(
        self,
        *,
        window: int = WINDOW,
        neighbours: int = NEIGHBOURS,
        scale_s: float = SCALE_S,
        max_devices: int = MAX_DEVICES,
    ) -> None:
        self._window = window
        self._neighbours = neighbours
        self._scale_s = scale_s
        self._max_devices = max_devices
        self._tracks: OrderedDict[str, _Track] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(track.times_s) for track in self._tracks.values())

    def edges(self, devices: Sequence[str], segments: Sequence[int], times_s: Sequence[float], z: Tensor) -> Edges:
        """Join each of N windows to its k nearest in time within its segment, in this batch or kept from earlier ones.

        Args:
            devices: N names of devices, one for each boot.
            segments: N segment numbers.
            times_s: N positions on a clock that is continuous within a segment.
            z: projections ``[N, d]``; only shape, type and place are used.
        """
        times = self._check(devices, segments, times_s, z)
        kept = [(device, self._tracks[device]) for device in dict.fromkeys(devices) if device in self._tracks]
        keys = list(zip(devices, segments, strict=True))
        codes = {key: code for code, key in enumerate(dict.fromkeys(keys))}
        own = torch.tensor([codes[key] for key in keys], dtype=torch.long)
        kept_codes = [
            torch.full((len(track.times_s),), codes.get((device, track.segment), -1)) for device, track in kept
        ]
        all_codes = torch.cat([own, *kept_codes])
        all_times = torch.cat([times, *(track.times_s for _, track in kept)])
        constants = torch.cat([z.new_zeros(0, z.shape[1]), *(track.projections.to(z) for _, track in kept)])
        gap = (times[:, None] - all_times[None, :]).abs()
        gap = gap.masked_fill(own[:, None] != all_codes[None, :], torch.inf)
        gap.fill_diagonal_(torch.inf)
        nearest, targets = gap.topk(min(self._neighbours, gap.shape[1]), dim=1, largest=False)
        real = nearest.isfinite()
        sources = torch.arange(len(z))[:, None].expand_as(targets)[real]
        weights = torch.exp(-nearest[real] / self._scale_s)
        return Edges(
            sources=sources.to(z.device),
            targets=targets[real].to(z.device),
            weights=weights.to(z),
            constants=constants,
        )

    def add(self, devices: Sequence[str], segments: Sequence[int], times_s: Sequence[float], z: Tensor) -> None:
        """Keep these projections ``[N, d]``; per device, rows are taken to stand in the order they were heard."""
        times = self._check(devices, segments, times_s, z)
        rows: dict[str, list[int]] = {}
        for row, device in enumerate(devices):
            rows.setdefault(device, []).append(row)
        for device, mine in rows.items():
            segment = segments[mine[-1]]
            latest = torch.tensor([row for row in mine if segments[row] == segment])
            self._extend(device, segment, times[latest], z.detach()[latest.to(z.device)])

    def _extend(self, device: str, segment: int, times: Tensor, projections: Tensor) -> None:
        old = self._tracks.pop(device, None)
        if old is not None and old.segment == segment:
            times = torch.cat([old.times_s, times])
            projections = torch.cat([old.projections, projections])
        # clone: a slice would keep the whole of the longer tensor alive
        self._tracks[device] = _Track(segment, times[-self._window :].clone(), projections[-self._window :].clone())
        while len(self._tracks) > self._max_devices:
            self._tracks.popitem(last=False)

    def _check(self, devices: Sequence[str], segments: Sequence[int], times_s: Sequence[float], z: Tensor) -> Tensor:
        if z.dim() != 2 or not len(z) == len(devices) == len(segments) == len(times_s):
            raise ValueError(f"need N devices, segments, times and projections [N, d], not {list(z.shape)}")
        return torch.tensor(times_s, dtype=torch.float64)
