"""Random graphs and prices for the planner, and the slow reference: every placement tried."""

from __future__ import annotations

import numpy as np

from trainer.partition_graph import Array, CutGraph, Flags, make_graph
from trainer.partition_prices import Amounts, Pins, Rates, pins


def random_graph(rng: np.random.Generator, size: int) -> CutGraph:
    """Chains, branches, skips and results with many consumers; every operation but the last is needed by some."""
    parents: list[tuple[int, ...]] = [()]
    for at in range(1, size):
        near = rng.random() < 0.6
        count = int(rng.integers(1, min(at, 3) + 1))
        chosen = {at - 1} if near else set()
        chosen |= {int(one) for one in rng.integers(max(0, at - 5), at, size=count)}
        parents.append(tuple(sorted(chosen)))
    idle = set(range(size - 1)) - {one for chosen in parents for one in chosen}
    parents[-1] = tuple(sorted({*parents[-1], *idle}))
    return make_graph(tuple(f"n{at}" for at in range(size)), tuple(parents))


def random_amounts(rng: np.random.Generator, graph: CutGraph, *, faster: bool) -> Amounts:
    """Times and sizes of very different magnitudes, some equal, some 0; ``faster``: the server is, everywhere."""
    server = rng.choice([0.0, 1.0, 1.0, 2.0, *rng.uniform(0, 5, 4)], graph.size)
    device = server * rng.uniform(1, 20) if faster else rng.choice([0.0, 1.0, *rng.uniform(0, 9, 4)], graph.size)
    values = rng.choice([1.0, 2.0, 2.0, 4.0, 8.0, *rng.uniform(0.5, 9, 3)], graph.size)
    sizes = values[:, None] * np.array((1.0, 0.3, 2.0))
    sizes[0] = rng.uniform(1, 12), 0.0, 0.0
    travels = rng.random(graph.size) > 0.05
    travels[0] = True
    memory = rng.uniform(1, 10, graph.size)
    return Amounts(np.stack((device, rng.uniform(0, 1, graph.size), server)), sizes, memory, travels)


def random_rates(rng: np.random.Generator) -> Rates:
    """Prices of a slow or a fast link, a loaded or an idle machine."""
    split = rng.choice([0.0, rng.uniform(0, 20)])
    return Rates(*(float(one) for one in (*rng.uniform(0.1, 3.0, 6), split)))


def random_pins(rng: np.random.Generator, graph: CutGraph) -> Pins:
    """Mostly only the input; now and then a privacy floor and a last operation that is the server's."""
    device, server = np.zeros(graph.size, dtype=np.bool_), np.zeros(graph.size, dtype=np.bool_)
    if rng.random() < 0.3 and graph.size > 3:
        device[int(rng.integers(1, graph.size - 1))] = True
    if rng.random() < 0.3:
        server[-1] = True
    return pins(graph, device=device, server=server)


def placements(graph: CutGraph, given: Pins) -> Flags:
    """Every placement that is allowed, [many, n]: of all 2^n those that keep the pins and the arrows."""
    sides = np.array(np.arange(2**graph.size)[:, None] >> np.arange(graph.size) & 1, dtype=np.bool_)
    sides = sides[sides[:, given.device].all(axis=1) & ~sides[:, given.server].any(axis=1)]
    for at, parents in enumerate(graph.parents):
        sides = sides[~sides[:, at] | sides[:, list(parents)].all(axis=1)]
    return sides


def costs(graph: CutGraph, known: Amounts, price: Rates, sides: Flags) -> Array:
    """What each of the placements costs, [many]; term by term, and nothing in common with the network."""
    spent = np.where(sides.all(axis=1), 0.0, price.split)
    for at, consumers in enumerate(graph.consumers):
        device_ms, parameters, server_ms = known.compute[:, at]
        here = price.device_ms * device_ms + price.parameter * parameters
        up, down, values = known.sizes[at]
        carried = price.up_byte * up + price.down_byte * down + price.value * values
        crosses = sides[:, at] & ~sides[:, list(consumers)].all(axis=1)
        spent += np.where(sides[:, at], here, price.server_ms * server_ms)
        spent += np.where(crosses, carried if known.travels[at] else np.inf, 0.0)
    return spent


def cheapest(graph: CutGraph, known: Amounts, price: Rates, given: Pins) -> float:
    """What the best placement costs."""
    return float(costs(graph, known, price, placements(graph, given)).min())
