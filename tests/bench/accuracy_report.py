"""The summary of the accuracy table for people: on a terminal, and as the generated part of README's results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from tests.bench.accuracy_results import RESULTS, Store
from tests.bench.accuracy_rows import AUROC, COMPARISONS, HEADLINE, ROWS, ZERO_SHOT, Row
from tests.bench.accuracy_settings import settings
from tests.bench.accuracy_summary import summary

NOT_RUN = "not run yet"
TITLE_WIDTH = 20
OLD = "\u2020"
HEADINGS = ("method", "probe, %", "5-NN", "P@10", "MB/hour", "of PCM16", "runs")
DIFFERENCES = ("difference", "points", "95 % interval", "runs", "asked for")
PICTURES = {
    "accuracy.png": "Linear probe by method; each dot is one run",
    "bytes.png": "Linear probe against bytes per device and hour",
    "embeddings.png": "Held-out clips in two dimensions, untrained and trained",
}


def tables(result: Mapping[str, Any], *, title: str) -> list[Table]:
    """For a terminal."""
    made = []
    for heading, headings, lines in (
        (title, HEADINGS, row_lines(result)),
        ("linear probe, paired", DIFFERENCES, difference_lines(result)),
    ):
        table = Table(*headings, title=heading)
        table.columns[0].min_width = TITLE_WIDTH
        for line in lines:
            table.add_row(*line)
        if lines:
            made.append(table)
    return made


def row_lines(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One line per method that was run, in the order of the rows."""
    rows: Mapping[str, Any] = result["rows"]
    alone: Mapping[str, Any] = result["bytes_alone"]
    return [
        _row_line(rows[row.name]) if row.name in rows else _bytes_line(alone[row.name])
        for row in ROWS
        if row.name in rows or row.name in alone
    ]


def difference_lines(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One line per comparison that can be made, and one for the AUROC."""
    lines = [
        _difference_line(one.title, result[one.name], one.mean_from, one.low_from)
        for one in COMPARISONS
        if one.name in result
    ]
    if "auroc" in result:
        found = result["auroc"]
        low, high = found["ci95"]
        judged = verdict(found, AUROC.mean_from, AUROC.low_from)
        lines.append(
            (
                "AUROC of uncertainty for 5-NN's errors",
                f"{found['mean']:.3f}",
                f"{low:.3f} to {high:.3f}",
                _pairs(found),
                judged,
            )
        )
    if "zero_shot" in result:
        found, asked = result["zero_shot"], ZERO_SHOT[1]
        spread = "" if found["sd"] is None else f" \u00b1 {found['sd']:.1f}"
        met = "met" if found["mean"] >= asked else "missed"
        lines.append(
            (
                "CLAP by prompts, accuracy",
                f"{found['mean']:.1f} %{spread}",
                "-",
                str(found["cases"]),
                f"mean from {asked:g} %: {met}",
            )
        )
    return lines


def measured(folder: Path, rows: Sequence[Row] = ROWS) -> dict[str, Any]:
    """The summary of a folder's results."""
    store = Store(folder)
    plain = settings(HEADLINE)
    return summary([store.latest(row, plain) for row in rows])


def markdown(folder: Path = RESULTS) -> str:
    """README's generated part, from the results in a folder."""
    result = measured(folder)
    if not result["rows"]:
        return f"The table of methods: {NOT_RUN}."
    parts = [_table(HEADINGS, row_lines(result))]
    if lines := difference_lines(result):
        parts.append(_table(DIFFERENCES, lines))
    parts += list(_remarks(result))
    parts += [f"![{title}](tests/bench/results/{name})" for name, title in PICTURES.items() if (folder / name).exists()]
    return "\n\n".join(parts)


def _remarks(result: Mapping[str, Any]) -> Iterable[str]:
    rows: Mapping[str, Any] = result["rows"]
    missing = [row.title for row in ROWS if row.name not in rows and row.name not in result["bytes_alone"]]
    if missing:
        yield f"{NOT_RUN.capitalize()}: {', '.join(missing)}."
    ours = rows.get(HEADLINE.name)
    if ours is not None:
        above = "; ".join(result["above"]) or "none"
        yield f"Above {ours['title']} in the mean of the runs that both have: {above}."
    if not all(one["current"] for one in rows.values()):
        yield f"{OLD} run before a default, or the row itself, changed."


def _row_line(one: Mapping[str, Any]) -> tuple[str, ...]:
    spread = "" if one["linear_sd"] is None else f" \u00b1 {one['linear_sd']:.1f}"
    return (
        one["title"] + ("" if one["current"] else OLD),
        f"{one['linear']:.1f}{spread}",
        f"{one['knn']:.1f}",
        f"{one['precision_at_10']:.1f}",
        *_traffic(one),
        _runs(one),
    )


def _runs(one: Mapping[str, Any]) -> str:
    """Folds x seeds, or how many runs there are of a grid that is not finished."""
    grid = one["folds"] * one["seeds"]
    return f"{one['folds']} x {one['seeds']}" if one["cases"] == grid else f"{one['cases']}"


def _bytes_line(one: Mapping[str, Any]) -> tuple[str, ...]:
    return (one["title"] + ("" if one["current"] else OLD), "-", "-", "-", *_traffic(one), "bytes")


def _traffic(one: Mapping[str, Any]) -> tuple[str, str]:
    return (
        ("-", "-")
        if one["bytes_per_hour"] is None
        else (f"{one['bytes_per_hour'] / 1e6:.1f}", f"{one['of_pcm16']:.1f} %")
    )


def _difference_line(
    title: str, found: Mapping[str, Any], mean_from: float | None, low_from: float | None
) -> tuple[str, ...]:
    low, high = found["ci95"]
    mark = "" if found["current"] else OLD
    asked = verdict(found, mean_from, low_from)
    return title + mark, f"{found['mean']:+.1f}", f"{low:+.1f} to {high:+.1f}", _pairs(found), asked


def _pairs(found: Mapping[str, Any]) -> str:
    return f"{len(found['folds'])} x {found['seeds']}"


def verdict(found: Mapping[str, Any], mean_from: float | None, low_from: float | None) -> str:
    """What was asked of a difference, and whether it is so; nothing where nothing was."""
    asked = [
        f"{what} from {value:g}" for what, value in (("mean", mean_from), ("lower end", low_from)) if value is not None
    ]
    if not asked:
        return ""
    met = (mean_from is None or found["mean"] >= mean_from) and (low_from is None or found["ci95"][0] >= low_from)
    return f"{', '.join(asked)}: {'met' if met else 'missed'}"


def _table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [headings, ["---"] * len(headings), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
