"""Does the fleet learn from real recordings? ``python -m tests.bench.learning --data DIR [--quick] [--json]``

Runs ``streamsplit demo`` on every fold in both orders and compares the linear probe of the trained encoder with that of
untrained ones (mean of five initialisations), on the fold that no device heard.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.progress import Progress

ORDERS = ("stream", "shuffled")


def main() -> int:
    """Run every fold and order; one JSON object on the last line with ``--json``."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.learning", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of class folders with folds in the names")
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--windows", type=int, default=16_000)
    parser.add_argument("--folds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=list(ORDERS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time")
    parser.add_argument("--quick", action="store_true", help="one fold and 2,000 windows")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", type=Path, help="folder to keep the runs in")
    parser.add_argument("rest", nargs="*", help="further options of the demo, after --")
    options = parser.parse_args()
    folds, windows = ([1], 2_000) if options.quick else (options.folds, options.windows)
    keep = options.keep or Path(tempfile.mkdtemp())
    cases = [(order, fold) for order in options.orders for fold in folds]
    with ThreadPoolExecutor(options.parallel) as pool, Progress() as progress:
        task = progress.add_task("runs", total=len(cases))

        def one(case: tuple[str, int]) -> dict[str, Any]:
            order, fold = case
            report = _run(order, fold, windows, options, keep / f"{order}-{fold}")
            progress.advance(task)
            return report

        reports = dict(zip(cases, pool.map(one, cases), strict=True))
    result = {order: _summary({fold: reports[order, fold] for fold in folds}) for order in options.orders} | {
        "devices": options.devices,
        "windows": windows,
        "seed": options.seed,
        "options": options.rest,
    }
    for order in options.orders:
        print(_line(order, result[order]))
    if options.json:
        print(json.dumps(result))
    return 0


def _run(order: str, fold: int, windows: int, options: argparse.Namespace, out: Path) -> dict[str, Any]:
    command = [sys.executable, "streamsplit.py", "demo", "--data", str(options.data), "--order", order]
    command += ["--fold", str(fold), "--windows", str(windows), "--devices", str(options.devices)]
    command += ["--seed", str(options.seed), "--out", str(out), *options.rest]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: status {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def _summary(reports: dict[int, dict[str, Any]]) -> dict[str, Any]:
    gains = [one["probe"]["trained"] - one["probe"]["untrained"] for one in reports.values()]
    return {
        "untrained": mean(one["probe"]["untrained"] for one in reports.values()),
        "trained": mean(one["probe"]["trained"] for one in reports.values()),
        "gain_points": 100 * mean(gains),
        "gain_sd_points": 100 * stdev(gains) if len(gains) > 1 else None,
        "gain_by_fold_points": {fold: 100 * gain for fold, gain in zip(reports, gains, strict=True)},
        "knn_untrained": mean(one["probe"]["knn_untrained"] for one in reports.values()),
        "knn_trained": mean(one["probe"]["knn_trained"] for one in reports.values()),
        "answered": min(one["steps"]["answered"] / one["steps"]["sent"] for one in reports.values()),
        "bytes_of_pcm16": max(
            (one["bytes"]["up"] + one["bytes"]["down"]) / one["bytes"]["pcm16"] for one in reports.values()
        ),
        "wall_s": mean(one["wall_s"] for one in reports.values()),
    }


def _line(order: str, summary: dict[str, Any]) -> str:
    spread = "" if summary["gain_sd_points"] is None else f" (sd over folds {summary['gain_sd_points']:.1f})"
    return (
        f"{order:<9} {summary['untrained']:.1%} untrained -> {summary['trained']:.1%} trained: "
        f"{summary['gain_points']:+.1f} points{spread}; at least {summary['answered']:.1%} of steps answered, "
        f"at most {summary['bytes_of_pcm16']:.1%} of PCM16, {summary['wall_s']:.0f} s a run"
    )


if __name__ == "__main__":
    sys.exit(main())
