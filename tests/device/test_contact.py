"""Joining the fleet: how long a device waits for its weights, and what it says if they do not come."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.messages import WeightsChunk
from common.split import names
from device import contact
from device.contact import Contact, NeverReady
from device.exchange import Exchange
from tests.device.test_weights_exchange import TOPICS, Device
from tests.published import Published

START_TIMEOUT_S = 1.0


class SlowLink:
    """Half a second for every chunk, on a clock of its own; a mailbox for `Contact`."""

    def __init__(self, device: Device, chunks: list[WeightsChunk]) -> None:
        self.now_s = 0.0
        self.trainer_ready = True
        self.other_fingerprint = None
        self.connected = True
        self.heard = 0
        self._device = device
        self._chunks = chunks

    def monotonic(self) -> float:
        return self.now_s

    def drain(self, exchange: Exchange, timeout_s: float) -> None:
        self.now_s += 0.5
        if self._chunks:
            self._device.replica.offer_chunk(self._chunks.pop(0))

    def subscribe(self, *_: object, **__: object) -> None:
        pass


def contact_of(device: Device, link: Any) -> Contact:
    return Contact(
        link, TOPICS, link, device.replica, device.weights,
        device="pi", broker="broker:1883", stop=threading.Event(),
        pace=SimpleNamespace(start_timeout_s=START_TIMEOUT_S, learns=True, hermit=False),  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_device_waits_for_its_weights_as_long_as_they_keep_coming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, fleet = Device(tmp_path), Published()
    chunks = fleet.chunks(names(device.encoder))
    assert len(chunks) * 0.5 > 5 * START_TIMEOUT_S
    link = SlowLink(device, chunks)
    monkeypatch.setattr(contact, "time", link)
    device.replica.offer_manifest(fleet.manifest())
    contact_of(device, link).join(Exchange(0, timeout_s=1.0, grace_s=1.0), cut=5)
    assert device.replica.initialised


def test_weights_that_stop_coming_are_what_a_device_complains_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, fleet = Device(tmp_path), Published()
    link = SlowLink(device, fleet.chunks(names(device.encoder))[:3])
    monkeypatch.setattr(contact, "time", link)
    device.replica.offer_manifest(fleet.manifest())
    with pytest.raises(NeverReady, match="nothing more came of its weights"):
        contact_of(device, link).join(Exchange(0, timeout_s=1.0, grace_s=1.0), cut=5)


def test_a_trainer_that_answers_nothing_is_away_until_it_says_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = SlowLink(Device(tmp_path), [])
    monkeypatch.setattr(contact, "time", link)
    of_the_device = contact_of(Device(tmp_path), link)

    def online_after_a_lost_step() -> bool:
        lost = Exchange(0, timeout_s=30.0, grace_s=2.0)
        lost.offer_sent(0, 5, 100, window=0, closed_s=link.now_s, sent_s=link.now_s)
        of_the_device.step_over(lost)
        link.now_s += 30.0
        of_the_device.step_over(lost)
        return of_the_device.online

    assert [online_after_a_lost_step() for _ in range(2)] == [True, False]
    link.heard += 1
    assert of_the_device.online


def test_a_step_that_is_given_up_before_its_time_says_nothing_of_the_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = SlowLink(Device(tmp_path), [])
    monkeypatch.setattr(contact, "time", link)
    of_the_device = contact_of(Device(tmp_path), link)
    for _ in range(5):
        begun = Exchange(0, timeout_s=30.0, grace_s=2.0)
        begun.offer_sent(0, 5, 100, window=0, closed_s=0.0, sent_s=0.0)
        of_the_device.step_over(begun)
    assert of_the_device.online
