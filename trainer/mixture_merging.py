"""What devices heard by themselves goes into the fleet's mixture, once per version and in bounded amounts."""

from __future__ import annotations

from collections import defaultdict, deque

from common.limits import Limits
from common.messages import MixtureStatistics
from common.mixture_memory import MixtureMemory
from common.mixture_statistics import Heard, from_message

# Projections that one device's report may count for: a sixteenth of what the mixture remembers. A report may hold more,
# after a night alone, but one device must not replace what all the others said.
MOST_PROJECTIONS = 128.0
# Of a device, for one version. It tells each thing once, so that two must both be kept; more than a few are a flood.
MOST_REPORTS = 8


class MixtureMerging:
    """Keeps each device's reports until the next version is made."""

    def __init__(self, mixture: MixtureMemory, *, limits: Limits) -> None:
        self._mixture = mixture
        self._limits = limits
        self._offered: defaultdict[str, deque[Heard]] = defaultdict(lambda: deque(maxlen=MOST_REPORTS))
        self._newest: dict[str, tuple[str, int]] = {}  # device -> boot and number of its newest report

    def offer(self, device: str, message: MixtureStatistics) -> None:
        """Take a device's report: what it heard since the one before. One that came already is passed over.

        Raises:
            MessageError: as `common.mixture_statistics.from_message`.
        """
        components, dim = self._mixture.means.shape
        heard = from_message(message, components=components, dim=dim, limits=self._limits)
        boot, seq = self._newest.get(device, ("", 0))
        if message.boot == boot and message.seq <= seq:
            return
        self._newest[device] = (message.boot, message.seq)
        self._offered[device].append(heard)

    def merge(self) -> None:
        """Merge every report, in the order of the devices' names, so that a run repeats."""
        for device in sorted(self._offered):
            reports = self._offered[device]
            total = sum(float(heard.mass.sum()) for heard in reports)
            share = min(1.0, MOST_PROJECTIONS / total) if total > 0.0 else 0.0
            for heard in reports:
                parts = (heard.mass * share, heard.means, heard.variances)
                self._mixture.merge(*(part.to(self._mixture.means.device) for part in parts))
        self._offered.clear()
