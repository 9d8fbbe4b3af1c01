"""Runs cases side by side, each in a process of its own, and keeps every one that is finished."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tests.bench.accuracy_results import Finished, Result, Store, finished_from_json
from tests.bench.accuracy_rows import Case

SPEED_OVER_S = 24 * 3600.0  # time left from the mean of all cases so far: single ones differ by minutes
LOG_TAIL = 15


class CaseFailed(Exception):
    """A case ended with an error; the text is the end of what it said."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of a call of `run_cases`: cases run, and those that failed with what they said."""

    finished: int
    failed: Mapping[str, str]


def run_cases(
    cases: Sequence[Case], execute: Callable[[Case], Finished], store: Store, *, jobs: int, console: Console
) -> Outcome:
    """Run the cases, ``jobs`` at a time; each is kept as soon as it is finished, and one that fails stops no other."""
    failed: dict[str, str] = {}
    finished = 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        Progress(*columns, TimeRemainingColumn(), console=console, speed_estimate_period=SPEED_OVER_S) as progress,
        _pool(jobs) as pool,
    ):
        task = progress.add_task("cases", total=len(cases))
        waiting: dict[Future[Finished], Case] = {pool.submit(execute, case): case for case in cases}
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                case = waiting.pop(future)
                error = future.exception()
                if error is None:
                    store.add(case.row, future.result())
                    finished += 1
                    progress.console.print(_line(case, future.result().result), highlight=False)
                else:
                    failed[str(case)] = str(error) or repr(error)
                    progress.console.print(f"{case}: failed\n{failed[str(case)]}", highlight=False, markup=False)
                progress.advance(task)
    return Outcome(finished, failed)


class CaseProcesses:
    """Starts `accuracy_case` for a case, and ends what it started when its block is left."""

    def __init__(
        self, data: Path, *, arguments: Sequence[str], keep: Path | None, pictures: Mapping[str, Path]
    ) -> None:
        self._data = data
        self._arguments = arguments
        self._keep = keep
        self._pictures = pictures
        self._running: set[subprocess.Popen[str]] = set()
        self._ending = threading.Event()

    def __enter__(self) -> CaseProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for process in list(self._running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)  # a session of its own: nothing but what the case started

    def __call__(self, case: Case) -> Finished:
        """Run the case.

        Raises:
            CaseFailed: it ended with an error.
        """
        if self._ending.is_set():
            raise CaseFailed("not started")
        process = subprocess.Popen(
            self._command(case),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C reaches this process only, which then ends the others
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        self._running.add(process)
        said, complained = process.communicate()
        self._running.discard(process)
        if process.returncode:
            raise CaseFailed("\n".join(complained.splitlines()[-LOG_TAIL:]) or f"status {process.returncode}")
        return finished_from_json(json.loads(said.splitlines()[-1]))

    def _command(self, case: Case) -> list[str]:
        command = [sys.executable, "-m", "tests.bench.accuracy_case", "--row", case.row.name, "--data", str(self._data)]
        command += ["--fold", str(case.fold), "--seed", str(case.seed), *self._arguments]
        if self._keep is not None:
            command += ["--keep", str(self._keep / f"{case.row.name}-{case.fold}-{case.seed}")]
        if str(case) in self._pictures:
            command += ["--picture", str(self._pictures[str(case)])]
        return command


@contextlib.contextmanager
def _pool(jobs: int) -> Iterator[ThreadPoolExecutor]:
    """Like the executor's own block, but what has not begun is given up when the block is left by an error."""
    pool = ThreadPoolExecutor(jobs)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _line(case: Case, result: Result) -> str:
    linear = 100 * sum(one.linear.count("1") / len(one.linear) for one in result.encoders) / len(result.encoders)
    return f"{case}: linear {linear:.1f} %, {result.wall_s:.0f} s"
