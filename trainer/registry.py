"""Which devices are there, told from their retained status messages and last wills."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from common.messages import DeviceStatus

Event = Literal["joined", "left", "refused", "unchanged"]


class Registry:
    """The newest status of every device. A will of an older boot or connection changes nothing."""

    def __init__(self, *, fingerprint: str) -> None:
        self._fingerprint = fingerprint
        self._newest: dict[str, DeviceStatus] = {}

    @property
    def statuses(self) -> Mapping[str, DeviceStatus]:
        """Device -> its newest status."""
        return self._newest

    def offer(self, device: str, status: DeviceStatus) -> Event:
        """Take a status; says what it means for the fleet."""
        known = self._newest.get(device)
        if known is not None and self._is_older(known, status):
            return "unchanged"
        self._newest[device] = status
        if status.state != "ready":
            return "left" if known is not None and known.state == "ready" else "unchanged"
        if status.fingerprint != self._fingerprint:
            return "refused"
        same = known is not None and known.boot == status.boot and known.state == "ready"
        return "unchanged" if same else "joined"

    def knows(self, device: str, boot: str) -> bool:
        """Whether this boot of the device has shown itself, and speaks for the same configuration."""
        known = self._newest.get(device)
        return known is not None and known.boot == boot and known.fingerprint == self._fingerprint

    @staticmethod
    def _is_older(known: DeviceStatus, status: DeviceStatus) -> bool:
        if status.boot != known.boot:
            return status.state == "lost"  # an older boot was lost: the newer one is alive
        # A will is written before its connection and so carries no number; a device that is alive contradicts it.
        return status.state != "lost" and status.seq < known.seq
