"""The picture of `tests.bench.recovery`. Imported only by who draws: matplotlib is slow to load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

STYLES = {"if said": (0, (1, 3)), "taught": "--", "scratch": ":", "oracle": "-."}
COLOURS = {"learning": "tab:blue", "frozen": "tab:orange"}


def draw(result: Mapping[str, Any], path: Path) -> None:
    """A row a case: what the fleet was paid, and after the change the version in use with the levels."""
    cases: Mapping[str, Any] = result["cases"]
    figure = Figure(figsize=(12.0, 3.8 * len(cases)), dpi=100, layout="constrained")
    rows = figure.subplots(len(cases), 2, squeeze=False)
    change, thousands = result["points_before_change"], result["decisions_a_point"] / 1e3
    for (paid, greedy), (case, one) in zip(rows, cases.items(), strict=True):
        _lines(paid, one["curve"], "paid", first=0, change=change, thousands=thousands)
        paid.axvline(0.0, color="grey", linewidth=0.8)
        paid.set_title(f"{case}: what the fleet earned (drawn decisions included)")
        _lines(greedy, one["curve"], "greedy", first=change, change=change, thousands=thousands)
        for name, value in one["level"].items():
            greedy.axhline(value, color="black", linestyle=STYLES[name], linewidth=0.9, label=name)
        greedy.set_title(f"{case}: the version in use, after the change")
        for axis in (paid, greedy):
            axis.set_xlabel("thousand decisions of the fleet since the change")
            axis.set_ylabel("reward of a decision")
            axis.legend(fontsize=8)
    figure.savefig(path)


def _lines(axis: Axes, curves: Mapping[str, Any], kind: str, *, first: int, change: int, thousands: float) -> None:
    for name in ("frozen", "learning"):
        values = np.array(curves[name][kind])[:, first:]
        at = (np.arange(first, first + values.shape[1]) + 1 - change) * thousands
        for one in values:
            axis.plot(at, one, color=COLOURS[name], alpha=0.25, linewidth=0.8)
        axis.plot(at, values.mean(axis=0), color=COLOURS[name], label=name)
