from __future__ import annotations

from typing import Literal

from common.messages import DeviceStatus
from trainer.registry import Registry

OURS = "f" * 64
FIRST, SECOND = "1" * 16, "2" * 16
State = Literal["ready", "paused", "no-audio", "stopped", "lost"]


def status(state: State, boot: str = FIRST, seq: int = 1, fingerprint: str = OURS) -> DeviceStatus:
    return DeviceStatus(state, boot, seq, "0.1.0", fingerprint, "", "", (3, 4))


def will(boot: str = FIRST) -> DeviceStatus:
    """As the broker sends it: written before the connection, so without a number."""
    return status("lost", boot, seq=0)


def test_a_device_joins_when_it_is_ready_and_leaves_when_it_stops_being_so() -> None:
    registry = Registry(fingerprint=OURS)
    assert registry.offer("a", status("ready")) == "joined"
    assert registry.offer("a", status("paused", seq=2)) == "left"
    assert registry.offer("a", status("no-audio", seq=3)) == "unchanged"
    assert registry.offer("a", status("ready", seq=4)) == "joined"
    assert registry.offer("a", status("stopped", seq=5)) == "left"
    assert registry.statuses["a"].state == "stopped"


def test_the_same_status_again_is_no_news() -> None:
    registry = Registry(fingerprint=OURS)
    registry.offer("a", status("ready", seq=2))
    assert registry.offer("a", status("ready", seq=2)) == "unchanged"
    assert registry.offer("a", status("ready", seq=3)) == "unchanged"


def test_a_number_smaller_than_the_last_is_an_old_message() -> None:
    registry = Registry(fingerprint=OURS)
    registry.offer("a", status("ready", seq=5))
    assert registry.offer("a", status("paused", seq=4)) == "unchanged"
    assert registry.statuses["a"].state == "ready"


def test_a_retained_will_is_the_latest_whatever_boot_it_speaks_of() -> None:
    registry = Registry(fingerprint=OURS)
    registry.offer("a", status("ready", FIRST))
    assert registry.offer("a", will(SECOND), retained=True) == "left", "it came and went while our link was away"
    assert registry.offer("a", status("ready", FIRST, seq=2)) == "joined", "a device that is alive contradicts"


def test_a_device_is_lost_by_its_own_will_and_back_when_it_contradicts() -> None:
    registry = Registry(fingerprint=OURS)
    registry.offer("a", status("ready", seq=7))
    assert registry.offer("a", will()) == "left"
    assert registry.offer("a", status("ready", seq=8)) == "joined"


def test_a_late_will_of_an_older_boot_changes_nothing() -> None:
    registry = Registry(fingerprint=OURS)
    registry.offer("a", status("ready", FIRST))
    assert registry.offer("a", status("ready", SECOND)) == "joined"
    assert registry.offer("a", will(FIRST)) == "unchanged"
    assert registry.statuses["a"].boot == SECOND
    assert registry.offer("a", will(SECOND)) == "left"


def test_a_retained_will_of_a_device_never_seen_is_noted_and_nobody_leaves() -> None:
    registry = Registry(fingerprint=OURS)
    assert registry.offer("a", will(FIRST)) == "unchanged"
    assert registry.offer("a", status("ready", SECOND)) == "joined"


def test_another_configuration_is_refused_until_the_device_restarts_with_ours() -> None:
    registry = Registry(fingerprint=OURS)
    assert registry.offer("a", status("ready", fingerprint="0" * 64)) == "refused"
    assert registry.offer("a", status("ready", SECOND)) == "joined"


def test_only_the_boot_that_shows_itself_with_our_configuration_is_known() -> None:
    registry = Registry(fingerprint=OURS)
    assert not registry.knows("a", FIRST)
    registry.offer("a", status("ready", FIRST))
    assert registry.knows("a", FIRST)
    assert not registry.knows("a", SECOND)
    registry.offer("a", status("stopped", FIRST, seq=2))
    assert registry.knows("a", FIRST), "its last change may arrive after its farewell"
    registry.offer("b", status("ready", FIRST, fingerprint="0" * 64))
    assert not registry.knows("b", FIRST)
