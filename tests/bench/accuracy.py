"""StreamSplit against its baselines on labelled recordings: what is behind README's table of methods.

    python -m tests.bench.accuracy --data DIR [--rows A,B] [--folds 1,2] [--seeds 0] [--jobs 2] [--json]
    python -m tests.bench.accuracy --report-only [--json]
    python -m tests.bench.accuracy --data DIR --quick

A case is one row (`accuracy_rows`: a method), one held-out fold, one seed. Each runs in a process of its own with one
torch thread, through the loops of device and trainer and a broker in memory (`in_process`); its frozen encoder is then
evaluated on the fold that no device heard. Every finished case is one line in ``tests/bench/results/ROW.jsonl`` under a
digest of all its settings, and is not run again as long as they are the same: the call can be broken off and repeated,
and the results are committed, so that a later call goes on where this one ended. README's part is made from them:
``python -m tests.readme_parts``.

``--set``, ``--set-fleet`` and ``--set-device`` try other settings for every row asked for; such results need a
``--results`` folder of their own. ``--quick`` runs fold 1 and seed 0 of the headline rows with 2,000 windows into a
temporary folder: it shows that everything works, not how good it is.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from common.config import EXIT_CONFIG
from common.errors import ConfigError
from tests.bench.accuracy_report import NOT_RUN, PICTURES, tables
from tests.bench.accuracy_results import RESULTS, RowResults, Store
from tests.bench.accuracy_rows import (
    HEADLINE,
    QUICK_ROWS,
    QUICK_WINDOWS,
    ROWS,
    Case,
    Row,
)
from tests.bench.accuracy_runs import CaseProcesses, run_cases
from tests.bench.accuracy_settings import add_changes, changed_row, changes, settings
from tests.bench.accuracy_summary import summary
from trainer.dataset_layouts import DATA_HELP, split_recordings

EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, show what there is; 0, 1 if a case failed, 78 for the operator's errors, 130 on Ctrl-C."""
    given = _parser().parse_args(argv)
    console = Console(stderr=given.json)  # with --json standard output is one line
    try:
        return _run(given, console)
    except ConfigError as error:
        sys.stderr.write(f"accuracy: {error}\n")
        return EXIT_CONFIG
    except KeyboardInterrupt:
        sys.stderr.write("broken off; what was finished is kept\n")
        return EXIT_INTERRUPTED


def _run(given: argparse.Namespace, console: Console) -> int:
    store, folder = _store(given)
    rows = _rows(given)
    plain = settings(changed_row(HEADLINE.name, given))
    failed: dict[str, str] = {}
    if not given.report_only:
        if given.data is None:
            raise ConfigError(f"--data DIR is needed: {DATA_HELP}")
        split_recordings(given.data, 1, esc10=given.esc10)  # what is wrong with it is said before anything runs
        cases = missing_cases(rows, store, plain, folds=given.folds, seeds=given.seeds, quick=given.quick)
        drawn = _drawn_case(folder)
        with CaseProcesses(given.data, arguments=changes(given), keep=given.keep, pictures=drawn) as processes:
            failed = dict(run_cases(cases, processes, store, jobs=given.jobs, console=console).failed)
    _show(given, rows, store, folder, plain, console)
    for case, said in failed.items():
        console.print(f"failed: {case}\n{said}", style="red", highlight=False, markup=False)
    return 1 if failed else 0


def missing_cases(
    rows: Sequence[Row], store: Store, plain: dict[str, Any], *, folds: Sequence[int], seeds: Sequence[int], quick: bool
) -> list[Case]:
    """What was asked for and is not there under today's settings; fold by fold, so that pairs are complete early."""
    wanted = []
    for row in rows:
        done = store.current(row, plain)
        of_row = seeds if seeds and row.trained else row.seeds
        wanted += [
            Case(row, fold, seed)
            for fold in ((1,) if quick else folds or row.folds)
            for seed in (of_row[:1] if quick else of_row)
            if (fold, seed) not in done
        ]
    return sorted(wanted, key=lambda case: (case.seed, case.fold))


def _show(
    given: argparse.Namespace, rows: Sequence[Row], store: Store, folder: Path, plain: dict[str, Any], console: Console
) -> None:
    found = [one for row in rows if (one := store.latest(row, plain)).cases]
    result = summary(found) | {
        "quick": given.quick,
        "unit": "percent of the held-out clips; differences in points",
        "changed": changes(given),
    }
    title = "QUICK: 2,000 windows, one fold, one seed; no result" if given.quick else "linear probe and more, percent"
    for table in tables(result, title=title):
        console.print(table)
    if not found:
        console.print(NOT_RUN)
    else:
        _draw([one for one in found if not one.row.bytes_alone], folder)
        console.print(f"{folder}: {', '.join(name for name in PICTURES if (folder / name).exists())}", highlight=False)
    if given.json:
        sys.stdout.write(json.dumps(result) + "\n")


def _draw(found: Sequence[RowResults], folder: Path) -> None:
    from tests.bench.accuracy_pictures import draw_accuracy, draw_bytes  # matplotlib: only who draws pays

    draw_accuracy(found, folder / "accuracy.png")
    draw_bytes(found, folder / "bytes.png")


def _rows(given: argparse.Namespace) -> list[Row]:
    names = given.rows or [row.name for row in ROWS if not given.quick or row.name in QUICK_ROWS]
    return [changed_row(name, given) for name in names]


def _store(given: argparse.Namespace) -> tuple[Store, Path]:
    if given.quick and given.windows is None:
        given.windows = QUICK_WINDOWS
    folder = given.results
    if folder is None and given.quick:
        folder = Path(tempfile.mkdtemp(prefix="accuracy-quick-"))
    if folder is None and changes(given):
        raise ConfigError("changed settings are another experiment: give its results a folder of their own (--results)")
    return Store(folder or RESULTS), folder or RESULTS


def _drawn_case(folder: Path) -> dict[str, Path]:
    """The one case whose embeddings are drawn."""
    return {str(Case(HEADLINE, 1, 0)): folder / "embeddings.png"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, help=DATA_HELP)
    add("--rows", type=_names, default=[], help=f"of {', '.join(row.name for row in ROWS)}; default all")
    add("--folds", type=_numbers, default=[], help="such as 1,2; default those of the row")
    add("--seeds", type=_numbers, default=[], help="such as 0,1,2; default those of the row")
    add("--jobs", type=int, default=2, help="cases at a time, one core each (default 2)")
    add("--results", type=Path, help="folder of the results (default tests/bench/results)")
    add("--keep", type=Path, help="folder to keep the runs in")
    add("--quick", action="store_true", help="one fold, one seed, 2,000 windows of the headline rows")
    add("--report-only", action="store_true", help="run nothing, show what there is")
    add("--json", action="store_true", help="end with one line holding one JSON object")
    add_changes(parser)
    return parser


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in _names(text)]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))  # to be told to stop is Ctrl-C
    sys.exit(main())
