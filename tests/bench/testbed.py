"""The whole system side by side with its baselines, on emulated boards behind shaped links, in real time.

    python -m tests.bench.testbed [--quick] [--json] [--data DIR [--esc10]] [--out DIR] [--rows A,B] [--no-events]

``testbed.yaml`` says everything: devices with their boards and links, rows, what happens to whom. A row is a whole
fleet: a Mosquitto (else the embedded broker), a trainer, a process for each device behind a link of its own
(`device.shaped_link`), compute stretched to the board's (`device.emulation`). Rows run one after another. What is
measured is read from the devices' journals: for every window the time from its end until its embedding was available
on the device, from the trainer or its own; until its gradient was applied; bytes at the socket, both directions;
seconds of compute, and energy by the profile's model. A device that loses windows or messages, or whose queue never
empties, is marked saturated. Afterwards a fleet to which things happen: a busy processor, a slower link, an outage.

Writes ``report.json``, ``report.md`` and pictures to ``--out``, where runs that came to their end are kept: a call that
was broken off goes on there. A whole run (no option but ``--json``, ``--data``,
``--esc10``, ``--broker`` and ``--out``) also ``tests/bench/results/testbed.json`` and the pictures beside it, from
which README's part is made.
The last line is one JSON object. ``others_cores`` of a row says how much of the machine something else took: above some
0.2 its latencies say more about that.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from common.atomic_file import write_atomically
from common.config import EXIT_CONFIG
from common.errors import ConfigError
from tests.bench.accuracy_results import RESULTS, RowResults, Store
from tests.bench.accuracy_rows import HEADLINE, ROWS
from tests.bench.accuracy_settings import settings
from tests.bench.testbed_due import moves_due
from tests.bench.testbed_events import Reaction, reaction
from tests.bench.testbed_figures import DeviceFigures, comparison, row_figures
from tests.bench.testbed_plan import FILE, Plan, read_plan
from tests.bench.testbed_played import played
from tests.bench.testbed_report import KEPT_AS, PICTURES, RESULT, report, tables
from tests.bench.testbed_run import Ran, Sounds, counted, run_events, run_row
from tests.bench.testbed_traces import along
from trainer.dataset_layouts import DATA_HELP
from trainer.demo import RunFailed
from trainer.simulated_fleet import encoder_costs


def main(argv: Sequence[str] | None = None) -> int:
    """Run and report; 0, 1 if a process of a run failed, 78 for the operator's errors."""
    given = _parser().parse_args(argv)
    console = Console(stderr=given.json)  # with --json standard output is one line
    try:
        result = _run(given, console)
    except ConfigError as error:
        sys.stderr.write(f"testbed: {error}\n")
        return EXIT_CONFIG
    except RunFailed as error:
        sys.stderr.write(f"{error}\n")
        return 1
    for table in tables(result):
        console.print(table)
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer rows and windows: shows that everything works")
    add("--json", action="store_true", help="only the JSON object on standard output")
    add("--data", type=Path, help=f"{DATA_HELP}; without it the synthetic soundscape")
    add("--esc10", action="store_true", help="of ESC-50, the ten classes of ESC-10")
    add("--plan", type=Path, default=FILE, help="another testbed file")
    add("--out", type=Path, default=Path("streamsplit-testbed"), help="folder for the runs, report and pictures")
    add("--broker", default="auto", help="auto, mosquitto or embedded")
    add("--rows", help="only these rows, by name; the subject's and the baseline's are always run")
    add("--no-events", action="store_true", help="leave out the run in which something happens")
    return parser


def _run(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    plan = _plan(given)
    sounds = Sounds(given.data, given.esc10)
    ran: dict[str, Ran] = {}
    for number, row in enumerate(plan.rows, 1):
        console.print(
            f"{number} of {len(plan.rows)}: {row.title}, {plan.windows} windows of {len(plan.devices)} devices"
        )
        ran[row.name] = run_row(plan, row, given.out / row.name, sounds=sounds, broker=given.broker, console=console)
    happened = None
    if not given.no_events:
        console.print(f"what happens: {', '.join(one.title for one in plan.events.devices)}")
        happened = run_events(plan, given.out / "events", sounds=sounds, broker=given.broker, console=console)
    figures = {name: counted(plan, one) for name, one in ran.items()}
    result = summary(plan, ran, figures, happened, quick=given.quick)
    _write(plan, result, figures, ran, happened, given.out)
    if not (given.quick or given.rows or given.no_events or given.plan != FILE):
        write_atomically(RESULT, (json.dumps(result, indent=1) + "\n").encode())
        for name in PICTURES:
            write_atomically(RESULTS / f"{KEPT_AS}{name}", (given.out / name).read_bytes())
    return result


def _plan(given: argparse.Namespace) -> Plan:
    plan = read_plan(given.plan)
    plan = plan.quickly() if given.quick else plan
    if given.rows is None:
        return plan
    wanted = {plan.subject, plan.baseline, *given.rows.split(",")}
    unknown = sorted(wanted - {row.name for row in plan.rows})
    if unknown:
        raise ConfigError(f"no row {', '.join(unknown)}: there are {', '.join(row.name for row in plan.rows)}")
    return plan.model_copy(update={"rows": [row for row in plan.rows if row.name in wanted]})


def summary(
    plan: Plan,
    ran: dict[str, Ran],
    figures: dict[str, list[DeviceFigures]],
    happened: Ran | None,
    *,
    quick: bool,
) -> dict[str, Any]:
    """The JSON object: what was asked for at the top, then every row and everything that happened."""
    costs = encoder_costs(plan.encoder)
    events, traces, reactions = _happened(plan, happened)
    return {
        "bench": "testbed",
        "quick": quick,
        **comparison(figures[plan.subject], figures[plan.baseline], figures.get(plan.opus)),
        "reaction_s": slowest(reactions),
        "windows": plan.windows,
        "warm_up_windows": plan.warm_up_windows,
        "devices": len(plan.devices),
        "broker": ran[plan.subject].broker,
        "cores": os.cpu_count(),
        "splitter": plan.row(plan.subject).cut,
        "rows": {
            name: {
                "title": plan.row(name).title,
                **row_figures(devices),
                "played": played(ran[name].journals, plan.devices, costs, warm_up=plan.warm_up_windows),
                "wall_s": round(ran[name].wall_s, 1),
                "others_cores": round(ran[name].others_cores, 2),
            }
            for name, devices in figures.items()
        },
        "events": events,
        "traces": traces,
    }


def _happened(
    plan: Plan, happened: Ran | None
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]], list[Reaction]]:
    """By device what it did where one thing happened, and along a trace; and the reactions that were due."""
    events, traces, reactions = dict[str, dict[str, Any]](), dict[str, dict[str, Any]](), list[Reaction]()
    if happened is None:
        return events, traces, reactions
    due = moves_due(plan)
    for event, journal in zip(plan.events.devices, happened.journals, strict=True):
        if event.trace is not None:
            traces[event.name] = {"title": event.title, **asdict(along(journal, warm_up=plan.events.warm_up_windows))}
            continue
        came = reaction(journal)
        events[event.name] = {"title": event.title, "due": due[event.name], **asdict(came)}
        reactions += [came] if due[event.name] else []
    return events, traces, reactions


def slowest(reactions: Sequence[Reaction]) -> float | None:
    """The slowest reaction of those that were due; None where one did not come, or did not happen, at all."""
    times = [one.since_shown_s for one in reactions]
    known = [seconds for seconds in times if seconds is not None]
    return max(known) if known and len(known) == len(times) else None


def _write(
    plan: Plan,
    result: dict[str, Any],
    figures: dict[str, list[DeviceFigures]],
    ran: dict[str, Ran],
    happened: Ran | None,
    out: Path,
) -> None:
    from tests.bench.accuracy_pictures import draw_bytes  # matplotlib: only who draws pays
    from tests.bench.testbed_pictures import draw_energy, draw_latency, draw_timeline

    write_atomically(out / "report.json", (json.dumps(result, indent=1) + "\n").encode())
    write_atomically(out / "report.md", f"# Testbed\n\n{report(result)}\n".encode())
    draw_latency({plan.row(name).title: devices for name, devices in figures.items()}, out / "latency.png")
    draw_energy({row["title"]: row for row in result["rows"].values()}, out / "energy.png")
    evaluated = _evaluated()
    if evaluated:
        draw_bytes(evaluated, out / "accuracy.png")
    subject = ran[plan.subject]
    links = [f"{board.profile}, {board.link}" for board in plan.devices]
    draw_timeline(dict(zip(links, subject.journals)), out / "timeline.png")
    if happened is not None:
        draw_timeline(dict(zip([one.title for one in plan.events.devices], happened.journals)), out / "events.png")


def _evaluated() -> list[RowResults]:
    """The committed accuracies, for the picture of accuracy against bytes: real time says nothing about them."""
    store, plain = Store(RESULTS), settings(HEADLINE)
    return [one for row in ROWS if (one := store.latest(row, plain)).cases]


if __name__ == "__main__":
    sys.exit(main())
