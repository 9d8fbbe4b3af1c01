"""The planner against every placement tried, against the general graph, and against other ways to choose a cut.

    python -m tests.bench.planner [--quick] [--json]

The last line is one JSON object, which a whole run also writes to ``tests/bench/results/planner.json``:

* ``mismatches``: plans, block-wise and general, of random graphs, and of test models at random times and links, that
  cost more than the best of all placements, or, where these are too many, than the other; ``compared``: how many.
* ``enumerated``: by model, how many placements its operations have; null: more than are tried.
* ``speedup_blockwise``: by model, median time of a general plan by maximum flow, network built anew, over that of a
  block-wise one from new times, blocks tested: of the placements that blocks leave, all where they are few;
  ``speedup_by_library``: the same with a maximum flow between the blocks, too, by the same library on both sides.
* ``plan_ms``: median milliseconds of a block-wise plan as the trainer makes it; ``brute_force_ms``: all placements.
* ``delay_reduction``: by how much a re-planned window trains faster than by each baseline, mean over the held-out
  traces of `trainer.link_traces`, re-planning included; ``mean_of_baselines``: against the mean of the four;
  ``above_best_static``: traces on which the plan lost to the best fixed cut in hindsight, ``worst_against_static`` by
  what share.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from common.atomic_file import write_atomically
from common.codec import DEFAULT_ACTIVATIONS_CODEC, DEFAULT_GRADIENT_CODEC, Codec
from common.encoder_graph import trace
from common.profiling import measure
from tests.bench.accuracy_results import RESULTS
from tests.bench.flow_libraries import Solve, by_ortools, installed
from tests.bench.planner_traces import compare_on_traces
from tests.trainer.random_graphs import (
    cheapest as cheapest_of_all,
)
from tests.trainer.random_graphs import (
    costs,
    random_amounts,
    random_graph,
    random_pins,
    random_rates,
)
from tests.trainer.whole_models import OWN, SHAPES, all_placements
from trainer.partition import Partition
from trainer.partition_blocks import Blocks, block_network, failing, find_blocks, single_blocks
from trainer.partition_graph import CutGraph, Flags, graph_of
from trainer.partition_placements import cheapest
from trainer.partition_prices import Amounts, LinkState, Pins, Rates, Wire, amounts, pins, rates
from trainer.partition_wire import measure_wire

DEVICE_SLOWDOWN = 12.5  # a Raspberry Pi 4 by its profile file against this machine's 1.6 ms
LINK = LinkState(2.0, 4.0, 50.0)
LOCAL_ITERATIONS = 200
PROFILE_REPEATS = 3
TOLERANCE = 1e-9


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and one JSON object at the end."""
    parser = argparse.ArgumentParser(description="The planner: exactness, speed, and delay over link traces.")
    parser.add_argument("--quick", action="store_true", help="fewer graphs, repeats and traces")
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    parser.add_argument("--png", type=Path, help="draw the delays over the traces")
    given = parser.parse_args(arguments)
    wire = measure_wire(
        Codec.parse(DEFAULT_ACTIVATIONS_CODEC), Codec.parse(DEFAULT_GRADIENT_CODEC),
        change_codec="int4", delta_codec="int4",
    )  # fmt: skip
    repeats = 20 if given.quick else 100
    found: dict[str, object] = {}
    wrong, compared = _random_mismatches(200 if given.quick else 2_000)
    speeds = []
    enumerated: dict[str, int | None] = {}
    for name, build in track((SHAPES | OWN).items(), description="models", console=_console()):
        model = build()
        graph = graph_of(trace(model))
        profile = measure(model, name=name, repeats=PROFILE_REPEATS)
        known = amounts(graph, profile.slower(DEVICE_SLOWDOWN), profile, wire)
        sides = all_placements(graph, _pins(graph))
        more, tried = _model_mismatches(graph, known, wire, sides, 10 if given.quick else 50)
        wrong, compared = wrong + more, compared + tried
        enumerated[name] = None if sides is None else len(sides)
        speeds.append((name, _speed(graph, known, wire, repeats, slow=not given.quick)))
    found |= {"mismatches": wrong, "compared": compared, "enumerated": enumerated}
    for key in speeds[0][1]:
        found[key] = {name: speed[key] for name, speed in speeds if key in speed}
    found["brute_force_ms"] = _brute_force_ms()
    found |= compare_on_traces(wire, traces=4 if given.quick else 20, picture=given.png, console=_console())
    if not given.quick:
        write_atomically(RESULTS / "planner.json", (json.dumps(found, indent=1) + "\n").encode())
    if not given.json:
        for key, value in found.items():
            print(f"{key}: {json.dumps(value, indent=1)}")
    print(json.dumps(found))
    return 0


def _random_mismatches(graphs: int) -> tuple[int, int]:
    """How many plans cost more than the best of all placements, of how many; half with a server that is faster."""
    rng = np.random.default_rng(2026)
    wrong = 0
    for number in track(range(graphs), description="random graphs", console=_console()):
        graph = random_graph(rng, int(rng.integers(3, 13)))
        known, given = random_amounts(rng, graph, faster=number % 2 == 0), random_pins(rng, graph)
        price = random_rates(rng)
        best = cheapest_of_all(graph, known, price, given)
        for blockwise in (True, False):
            cost = _planned(graph, known, given, price, blockwise=blockwise)
            wrong += not np.isclose(cost, best, rtol=TOLERANCE)
    return wrong, 2 * graphs


def _planned(graph: CutGraph, known: Amounts, given: Pins, price: Rates, *, blockwise: bool) -> float:
    try:
        blocks = None if blockwise else single_blocks(graph, known, given)
        return Partition(graph, known, given, blocks=blocks).plan(price).cost
    except ValueError:  # nothing is possible, which trying every placement must say too
        return float("inf")


def _model_mismatches(graph: CutGraph, known: Amounts, wire: Wire, sides: Flags | None, times: int) -> tuple[int, int]:
    """How many plans of a model, at random times, links and loads, cost more than the best of all sides, of how many.

    Where these are not known, general and block-wise plans are measured by each other.
    """
    rng = np.random.default_rng(7)
    given = _pins(graph)
    ways = find_blocks(graph, known, given), single_blocks(graph, known, given)
    wrong = 0
    for _ in range(times):
        compute = known.compute.copy()
        compute[0] *= rng.uniform(0.5, 2.0, graph.size)
        other = Amounts(compute, known.sizes, known.memory_bytes, known.travels)
        up = float(10 ** rng.uniform(-1, 3))
        price = rates(
            wire, LinkState(up, 2 * up, float(rng.uniform(0, 200))), local_iterations=200,
            server_slowdown=float(10 ** rng.uniform(0, 1.5)),
        )  # fmt: skip
        planned = [Partition(graph, other, given, blocks=blocks).plan(price).cost for blocks in ways]
        best = min(planned) if sides is None else float(costs(graph, other, price, sides).min())
        wrong += sum(not np.isclose(cost, best, rtol=TOLERANCE) for cost in planned)
    return wrong, times * len(ways)


def _speed(graph: CutGraph, known: Amounts, wire: Wire, repeats: int, *, slow: bool) -> dict[str, object]:
    given = _pins(graph)
    blocks, single = find_blocks(graph, known, given), single_blocks(graph, known, given)
    partition = Partition(graph, known, given, blocks=blocks)
    price = rates(wire, LINK, local_iterations=LOCAL_ITERATIONS)

    def anew(solve: Solve, repeats: int, *, by_flow: bool = True) -> tuple[float, float]:
        """Milliseconds from new times to the cut, block-wise and general."""
        small, large = _medians_ms(
            [
                lambda: _blockwise(blocks, known, price, solve if by_flow else None),
                lambda: solve(block_network(single, known), price.vector()),
            ],
            repeats,
        )
        return small, large

    listed_ms, general_ms = anew(by_ortools, repeats, by_flow=False)
    by_library = {}
    for library, solve in installed().items():
        if slow or library != "networkx":
            small, large = anew(solve, 3 if library == "networkx" else repeats)
            by_library[library] = {
                "blocks_ms": _short(small),
                "general_ms": _short(large),
                "ratio": _short(large / small),
            }
    return {
        "speedup_blockwise": _short(general_ms / listed_ms),
        "plan_ms": _short(_medians_ms([lambda: partition.plan(rates(wire, LINK, local_iterations=200))], repeats)[0]),
        "general_ms": _short(general_ms),
        "vertices": {"operations": graph.size, "blocks": blocks.count, "placements": _listed(blocks)},
        "speedup_by_library": by_library,
    }


def _listed(blocks: Blocks) -> int | None:
    return None if blocks.placements is None else len(blocks.placements.on_device)


def _blockwise(blocks: Blocks, known: Amounts, price: Rates, solve: Solve | None) -> None:
    """From new times to the cut, every block tested; without ``solve`` no flow where the placements are few."""
    savings = known.savings(price)
    assert not failing(blocks, savings)
    if solve is None and blocks.placements is not None:
        cheapest(blocks.placements, known, price, savings)
    else:
        (solve or by_ortools)(block_network(blocks, known), price.vector())


def _brute_force_ms() -> dict[str, float]:
    """Milliseconds to try all placements of a random graph, by its operations."""
    rng = np.random.default_rng(1)
    taken = {}
    for size in (8, 12, 16):
        graph = random_graph(rng, size)
        known, given, price = random_amounts(rng, graph, faster=True), _pins(graph), random_rates(rng)
        (taken[str(size)],) = (
            _short(one) for one in _medians_ms([partial(cheapest_of_all, graph, known, price, given)], 3)
        )
    return taken


def _pins(graph: CutGraph) -> Pins:
    nothing = np.zeros(graph.size, dtype=np.bool_)
    return pins(graph, device=nothing, server=nothing)


def _medians_ms(calls: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Medians, in turns so that a busy moment hits all alike; processor time, for the machine has other work."""
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, times in zip(calls, taken):
            start_s = time.thread_time()
            call()
            times.append(1e3 * (time.thread_time() - start_s))
    return [float(np.median(times)) for times in taken]


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def _console() -> Console:
    return Console(stderr=True)


if __name__ == "__main__":
    sys.exit(main())
