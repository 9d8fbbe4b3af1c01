"""Traces of what surrounds a device: its link, the other load on its processor, how ambiguous its sound is.

Every quantity is a Markov chain over a few regimes, with slow jitter around the regime's value: which regime comes next
depends on the present one alone, and how long it lasts is geometric. Regimes and dwell times are estimates chosen so
that rates and round trips cover what the papers name (0.5 to 8 Mbit/s, 50 to 200 ms) and go beyond at both ends.

A trace is decided by its kind and seed alone. Which seeds train and which are held out stands in `link_traces.yaml`
beside this file, with a digest of what they generate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.signal import lfilter

TraceKind = Literal["wifi", "lte", "congested", "outage"]
KINDS: tuple[TraceKind, ...] = get_args(TraceKind)
SPLIT_FILE = Path(__file__).with_name("link_traces.yaml")
STEP_S = 0.96  # a trace's step: one window

Values = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Regime:
    """One state of a link: how long it lasts in the mean, and its values. A rate of 0 is an outage."""

    dwell_s: float
    uplink_mbps: float
    downlink_mbps: float
    round_trip_ms: float


@dataclass(frozen=True, slots=True)
class Trace:
    """One device's surroundings, `[T]` per field, a value every `STEP_S` seconds.

    `load`: the share of the processor that others take, 0 to 0.95; `uncertainty` of the windows, 0 to 1.
    """

    uplink_mbps: Values
    downlink_mbps: Values
    round_trip_ms: Values
    online: NDArray[np.bool_]
    load: Values
    uncertainty: Values

    def __len__(self) -> int:
        return len(self.load)


@dataclass(frozen=True, slots=True)
class Split:
    """Which traces train, which are held out of training, and on which nothing was chosen; `steps`: the length of each.

    Held-out traces told which settings of the training are good; `fresh` ones were looked at when all was settled.
    """

    steps: int
    training: tuple[tuple[TraceKind, int], ...]
    held_out: tuple[tuple[TraceKind, int], ...]
    fresh: tuple[tuple[TraceKind, int], ...]


OUT = Regime(20.0, 0.0, 0.0, 0.0)
LINKS: dict[TraceKind, tuple[Regime, ...]] = {
    "wifi": (
        Regime(80.0, 30.0, 40.0, 8.0),
        Regime(50.0, 8.0, 12.0, 25.0),
        Regime(25.0, 0.8, 2.0, 120.0),
        Regime(4.0, 0.0, 0.0, 0.0),
    ),
    "lte": (
        Regime(60.0, 12.0, 40.0, 45.0),
        Regime(50.0, 3.0, 12.0, 80.0),
        Regime(40.0, 0.5, 2.0, 200.0),
        Regime(3.0, 0.0, 0.0, 0.0),
    ),
    "congested": (Regime(40.0, 4.0, 8.0, 60.0), Regime(60.0, 0.5, 1.0, 250.0), Regime(40.0, 0.08, 0.3, 900.0)),
    "outage": (Regime(90.0, 20.0, 30.0, 15.0), Regime(40.0, 2.0, 4.0, 70.0), Regime(35.0, 0.0, 0.0, 0.0)),
}
LOADS = ((120.0, 0.05), (60.0, 0.45), (50.0, 0.85))  # (mean dwell in seconds, share that others take)
SCENES = ((40.0, 0.3), (40.0, 0.5), (25.0, 0.75))  # (mean dwell in seconds, uncertainty)
MOST_LOAD = 0.95
JITTER_MEMORY = 0.8  # of the jitter, from step to step
RATE_JITTER, ROUND_TRIP_JITTER, LOAD_JITTER, UNCERTAINTY_JITTER = 0.2, 0.15, 0.04, 0.08


def generate(kind: TraceKind, seed: int, *, steps: int) -> Trace:
    """The trace of that kind and seed, `steps` long; a shorter one is the beginning of a longer one."""
    link_rng, jitter_rng, load_rng, scene_rng = np.random.default_rng([KINDS.index(kind), seed]).spawn(4)
    regimes = LINKS[kind]
    state = _chain([regime.dwell_s for regime in regimes], steps, link_rng)
    rate_jitter, round_trip_jitter = np.exp(_jitter(steps, jitter_rng, (RATE_JITTER, ROUND_TRIP_JITTER))).T
    uplink = np.array([regime.uplink_mbps for regime in regimes])[state]
    downlink = np.array([regime.downlink_mbps for regime in regimes])[state]
    round_trip = np.array([regime.round_trip_ms for regime in regimes])[state]
    return Trace(
        uplink_mbps=_rounded(uplink * rate_jitter),
        downlink_mbps=_rounded(downlink * rate_jitter),
        round_trip_ms=_rounded(round_trip * round_trip_jitter),
        online=uplink > 0.0,
        load=_around(LOADS, LOAD_JITTER, steps, load_rng, MOST_LOAD),
        uncertainty=_around(SCENES, UNCERTAINTY_JITTER, steps, scene_rng, 1.0),
    )


def read_split(path: Path = SPLIT_FILE) -> Split:
    """The committed division into training, held-out and fresh traces.

    Raises:
        ValueError: what is generated is no longer what the file was committed with.
    """
    listed = yaml.safe_load(path.read_text(encoding="utf-8"))
    parts = {}
    for name in ("training", "held_out", "fresh"):
        first, count = listed[name]["first_seed"], listed[name]["seeds"]
        parts[name] = tuple((kind, seed) for seed in range(first, first + count) for kind in KINDS)
        found = digest([generate(kind, seed, steps=listed["steps"]) for kind, seed in parts[name]])
        if found != listed[name]["sha256"]:
            raise ValueError(f"{path.name}: {name} traces have digest {found}, committed is {listed[name]['sha256']}")
    return Split(listed["steps"], **parts)


def digest(traces: Sequence[Trace]) -> str:
    """SHA-256 over every array of the traces."""
    total = hashlib.sha256()
    for trace in traces:
        for values in astuple(trace):
            total.update(np.ascontiguousarray(values).tobytes())
    return total.hexdigest()


def _chain(dwell_s: Sequence[float], steps: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """States `[steps]`: each lasts its dwell time in the mean, then any other follows with equal chance."""
    regimes = len(dwell_s)
    leaving = [STEP_S / seconds for seconds in dwell_s]
    states = []
    state = int(rng.random() * regimes)
    for leaves, where in rng.random((steps, 2)).tolist():
        if leaves < leaving[state]:
            state = (state + 1 + int(where * (regimes - 1))) % regimes
        states.append(state)
    return np.array(states, dtype=np.intp)


def _jitter(steps: int, rng: np.random.Generator, scales: Sequence[float]) -> NDArray[np.float64]:
    """A first-order autoregression of mean 0 and standard deviation `scales`, `[steps, len(scales)]`."""
    shocks = rng.standard_normal((steps, len(scales))) * scales
    shocks[1:] *= np.sqrt(1.0 - JITTER_MEMORY**2)
    smooth: NDArray[np.float64] = lfilter([1.0], [1.0, -JITTER_MEMORY], shocks, axis=0)
    return smooth


def _around(
    regimes: Sequence[tuple[float, float]], jitter: float, steps: int, rng: np.random.Generator, most: float
) -> Values:
    chain_rng, jitter_rng = rng.spawn(2)
    state = _chain([dwell_s for dwell_s, _ in regimes], steps, chain_rng)
    level = np.array([value for _, value in regimes])[state]
    return _rounded(np.clip(level + _jitter(steps, jitter_rng, (jitter,))[:, 0], 0.0, most))


def _rounded(values: NDArray[np.float64]) -> Values:
    # exp() may differ in its last bit from machine to machine; the digest must not.
    return np.round(values, 3).astype(np.float32)
