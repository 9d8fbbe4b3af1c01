"""What a splitter sees: one function turns raw measurements into numbers in [0, 1], the same on device and trainer.

A measurement a device cannot make has a fixed, stated value, so that a policy learned on one fleet means the same on
another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

# Ends of the scales; rates and times span orders of magnitude, so theirs are logarithmic.
UPLINK_MBPS = (0.01, 1000.0)
ROUND_TRIP_MS = (1.0, 10_000.0)
TEMPERATURE_C = (30.0, 85.0)
FORWARD_MS = (1.0, 1000.0)
# Weight of the newest measurement of the link in the mean that is observed: one a step, so a change shows in two.
LINK_SMOOTHING = 0.5
# An uncertainty this old counts as half old: about the length of an acoustic scene.
HALF_AGE_S = 30.0


@dataclass(frozen=True, slots=True)
class Observation:
    """A splitter's input, every field in [0, 1] (ValueError otherwise).

    `uncertainty`: of the last window that was answered, or judged here; `uncertainty_age`: 0 fresh, 1 very old or
    never known; `heat`: 30 to 85 °C, 1 when throttled; `uplink`, `round_trip`: logarithmic; `battery`: 1 on mains;
    `queue`: how full the queue of windows is; `cut`: the current cut over the number of blocks; `slowness`:
    logarithmic, one window through `mobile` on this device, idle, whatever it trains; `held`: the deepest cut whose
    blocks are here at the current version, over the number of blocks; `version_age`: 0 a version of the weights has
    just come, 0.5 the next is due, 1 it is long overdue; `follows`: 1 where blocks beyond the cut follow every
    version as well, so that no move fetches anything, else 0.
    """

    uncertainty: float
    uncertainty_age: float
    cpu: float
    memory: float
    heat: float
    uplink: float
    round_trip: float
    battery: float
    queue: float
    cut: float
    slowness: float
    held: float
    version_age: float
    follows: float

    def __post_init__(self) -> None:
        for name, value in zip(OBSERVATION_NAMES, self.values(), strict=True):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"observation: {name} is {value}, allowed is 0 to 1")

    def values(self) -> tuple[float, ...]:
        """The fields in the order of `OBSERVATION_NAMES`, as telemetry carries them."""
        return _fields_of(self)


OBSERVATION_NAMES: tuple[str, ...] = tuple(Observation.__dataclass_fields__)
_fields_of: Callable[[Observation], tuple[float, ...]] = attrgetter(*OBSERVATION_NAMES)  # astuple copies deeply: slow


def observe(
    *,
    uncertainty: float | None,
    uncertainty_age_s: float | None,
    cpu: float,
    memory: float,
    temperature_c: float | None,
    throttled: bool | None,
    uplink_mbps: float | None,
    round_trip_ms: float | None,
    battery: float | None,
    queue_depth: int,
    queue_capacity: int,
    cut: int,
    depth: int,
    forward_ms: float | None,
    held: int,
    version_age: float | None,
    follows: bool,
) -> Observation:
    """The observation from what was measured; None is "not known here", and out-of-range values are clipped.

    `depth`: the encoder's number of blocks, `cut` and `held` in 0..depth; `version_age`: time since the newest version
    of the weights over the time that the one before it was the newest. Not known: uncertainty, uplink, round trip,
    slowness and the version's age 0.5, the uncertainty's age 1, heat 0, battery 1. Raises ValueError for NaN, a cut
    outside 0..depth or an empty scale.
    """
    if not (0 <= cut <= depth and 0 <= held <= depth and depth > 0 and queue_capacity > 0):
        raise ValueError(f"cut {cut}, held {held} of {depth} blocks, queue of {queue_capacity}: cannot be scaled")
    return Observation(
        uncertainty=0.5 if uncertainty is None else _clip(uncertainty),
        uncertainty_age=1.0 if uncertainty is None or uncertainty_age_s is None else scale_age(uncertainty_age_s),
        cpu=_clip(cpu),
        memory=_clip(memory),
        heat=_heat(temperature_c, throttled),
        uplink=0.5 if uplink_mbps is None else scale_uplink(uplink_mbps),
        round_trip=0.5 if round_trip_ms is None else scale_round_trip(round_trip_ms),
        battery=1.0 if battery is None else _clip(battery),
        queue=_clip(queue_depth / queue_capacity),
        cut=cut / depth,
        slowness=0.5 if forward_ms is None else scale_forward(forward_ms),
        held=held / depth,
        version_age=0.5 if version_age is None else scale_version_age(version_age),
        follows=float(follows),
    )


def scale_uplink(mbps: float) -> float:
    """0 at 10 kbit/s and below, 1 at 1 Gbit/s and above, logarithmic between."""
    return _logarithmic(mbps, *UPLINK_MBPS)


def scale_round_trip(ms: float) -> float:
    """0 at 1 ms and below, 1 at 10 s and above, logarithmic between."""
    return _logarithmic(ms, *ROUND_TRIP_MS)


def scale_forward(ms: float) -> float:
    """0 at 1 ms and below, 1 at 1 s and above, logarithmic between."""
    return _logarithmic(ms, *FORWARD_MS)


def unscale_forward(slowness: float) -> float:
    """Milliseconds of which `scale_forward` made this, in 0..1."""
    low, high = FORWARD_MS
    return low * math.exp(slowness * math.log(high / low))


def scale_age(seconds: float) -> float:
    """0 when fresh, 0.5 after 30 s, towards 1 for ever older."""
    age_s = max(seconds, 0.0)
    return 1.0 if math.isinf(age_s) else age_s / (age_s + HALF_AGE_S)


def scale_version_age(age: float) -> float:
    """0 when a version has just come, 0.5 when it is as old as the one before it became, 1 at twice that and beyond."""
    return _clip(age / 2.0)


def _heat(temperature_c: float | None, throttled: bool | None) -> float:
    if throttled:
        return 1.0
    if temperature_c is None:
        return 0.0
    low, high = TEMPERATURE_C
    return _clip((temperature_c - low) / (high - low))


def _logarithmic(value: float, low: float, high: float) -> float:
    # NaN must reach Observation and be refused there; max() would hide it behind its first argument.
    if math.isnan(value):
        return value
    return _clip(math.log(min(max(value, low), high) / low) / math.log(high / low))


def _clip(value: float) -> float:
    return value if math.isnan(value) else min(max(value, 0.0), 1.0)
