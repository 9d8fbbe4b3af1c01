"""The testbed's figures: of one device, of a row, and of one row against another. Pure functions over journals."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.power_model import PowerModel
from common.split import WINDOW_BYTES
from device.windows import WINDOW_S
from tests.bench.testbed_journal import DeviceJournal, Fate, Point, WindowSeen

Scales = tuple[float, float]
SENSITIVITY: tuple[Scales, ...] = ((0.5, 1.0), (2.0, 1.0), (1.0, 0.5), (1.0, 2.0))  # of (compute, radio)
PLAIN: Scales = (1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Cost:
    """What the counted windows of a device cost. ``air_joules``: the radio's, if it is on as long as the link takes."""

    windows: int
    elapsed_s: float
    bytes_up: int
    bytes_down: int
    busy_s: float
    cpu_s: float
    memory_mb: float
    compute_joules: float
    radio_joules: float
    air_joules: float
    standing_joules: float

    def marginal_joules(self, scales: Scales = PLAIN, *, air: bool = False) -> float:
        """Above an idle board that listens; (compute, radio) times as much."""
        return scales[0] * self.compute_joules + scales[1] * (self.air_joules if air else self.radio_joules)


@dataclass(frozen=True, slots=True)
class DeviceFigures:
    """One device of a row: its link's class, its counted windows and what they cost."""

    link: str
    windows: tuple[WindowSeen, ...]
    cost: Cost
    saturated: bool


def device_figures(
    journal: DeviceJournal, *, link: str, warm_up: int, power: PowerModel, air_per_megabyte: tuple[float, float]
) -> DeviceFigures:
    """What is counted of a device: everything from the first line after the warm-up on.

    Raises:
        ValueError: it never got so far.
    """
    begin = next((place for place, point in enumerate(journal.points) if point.windows >= warm_up), None)
    if begin is None or journal.points[-1].windows == journal.points[begin].windows:
        raise ValueError(f"a device took {journal.points[-1].windows if journal.points else 0} windows, none counts")
    first, last = journal.points[begin], journal.points[-1]
    counted = [seen for index, seen in sorted(journal.windows.items()) if first.windows <= index < last.windows]
    return DeviceFigures(
        link=link,
        windows=tuple(counted),
        cost=_cost(first, last, journal.points[begin:], power, air_per_megabyte),
        saturated=is_saturated(journal.points[begin:]),
    )


def _cost(
    first: Point, last: Point, points: Sequence[Point], power: PowerModel, air_per_megabyte: tuple[float, float]
) -> Cost:
    windows, up, down = (
        last.windows - first.windows,
        last.bytes_up - first.bytes_up,
        last.bytes_down - first.bytes_down,
    )
    busy_s = last.busy_s - first.busy_s
    elapsed_s = windows * WINDOW_S
    standing = power.board_joules(elapsed_s=elapsed_s, busy_s=0.0)
    return Cost(
        windows=windows,
        elapsed_s=elapsed_s,
        bytes_up=up,
        bytes_down=down,
        busy_s=busy_s,
        cpu_s=last.cpu_s - first.cpu_s,
        memory_mb=max(point.memory_mb for point in points),
        compute_joules=power.board_joules(elapsed_s=elapsed_s, busy_s=busy_s) - standing,
        radio_joules=power.radio_joules(bytes_up=up, bytes_down=down),
        air_joules=1e-6 * (air_per_megabyte[0] * up + air_per_megabyte[1] * down),
        standing_joules=standing,
    )


def is_saturated(points: Sequence[Point]) -> bool:
    """Whether a device does not keep up: windows or messages are lost, or its queue never empties in the last half."""
    first, last = points[0], points[-1]
    if last.windows_dropped > first.windows_dropped or last.messages_dropped > first.messages_dropped:
        return True
    waiting = [point.least_waiting for point in points[len(points) // 2 :] if point.least_waiting is not None]
    return bool(waiting) and min(waiting) > 0


def quantile(values: Sequence[float | None], q: float) -> float | None:
    """The nearest-rank quantile; what never came counts as longer than anything, and is None."""
    ordered = sorted(math.inf if value is None else value for value in values)
    if not ordered:
        return None
    found = ordered[min(len(ordered) - 1, max(0, math.ceil(q * len(ordered)) - 1))]
    return None if math.isinf(found) else found


def spread(values: Sequence[float | None]) -> dict[str, float | None]:
    """Median and 95th percentile, in the unit of the values, with how many there are and which share never came."""
    missing = sum(value is None for value in values)
    return {
        "p50": _rounded(quantile(values, 0.5)),
        "p95": _rounded(quantile(values, 0.95)),
        "count": len(values),
        "missing": _rounded(missing / len(values)) if values else None,
    }


def row_figures(devices: Sequence[DeviceFigures]) -> dict[str, Any]:
    """A row: latencies in ms, bytes, seconds and joules per window of all its devices together."""
    windows = [seen for device in devices for seen in device.windows]
    count = sum(device.cost.windows for device in devices)
    sent = [seen for seen in windows if isinstance(seen.fate, int)]

    def per_window(total: float, digits: int = 5) -> float:
        return round(total / count, digits)

    return {
        "windows": count,
        "embedding_ms": spread([seen.embedding_ms for seen in windows]),
        "embedding_ms_by_link": {
            device.link: spread([seen.embedding_ms for seen in device.windows]) for device in devices
        },
        "embedding_ms_by_decision": {
            fate: spread([seen.embedding_ms for seen in group]) for fate, group in by_fate(windows).items()
        },
        "answered_ms": spread([seen.answered_ms for seen in sent]),
        "applied_ms": spread([seen.applied_ms for seen in sent if seen.applied_ms is not None]),
        "sent": round(len(sent) / len(windows), 4) if windows else None,
        "bytes_up": per_window(sum(device.cost.bytes_up for device in devices), 1),
        "bytes_down": per_window(sum(device.cost.bytes_down for device in devices), 1),
        "busy_s": per_window(sum(device.cost.busy_s for device in devices)),
        "cpu_s": per_window(sum(device.cost.cpu_s for device in devices)),
        "memory_mb": max(device.cost.memory_mb for device in devices),
        "joules": {
            "compute": per_window(sum(device.cost.compute_joules for device in devices)),
            "radio": per_window(sum(device.cost.radio_joules for device in devices)),
            "radio_by_air_time": per_window(sum(device.cost.air_joules for device in devices)),
            "standing": per_window(sum(device.cost.standing_joules for device in devices)),
        },
        "saturated": [device.link for device in devices if device.saturated],
    }


def by_fate(windows: Sequence[WindowSeen]) -> dict[str, list[WindowSeen]]:
    """Windows by what was decided: ``cut 5``, ``local``, ``kept``."""
    groups: dict[Fate, list[WindowSeen]] = defaultdict(list)
    for seen in windows:
        groups[seen.fate].append(seen)
    return {fate_name(fate): groups[fate] for fate in sorted(groups, key=str)}


def fate_name(fate: Fate) -> str:
    """For people: ``cut 5``, ``sound``, ``local``, ``kept``."""
    if isinstance(fate, str):
        return fate
    return f"cut {fate}" if fate >= 0 else "sound"


def comparison(
    subject: Sequence[DeviceFigures], baseline: Sequence[DeviceFigures], opus: Sequence[DeviceFigures] | None
) -> dict[str, Any]:
    """The subject against the baseline, device by device the same links."""
    links = [device.link for device in subject]
    if links != [device.link for device in baseline]:
        raise ValueError(f"the rows have other links: {links}")
    mine, theirs = _windows(subject), _windows(baseline)
    return {
        **{f"latency_ratio_{name}": _ratio(theirs, mine, q) for name, q in (("p50", 0.5), ("p95", 0.95))},
        "latency_ratio_answered_p50": _ratio(theirs, _sent(mine), 0.5, answered=True),
        "by_link": {
            one.link: {"p50": _ratio(other.windows, one.windows, 0.5), "p95": _ratio(other.windows, one.windows, 0.95)}
            for one, other in zip(subject, baseline)
        },
        "by_decision": {
            fate: {"p50": _ratio(theirs, group, 0.5), "p95": _ratio(theirs, group, 0.95), "windows": len(group)}
            for fate, group in by_fate(mine).items()
        },
        "bytes_fraction": _fraction(_bytes(subject), _bytes(baseline)),
        "bytes_fraction_of_samples": _fraction(_bytes(subject), WINDOW_BYTES),
        "bytes_fraction_of_opus": _fraction(_bytes(subject), _bytes(opus)) if opus else None,
        **_energy(subject, baseline),
    }


def _energy(subject: Sequence[DeviceFigures], baseline: Sequence[DeviceFigures]) -> dict[str, Any]:
    def fraction(scales: Scales, *, air: bool) -> float | None:
        return _fraction(_marginal(subject, scales, air=air), _marginal(baseline, scales, air=air))

    def total(devices: Sequence[DeviceFigures]) -> float:
        standing = sum(device.cost.standing_joules for device in devices)
        return standing / sum(device.cost.windows for device in devices) + _marginal(devices, PLAIN, air=False)

    return {
        "energy_fraction": fraction(PLAIN, air=False),
        "energy_fraction_range": _range([fraction(scales, air=False) for scales in SENSITIVITY]),
        "energy_fraction_total": _fraction(total(subject), total(baseline)),
        "energy_fraction_by_air_time": fraction(PLAIN, air=True),
        "energy_fraction_by_air_time_range": _range([fraction(scales, air=True) for scales in SENSITIVITY]),
    }


def _marginal(devices: Sequence[DeviceFigures], scales: Scales, *, air: bool) -> float:
    joules = sum(device.cost.marginal_joules(scales, air=air) for device in devices)
    return joules / sum(device.cost.windows for device in devices)


def _bytes(devices: Sequence[DeviceFigures]) -> float:
    total = sum(device.cost.bytes_up + device.cost.bytes_down for device in devices)
    return total / sum(device.cost.windows for device in devices)


def _windows(devices: Sequence[DeviceFigures]) -> list[WindowSeen]:
    return [seen for device in devices for seen in device.windows]


def _sent(windows: Sequence[WindowSeen]) -> list[WindowSeen]:
    return [seen for seen in windows if isinstance(seen.fate, int)]


def _ratio(
    theirs: Sequence[WindowSeen], mine: Sequence[WindowSeen], q: float, *, answered: bool = False
) -> float | None:
    longer = quantile([seen.embedding_ms for seen in theirs], q)
    shorter = quantile([seen.answered_ms if answered else seen.embedding_ms for seen in mine], q)
    return _fraction(longer, shorter)


def _fraction(of: float | None, whole: float | None) -> float | None:
    return None if of is None or not whole else round(of / whole, 4)


def _range(values: Sequence[float | None]) -> list[float] | None:
    known = [value for value in values if value is not None]
    return [min(known), max(known)] if known else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def power_of(power: Mapping[str, Any]) -> PowerModel:
    """The model of a profile's section."""
    return PowerModel(**{key: value for key, value in power.items() if key != "source"})
