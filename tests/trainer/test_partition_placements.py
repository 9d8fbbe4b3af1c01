"""All placements that blocks leave: none is missing, each costs what it costs; where they are many a flow is sought."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from tests.trainer.random_graphs import random_amounts, random_graph, random_pins, random_rates
from trainer.partition import Partition
from trainer.partition_blocks import failing, find_blocks, single_blocks, travelling_sizes
from trainer.partition_graph import CutGraph, make_graph
from trainer.partition_placements import MOST, Placements, cheapest, list_placements
from trainer.partition_prices import Amounts, Pins, total


def listed(graph: CutGraph, known: Amounts, given: Pins) -> Placements | None:
    """Of every operation by itself, but for those of a given side."""
    single = single_blocks(graph, known, given)
    sizes = travelling_sizes(single, known)
    return list_placements(single.of, single.results, sizes, device=single.device, server=single.server)


def test_all_possible_placements_are_listed_with_what_crosses_and_the_cheapest_is_found() -> None:
    rng = np.random.default_rng(5)
    for number in range(60):
        graph = random_graph(rng, int(rng.integers(3, 9)))
        known, given = random_amounts(rng, graph, faster=number % 2 == 0), random_pins(rng, graph)
        price = random_rates(rng)
        possible = {
            side: total(graph, known, price, on_device)
            for side in product((0.0, 1.0), repeat=graph.size)
            if graph.closed(on_device := np.array(side) > 0)
            and (on_device >= given.device).all()
            and not (on_device & given.server).any()
        }
        possible = {side: cost for side, cost in possible.items() if np.isfinite(cost)}
        found = listed(graph, known, given)
        assert found is not None
        assert {tuple(row) for row in found.on_device.tolist()} == set(possible)
        for row, carried in zip(found.sides, found.carried, strict=True):
            assert carried == pytest.approx(known.sizes[graph.crossing(row)].sum(axis=0))
        if possible:
            free = replace(price, split=0.0)
            side, cost = cheapest(found, known, free, known.savings(free))
            assert cost == pytest.approx(
                min(total(graph, known, free, np.array(one) > 0) for one in possible), rel=1e-9
            )
            assert cost == pytest.approx(total(graph, known, free, side), rel=1e-9)


def test_a_graph_with_too_many_placements_is_planned_by_its_flow_and_costs_the_same() -> None:
    rng = np.random.default_rng(6)
    branches = 10
    graph = make_graph(
        tuple(f"v{at}" for at in range(branches + 2)),
        ((), *((0,) for _ in range(branches)), tuple(range(1, branches + 1))),
    )
    known, price = random_amounts(rng, graph, faster=True), random_rates(rng)
    known = replace(known, travels=np.ones(graph.size, dtype=np.bool_), sizes=np.ones((graph.size, 3)))
    nothing = np.zeros(graph.size, dtype=np.bool_)
    given = Pins(np.arange(graph.size) == 0, nothing)
    assert 2**branches > MOST
    assert listed(graph, known, given) is None
    general = Partition(graph, known, given, blocks=single_blocks(graph, known, given)).plan(price)
    assert Partition(graph, known, given).plan(price).cost == pytest.approx(general.cost, rel=1e-9)


def test_where_nothing_is_possible_it_says_so() -> None:
    nothing = Placements(np.zeros((0, 3), dtype=np.bool_), np.zeros((0, 3)), np.zeros((0, 3)))
    known = Amounts(np.ones((3, 3)), np.ones((3, 3)), np.ones(3), np.ones(3, dtype=np.bool_))
    price = random_rates(np.random.default_rng(1))
    with pytest.raises(ValueError, match="no placement is possible"):
        cheapest(nothing, known, price, known.savings(price))


def test_a_block_with_an_operation_that_is_cheaper_on_the_device_fails_and_no_other() -> None:
    graph = make_graph(("in", "a", "b", "c"), ((), (0,), (1,), (2,)))
    sizes = np.array([[1.0, 1, 1], [4, 4, 4], [2, 2, 2], [1, 1, 1]])
    compute = np.array([[0.0, 5, 5, 5], [0.0, 0, 0, 0], [0.0, 1, 1, 1]])
    known = Amounts(compute, sizes, np.ones(4), np.ones(4, dtype=np.bool_))
    given = Pins(np.arange(4) == 0, np.zeros(4, dtype=np.bool_))
    blocks = find_blocks(graph, known, given)
    price = replace(random_rates(np.random.default_rng(1)), device_ms=1.0, server_ms=1.0, parameter=0.0)
    assert not failing(blocks, known.savings(price))
    for at in blocks.inner.tolist():
        dearer = compute.copy()
        dearer[2, at] = 9.0
        assert failing(blocks, replace(known, compute=dearer).savings(price)) == {int(blocks.of[at])}
