"""The testbed's figures for people: tables for a terminal, a Markdown report, README's part."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from tests.bench.accuracy_results import RESULTS

RESULT = RESULTS / "testbed.json"
PICTURES = {
    "latency.png": "Share of windows whose embedding was there after so long, by row",
    "energy.png": "Joules a window above an idle board that listens, by part",
    "timeline.png": "Cut, load, uplink and uncertainty of each device of StreamSplit's row",
    "events.png": "The same where something happens, and along the traces",
}
"""Of a run's folder; beside the result they are kept with `KEPT_AS` before their names."""

KEPT_AS = "testbed-"
COMMAND = "python -m tests.bench.testbed --json"
NOT_RUN = f"Not run yet: `{COMMAND}` writes the figures to `tests/bench/results/testbed.json`."
HEADINGS = (
    "row",
    "embedding, ms: median / p95",
    "gradient applied, ms: median",
    "kB a window up / down",
    "compute, s",
    "CPU, s",
    "memory, MiB",
    "J marginal / total",
    "saturated",
)
# What was asked for, as (key, words, bound, whether it must be at least that).
ASKED: tuple[tuple[str, str, float, bool], ...] = (
    ("latency_ratio_p50", "latency to the embedding, median: times shorter", 4.7, True),
    ("latency_ratio_p95", "the same, 95th percentile", 2.0, True),
    ("bytes_fraction", "bytes at the sockets, share of PCM16's", 0.15, False),
    ("bytes_fraction_of_opus", "the same, share of Opus' (target: below 1)", 1.0, False),
    ("energy_fraction", "marginal energy by the profiles' model, share of PCM16's", 0.477, False),
    (
        "reaction_s",
        "slowest reaction of the cut where a move is due, s after the first telemetry that shows the change",
        1.2,
        False,
    ),
)


def tables(result: Mapping[str, Any]) -> list[Table]:
    """For a terminal."""
    parts = (
        ("the testbed", HEADINGS, row_lines(result)),
        ("against server-only, PCM16", ("what", "figure", "asked for"), asked_lines(result)),
        ("when something happens", EVENT_HEADINGS, event_lines(result)),
        ("along a trace of link and load", TRACE_HEADINGS, trace_lines(result)),
    )
    made = []
    for title, headings, lines in parts:
        table = Table(*headings, title=title)
        for line in lines:
            table.add_row(*line)
        if lines:
            made.append(table)
    return made


def row_lines(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One line per row."""
    return [_row_line(row) for row in result["rows"].values()]


def _row_line(row: Mapping[str, Any]) -> tuple[str, ...]:
    embedding, joules = row["embedding_ms"], row["joules"]
    marginal = joules["compute"] + joules["radio"]
    return (
        row["title"],
        f"{_number(embedding['p50'])} / {_number(embedding['p95'])}",
        _number(row["applied_ms"]["p50"]),
        f"{row['bytes_up'] / 1e3:.2f} / {row['bytes_down'] / 1e3:.2f}",
        f"{row['busy_s']:.3f}",
        f"{row['cpu_s']:.3f}",
        f"{row['memory_mb']:.0f}",
        f"{marginal:.3f} / {marginal + joules['standing']:.2f}",
        "; ".join(row["saturated"]) or "no",
    )


def asked_lines(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What was asked for, and whether it is so."""
    lines = []
    for key, words, bound, at_least in ASKED:
        value = result.get(key)
        met = value is not None and (value >= bound if at_least else value <= bound)
        missed = "missed" if value is None else f"missed by a factor of {_times(value, bound):.3g}"
        asked = f"{'from' if at_least else 'at most'} {bound:g}: {'met' if met else missed}"
        lines.append((words, _number(value), asked))
    return lines


def _times(value: float, bound: float) -> float:
    return max(value / bound, bound / value) if value else float("inf")


EVENT_HEADINGS = ("what happens", "s from the telemetry", "s from the change", "moves", "closest, s", "lost later")


def event_lines(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One line per device of the run in which something happens."""
    return [
        (
            event["title"],
            _number(event["since_shown_s"]) if event["due"] or event["since_shown_s"] is not None else "no move due",
            _number(event["since_change_s"]),
            str(event["changes"]),
            _number(event["closest_s"]),
            _outage(event),
        )
        for event in result["events"].values()
    ]


TRACE_HEADINGS = (
    "along a trace of link and load",
    "embedding, ms: median / p95",
    "windows by decision",
    "steps answered / not",
    "local steps",
    "moves",
    "closest, s",
)


def trace_lines(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One line per device that followed a trace."""
    return [
        (
            one["title"],
            f"{_number(one['p50_ms'])} / {_number(one['p95_ms'])}",
            ", ".join(f"{fate}: {count}" for fate, count in one["fates"].items()),
            f"{one['answered']} / {one['unanswered']}",
            str(one["local_steps"]),
            str(one["moves"]),
            _number(one["closest_s"]),
        )
        for one in result["traces"].values()
    ]


def _outage(event: Mapping[str, Any]) -> str:
    if event["lost_later"] is None:
        return "did not come back"
    return f"{event['lost_later']}, {event['local_steps']} local steps meanwhile" if event["local_steps"] else "-"


def detail_lines(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The ratios by link and by decision."""
    by_link = [(f"link {link}", one) for link, one in result["by_link"].items()]
    by_decision = [(f"{fate} ({one['windows']} windows)", one) for fate, one in result["by_decision"].items()]
    return [(name, _number(one["p50"]), _number(one["p95"])) for name, one in (*by_link, *by_decision)]


def markdown(path: Path = RESULT) -> str:
    """README's part, from the committed result; says so where there is none."""
    if not path.exists():
        return NOT_RUN
    kept = ((f"{KEPT_AS}{name}", about) for name, about in PICTURES.items())
    pictures = (f"![{about}](tests/bench/results/{name})" for name, about in kept if (path.parent / name).exists())
    return "\n\n".join((report(json.loads(path.read_text(encoding="utf-8"))), *pictures))


def report(result: Mapping[str, Any]) -> str:
    """All tables as Markdown, and what the run was."""
    energy = (
        "Marginal energy with compute or radio at half or twice the profile's figures: "
        f"{_pair('energy_fraction_range', result)} of PCM16's; with idle and capture, "
        f"{_number(result['energy_fraction_total'])}; if the radio is on for as long as the emulated link takes, "
        f"{_number(result['energy_fraction_by_air_time'])} ({_pair('energy_fraction_by_air_time_range', result)})."
    )
    answered = (
        "Most windows that are sent are cut after the last block: the trainer has no embedding to answer with."
        if result["latency_ratio_answered_p50"] is None
        else "Waiting for the trainer's answer alone, on windows that are sent: "
        f"{_number(result['latency_ratio_answered_p50'])} times shorter at the median."
    )
    where = (
        f"{result['windows']} windows of each of {result['devices']} devices a row, the first "
        f"{result['warm_up_windows']} not counted; splitter of StreamSplit's row: {result['splitter']}; "
        f"broker {result['broker']}, {result['cores']} cores, of which others took {_others(result)}. "
        "A window's compute, measured over what simulator and profile have for it, median of a row's steps: "
        f"{_played(result)}."
    )
    return "\n\n".join(
        (
            table(HEADINGS, row_lines(result)),
            table(("StreamSplit against server-only, PCM16", "figure", "asked for"), asked_lines(result)),
            table(("latency, times shorter", "median", "95th percentile"), detail_lines(result)),
            table(EVENT_HEADINGS, event_lines(result)),
            table(TRACE_HEADINGS, trace_lines(result)),
            answered,
            energy,
            where,
        )
    )


def _others(result: Mapping[str, Any]) -> str:
    shares = [row["others_cores"] for row in result["rows"].values()]
    return f"{min(shares):.2f} to {max(shares):.2f}"


def _played(result: Mapping[str, Any]) -> str:
    rows = [(row["title"], row["played"]) for row in result["rows"].values() if row["played"]]
    boards = [(title, [f"{profile} {_number(ratio)}" for profile, ratio in one.items()]) for title, one in rows]
    return "; ".join(f"{title}: {', '.join(one)}" for title, one in boards) or "unknown"


def _pair(key: str, result: Mapping[str, Any]) -> str:
    pair = result[key]
    return "unknown" if pair is None else f"{pair[0]:.3g} to {pair[1]:.3g}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [headings, ["---"] * len(headings), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
