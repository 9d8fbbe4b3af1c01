"""Gathers parts into batches across devices: when a batch closes, and which parts come too late for it.

A batch closes when the step of every awaited device is complete, or when nothing new has come for the longest deadline
among its parts. A device that let several batches go by is not waited for until it sends again, so that one that learns
locally, or whose will has not arrived yet, slows nobody down. Nor does one that goes on sending: where it alone is
missing, those that are complete wait for it no longer than they asked, and soon not at all. Where several are missing,
those that are complete, if they are the most, wait as long again as their own step took: devices that were switched on
at different times would else never be complete together (measured: thirty within a minute, no batch in an hour), and
whoever is answered in the middle of a step begins its next one with the others. Time comes in as an argument: tests
need no clock.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from statistics import median

from torch import Tensor

from common.messages import GradientResult

PATIENCE = 2  # batches a live device may miss, or alone hold up, before the others stop waiting for it
NOT_AWAITED_BATCHES = 8  # after that, and twice as many each further time, up to
LONGEST_NOT_AWAITED_BATCHES = 256


@dataclass(frozen=True, slots=True)
class Part:
    """One window's activations, decoded and checked."""

    device: str
    boot: str
    step: int
    part: int
    last: bool
    cut: int  # or `BEFORE_STEM`
    weights_version: int
    deadline_s: float
    segment: int
    window_index: int
    time_s: float
    room: str
    activations: Tensor  # [2, *activation_shape(cut)]; before the stem: samples [15360], then views [2, 1, 64, 96]
    caption: str | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a part is not computed with: ``late``, ``stale`` or ``rejected``, and the reason in words."""

    result: GradientResult
    reason: str


@dataclass(slots=True)
class _Seat:
    """One live device's place in the batch being gathered."""

    boot: str
    step: int = -1
    closed_step: int = -1
    missed: int = 0
    excused: bool = False
    begun_s: float = 0.0
    newest_s: float = 0.0
    parts: dict[int, Part] = field(default_factory=dict)

    def complete(self) -> bool:
        last = [part.part for part in self.parts.values() if part.last]
        return bool(last) and len(self.parts) == last[0] + 1


class Batcher:
    """The batch being gathered. ``expected_devices`` live devices are awaited before the first batch may close."""

    def __init__(self, *, max_lag: int, parts_per_step: int, expected_devices: int = 0) -> None:
        self._max_lag = max_lag
        self._parts_per_step = parts_per_step
        self._expected = expected_devices
        self._finished: set[str] = set()
        self._seats: dict[str, _Seat] = {}
        self._newest_s = 0.0
        self._batches = 0
        self._held_up: Counter[str] = Counter()  # by device, not by boot: a new boot is no new start
        self._not_awaited_until: dict[str, int] = {}  # device -> number of the batch

    @property
    def live(self) -> tuple[str, ...]:
        """The devices that have joined and not left, in order of name."""
        return tuple(sorted(self._seats))

    def join(self, device: str, boot: str) -> None:
        """A device is ready; a new boot of it makes its earlier parts void."""
        seat = self._seats.get(device)
        if seat is None or seat.boot != boot:
            self._seats[device] = _Seat(boot)

    def leave(self, device: str) -> None:
        """A device is gone; the parts it sent are dropped and nobody waits for it."""
        self._seats.pop(device, None)

    def finish(self, device: str) -> None:
        """A device has done its work, in this life of the trainer or an earlier one: it is not expected any more."""
        self._finished.add(device)

    def excuse(self, device: str) -> None:
        """Nobody waits for this device in the batch being gathered: what it sent cannot be used."""
        seat = self._seats.get(device)
        if seat is not None:
            seat.excused = True

    def add(self, part: Part, *, now_s: float, weights_version: int) -> Refusal | None:
        """Take a part, or say why not."""
        seat = self._seats.get(part.device)
        if seat is None or seat.boot != part.boot:
            return Refusal("rejected", "this boot of the device is not known as ready")
        if part.part >= self._parts_per_step:
            return Refusal("rejected", f"part {part.part} of a step of {self._parts_per_step}")
        if part.step <= seat.closed_step or part.step < seat.step:
            return Refusal(
                "late", f"step {part.step} was closed, step {max(seat.step, seat.closed_step)} is the newest"
            )
        lag = weights_version - part.weights_version
        if lag > self._max_lag or lag < 0:
            return Refusal("stale", f"computed with version {part.weights_version}, now at {weights_version}")
        if part.step > seat.step:
            seat.parts.clear()
            seat.step = part.step
        if not seat.parts:
            seat.begun_s = now_s
        seat.parts[part.part] = part
        seat.missed = 0
        self._newest_s = seat.newest_s = now_s
        if self._assembled():
            self._expected = 0
        return None

    def due(self, now_s: float) -> bool:
        """Whether the batch closes now."""
        waiting = [seat for seat in self._seats.values() if seat.parts]
        if not waiting:
            return False
        if now_s - self._newest_s >= max(part.deadline_s for seat in waiting for part in seat.parts.values()):
            return True
        if not self._assembled():
            return False
        missing = self._missing()
        if len(missing) > 1:
            return self._waited_through_a_step(now_s)
        return not missing or self._waited_as_long_as_asked(now_s)

    def _missing(self) -> list[str]:
        """The devices whose step is awaited and not complete."""
        return [
            device
            for device, seat in self._seats.items()
            if (seat.parts or seat.missed < PATIENCE)
            and not seat.complete()
            and not seat.excused
            and self._not_awaited_until.get(device, 0) <= self._batches
        ]

    def _waited_as_long_as_asked(self, now_s: float) -> bool:
        """Whether the complete ones have waited for the deadline that most of them asked for."""
        complete = self._complete()
        return bool(complete) and now_s - max(seat.newest_s for seat in complete) >= median(map(_asked_s, complete))

    def _waited_through_a_step(self, now_s: float) -> bool:
        """Whether the complete ones are the most, and who began when they were complete has had as long as they."""
        complete = self._complete()
        begun = sum(bool(self._seats[device].parts) for device in self._missing())
        if not complete or len(complete) < begun:
            return False
        took_s = median(max(seat.newest_s - seat.begun_s, _asked_s(seat)) for seat in complete)
        return now_s - median(seat.newest_s for seat in complete) >= took_s

    def _complete(self) -> list[_Seat]:
        return [seat for seat in self._seats.values() if seat.complete()]

    def _assembled(self) -> bool:
        return len(self._seats.keys() | self._finished) >= self._expected

    def seconds_left(self, now_s: float) -> float | None:
        """Seconds until the deadline closes the batch; None while it is empty."""
        deadlines = [part.deadline_s for seat in self._seats.values() for part in seat.parts.values()]
        return max(0.0, self._newest_s + max(deadlines) - now_s) if deadlines else None

    def take(self) -> list[Part]:
        """Close the batch: its parts by device and number, so that a run repeats whatever order they came in."""
        self._note_who_held_up()
        batch: list[Part] = []
        for device in self.live:
            seat = self._seats[device]
            seat.excused = False
            if not seat.parts:
                seat.missed += 1
                continue
            batch += [seat.parts[number] for number in sorted(seat.parts)]
            seat.closed_step = seat.step
            seat.parts = {}
        return batch

    def _note_who_held_up(self) -> None:
        """Strikes for a device that sent something and alone kept a batch open; a complete step takes one back."""
        missing = self._missing()
        self._batches += 1
        for device, seat in self._seats.items():
            if seat.complete() and self._held_up[device]:
                self._held_up[device] -= 1
        if len(missing) != 1 or not self._seats[missing[0]].parts:
            return
        device = missing[0]
        self._held_up[device] += 2
        strikes = self._held_up[device] // 2
        if strikes >= PATIENCE:
            batches = min(LONGEST_NOT_AWAITED_BATCHES, NOT_AWAITED_BATCHES * 2 ** (strikes - PATIENCE))
            self._not_awaited_until[device] = self._batches + batches


def _asked_s(seat: _Seat) -> float:
    return max(part.deadline_s for part in seat.parts.values())
