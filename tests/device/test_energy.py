from __future__ import annotations

import logging
from pathlib import Path

import pytest

from common.power_model import PowerModel
from device.energy import Energy, EnergyMeter, rapl_packages
from device.pmic import Pmic

PI = PowerModel(
    idle_watts=2.0,
    capture_watts=0.5,
    compute_watts=1.5,
    radio_joules_per_megabyte_up=4.0,
    radio_joules_per_megabyte_down=3.0,
)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def domain(powercap: Path, directory: str, name: str, microjoules: int, *, range_uj: int = 1_000_000) -> Path:
    path = powercap / directory
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    (path / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return path / "energy_uj"


def test_the_model_adds_time_compute_and_radio(tmp_path: Path) -> None:
    clock = Clock()
    meter = EnergyMeter(power=PI, powercap=tmp_path, clock=clock)
    clock.now_s += 10.0
    energy = meter.read(busy_s=4.0, bytes_up=2_000_000, bytes_down=1_000_000)
    assert energy.source == "model"
    assert energy.joules == pytest.approx((2.0 + 0.5) * 10.0 + 1.5 * 4.0 + 4.0 * 2.0 + 3.0 * 1.0)


def test_energy_never_shrinks_as_a_run_goes_on(tmp_path: Path) -> None:
    clock = Clock()
    meter = EnergyMeter(power=PI, powercap=tmp_path, clock=clock)
    seen = []
    for step in range(5):
        seen.append(meter.read(busy_s=step * 0.5, bytes_up=step * 1000, bytes_down=step * 500).joules)
        clock.now_s += 1.0
    assert seen == sorted(seen)
    assert seen[0] == 0.0


def test_without_a_counter_and_without_a_profile_nothing_is_claimed(tmp_path: Path) -> None:
    meter = EnergyMeter(power=None, powercap=tmp_path / "absent")
    assert meter.read(busy_s=1.0, bytes_up=10, bytes_down=10) == Energy(0.0, "none")


def test_a_counter_is_measured_from_start_and_said_so(tmp_path: Path) -> None:
    counter = domain(tmp_path, "intel-rapl:0", "package-0", 400_000)
    meter = EnergyMeter(power=None, powercap=tmp_path)
    counter.write_text("900000\n")
    energy = meter.read(busy_s=0.0, bytes_up=0, bytes_down=0)
    assert energy.source == "rapl"
    assert energy.joules == pytest.approx(0.5)


def test_the_radio_is_added_from_the_model_to_what_is_measured(tmp_path: Path) -> None:
    counter = domain(tmp_path, "intel-rapl:0", "package-0", 0)
    meter = EnergyMeter(power=PI, powercap=tmp_path)
    counter.write_text("700000\n")
    energy = meter.read(busy_s=100.0, bytes_up=1_000_000, bytes_down=0)
    assert energy.source == "rapl + radio model"
    assert energy.joules == pytest.approx(0.7 + 4.0)


def test_a_counter_that_starts_over_keeps_counting(tmp_path: Path) -> None:
    counter = domain(tmp_path, "intel-rapl:0", "package-0", 900_000, range_uj=1_000_000)
    meter = EnergyMeter(power=None, powercap=tmp_path)
    counter.write_text("100000\n")
    assert meter.read(busy_s=0.0, bytes_up=0, bytes_down=0).joules == pytest.approx(0.2)
    counter.write_text("50000\n")
    assert meter.read(busy_s=0.0, bytes_up=0, bytes_down=0).joules == pytest.approx(0.2 + 0.95)


def test_packages_are_summed_and_their_parts_are_not(tmp_path: Path) -> None:
    counters = [
        domain(tmp_path, "intel-rapl:0", "package-0", 0),
        domain(tmp_path, "intel-rapl:1", "package-1", 0),
        domain(tmp_path, "intel-rapl:0:0", "core", 0),
        domain(tmp_path, "intel-rapl:2", "psys", 0),
    ]
    (tmp_path / "intel-rapl").mkdir()
    meter = EnergyMeter(power=None, powercap=tmp_path)
    for counter in counters:
        counter.write_text("250000\n")
    assert meter.read(busy_s=0.0, bytes_up=0, bytes_down=0).joules == pytest.approx(0.5)


def test_a_counter_only_root_may_read_means_the_model(tmp_path: Path) -> None:
    domain(tmp_path, "intel-rapl:0", "package-0", 0)
    second = domain(tmp_path, "intel-rapl:1", "package-1", 0)
    second.unlink()
    second.mkdir()  # reading a folder fails for root as well, which a file's mode does not
    assert rapl_packages(tmp_path) == ()
    assert EnergyMeter(power=PI, powercap=tmp_path).read(busy_s=0.0, bytes_up=0, bytes_down=0).source == "model"


def test_who_plays_another_board_does_not_measure_this_one(tmp_path: Path) -> None:
    domain(tmp_path, "intel-rapl:0", "package-0", 0)
    meter = EnergyMeter(power=PI, measure=False, powercap=tmp_path)
    assert meter.read(busy_s=0.0, bytes_up=0, bytes_down=0).source == "model"


class Rails:
    """Draws so many watts, until it is None."""

    def __init__(self, watts: float) -> None:
        self.watts: float | None = watts

    def __call__(self) -> float:
        if self.watts is None:
            raise OSError("gone")
        return self.watts


def test_a_pi_is_measured_by_its_pmic_and_no_radio_is_added_to_it(tmp_path: Path) -> None:
    clock = Clock()
    meter = EnergyMeter(power=PI, pmic=Pmic(Rails(4.0), clock=clock), powercap=tmp_path, clock=clock)
    clock.now_s += 3.0
    assert meter.read(busy_s=1.0, bytes_up=1_000_000, bytes_down=0) == Energy(12.0, "pmic")


def test_a_counter_is_preferred_to_samples(tmp_path: Path) -> None:
    domain(tmp_path, "intel-rapl:0", "package-0", 0)
    meter = EnergyMeter(power=None, pmic=Pmic(Rails(4.0)), powercap=tmp_path)
    assert meter.read(busy_s=0.0, bytes_up=0, bytes_down=0).source == "rapl"


def test_where_the_pmic_fails_the_model_goes_on_from_what_it_measured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock, rails = Clock(), Rails(40.0)
    pmic = Pmic(rails, clock=clock)
    meter = EnergyMeter(power=PI, pmic=pmic, powercap=tmp_path, clock=clock)
    clock.now_s += 2.0
    assert meter.read(busy_s=1.0, bytes_up=1_000_000, bytes_down=0) == Energy(80.0, "pmic")
    rails.watts = None
    pmic.sample()
    clock.now_s += 6.0
    with caplog.at_level(logging.WARNING):
        energies = [meter.read(busy_s=1.0, bytes_up=3_000_000, bytes_down=0) for _ in range(3)]
    assert {energy.source for energy in energies} == {"pmic, then model"}
    assert energies[0].joules == pytest.approx(80.0 + (2.0 + 0.5) * 6.0 + 4.0 * 2.0), "since it was last read"
    assert len(caplog.records) == 1
    assert "gone" in caplog.text


def test_a_pmic_that_fails_before_it_was_read_leaves_the_model_alone(tmp_path: Path) -> None:
    clock, rails = Clock(), Rails(40.0)
    pmic = Pmic(rails, clock=clock)
    meter = EnergyMeter(power=PI, pmic=pmic, powercap=tmp_path, clock=clock)
    clock.now_s += 10.0
    rails.watts = None
    pmic.sample()
    assert meter.read(busy_s=0.0, bytes_up=0, bytes_down=0) == Energy(25.0, "model")


def test_without_a_profile_what_was_measured_stays(tmp_path: Path) -> None:
    clock = Clock()
    pmic = Pmic(Rails(4.0), clock=clock)
    meter = EnergyMeter(power=None, pmic=pmic, powercap=tmp_path, clock=clock)
    clock.now_s += 2.0
    meter.read(busy_s=0.0, bytes_up=0, bytes_down=0)
    clock.now_s += 60.0
    assert meter.read(busy_s=0.0, bytes_up=0, bytes_down=0) == Energy(8.0, "pmic, then none")
