from __future__ import annotations

from pathlib import Path

import pytest

from common import messages
from common.messages import Telemetry
from tests.device.test_cutting import TOPICS, Device
from tests.device.test_journal import COUNTERS
from tests.published import Published


def test_windows_looked_at_ahead_are_told_and_are_no_reason_to_move_the_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(tmp_path, Published())
    monkeypatch.setattr(device.link, "counters", lambda: COUNTERS, raising=False)
    device.waiting = 20
    device.cutting.sends_next()
    device.link.take_published()
    device.senses.publish(force=True)
    (told,) = device.link.take_published()
    assert told.topic == TOPICS.telemetry("pi")
    telemetry = messages.decode(Telemetry, told.payload, limits=messages.Limits())
    assert telemetry.queue_depth == 20
    assert device.senses.observe(device.cutting.cut).queue == 0.0
