"""The trainer's own status on the broker, and what an earlier trainer left there."""

from __future__ import annotations

import logging
import threading
from typing import Literal

from common import messages
from common.errors import MessageError
from common.link import Link
from common.messages import Manifest, TrainerStatus
from common.topics import Kind, Topics

LOG = logging.getLogger(__name__)
POLL_S = 0.5
HIGHEST_VERSION = 2**40  # a version a second for thirty thousand years
COMPLAIN_POLLS = 20


class TrainerPresence:
    """Owner of ``_trainer/status``."""

    def __init__(self, link: Link, topics: Topics, *, boot: str, run: str, fingerprint: str) -> None:
        self._link = link
        self._topic = topics.trainer_status()
        self._boot = boot
        self._run = run
        self._fingerprint = fingerprint
        self._seq = 0

    @staticmethod
    def will(topics: Topics, *, boot: str, fingerprint: str) -> tuple[str, bytes]:
        """What the broker publishes when the trainer dies."""
        return topics.trainer_status(), messages.encode(TrainerStatus("lost", boot, 0, "", fingerprint, 0))

    def show(self, state: Literal["ready", "stopped"], weights_version: int) -> int:
        """Publish the state, retained; its number, by which it is known when it comes back."""
        self._seq += 1
        status = TrainerStatus(state, self._boot, self._seq, self._run, self._fingerprint, weights_version)
        self._link.retain(self._topic, messages.encode(status))
        return self._seq


def _plausible(version: int) -> int:
    if version > HIGHEST_VERSION:
        raise MessageError(f"weights version {version} of a manifest that no trainer of ours published")
    return version


def retained_version(link: Link, topics: Topics, *, boot: str, presence: TrainerPresence, stop: threading.Event) -> int:
    """The weights version retained on the broker, or -1: a new version must lie above it.

    Our own status comes back behind whatever was retained before, so its echo says that nothing more will come. Waits
    for the broker as long as it takes, and says so.
    """
    link.subscribe(topics.manifest(), qos=1)
    link.subscribe(topics.trainer_status(), qos=1)
    link.wait_connected(POLL_S)
    presence.show("stopped", 0)
    version, polls = -1, 0
    while not stop.is_set():
        incoming = link.receive_control(POLL_S)
        if incoming is None:
            polls += 1
            if polls % COMPLAIN_POLLS == (0 if link.connected else 1):
                _complain(link, topics)
            continue
        try:
            if topics.parse(incoming.topic).kind is Kind.MANIFEST:
                version = _plausible(messages.decode(Manifest, incoming.payload).weights_version)
            elif messages.decode(TrainerStatus, incoming.payload).boot == boot:
                break
        except MessageError as error:
            LOG.warning("passed over what is retained on %s: %s", incoming.topic, error)
    link.unsubscribe(topics.manifest())
    link.unsubscribe(topics.trainer_status())
    return version


def _complain(link: Link, topics: Topics) -> None:
    address = link.address
    if not link.connected:
        LOG.warning("no broker at %s:%d (%s); trying on", address.host, address.port, link.counters().last_error)
        return
    LOG.warning(
        "%s:%d does not send back what was published: may this user write and read %s?",
        address.host,
        address.port,
        topics.trainer_status(),
    )
