"""Whether the fleet is there: waiting for it at the start, and for a version that it was asked for."""

from __future__ import annotations

import threading
import time

from common.config_fleet import SHARED_KEYS
from common.errors import ConfigError
from common.link import Link
from common.topics import Topics
from device.exchange import Exchange
from device.mailbox import Mailbox
from device.pace import Pace
from device.replica import Replica
from device.silence import Silence
from device.weights_exchange import WeightsExchange

ANSWER_WAIT_S = 0.5


class NeverReady(Exception):
    """The fleet could not be reached at start, and there are no weights on the disk to learn with."""


class Contact:
    """A device's contact with its fleet. ``broker``: where that should be, for people."""

    def __init__(
        self,
        link: Link,
        topics: Topics,
        mailbox: Mailbox,
        replica: Replica,
        weights: WeightsExchange,
        *,
        device: str,
        broker: str,
        pace: Pace,
        stop: threading.Event,
    ) -> None:
        self._link = link
        self._topics = topics
        self._mailbox = mailbox
        self._replica = replica
        self._weights = weights
        self._device = device
        self._broker = broker
        self._pace = pace
        self._stop = stop
        self._silence = Silence()

    @property
    def online(self) -> bool:
        """Whether the broker answers, and a trainer of this configuration is ready and no mere word of one."""
        ready = self._link.connected and self._mailbox.trainer_ready
        return ready and not self._silence.holds(time.monotonic(), self._mailbox.heard)

    def step_over(self, exchange: Exchange) -> None:
        """A step was waited for, and maybe nobody answered it."""
        if self.online and exchange.result() == "lost" and exchange.over(time.monotonic()):
            self._silence.step_lost(time.monotonic(), self._mailbox.heard)

    def join(self, exchange: Exchange, *, cut: int) -> None:
        """Wait for the fleet's weights and trainer; with weights on the disk not longer than the start timeout.

        As long as weights keep coming it waits on: a large encoder takes minutes over a slow link.

        Raises:
            ConfigError: a trainer of another configuration.
            NeverReady: no weights on disk, and for the start timeout no fleet, or nothing more of its weights.
        """
        self._subscribe()
        until_s = time.monotonic() + self._pace.start_timeout_s
        while not self._stop.is_set():
            if self._pace.learns and not self._has_what_it_needs():
                self._weights.keep_up(cut=cut, target=cut)
            if self._has_what_it_needs():
                return
            if time.monotonic() >= until_s:
                break
            before = self._replica.chunks
            self._mailbox.drain(exchange, ANSWER_WAIT_S)
            self._refuse_other_fleet()
            if self._replica.chunks > before:
                until_s = time.monotonic() + self._pace.start_timeout_s
        if not self._replica.initialised and self._pace.hermit:
            self._weights.begin_anew()
        elif not self._replica.initialised and not self._stop.is_set():
            raise NeverReady(f"no fleet at {self._broker}: {self._what_is_missing()}")

    def _what_is_missing(self) -> str:
        if self.online:
            return f"the trainer is there, but for {self._pace.start_timeout_s:.0f} s nothing more came of its weights"
        return self._link.counters().last_error or "the broker answers, but there is no trainer"

    def _subscribe(self) -> None:
        for topic in (self._topics.trainer_status(), self._topics.status(self._device)):
            self._link.subscribe(topic, qos=1)
        if self._pace.learns:
            self._link.subscribe(self._topics.manifest(), qos=1)
        self._link.subscribe(self._topics.down(self._device), qos=1)

    def _has_what_it_needs(self) -> bool:
        if self._pace.hermit:
            return self._replica.initialised
        return (self._replica.initialised or not self._pace.learns) and self.online

    def _refuse_other_fleet(self) -> None:
        other = self._mailbox.other_fingerprint
        if other is not None:
            raise ConfigError(
                f"the trainer is configured otherwise (fingerprint {other[:12]}); {', '.join(SHARED_KEYS)} and the "
                "version of the program must be the same on both ends: compare the fleet files"
            )

    def await_version(self, exchange: Exchange, *, cut: int, target: int, timeout_s: float) -> None:
        """In lockstep nothing is computed on weights that are about to be replaced."""
        before, until_s = self._replica.version, time.monotonic() + timeout_s
        while self.online and time.monotonic() < until_s and not self._stop.is_set():
            if self._weights.keep_up(cut=cut, target=target) and self._replica.version > before:
                return
            self._mailbox.drain(exchange, ANSWER_WAIT_S)
