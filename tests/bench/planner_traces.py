"""Training delay over the held-out traces of link and load: the re-planned cut against every other way to choose one.

A window's delay is that of `trainer.partition_prices`. Whoever decides, decides on what was measured in the window
before. Devices are a Raspberry Pi 4 and a Zero 2 W in turn: this machine's node times, scaled by their profile files;
the server is this machine, loaded by the load of another trace. Windows during which the link is down are left out:
there every split takes forever.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from common import config
from common.compute_profile import ComputeProfile
from common.encoder import build_encoder
from common.encoder_graph import trace
from common.profiling import measure
from trainer.link_traces import Trace, generate, read_split
from trainer.partition import Partition
from trainer.partition_graph import Array, CutGraph, Flags, graph_of, up_to_block
from trainer.partition_prices import Amounts, LinkState, Rates, Wire, amounts, pins, rates

BOARDS = ("raspberry-pi-4", "raspberry-pi-zero-2w")
LOCAL_ITERATIONS = 200
OTHER_SEED = 10_000  # whose load the server has
FITTED = 8  # training traces the regression is fitted on
BASELINES = ("device-only", "server-only", "fixed middle", "regression")


@dataclass(frozen=True, slots=True)
class _Case:
    """An encoder on one board, with device-only, server-only and every cut; ``spent``: their amounts, [options, 6]."""

    partition: Partition
    graph: CutGraph
    known: Amounts
    names: tuple[str, ...]
    spent: Array
    splits: Flags


def compare_on_traces(wire: Wire, *, traces: int, picture: Path | None, console: Console) -> dict[str, object]:
    """Reductions by baseline, and how the plan stands against the best fixed option in hindsight."""
    here = measure(build_encoder("mobile", seed=0), name="mobile", repeats=3)
    split = read_split()
    cases = [_case(here, board, wire) for board in BOARDS]
    fits = [
        _fit(case, [_states(generate(*one, steps=split.steps), one, wire) for one in split.training[:FITTED]])
        for case in cases
    ]
    rows = []
    for number, one in enumerate(track(split.held_out[:traces], description="traces", console=console)):
        states = _states(generate(*one, steps=split.steps), one, wire)
        rows.append(_row(cases[number % 2], fits[number % 2], states, f"{one[0]} {one[1]}"))
    if picture is not None:
        _draw(rows, picture)
    return _summary(rows)


@dataclass(frozen=True, slots=True)
class _Row:
    """Mean milliseconds a window on one trace, by who decides; ``best`` is the best fixed option in hindsight."""

    trace: str
    plan: float
    baselines: dict[str, float]
    best: float
    best_name: str
    changes: int
    plan_us: float


def _case(here: ComputeProfile, board: str, wire: Wire) -> _Case:
    device = here.as_board(config.load_profile(board).mobile_forward_ms)
    traced = trace(build_encoder("mobile", seed=0))
    graph = graph_of(traced)
    known = amounts(graph, device, here, wire)
    nothing = np.zeros(graph.size, dtype=np.bool_)
    heard = nothing.copy()
    heard[0] = True
    sides = {"device-only": ~nothing, "server-only": heard}
    sides |= {f"cut {cut}": up_to_block(traced, cut) for cut in range(here.depth + 1)}
    partition = Partition(graph, known, pins(graph, device=nothing, server=nothing))
    spent = np.stack([_spent(graph, known, side) for side in sides.values()])
    return _Case(partition, graph, known, tuple(sides), spent, np.array([not side.all() for side in sides.values()]))


def _spent(graph: CutGraph, known: Amounts, side: Flags) -> Array:
    """How much of each rate a placement needs, [6] as in `Rates.vector`."""
    carried = known.sizes[graph.crossing(side)].sum(axis=0)
    device_ms, parameters = known.compute[:2, side].sum(axis=1)
    return np.array([device_ms, parameters, known.compute[2, ~side].sum(), *carried])


@dataclass(frozen=True, slots=True)
class _States:
    """A trace's windows with a link: prices of each, the same as vectors [T, 6] and [T], and what a regression sees."""

    prices: list[Rates]
    vectors: Array
    split: Array
    features: Array


def _states(one: Trace, named: tuple[str, int], wire: Wire) -> _States:
    server_load = generate(named[0], named[1] + OTHER_SEED, steps=len(one)).load  # type: ignore[arg-type]
    prices, features = [], []
    for at in np.flatnonzero(one.online):
        link = LinkState(float(one.uplink_mbps[at]), float(one.downlink_mbps[at]), float(one.round_trip_ms[at]))
        slow = 1.0 / (1.0 - float(one.load[at])), 1.0 / (1.0 - float(server_load[at]))
        prices.append(
            rates(wire, link, local_iterations=LOCAL_ITERATIONS, device_slowdown=slow[0], server_slowdown=slow[1])
        )
        features.append((1.0, link.uplink_mbps, link.downlink_mbps, link.round_trip_ms, one.load[at], server_load[at]))
    vectors = np.stack([price.vector() for price in prices])
    return _States(prices, vectors, np.array([price.split for price in prices]), np.array(features))


def _delays(case: _Case, states: _States) -> Array:
    """Milliseconds of every window under every option, [T, o]."""
    return states.vectors @ case.spent.T + states.split[:, None] * case.splits


def _fit(case: _Case, training: list[_States]) -> Array:
    """A linear regression of every option's delay on what is measured, [6, o]."""
    features = np.concatenate([states.features for states in training])
    delays = np.concatenate([_delays(case, states) for states in training])
    fitted: Array = np.linalg.lstsq(features, delays, rcond=None)[0]
    return fitted


def _row(case: _Case, fit: Array, states: _States, name: str) -> _Row:
    delays = _delays(case, states)
    before = np.maximum(np.arange(len(delays)) - 1, 0)
    planned, planning_ms, changes = _planned(case, states, before)
    regressed = delays[np.arange(len(delays)), (states.features @ fit).argmin(axis=1)[before]]
    fixed = delays.mean(axis=0)
    middle = case.names.index(f"cut {(len(case.names) - 3) // 2}")
    baselines = dict(zip(BASELINES, (*fixed[:2], fixed[middle], regressed.mean()), strict=True))
    best = int(fixed.argmin())
    return _Row(
        trace=name,
        plan=float((planned + planning_ms).mean()),
        baselines={key: float(value) for key, value in baselines.items()},
        best=float(fixed[best]),
        best_name=case.names[best],
        changes=changes,
        plan_us=float(1e3 * np.median(planning_ms)),
    )


def _planned(case: _Case, states: _States, before: Array) -> tuple[Array, Array, int]:
    """Delay and time of planning of every window, and how often the placement changed."""
    delays, planning_ms, changes = [], [], 0
    last: Flags | None = None
    spent, splits = case.spent[0], False
    for at, earlier in enumerate(before.tolist()):
        start_s = time.thread_time()
        plan = case.partition.plan(states.prices[int(earlier)])
        planning_ms.append(1e3 * (time.thread_time() - start_s))
        if last is None or not np.array_equal(plan.on_device, last):
            changes += last is not None
            last, splits = plan.on_device, plan.splits
            spent = _spent(case.graph, case.known, plan.on_device)
        delays.append(float(states.vectors[at] @ spent) + (states.split[at] if splits else 0.0))
    return np.array(delays), np.array(planning_ms), changes


def _summary(rows: list[_Row]) -> dict[str, object]:
    plan = float(np.mean([row.plan for row in rows]))
    means = {name: float(np.mean([row.baselines[name] for row in rows])) for name in BASELINES}
    reduction = {name: round(1.0 - plan / mean, 4) for name, mean in means.items()}
    reduction["mean_of_baselines"] = round(1.0 - plan / float(np.mean(list(means.values()))), 4)
    by_trace = [1.0 - row.plan / float(np.mean(list(row.baselines.values()))) for row in rows]
    over = {row.trace: round(row.plan / row.best - 1.0, 5) for row in rows if row.plan > row.best}
    return {
        "delay_reduction": reduction,
        "mean_reduction_of_traces": round(float(np.mean(by_trace)), 4),
        "least_reduction_of_a_trace": round(min(by_trace), 4),
        "delay_ms": {"plan": round(plan, 2), **{name: round(mean, 2) for name, mean in means.items()}},
        "best_static_reduction": round(1.0 - plan / float(np.mean([row.best for row in rows])), 4),
        "above_best_static": over,
        "replan_us": round(float(np.median([row.plan_us for row in rows])), 1),
        "traces": [
            {
                "trace": row.trace,
                "plan_ms": round(row.plan, 2),
                "best_static": f"{row.best_name}: {row.best:.2f}",
                **{name: round(value, 2) for name, value in row.baselines.items()},
                "changes": row.changes,
            }
            for row in rows
        ],
    }


def _draw(rows: list[_Row], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 5), layout="constrained")
    places = np.arange(len(rows))
    for name in BASELINES:
        axes.plot(places, [row.baselines[name] for row in rows], "o", label=name)
    axes.plot(places, [row.best for row in rows], "k_", ms=14, label="best fixed in hindsight")
    axes.plot(places, [row.plan for row in rows], "k*", ms=10, label="re-planned")
    axes.set_yscale("log")
    axes.set_xticks(places, [row.trace for row in rows], rotation=60, fontsize=8)
    axes.set_ylabel("ms a window, mean over the trace")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
