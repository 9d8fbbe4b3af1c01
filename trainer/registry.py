"""Which devices are there, told from their retained status messages and last wills."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from common.messages import DeviceStatus

Event = Literal["joined", "left", "refused", "unchanged"]


class Registry:
    """The newest status of every device. A late will of an older boot or connection changes nothing."""

    def __init__(self, *, fingerprint: str) -> None:
        self._fingerprint = fingerprint
        self._newest: dict[str, DeviceStatus] = {}

    @property
    def statuses(self) -> Mapping[str, DeviceStatus]:
        """Device -> its newest status."""
        return self._newest

    def offer(self, device: str, status: DeviceStatus, *, retained: bool = False) -> Event:
        """Take a status; says what it means for the fleet. ``retained``: the broker had it, as the topic's latest."""
        known = self._newest.get(device)
        if known is not None and self._is_older(known, status, retained=retained):
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
    def _is_older(known: DeviceStatus, status: DeviceStatus, *, retained: bool) -> bool:
        if status.boot != known.boot:
            # An older boot was lost: the newer one is alive. But a retained one may be of a boot that came and went
            # while this link was away; a device that is alive contradicts it.
            return status.state == "lost" and not retained
        # A will is written before its connection and so carries no number; a device that is alive contradicts it.
        return status.state != "lost" and status.seq < known.seq
