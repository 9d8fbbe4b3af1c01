"""How old the fleet's newest version of the weights is, against how long versions last."""

from __future__ import annotations


class VersionAge:
    """Counts in windows of this device: what a fleet's clock is, its batches, no device sees."""

    def __init__(self) -> None:
        self._version: int | None = None
        self._since = 0
        self._lasted: float | None = None

    def heard(self, version: int, windows: int) -> None:
        """``version`` is the newest that was announced (negative: none was), when ``windows`` were captured."""
        if version < 0 or version == self._version:
            return
        if self._version is not None and version > self._version and windows > self._since:
            self._lasted = (windows - self._since) / (version - self._version)
        self._version, self._since = version, windows

    def age(self, windows: int) -> float | None:
        """Windows since it was announced over those that versions last; None before two were heard of."""
        return None if self._lasted is None else (windows - self._since) / self._lasted
