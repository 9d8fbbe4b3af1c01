"""README's first table of results: what was published, what was asked for, what is measured; from committed results."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.bench.accuracy_report import OLD, measured, verdict
from tests.bench.accuracy_results import RESULTS
from tests.bench.accuracy_rows import COMPARISONS, ROWS
from tests.bench.policy_report import ASKED as LEAST_RATIO
from tests.bench.testbed_report import ASKED

HEADINGS = ("against server-only with PCM16, unless it says otherwise", "published", "asked for", "here", "command")
DIFFERENCES = {
    "difference": "linear probe, ESC-10, every window sent",
    "sparse_random_minus_server_only": "the same, any quarter of the windows sent",
    "testbed_minus_server_only": "the same, with the testbed's settings",
}
SHAPES = ("googlenet", "densenet")

Line = tuple[str, str, str, str, str]


def markdown(folder: Path = RESULTS) -> str:
    """The table; a line for everything that was run."""
    lines = [*_kept(folder, "testbed", _side_by_side), *_accuracy(folder)]
    lines += [*_kept(folder, "planner", _planned), *_kept(folder, "policy", _decided)]
    rows = [HEADINGS, ["---"] * len(HEADINGS), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _kept(folder: Path, name: str, lines_of: Callable[[Mapping[str, Any]], Iterable[Line]]) -> Iterable[Line]:
    path = folder / f"{name}.json"
    return lines_of(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else ()


def _side_by_side(found: Mapping[str, Any]) -> Iterator[Line]:
    p50, p95, share = (found[name] for name in ("latency_ratio_p50", "latency_ratio_p95", "bytes_fraction"))
    energy, by_air_time = found["energy_fraction"], found["energy_fraction_by_air_time"]
    asked = {name: bound for name, _, bound, _ in ASKED}
    least_p50, least_p95 = asked["latency_ratio_p50"], asked["latency_ratio_p95"]
    most_bytes, most_energy = asked["bytes_fraction"], asked["energy_fraction"]
    yield (
        "window closed to its embedding on the device, median; 95th percentile",
        "4.7 times shorter",
        f"{least_p50:g}; {least_p95:g}: {_met(p50 >= least_p50 and p95 >= least_p95)}",
        f"{p50:.1f}; {p95:.1f} times shorter",
        "`testbed`",
    )
    yield (
        "bytes at the sockets, both ways, in a fleet's first minutes",
        "22.9 %",
        f"{100 * most_bytes:g} %: {_met(share <= most_bytes)}",
        f"{100 * share:.1f} % ({100 * found['bytes_fraction_of_opus']:.0f} % of Opus')",
        "`testbed`",
    )
    yield (
        "energy above an idle board that listens, by a model of boards",
        "47.7 %",
        f"{100 * most_energy:g} %: {_met(energy <= most_energy)}",
        f"{100 * energy:.0f} %; {100 * by_air_time:.0f} % if the radio is on as long as the link takes",
        "`testbed`",
    )


def _accuracy(folder: Path) -> Iterator[Line]:
    compared = {one.name: one for one in COMPARISONS if one.name in DIFFERENCES}
    needed = {name for one in compared.values() for name in (one.a, one.b)}
    found = measured(folder, [row for row in ROWS if row.name in needed])
    for name, words in DIFFERENCES.items():
        if name not in found:
            continue
        one, mean, (low, high) = compared[name], found[name]["mean"], found[name]["ci95"]
        share, mark = found["rows"][one.a]["of_pcm16"], "" if found[name]["current"] else OLD
        yield (
            words + mark,
            "-2.2",
            verdict(found[name], one.mean_from, one.low_from),
            f"{mean:+.1f} points ({low:+.1f} to {high:+.1f}), {share:.1f} % of the bytes",
            "`accuracy`",
        )


def _planned(found: Mapping[str, Any]) -> Iterator[Line]:
    less = 100 * found["delay_reduction"]["mean_of_baselines"]
    speed = [found["speedup_blockwise"][name] for name in SHAPES]
    alike = [found["speedup_by_library"][name]["ortools"]["ratio"] for name in SHAPES]
    yield (
        "training delay of the planned cut, against the mean of four rules",
        "38.95 % less",
        f"38.95 %: {_met(less >= 38.95)}",
        f"{less:.1f} % less",
        "`planner`",
    )
    yield (
        "block-wise planning against the general graph, GoogLeNet; DenseNet",
        "13 times as fast",
        f"13, the same library on both sides: {_met(min(alike) >= 13)}",
        f"{_and(speed)} without a flow; {_and(alike)} by OR-tools on both sides",
        "`planner`",
    )


def _decided(found: Mapping[str, Any]) -> Iterator[Line]:
    ratio = found["oracle_ratio"]
    yield (
        "policy's reward, of the way from chance to an oracle, held-out traces",
        "-",
        f"{LEAST_RATIO:.2f}: {_met(ratio >= LEAST_RATIO)}",
        f"{ratio:.3f}; a decision takes {found['decision_us']:.0f} \u00b5s",
        "`policy`",
    )


def _and(ratios: Iterable[float]) -> str:
    return "; ".join(f"{ratio:.1f}" for ratio in ratios)


def _met(met: bool) -> str:
    return "met" if met else "missed"
