"""What a device counts and writes down: one JSON line per step, and the totals that telemetry carries."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil

from common.link import LinkCounters
from common.messages import Telemetry
from device.exchange import Exchange

if TYPE_CHECKING:
    from device.conditions import Condition

LOG = logging.getLogger(__name__)
MOST_TAKEN = 256  # windows in a line: without a link, and without local steps, nothing else would end it
TOLD_EVERY_S = 600.0  # a line in the log at most so often
LARGEST_BYTES = 256 * 2**20  # about a week of a device that sends everything: a disk must not fill up in a year
Fate = int | Literal["local", "kept"]
"""What became of a window: sent at this cut (or `BEFORE_STEM`), kept by the splitter's word, or not worth sending."""


@dataclass(slots=True)
class Totals:
    """Since the start of this process: ``windows`` captured, of these ``sent``, and ``local``: in local steps.

    ``busy_s``: seconds of compute, the board's where one is played, of which ``learned_s`` were learning from steps.
    ``windows_dropped``: lost because nobody took them.
    """

    windows: int = 0
    windows_dropped: int = 0
    sent: int = 0
    local: int = 0
    steps: Counter[str] = field(default_factory=Counter)
    steps_sent: int = 0
    local_steps: int = 0
    busy_s: float = 0.0
    learned_s: float = 0.0


class Journal:
    """Appends to ``steps.jsonl``; a line is with the operating system when the call returns.

    Every life of the device begins with a line of kind ``start``: windows and bytes count from there. ``monotonic_s``:
    when a line was written, on the machine's monotonic clock, which processes of one machine share. ``taken`` are
    the windows since the line before: [index, fate, milliseconds until its embedding was computed here]. A file of more
    than `LARGEST_BYTES` is put aside as ``steps.jsonl.1``, in the place of the one before it. What a disk does not take
    is lost, and said once: a full card ends the record, not the device.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._torn = _is_torn(path)  # the last line is not whole: the next begins a new one
        self._refused = False
        self._file: FileIO | None = None  # opened by the first line: even that a full disk may refuse
        self._size = 0
        self._lock = threading.Lock()
        self._process = psutil.Process()
        self._windows: list[list[object]] = []
        self._least_waiting: int | None = None
        self._told_s = time.monotonic()
        self.totals = Totals()
        self._write(kind="start")

    def step(self, exchange: Exchange, *, counters: LinkCounters, weights_version: int) -> None:
        """A step is over."""
        result = exchange.result()
        self.totals.steps_sent += 1
        self.totals.steps[result] += 1
        self._write(
            kind="step",
            step=exchange.step,
            result=result,
            reasons=sorted(exchange.reasons),
            cuts=dict(Counter(str(sent.cut) for sent in exchange.sent.values())),
            parts=[_part(exchange, part) for part in exchange.sent],
            loss=sum(exchange.losses) / len(exchange.losses) if exchange.losses else None,
            embedding_ms=[round(1e3 * seconds, 2) for seconds in exchange.embedding_s.values()],
            gradient_ms=[round(1e3 * seconds, 2) for seconds in exchange.gradient_s.values()],
            client_ms=exchange.client_ms(),
            weights_version=weights_version,
            **self._so_far(counters),
        )

    def local_step(self, *, windows: int, loss: float, counters: LinkCounters) -> None:
        """A local step was taken on ``windows`` windows."""
        self.totals.local_steps += 1
        self.totals.local += windows
        self._write(
            kind="local",
            windows=windows,
            loss=loss,
            **self._so_far(counters),
        )

    def telemetry(self, message: Telemetry, *, energy_source: str, counters: LinkCounters) -> None:
        """Telemetry was published; ``energy_source``: what its joules were measured by, or that a model gave them."""
        self._write(
            kind="telemetry",
            decision=message.decision_seq,
            action=message.action,
            cut=message.cut,
            cpu=message.cpu,
            uplink_mbps=message.uplink_mbps,
            round_trip_ms=message.round_trip_ms,
            uncertainty=message.uncertainty,
            queue=message.queue_depth,
            energy_joules=round(message.energy_joules, 3),
            energy_source=energy_source,
            **self._so_far(counters),
        )

    def moved(self, cut: int | None, *, before: int | None, reason: str) -> None:
        """From the next window on it is cut elsewhere; None: nothing is sent."""
        self._write(kind="cut", cut=cut, before=before, reason=reason)

    def condition(self, condition: Condition) -> None:
        """What is played on an emulated device changes now. Called from the player's thread."""
        with contextlib.suppress(ValueError):  # the device has ended meanwhile, and its file is closed
            self._write(kind="condition", **asdict(condition))

    def end(self, *, counters: LinkCounters) -> None:
        """The device stops by itself."""
        self._write(
            kind="end",
            **self._so_far(counters),
        )
        if self._file is not None:
            self._file.close()

    def window(self, index: int, fate: Fate, *, own_s: float | None, waiting: int) -> None:
        """A window was dealt with: sent at a cut, or not; it stands in the next line.

        ``own_s``: seconds from its end until its embedding was computed here, None where it was not; ``waiting``: how
        many windows had closed since.
        """
        self._windows.append([index, fate, None if own_s is None else round(1e3 * own_s, 2)])
        self._least_waiting = waiting if self._least_waiting is None else min(waiting, self._least_waiting)

    @property
    def full(self) -> bool:
        """Whether so many windows were dealt with since the last line that they should be written."""
        return len(self._windows) >= MOST_TAKEN

    def windows(self, *, counters: LinkCounters) -> None:
        """Write the windows since the last line; nothing else has happened."""
        self._write(
            kind="windows",
            **self._so_far(counters),
        )

    def _so_far(self, counters: LinkCounters) -> dict[str, object]:
        windows, self._windows = self._windows, []
        waiting, self._least_waiting = self._least_waiting, None
        return {
            "window": self.totals.windows,
            "sent": self.totals.sent,
            "local": self.totals.local,
            "taken": windows,
            "least_waiting": waiting,
            "windows_dropped": self.totals.windows_dropped,
            "messages_dropped": counters.dropped_in + counters.dropped_out,
            "busy_s": round(self.totals.busy_s, 4),
            "cpu_s": round(time.process_time(), 4),
            "memory_mb": round(self._process.memory_info().rss / 2**20, 1),
            "bytes_up": counters.bytes_up,
            "bytes_down": counters.bytes_down,
            "bytes_of": dict(counters.kinds),
        }

    def tell(self, count: Callable[[], LinkCounters]) -> None:
        """A sign of life in the log now and then, whether anything was heard, with or without a link."""
        if time.monotonic() < self._told_s + TOLD_EVERY_S:
            return
        self._told_s = time.monotonic()
        so_far, counters = self.totals, count()
        LOG.info(
            "%d windows, %d of %d steps answered, %d local steps, %.1f MiB up, %.1f MiB down",
            so_far.windows, so_far.steps["answered"], so_far.steps_sent, so_far.local_steps,
            counters.bytes_up / 2**20, counters.bytes_down / 2**20,
        )  # fmt: skip

    def _write(self, **values: object) -> None:
        line = json.dumps({"monotonic_s": round(time.monotonic(), 3), **values}) + "\n"
        with self._lock:
            try:
                self._append(line.encode())
            except OSError as error:
                if not self._refused:
                    LOG.warning("%s: %s; nothing is recorded until it can be written again", self._path, error.strerror)
                self._refused = True

    def _append(self, line: bytes) -> None:
        if self._file is not None and self._size > LARGEST_BYTES:
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            self._file.close()
            self._file, self._torn = None, False
        file = self._opened()
        whole = b"\n" + line if self._torn else line
        written = file.write(whole) or 0
        self._size += written
        self._torn = written < len(whole)
        self._refused = self._torn

    def _opened(self) -> FileIO:
        if self._file is None:
            self._file = self._path.open("ab", buffering=0)  # a buffer would keep what the disk refused, and fail again
            self._size = self._path.stat().st_size
        return self._file


def _part(exchange: Exchange, part: int) -> dict[str, object]:
    """One part of a step: its window, and milliseconds from that window's end."""
    sent = exchange.sent[part]
    applied_s = exchange.applied_s if part in exchange.gradients else None
    return {
        "window": sent.window,
        "cut": sent.cut,
        "bytes": sent.size_bytes,
        "sent_ms": _ms(sent.sent_s - sent.closed_s),
        "embedding_ms": _ms(exchange.embedding_s.get(part)),
        "applied_ms": _ms(None if applied_s is None else applied_s - sent.closed_s),
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1e3 * seconds, 2)


def _is_torn(path: Path) -> bool:
    """Whether the last line was cut short by a kill or a power cut: what follows must not be glued to it."""
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"
