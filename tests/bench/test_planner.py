"""The benchmark of the planner compares like with like."""

from __future__ import annotations

import numpy as np
import pytest

from tests.bench.flow_libraries import installed
from tests.bench.planner_traces import _spent
from tests.trainer.random_graphs import random_amounts, random_graph, random_pins, random_rates
from trainer.partition_blocks import block_network, single_blocks
from trainer.partition_network import minimum_cut
from trainer.partition_prices import total


@pytest.mark.parametrize("library", installed())
def test_every_library_finds_a_cut_of_the_same_cost(library: str) -> None:
    rng = np.random.default_rng(11)
    for _ in range(20):
        graph = random_graph(rng, 9)
        known, given = random_amounts(rng, graph, faster=True), random_pins(rng, graph)
        known.travels[:] = True
        price = random_rates(rng)
        blocks = single_blocks(graph, known, given)
        network = block_network(blocks, known)
        side = installed()[library](network, price.vector())[blocks.of]
        _, cost = minimum_cut(network, price.vector())
        assert graph.closed(side)
        split = 0.0 if side.all() else price.split
        rel = 1e-3 if library == "scipy" else 1e-9  # whose capacities have fewer bits
        assert total(graph, known, price, side) - split == pytest.approx(cost, rel=rel)


def test_what_a_placement_needs_of_every_rate_gives_its_cost_at_any_rates() -> None:
    rng = np.random.default_rng(12)
    graph = random_graph(rng, 10)
    known = random_amounts(rng, graph, faster=False)
    known.travels[:] = True
    side = np.arange(graph.size) < 5
    for _ in range(5):
        price = random_rates(rng)
        assert price.vector() @ _spent(graph, known, side) + price.split == pytest.approx(
            total(graph, known, price, side)
        )
