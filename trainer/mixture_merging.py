"""What devices heard by themselves goes into the fleet's mixture, once per version and in bounded amounts."""

from __future__ import annotations

from common.limits import Limits
from common.messages import MixtureStatistics
from common.mixture_memory import MixtureMemory
from common.mixture_statistics import Heard, from_message

# Projections that one device's report may count for: a sixteenth of what the mixture remembers. A report may hold more,
# after a night alone, but one device must not replace what all the others said.
MOST_PROJECTIONS = 128.0


class MixtureMerging:
    """Keeps each device's newest report until the next version is made."""

    def __init__(self, mixture: MixtureMemory, *, limits: Limits) -> None:
        self._mixture = mixture
        self._limits = limits
        self._offered: dict[str, Heard] = {}

    def offer(self, device: str, message: MixtureStatistics) -> None:
        """Take a device's report; a newer one replaces it.

        Raises:
            MessageError: as `common.mixture_statistics.from_message`.
        """
        components, dim = self._mixture.means.shape
        self._offered[device] = from_message(message, components=components, dim=dim, limits=self._limits)

    def merge(self) -> None:
        """Merge every report, in the order of the devices' names, so that a run repeats."""
        for _, heard in sorted(self._offered.items()):
            total = float(heard.mass.sum())
            share = min(1.0, MOST_PROJECTIONS / total) if total > 0.0 else 0.0
            parts = (heard.mass * share, heard.means, heard.variances)
            self._mixture.merge(*(part.to(self._mixture.means.device) for part in parts))
        self._offered = {}
