"""What a device counts and writes down: one JSON line per step, and the totals that telemetry carries."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from common.link import LinkCounters
from device.exchange import Exchange

if TYPE_CHECKING:
    from device.conditions import Condition


@dataclass(slots=True)
class Totals:
    """Since the start of this process: ``windows`` captured, of these ``sent``, and ``local``: in local steps."""

    windows: int = 0
    sent: int = 0
    local: int = 0
    steps: Counter[str] = field(default_factory=Counter)
    steps_sent: int = 0
    local_steps: int = 0
    busy_s: float = 0.0


class Journal:
    """Appends to ``steps.jsonl``; a line is with the operating system when the call returns.

    Every life of the device begins with a line of kind ``start``: windows and bytes count from there. ``monotonic_s``:
    when a line was written, on the machine's monotonic clock, which processes of one machine share.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        torn = _is_torn(path)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._lock = threading.Lock()
        self.totals = Totals()
        if torn:
            self._file.write("\n")
        self._write(kind="start")

    def step(self, exchange: Exchange, *, counters: LinkCounters, weights_version: int) -> None:
        """A step is over."""
        result = exchange.result()
        self.totals.steps_sent += 1
        self.totals.steps[result] += 1
        self._write(
            kind="step",
            step=exchange.step,
            window=self.totals.windows,
            sent=self.totals.sent,
            local=self.totals.local,
            result=result,
            reasons=sorted(exchange.reasons),
            cuts=dict(Counter(str(sent.cut) for sent in exchange.sent.values())),
            loss=sum(exchange.losses) / len(exchange.losses) if exchange.losses else None,
            embedding_ms=[round(1e3 * seconds, 2) for seconds in exchange.embedding_s],
            gradient_ms=[round(1e3 * seconds, 2) for seconds in exchange.gradient_s],
            **_bytes(counters),
            weights_version=weights_version,
        )

    def local_step(self, *, windows: int, loss: float, counters: LinkCounters) -> None:
        """A local step was taken on ``windows`` windows."""
        self.totals.local_steps += 1
        self.totals.local += windows
        self._write(
            kind="local",
            window=self.totals.windows,
            sent=self.totals.sent,
            local=self.totals.local,
            windows=windows,
            loss=loss,
            **_bytes(counters),
        )

    def condition(self, condition: Condition) -> None:
        """What is played on an emulated device changes now. Called from the player's thread."""
        self._write(kind="condition", **asdict(condition))

    def end(self, *, counters: LinkCounters) -> None:
        """The device stops by itself."""
        self._write(
            kind="end",
            window=self.totals.windows,
            sent=self.totals.sent,
            local=self.totals.local,
            **_bytes(counters),
        )
        self._file.close()

    def _write(self, **values: object) -> None:
        line = json.dumps({"monotonic_s": round(time.monotonic(), 3), **values}) + "\n"
        with self._lock:
            self._file.write(line)


def _bytes(counters: LinkCounters) -> dict[str, object]:
    return {"bytes_up": counters.bytes_up, "bytes_down": counters.bytes_down, "bytes_of": dict(counters.kinds)}


def _is_torn(path: Path) -> bool:
    """Whether the last line was cut short by a kill or a power cut: what follows must not be glued to it."""
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"
