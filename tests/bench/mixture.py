"""Does the mixture memory collapse while an encoder trains? ``python -m tests.bench.mixture [--data DIR] [--json]``

Runs ``streamsplit demo`` and draws what the trainer's metrics say of the mixture over the run, to ``--out`` (PNG). A
mixture that collapses has means in one place (spread 0), one component or all alike in use, and responsibilities that
tell nothing (entropy 1); a plain moving average does so (tests/common/test_mixture_memory.py).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trainer.metrics import METRICS, StepMetrics, read_metrics

DRAWN = ("mixture_spread", "mixture_components", "mixture_entropy", "uncertainty_median", "effective_rank")


def main() -> int:
    """Run, draw, print; one JSON object on the last line with ``--json``."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.mixture", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of recordings; without it the synthetic soundscape")
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--windows", type=int, default=16_000)
    parser.add_argument("--fold", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="4 devices and 2,000 windows")
    parser.add_argument("--metrics", type=Path, help="metrics.jsonl of a run that is over, instead of a new one")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("mixture.png"))
    parser.add_argument("rest", nargs="*", help="further options of the demo, after --")
    options = parser.parse_args()
    steps = read_metrics(options.metrics) if options.metrics else _run(options)
    known = [step for step in steps if step.mixture_spread is not None]
    if not known:
        raise RuntimeError(f"the mixture did not start in {len(steps)} steps")
    _draw(known, options.out)
    result = {name: _figures([value for step in known if (value := getattr(step, name)) is not None]) for name in DRAWN}
    for name, figures in result.items():
        print(f"{name:<20} " + ", ".join(f"{key} {value:.3f}" for key, value in figures.items()))
    print(f"{known[-1].windows:,} windows, {known[-1].step} steps; drawn in {options.out}")
    if options.json:
        print(json.dumps({**result, "windows": known[-1].windows, "picture": str(options.out)}))
    return 0


def _run(options: argparse.Namespace) -> list[StepMetrics]:
    devices, windows = (4, 2_000) if options.quick else (options.devices, options.windows)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "streamsplit.py", "demo", "--out", folder, "--seed", str(options.seed)]
        command += ["--devices", str(devices), "--windows", str(windows), *options.rest]
        if options.data is not None:
            command += ["--data", str(options.data), "--fold", str(options.fold)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: status {done.returncode}\n{done.stderr[-3000:]}")
        return read_metrics(Path(folder) / "trainer" / "metrics.jsonl")


def _figures(values: Sequence[float]) -> dict[str, float]:
    """At the beginning and at the end (medians of a tenth of the steps), and the extremes in between."""
    tenth = max(1, len(values) // 10)
    return {
        "first": median(values[:tenth]),
        "last": median(values[-tenth:]),
        "lowest": min(values),
        "highest": max(values),
    }


def _draw(steps: Sequence[StepMetrics], path: Path) -> None:
    figure = Figure(figsize=(8.0, 2.0 * len(DRAWN)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(DRAWN), 1, sharex=True)
    for axis, name in zip(axes, DRAWN, strict=True):
        known: list[tuple[int, Any]] = [(step.windows, getattr(step, name)) for step in steps]
        axis.plot([windows for windows, _ in known], [value for _, value in known], linewidth=0.8)
        axis.set_title(f"{name}: {METRICS[name].split(':')[0]}", fontsize=8, loc="left")
        axis.set_ylim(bottom=0.0)
    axes[-1].set_xlabel("windows trained")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
