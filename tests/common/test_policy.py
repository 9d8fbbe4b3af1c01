from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.policy import OBSERVATION_NAMES, Observation, observe, scale_age, scale_round_trip, scale_uplink

MEASURED: dict[str, Any] = {
    "uncertainty": 0.4,
    "uncertainty_age_s": 30.0,
    "cpu": 0.6,
    "memory": 0.7,
    "temperature_c": 57.5,
    "throttled": False,
    "uplink_mbps": 10.0,
    "round_trip_ms": 100.0,
    "battery": 0.9,
    "queue_depth": 4,
    "queue_capacity": 16,
    "cut": 6,
    "depth": 8,
    "forward_ms": 10.0,
    "held": 8,
    "version_age": 0.6,
    "follows": False,
}


def seen(**changes: object) -> Observation:
    return observe(**(MEASURED | changes))


def test_every_measurement_lands_on_its_scale() -> None:
    assert seen().values() == pytest.approx((0.4, 0.5, 0.6, 0.7, 0.5, 0.6, 0.5, 0.9, 0.25, 0.75, 1 / 3, 1.0, 0.3, 0.0))


def test_the_order_of_the_fields_is_part_of_the_protocol() -> None:
    assert OBSERVATION_NAMES == (
        "uncertainty",
        "uncertainty_age",
        "cpu",
        "memory",
        "heat",
        "uplink",
        "round_trip",
        "battery",
        "queue",
        "cut",
        "slowness",
        "held",
        "version_age",
        "follows",
    )


def test_what_is_not_known_has_its_stated_value() -> None:
    unknown = seen(
        uncertainty=None,
        uncertainty_age_s=None,
        temperature_c=None,
        throttled=None,
        uplink_mbps=None,
        round_trip_ms=None,
        battery=None,
        forward_ms=None,
        version_age=None,
    )
    assert unknown.slowness == unknown.version_age == 0.5
    assert (unknown.uncertainty, unknown.uncertainty_age) == (0.5, 1.0)
    assert (unknown.heat, unknown.uplink, unknown.round_trip, unknown.battery) == (0.0, 0.5, 0.5, 1.0)


def test_throttling_is_full_heat_whatever_the_thermometer_says() -> None:
    assert seen(throttled=True, temperature_c=40.0).heat == 1.0


@pytest.mark.parametrize(("celsius", "heat"), [(-10.0, 0.0), (30.0, 0.0), (85.0, 1.0), (110.0, 1.0)])
def test_temperatures_are_clipped(celsius: float, heat: float) -> None:
    assert seen(temperature_c=celsius).heat == heat


@pytest.mark.parametrize(("mbps", "scaled"), [(0.0, 0.0), (0.01, 0.0), (0.1, 0.2), (1.0, 0.4), (1e3, 1.0), (1e6, 1.0)])
def test_ten_times_the_rate_is_a_fifth_of_the_scale(mbps: float, scaled: float) -> None:
    assert scale_uplink(mbps) == pytest.approx(scaled)


@pytest.mark.parametrize(("ms", "scaled"), [(0.0, 0.0), (1.0, 0.0), (10.0, 0.25), (1e4, 1.0), (math.inf, 1.0)])
def test_ten_times_the_round_trip_is_a_quarter_of_the_scale(ms: float, scaled: float) -> None:
    assert scale_round_trip(ms) == pytest.approx(scaled)


def test_age_grows_towards_one() -> None:
    assert [scale_age(s) for s in (-1.0, 0.0, 30.0, 90.0, math.inf)] == pytest.approx([0.0, 0.0, 0.5, 0.75, 1.0])


@pytest.mark.parametrize("name", ["uncertainty", "cpu", "memory", "temperature_c", "uplink_mbps", "round_trip_ms"])
def test_a_nan_is_refused_and_never_hidden(name: str) -> None:
    with pytest.raises(ValueError, match="nan"):
        seen(**{name: math.nan})


@pytest.mark.parametrize("changes", [{"cut": 9}, {"cut": -1}, {"depth": 0, "cut": 0}, {"queue_capacity": 0}])
def test_a_scale_that_makes_no_sense_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="cannot be scaled"):
        seen(**changes)


maybe = st.none() | st.floats(allow_nan=False)
number = st.floats(allow_nan=False)


@given(
    uncertainty=maybe,
    age=maybe,
    cpu=number,
    memory=number,
    temperature=maybe,
    throttled=st.none() | st.booleans(),
    uplink=maybe,
    round_trip=maybe,
    battery=maybe,
    queue=st.integers(0, 10_000),
)
def test_whatever_is_measured_everything_is_between_nought_and_one(
    uncertainty: float | None,
    age: float | None,
    cpu: float,
    memory: float,
    temperature: float | None,
    throttled: bool | None,
    uplink: float | None,
    round_trip: float | None,
    battery: float | None,
    queue: int,
) -> None:
    values = seen(
        uncertainty=uncertainty,
        uncertainty_age_s=age,
        cpu=cpu,
        memory=memory,
        temperature_c=temperature,
        throttled=throttled,
        uplink_mbps=uplink,
        round_trip_ms=round_trip,
        battery=battery,
        queue_depth=queue,
    ).values()
    assert all(0.0 <= value <= 1.0 for value in values)
