"""What the trainer makes of a broker that does not answer as it should."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from common.topics import Topics
from trainer.presence import COMPLAIN_POLLS, TrainerPresence, retained_version

TOPICS = Topics("home")


class SilentBroker:
    """Takes everything and sends nothing back, as one whose rules let nobody read."""

    connected = True
    address = SimpleNamespace(host="broker", port=1883)

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._polls = 0

    def receive_control(self, timeout_s: float) -> None:
        self._polls += 1
        if self._polls > COMPLAIN_POLLS:
            self._stop.set()

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def test_a_trainer_that_may_not_read_its_own_status_says_so(caplog: pytest.LogCaptureFixture) -> None:
    stop = threading.Event()
    link: Any = SilentBroker(stop)
    presence = TrainerPresence(link, TOPICS, boot="b" * 16, run="r", fingerprint="f" * 64)
    assert retained_version(link, TOPICS, boot="b" * 16, presence=presence, stop=stop) == -1
    assert "may this user write and read streamsplit/v1/home/_trainer/status?" in caplog.text
