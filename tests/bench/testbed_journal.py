"""What a device's journal says of its windows and of what they cost, as the testbed needs it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

AT_ONCE_S = 0.01
Fate = int | str


@dataclass(slots=True)
class WindowSeen:
    """One window: its fate (a cut, ``local`` or ``kept``) and milliseconds from its end; None: that never came.

    ``own_ms``: until its embedding was computed on the device; ``answered_ms``: until the trainer's came;
    ``applied_ms``: until its gradient was applied.
    """

    index: int
    fate: Fate
    own_ms: float | None
    answered_ms: float | None = None
    applied_ms: float | None = None

    @property
    def embedding_ms(self) -> float | None:
        """Until an embedding was available on the device, whoever computed it."""
        times = [ms for ms in (self.own_ms, self.answered_ms) if ms is not None]
        return min(times) if times else None


@dataclass(frozen=True, slots=True)
class Point:
    """What was counted until a line was written; ``least_waiting``: None where no window was taken since the last."""

    monotonic_s: float
    windows: int
    bytes_up: int
    bytes_down: int
    busy_s: float
    cpu_s: float
    memory_mb: float
    windows_dropped: int
    messages_dropped: int
    least_waiting: int | None


@dataclass(frozen=True, slots=True)
class Move:
    """The cut moved: ``cut`` None is to local steps, back from them it is the cut again."""

    monotonic_s: float
    cut: int | None


@dataclass(frozen=True, slots=True)
class Told:
    """One telemetry message."""

    monotonic_s: float
    cpu: float
    uplink_mbps: float | None
    uncertainty: float | None


@dataclass(slots=True)
class DeviceJournal:
    """One device's life."""

    started_s: float = 0.0
    windows: dict[int, WindowSeen] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    conditions: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    steps: list[tuple[float, str]] = field(default_factory=list)
    client_ms: list[tuple[int, int, float]] = field(default_factory=list)  # of steps of one cut: window, cut, compute
    local_steps_s: list[float] = field(default_factory=list)


def read_journal(path: Path) -> DeviceJournal:
    """A journal of one life."""
    return parse(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())


def parse(lines: Iterable[Mapping[str, Any]]) -> DeviceJournal:
    """The same from its lines."""
    found = DeviceJournal()
    for line in lines:
        at_s = float(line["monotonic_s"])
        match line["kind"]:
            case "start":
                found.started_s = at_s
            case "condition":
                found.conditions.append((at_s, {k: v for k, v in line.items() if k not in {"kind", "monotonic_s"}}))
            case "cut":
                if found.moves and at_s - found.moves[-1].monotonic_s < AT_ONCE_S:
                    found.moves.pop()  # back from local steps and on to another cut is one move
                found.moves.append(Move(at_s, line["cut"]))
            case "telemetry":
                found.told.append(Told(at_s, line["cpu"], line["uplink_mbps"], line["uncertainty"]))
        if "taken" in line:
            _counting(found, line["kind"], at_s, line)
    return found


def _counting(found: DeviceJournal, kind: str, at_s: float, line: Mapping[str, Any]) -> None:
    for index, fate, own_ms in line["taken"]:
        found.windows[index] = WindowSeen(index, fate, own_ms)
    for part in line.get("parts", ()):
        seen = found.windows[part["window"]]
        seen.answered_ms, seen.applied_ms = part["embedding_ms"], part["applied_ms"]
    if kind == "step":
        found.steps.append((at_s, line["result"]))
        if line.get("client_ms") is not None:
            cut, ms = line["client_ms"]
            found.client_ms.append((line["window"], cut, ms))
    elif kind == "local":
        found.local_steps_s.append(at_s)
    elif kind == "end":
        return  # with its last words a device sends all that it learned: that is no part of a steady state
    counted = {name: line[name] for name in Point.__dataclass_fields__ if name not in {"monotonic_s", "windows"}}
    found.points.append(Point(monotonic_s=at_s, windows=line["window"], **counted))
