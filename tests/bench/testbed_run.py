"""Runs one row of the testbed: a real broker, a real trainer, a process for each device, in real time."""

from __future__ import annotations

import json
import resource
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from broker.start import open_broker
from common.atomic_file import write_atomically
from common.config import load_profile
from device.conditions import Condition
from tests.bench.testbed_figures import DeviceFigures, device_figures, power_of
from tests.bench.testbed_journal import DeviceJournal, read_journal
from tests.bench.testbed_plan import Board, Plan, RowPlan, conditions, joules_per_megabyte, options, put_boards, steady
from tests.bench.testbed_traces import trace_conditions
from trainer.dataset_layouts import split_recordings
from trainer.demo import train
from trainer.demo_files import device_names, write_files
from trainer.link_traces import generate

FINISHED = "finished.json"  # in a run's folder: what it was a run of, and what its journals do not say


@dataclass(frozen=True, slots=True)
class Sounds:
    """What the devices hear: a folder of recordings, or the synthetic soundscape (None)."""

    data: Path | None
    esc10: bool


@dataclass(frozen=True, slots=True)
class Ran:
    """A finished run; ``others_cores``: how many of this machine's cores were busy with something else meanwhile, what
    runs at a lower priority left out.
    """

    journals: tuple[DeviceJournal, ...]
    broker: str
    wall_s: float
    others_cores: float


def run_row(plan: Plan, row: RowPlan, out: Path, *, sounds: Sounds, broker: str, console: Console) -> Ran:
    """One row on the plan's own boards, nothing happening to them.

    Raises:
        ConfigError: settings or recordings that cannot be used.
        RunFailed: a process of the run ended with an error.
    """
    playing = [(steady(board),) for board in plan.devices]
    return _run(plan, row, out, plan.devices, playing, plan.windows, sounds, broker, console)


def run_events(plan: Plan, out: Path, *, sounds: Sounds, broker: str, console: Console) -> Ran:
    """The subject on boards to which something happens; raises as `run_row` does."""
    events = plan.events
    boards = [
        events.link if one.profile is None else events.link.model_copy(update={"profile": one.profile})
        for one in events.devices
    ]
    playing = [
        conditions(board, one.changes)
        if one.trace is None
        else trace_conditions(generate(one.trace.kind, one.trace.seed, steps=events.windows))
        for board, one in zip(boards, events.devices, strict=True)
    ]
    return _run(plan, plan.row(plan.subject), out, boards, playing, events.windows, sounds, broker, console)


def _run(
    plan: Plan,
    row: RowPlan,
    out: Path,
    boards: Sequence[Board],
    playing: Sequence[Sequence[Condition]],
    windows: int,
    sounds: Sounds,
    broker: str,
    console: Console,
) -> Ran:
    asked = options(plan, row, boards=len(boards), windows=windows, out=out, data=sounds.data, esc10=sounds.esc10)
    what = _what(plan, row, boards, playing, windows, sounds)
    if (found := _finished(out, what, len(boards))) is not None:
        console.print("  was run already")
        return found
    shutil.rmtree(out, ignore_errors=True)  # another run's weights are no beginning
    out.mkdir(parents=True)
    split = split_recordings(sounds.data, asked.fold, esc10=sounds.esc10) if sounds.data else None
    started_s, busy_s, own_s = time.monotonic(), _busy_s(), _own_s()
    with open_broker(broker, directory=out / "broker") as opened:
        files = write_files(asked, opened.url, split)
        put_boards(files, boards, playing)
        train(asked, files, opened.url, console)
    wall_s = time.monotonic() - started_s
    others_s = max(0.0, _busy_s() - busy_s - (_own_s() - own_s))
    ended = {"what": what, "broker": opened.kind, "wall_s": wall_s, "others_cores": others_s / wall_s}
    write_atomically(out / FINISHED, json.dumps(ended).encode())
    return Ran(_journals(out, len(boards)), opened.kind, wall_s, others_s / wall_s)


def _what(
    plan: Plan,
    row: RowPlan,
    boards: Sequence[Board],
    playing: Sequence[Sequence[Condition]],
    windows: int,
    sounds: Sounds,
) -> dict[str, Any]:
    """All that decides what a run is, as JSON gives it back."""
    made = {
        "seed": plan.seed,
        "encoder": plan.encoder,
        "row": row.model_dump(),
        "boards": [board.model_dump() for board in boards],
        "conditions": [[asdict(one) for one in happening] for happening in playing],
        "windows": windows,
        "sounds": [str(sounds.data), sounds.esc10],
    }
    return dict(json.loads(json.dumps(made)))


def _finished(out: Path, what: dict[str, Any], devices: int) -> Ran | None:
    """The run in the folder, if it is this one and came to its end: a call that was broken off can be repeated."""
    path = out / FINISHED
    if not path.exists():
        return None
    ended = json.loads(path.read_text(encoding="utf-8"))
    if ended["what"] != what:
        return None
    return Ran(_journals(out, devices), ended["broker"], ended["wall_s"], ended["others_cores"])


def _journals(out: Path, devices: int) -> tuple[DeviceJournal, ...]:
    return tuple(read_journal(out / name / "steps.jsonl") for name in device_names(devices))


def counted(plan: Plan, ran: Ran) -> list[DeviceFigures]:
    """What counts of a row's devices."""
    return [
        device_figures(
            journal,
            link=board.link,
            warm_up=plan.warm_up_windows,
            power=power_of(load_profile(board.profile).power.model_dump()),
            air_per_megabyte=joules_per_megabyte(board),
        )
        for journal, board in zip(ran.journals, plan.devices, strict=True)
    ]


def _busy_s() -> float:
    """Processor time of the whole machine that was not idle, nor spent on what gives way at once (``nice``)."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "nice", 0.0))


def _own_s() -> float:
    """Processor time of this process and of all its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
