from __future__ import annotations

import logging
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from device.telemetry import LinkEstimate, ResourceSampler, parse_throttled, processor_temperature_c, share_but_for


def no_program(_name: str) -> None:
    return None


def vcgencmd(name: str) -> str:
    return f"/usr/bin/{name}"


def sampler_that_runs(tmp_path: Path, answers: list[str | Exception]) -> ResourceSampler:
    def run(_command: Sequence[str]) -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return ResourceSampler(throttled_file=tmp_path / "absent", find_program=vcgencmd, run_program=run)


def sensors(monkeypatch: pytest.MonkeyPatch, **readings: list[float]) -> None:
    found = {name: [SimpleNamespace(current=value) for value in values] for name, values in readings.items()}
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: found, raising=False)


def test_a_sample_of_this_machine_holds_fractions(tmp_path: Path) -> None:
    sample = ResourceSampler(throttled_file=tmp_path / "absent", find_program=no_program).sample()
    assert 0.0 <= sample.cpu <= 1.0
    assert 0.0 < sample.memory <= 1.0
    assert sample.throttled is None
    assert sample.battery is None or 0.0 <= sample.battery <= 1.0


@pytest.mark.parametrize(
    ("busy_s", "all_s", "but_for_s", "share"),
    [(2.0, 8.0, 0.0, 0.25), (8.0, 8.0, 2.0, 1.0), (2.0, 8.0, 2.0, 0.0), (1.9, 8.0, 2.0, 0.0), (2.0, 2.0, 2.0, 0.0)],
)
def test_a_board_on_which_others_take_all_they_can_stays_a_full_one_while_it_learns(
    busy_s: float, all_s: float, but_for_s: float, share: float
) -> None:
    assert share_but_for(busy_s, all_s, but_for_s) == pytest.approx(share)


def test_seconds_of_a_core_that_shall_not_count_are_taken_off_the_load(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now_s = [10.0]
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 75.0)
    monkeypatch.setattr(psutil, "cpu_count", lambda: 4)
    sampler = ResourceSampler(throttled_file=tmp_path / "absent", find_program=no_program, clock=lambda: now_s[0])
    assert sampler.sample(but_for_s=1.0).cpu == 0.0, "no time has passed"
    now_s[0] += 2.0
    assert sampler.sample(but_for_s=1.0).cpu == pytest.approx((0.75 * 8.0 - 1.0) / (8.0 - 1.0))
    now_s[0] += 2.0
    assert sampler.sample().cpu == pytest.approx(0.75)


def test_a_machine_without_any_sensor_says_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(psutil, "sensors_temperatures", raising=False)
    monkeypatch.delattr(psutil, "sensors_battery", raising=False)
    sample = ResourceSampler(throttled_file=tmp_path / "absent", find_program=no_program).sample()
    assert (sample.temperature_c, sample.throttled, sample.battery) == (None, None, None)


def test_a_battery_is_a_fraction(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(psutil, "sensors_battery", lambda: SimpleNamespace(percent=80), raising=False)
    sample = ResourceSampler(throttled_file=tmp_path / "absent", find_program=no_program).sample()
    assert sample.battery == pytest.approx(0.8)


def test_the_processors_own_sensor_is_preferred_to_a_hotter_one(monkeypatch: pytest.MonkeyPatch) -> None:
    sensors(monkeypatch, nvme=[71.0], cpu_thermal=[48.5, 49.0])
    assert processor_temperature_c() == 49.0


def test_without_a_processor_sensor_the_hottest_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    sensors(monkeypatch, nvme=[41.0], acpitz=[44.0])
    assert processor_temperature_c() == 44.0


def test_an_implausible_temperature_is_no_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    sensors(monkeypatch, cpu_thermal=[-273.0, 65535.0])
    assert processor_temperature_c() is None


@pytest.mark.parametrize(
    ("text", "throttled"),
    [
        ("0\n", False),
        ("throttled=0x0\n", False),
        ("throttled=0x50000\n", False),  # it happened once, it is over
        ("throttled=0x50005\n", True),
        ("throttled=0x8", True),
        ("1", True),
    ],
)
def test_only_what_throttles_now_counts(text: str, throttled: bool) -> None:
    assert parse_throttled(text) is throttled


def test_the_boards_file_is_read_at_every_sample(tmp_path: Path) -> None:
    file = tmp_path / "get_throttled"
    file.write_text("50000\n")
    sampler = ResourceSampler(throttled_file=file, find_program=no_program)
    assert sampler.sample().throttled is False
    file.write_text("50005\n")
    assert sampler.sample().throttled is True


def test_vcgencmd_is_asked_where_the_file_is_missing(tmp_path: Path) -> None:
    sampler = sampler_that_runs(tmp_path, ["throttled=0x4\n", "throttled=0x0\n"])
    assert [sampler.sample().throttled for _ in range(2)] == [True, False]


@pytest.mark.parametrize(
    "failure",
    [subprocess.CalledProcessError(255, "vcgencmd"), subprocess.TimeoutExpired("vcgencmd", 2.0), OSError("gone"), "??"],
)
def test_a_failing_sensor_is_said_once_and_unknown_from_then_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, failure: str | Exception
) -> None:
    sampler = sampler_that_runs(tmp_path, [failure])
    with caplog.at_level(logging.WARNING):
        assert [sampler.sample().throttled for _ in range(3)] == [None, None, None]
    assert len(caplog.records) == 1


def test_nothing_is_known_of_a_link_before_it_is_used() -> None:
    link = LinkEstimate(alpha=0.3)
    assert (link.uplink_mbps, link.round_trip_ms) == (None, None)


def test_the_first_observation_counts_whole() -> None:
    link = LinkEstimate(alpha=0.3)
    link.uplink(4.0)
    link.round_trip(40.0)
    assert link.uplink_mbps == pytest.approx(4.0)
    assert link.round_trip_ms == pytest.approx(40.0)


def test_a_new_round_trip_counts_three_tenths() -> None:
    link = LinkEstimate(alpha=0.3)
    for ms in (100.0, 200.0, 200.0):
        link.round_trip(ms)
    assert link.round_trip_ms == pytest.approx(0.7 * (0.7 * 100.0 + 0.3 * 200.0) + 0.3 * 200.0)


def test_a_rate_that_changes_is_followed() -> None:
    link = LinkEstimate(alpha=0.3)
    link.uplink(8.0)
    for _ in range(30):
        link.uplink(0.8)
    assert link.uplink_mbps == pytest.approx(0.8, rel=1e-3)


def test_a_rate_that_strays_once_is_passed_over_and_one_that_stays_is_believed_at_once() -> None:
    link = LinkEstimate(alpha=0.3)
    seen = []
    for mbps in (8.0, 0.5, 8.0, 0.5, 30.0, 0.5, 0.5, 0.4, 9.0, 8.0):
        link.uplink(mbps)
        seen.append(link.uplink_mbps)
    assert seen[:6] == [8.0] * 6
    assert seen[6:] == [pytest.approx(value) for value in (0.5, 0.47, 0.47, 8.0)]


def test_a_rate_of_nothing_is_a_rate() -> None:
    link = LinkEstimate(alpha=0.3)
    for mbps in (4.0, 0.0, 0.0, 4.0, 4.0):
        link.uplink(mbps)
    assert link.uplink_mbps == pytest.approx(4.0)


@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_a_time_that_cannot_be_is_refused(value: float) -> None:
    link = LinkEstimate(alpha=0.3)
    with pytest.raises(ValueError, match="ms"):
        link.round_trip(value)
    with pytest.raises(ValueError, match="mbps"):
        link.uplink(value)


@pytest.mark.parametrize("alpha", [0.0, -0.1, 1.1])
def test_a_weight_outside_its_range_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        LinkEstimate(alpha=alpha)
