from __future__ import annotations

from pathlib import Path

import pytest

from common import messages
from common.messages import Telemetry
from device import senses
from device.exchange import Exchange
from device.senses import TOLD_WINDOWS
from device.telemetry import Resources
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


def test_in_real_time_a_step_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(tmp_path, Published())
    monkeypatch.setattr(device.link, "counters", lambda: COUNTERS, raising=False)
    monkeypatch.setattr(device.senses, "_every_window", True)
    monkeypatch.setattr(senses, "SAMPLED_S", 0.0)
    device.cutting.sends_next()
    device.senses.publish(force=True)
    device.link.take_published()
    for step in range(3):
        for _ in range(TOLD_WINDOWS):
            device.cutting.sends_next()
        assert device.link.take_published() == [], "nothing is news"
        exchange = Exchange(step, timeout_s=30.0, grace_s=2.0)
        device.senses.step_over(exchange)
        assert [one.topic for one in device.link.take_published()] == [TOPICS.telemetry("pi")]
    for _ in range(TOLD_WINDOWS + 1):
        device.cutting.sends_next()
    assert len(device.link.take_published()) == 1, "no step has ended for a while"


def test_windows_that_are_decided_on_at_once_share_a_sample_and_count_as_one_that_was_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(tmp_path, Published())
    now_s, sampled = [100.0], list[float]()
    monkeypatch.setattr(device.link, "counters", lambda: COUNTERS, raising=False)
    monkeypatch.setattr(device.senses, "_every_window", True)
    monkeypatch.setattr("time.monotonic", lambda: now_s[0])
    sample = device.senses._sampler.sample

    def noted(but_for_s: float = 0.0) -> Resources:
        sampled.append(now_s[0])
        return sample()

    monkeypatch.setattr(device.senses._sampler, "sample", noted)
    for passed_s in (0.0, 0.1, 0.1, 0.31, 0.6, 0.1):
        now_s[0] += passed_s
        device.cutting.sends_next()
    assert sampled == pytest.approx([100.0, 100.51, 101.11])
    device.senses.publish(force=True)
    device.link.take_published()
    for _ in range(3 * TOLD_WINDOWS):
        device.cutting.sends_next()
    assert device.link.take_published() == []


def test_what_learning_from_a_step_took_is_not_the_load_on_which_decisions_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, now_s, learned = Device(tmp_path, Published()), [100.0], list[float]()
    monkeypatch.setattr(device.link, "counters", lambda: COUNTERS, raising=False)
    monkeypatch.setattr(device.senses, "_every_window", True)
    monkeypatch.setattr("time.monotonic", lambda: now_s[0])
    sample = device.senses._sampler.sample

    def noted(but_for_s: float = 0.0) -> Resources:
        learned.append(but_for_s)
        return sample()

    monkeypatch.setattr(device.senses._sampler, "sample", noted)
    for learned_s in (0.0, 3.0, 0.0, 1.5):
        now_s[0] += 4.0
        device.journal.totals.learned_s += learned_s
        device.senses.observe(5)
    assert learned == pytest.approx([0.0, 3.0, 0.0, 1.5])


def test_the_newest_uncertainty_counts_the_trainer_s_or_the_device_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(tmp_path, Published())
    monkeypatch.setattr(device.link, "counters", lambda: COUNTERS, raising=False)
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    seen = [device.senses.observe(5)]
    device.ambiguity.latest, device.ambiguity.latest_at_s = 0.25, 70.0
    seen.append(device.senses.observe(5))
    device.mailbox.uncertainty, device.mailbox.uncertainty_at_s = 0.75, 100.0
    seen.append(device.senses.observe(5))
    device.ambiguity.latest, device.ambiguity.latest_at_s = 0.5, 100.0
    device.cutting.sends_next()
    device.senses.publish(force=True)
    (told,) = device.link.take_published()
    assert [one.uncertainty for one in seen] == [0.5, 0.25, 0.75]
    assert [one.uncertainty_age for one in seen] == pytest.approx([1.0, 0.5, 0.0])
    assert messages.decode(Telemetry, told.payload, limits=messages.Limits()).uncertainty == 0.5
