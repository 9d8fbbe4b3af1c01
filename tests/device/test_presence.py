"""What a device tells of itself: its state, and what its blocks cost where that was measured."""

from __future__ import annotations

import msgpack
import pytest

from common.messages import ComputeTimes, DeviceStatus, decode, encode
from common.topics import Topics
from device.presence import Presence, last_will

BOOT = "0123456789abcdef"
TIMES = ComputeTimes((0.5, 1.5, 0.1), (1.0, 3.0, 0.2))


class Recorder:
    """A link that keeps what is retained."""

    def __init__(self) -> None:
        self.retained: list[DeviceStatus] = []

    def retain(self, topic: str, payload: bytes) -> None:
        self.retained.append(decode(DeviceStatus, payload))


def presence(link: Recorder, compute: ComputeTimes | None) -> Presence:
    return Presence(
        link,  # type: ignore[arg-type]
        "topic", boot=BOOT, software="0.1.0", fingerprint="f", profile="", room="", cuts=(3, 4), compute=compute,
    )  # fmt: skip


@pytest.mark.parametrize("compute", [None, TIMES])
def test_every_status_of_a_living_device_carries_its_measured_times(compute: ComputeTimes | None) -> None:
    link = Recorder()
    shown = presence(link, compute)
    shown.show("ready")
    shown.show("ready")
    shown.show("paused")
    assert [(status.state, status.seq, status.compute) for status in link.retained] == [
        ("ready", 1, compute),
        ("paused", 2, compute),
    ]


def test_who_gives_up_says_so_where_it_said_that_it_is_there() -> None:
    link = Recorder()
    shown = presence(link, None)
    shown.withdraw()
    assert link.retained == []
    shown.show("ready")
    shown.withdraw()
    assert [status.state for status in link.retained] == ["ready", "stopped"]


def test_a_status_of_an_older_release_without_times_is_still_understood() -> None:
    _, payload = last_will(Topics("home"), "pi", boot=BOOT, software="0.1.0", fingerprint="f")
    assert decode(DeviceStatus, payload).compute is None
    assert "compute" not in str(msgpack.unpackb(payload, raw=False))


def test_the_longest_status_fits_into_its_message() -> None:
    times = ComputeTimes((1e6,) * 66, (1e6,) * 66)
    status = DeviceStatus("ready", BOOT, 1, "s" * 64, "f" * 64, "p" * 63, "r" * 64, tuple(range(65)), times)
    assert decode(DeviceStatus, encode(status)) == status
