"""`streamsplit watch`: a table of a fleet that runs, and in words what keeps it from being drawn."""

from __future__ import annotations

import threading
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import streamsplit
from broker.child import free_port
from broker.start import Broker
from common import messages
from common.config import load_fleet
from common.messages import DeviceStatus
from common.process import EXIT_UNAVAILABLE
from common.topics import Topics
from tests.brokers import Links
from tests.common.cases import cases
from trainer.watch import watch

TOPICS = Topics("barn")


def fleet_file(directory: Path, url: str) -> Path:
    path = directory / "fleet.yaml"
    path.write_text(f"fleet: barn\nbroker: {{url: '{url}'}}\n", encoding="utf-8")
    return path


class Screen(StringIO):
    """Tells when a text has been written to it."""

    def __init__(self, wanted: str, stop: threading.Event) -> None:
        super().__init__()
        self._wanted = wanted
        self._stop = stop

    def write(self, text: str, /) -> int:
        written = super().write(text)
        if self._wanted in self.getvalue():
            self._stop.set()
        return written


def test_a_retained_device_is_shown_until_it_is_told_to_stop(broker: Broker, links: Links, tmp_path: Path) -> None:
    links.make("barn/attic").retain(TOPICS.status("attic"), messages.encode(cases()[DeviceStatus]))
    stop = threading.Event()
    screen = Screen("attic", stop)
    # A terminal, or the table would be written once, at the end.
    console = Console(file=screen, width=80, force_terminal=True)
    assert watch(load_fleet(fleet_file(tmp_path, broker.url)), stop, seconds=None, console=console) == 0
    assert "ready" in screen.getvalue()


def test_a_broker_that_is_away_is_named_and_the_status_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fleet_file(tmp_path, f"mqtt://127.0.0.1:{free_port('127.0.0.1')}")
    assert streamsplit.main(["watch", str(path), "--seconds", "0.1"]) == EXIT_UNAVAILABLE
    assert "no connection to 127.0.0.1:" in capsys.readouterr().out


def test_a_fleet_file_that_cannot_be_used_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert streamsplit.main(["watch", str(tmp_path / "none.yaml")]) == 78
    assert "none.yaml" in capsys.readouterr().err
