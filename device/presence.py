"""The device's own status on the broker: retained, numbered, and asserted again when a late will contradicts it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from common import messages
from common.link import Link
from common.messages import ComputeTimes, DeviceStatus
from common.topics import Topics

State = Literal["ready", "paused", "no-audio", "stopped"]


def last_will(topics: Topics, device: str, *, boot: str, software: str, fingerprint: str) -> tuple[str, bytes]:
    """What the broker publishes when this process dies: state ``lost`` of this boot."""
    status = DeviceStatus("lost", boot, 0, software, fingerprint, "", "", ())
    return topics.status(device), messages.encode(status)


class Presence:
    """Owner of ``up/status``."""

    def __init__(
        self,
        link: Link,
        topic: str,
        *,
        boot: str,
        software: str,
        fingerprint: str,
        profile: str,
        room: str,
        cuts: Sequence[int],
        compute: ComputeTimes | None,
    ) -> None:
        self._link = link
        self._topic = topic
        self._boot = boot
        self._software = software
        self._fingerprint = fingerprint
        self._profile = profile
        self._room = room
        self._cuts = tuple(cuts)
        self._compute = compute
        self._seq = 0
        self._state: State | None = None

    def withdraw(self) -> None:
        """Say stopped, if anything was said."""
        if self._state is not None:
            self.show("stopped")

    def show(self, state: State, *, again: bool = False) -> None:
        """Publish ``state`` if it is news, or ``again`` because somebody was told otherwise."""
        if state == self._state and not again:
            return
        self._state = state
        self._seq += 1
        status = DeviceStatus(
            state,
            self._boot,
            self._seq,
            self._software,
            self._fingerprint,
            self._profile,
            self._room,
            self._cuts,
            self._compute,
        )
        self._link.retain(self._topic, messages.encode(status))
