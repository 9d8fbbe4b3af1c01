"""The privacy bench's figures for people: a table for a terminal, README's part."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from tests.bench.accuracy_results import RESULTS
from tests.bench.testbed_report import table

RESULT = RESULTS / "privacy.json"
COMMAND = "python -m tests.bench.privacy --data DIR --run DIR --json"
NOT_RUN = f"Not run yet: `{COMMAND}` writes the figures to `tests/bench/results/privacy.json`."
HEADINGS = (
    "weights",
    "cut",
    "codec",
    "error",
    "95 %",
    "linear map alone",
    "course in time",
    "band correlation",
    "found",
)


def terminal(result: Mapping[str, Any]) -> Table:
    """All rows."""
    made = Table(*HEADINGS, title="reconstruction from activations")
    for line in lines(result):
        made.add_row(*(cell.replace("**", "") for cell in line))
    return made


def lines(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One line for each decoder; the default floor in bold."""
    return [_line(row, result["min_cut"]) for row in result["rows"]]


def by_cut(result: Mapping[str, Any]) -> dict[str, float]:
    """The error at each cut with the default codec: trained weights where there are any, else untrained ones."""
    rows = [row for row in result["rows"] if row["codec"] == result["codec"] and not row["shuffled"]]
    weights = "trained" if any(row["weights"] == "trained" for row in rows) else "untrained"
    return {str(row["cut"]): row["error"] for row in rows if row["weights"] == weights}


def markdown(path: Path = RESULT) -> str:
    """README's part, from the committed result; says so where there is none."""
    if not path.exists():
        return NOT_RUN
    result = json.loads(path.read_text(encoding="utf-8"))
    return "\n\n".join((table(HEADINGS, lines(result)), " ".join(_words(result))))


def _line(row: Mapping[str, Any], floor: int) -> tuple[str, ...]:
    mark = "**" if row["cut"] == floor and not row["shuffled"] else ""
    cells = (
        f"{row['weights']}{', activations shuffled' if row['shuffled'] else ''}",
        f"{row['cut']}{', the default floor' if row['cut'] == floor else ''}",
        f"{row['codec']}",
        f"{row['error']:.3f}",
        f"{row['low']:.3f} to {row['high']:.3f}",
        f"{row['linear_error']:.3f}",
        f"{row['course_error']:.3f}",
        f"{row['band_correlation']:.2f}",
        f"{row['found']:.1%}",
    )
    return tuple(f"{mark}{cell}{mark}" for cell in cells)


def _words(result: Mapping[str, Any]) -> Iterator[str]:
    settings, windows = result["settings"], result["windows"]
    yield (
        f"Decoders fitted on {windows['fitted']:,} windows ({windows['checked']:,} more to stop by), "
        f"{settings['steps']} steps of 32 windows, {_span([row['parameters'] for row in result['rows']])} parameters; "
        f"errors on {windows['held_out']:,} windows of {windows['held_out_clips']} other recordings "
        f"(fold {settings['fold']}). Knowing every window's own mean spectrum exactly, and nothing of its course, "
        f"would be an error of {result['own_spectrum_error']:.3f}. "
        f"By chance {1 / windows['held_out']:.1%} would be found."
    )
    if settings["trained"] is not None:
        trained = settings["trained"]
        yield f"Trained: {trained['encoder']} after {trained['windows']:,} windows, which that fold had no part in."
    if result["missing"]:
        yield f"Not run yet: {'; '.join(result['missing'])}."


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
