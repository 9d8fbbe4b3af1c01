"""Results of finished cases on disk: one file of JSON lines per row, made to be committed.

A line of kind ``settings`` says under which digest which settings are meant; a line of kind ``case`` is one finished
case. Lines are appended whole and at once, so that any number of processes may write, and a kill costs no more than the
case that was running.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tests.bench.accuracy_rows import Row
from tests.bench.accuracy_settings import digest, same_settings, settings

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What one frozen encoder is worth on the held-out clips; texts have a character per clip, in the split's order.

    Attributes:
        linear, knn: ``1`` where the probe was right, else ``0``.
        precision_at_10: fraction; ``silhouette``: -1..1 or None; ``effective_rank``: of the windows' embeddings.
        uncertainty: per clip, in thousandths; empty where there is none.
        zero_shot: ``1`` where the prompts' nearest class was right, else ``0``; empty where there are no prompts.
    """

    linear: str
    knn: str
    precision_at_10: float
    silhouette: float | None
    effective_rank: float
    uncertainty: tuple[int, ...] = ()
    zero_shot: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """One finished case.

    Attributes:
        encoders: one for most rows, one per device where each has its own, five untrained ones.
        clips: digest of the held-out clips' names: only results of the same clips can be paired.
        bytes_up, bytes_down: of all devices together, at their links; ``windows``: what they captured,
            ``windows_sent``: and what they sent of it.
        cpu_s: processor time of the whole fleet and its evaluation, on one core's worth of threads.
    """

    fold: int
    seed: int
    encoders: tuple[Evaluated, ...]
    clips: str
    windows: int
    windows_sent: int
    bytes_up: int
    bytes_down: int
    steps_sent: int
    steps_answered: int
    local_steps: int
    wall_s: float
    cpu_s: float
    torch: str

    @property
    def key(self) -> tuple[int, int]:
        """(fold, seed)."""
        return self.fold, self.seed


@dataclass(frozen=True, slots=True)
class Finished:
    """A result, and the settings that the process had which made it: the files may have changed since it began."""

    settings: Mapping[str, Any]
    result: Result


@dataclass(frozen=True, slots=True)
class RowResults:
    """What there is of a row: ``current`` says whether under today's settings."""

    row: Row
    cases: Mapping[tuple[int, int], Result]
    current: bool


class Store:
    """The results in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, row: Row, finished: Finished) -> None:
        """Append a finished case, with its settings where they are new to the file."""
        name = digest(finished.settings)
        lines: list[Mapping[str, Any]] = []
        if name not in self._read(row)[0]:
            lines.append({"kind": "settings", "digest": name, "settings": finished.settings})
        lines.append({"kind": "case", "digest": name, **asdict(finished.result)})
        self._append(row, lines)

    def current(self, row: Row, plain: Mapping[str, Any]) -> dict[tuple[int, int], Result]:
        """Cases under today's settings by (fold, seed); the later of two of the same counts."""
        known, cases = self._read(row)
        now = settings(row)
        good = {name for name, stored in known.items() if same_settings(stored, now, plain)}
        return {case.key: case for name, case in cases if name in good}

    def latest(self, row: Row, plain: Mapping[str, Any]) -> RowResults:
        """The row's current cases, or where there are none those under the settings it was last run with."""
        current = self.current(row, plain)
        if current:
            return RowResults(row, current, current=True)
        known, cases = self._read(row)
        now = settings(row)
        comparable = [name for name, _ in cases if _same_budget(known[name], now)]
        alike = {name for name in comparable if same_settings(known[name], known[comparable[-1]], plain)}
        last = {case.key: case for name, case in cases if name in alike}
        return RowResults(row, last, current=not last)

    def _read(self, row: Row) -> tuple[dict[str, dict[str, Any]], list[tuple[str, Result]]]:
        known: dict[str, dict[str, Any]] = {}
        cases: list[tuple[str, Result]] = []
        for line in _lines(self._path(row)):
            if line["kind"] == "settings":
                known[line["digest"]] = line["settings"]
            else:
                cases.append((line["digest"], result_from_json(line)))
        return known, [(name, case) for name, case in cases if name in known]

    def _path(self, row: Row) -> Path:
        return self._folder / f"{row.name}.jsonl"

    def _append(self, row: Row, lines: Sequence[Mapping[str, Any]]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
        file = os.open(self._path(row), os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(file).st_size
            torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
            os.write(file, (("\n" if torn else "") + text).encode())
        finally:
            os.close(file)


def _same_budget(stored: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """A quick run's results never stand for a full one's."""
    return all(stored.get(key) == now.get(key) for key in ("demo.windows", "demo.devices"))


def finished_from_json(values: Mapping[str, Any]) -> Finished:
    """What `accuracy_case` printed."""
    return Finished(values["settings"], result_from_json(values["result"]))


def result_from_json(line: Mapping[str, Any]) -> Result:
    """What `dataclasses.asdict` and JSON made of a result, back again; other keys are passed over."""
    values = {field.name: line[field.name] for field in fields(Result)}
    values["encoders"] = tuple(_evaluated(one) for one in values["encoders"])
    return Result(**values)


def _evaluated(values: Mapping[str, Any]) -> Evaluated:
    return Evaluated(**{**values, "uncertainty": tuple(values["uncertainty"])})


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # torn by a kill; what followed stands on a line of its own
            continue
