"""Plans of whole models cost what the best of all their placements costs, each priced by itself and none left out."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from common.encoder import ENCODERS
from common.encoder_graph import trace
from tests.trainer.random_graphs import (
    costs,
    placements,
    random_amounts,
    random_graph,
    random_pins,
    random_rates,
)
from tests.trainer.test_partition_blocks import WIRE, made_up
from tests.trainer.whole_models import NARROW, OWN, SHAPES, all_placements
from trainer.partition import Partition, Plan
from trainer.partition_blocks import single_blocks
from trainer.partition_graph import CutGraph, Flags, graph_of, make_graph
from trainer.partition_prices import Amounts, LinkState, Pins, Rates, amounts, pins, rates

MODELS = {**OWN, **SHAPES, **{f"narrow {name}": build for name, build in NARROW.items()}}
DRAWS = 9  # of times, links and loads; python -m tests.bench.planner has 50


@cache
def measured(name: str) -> tuple[CutGraph, Amounts]:
    """A model's graph and its true sizes, with times that are made up."""
    traced = trace(MODELS[name]())
    profile = made_up(traced, torch.zeros(2, 1, 64, 96), seed=1)
    graph = graph_of(traced)
    return graph, amounts(graph, profile, profile, WIRE)


def some_pins(rng: np.random.Generator, graph: CutGraph, number: int) -> Pins:
    """In turns none, a privacy floor, and a last operation that is the server's: something is possible with each."""
    device, server = np.zeros(graph.size, dtype=np.bool_), np.zeros(graph.size, dtype=np.bool_)
    device[int(rng.integers(1, graph.size // 2))] = number % 3 == 1
    server[-1] = number % 3 == 2
    return pins(graph, device=device, server=server)


def random_times(rng: np.random.Generator, known: Amounts, *, faster: bool) -> Amounts:
    """Of random machines; ``faster``: the server is everywhere, so that all blocks hold."""
    server = rng.uniform(0, 1, known.travels.size)
    device = server * rng.uniform(1, 20, server.size) if faster else rng.uniform(0, 4, server.size)
    return replace(known, compute=np.stack((device, known.compute[1], server)))


def random_link(rng: np.random.Generator) -> Rates:
    mbps = float(10 ** rng.uniform(-1, 3))
    link = LinkState(mbps, 2 * mbps, float(rng.uniform(0, 200)))
    return rates(WIRE, link, local_iterations=200)


def best_plan(graph: CutGraph, known: Amounts, given: Pins, price: Rates, sides: Flags) -> Plan:
    """The block-wise plan, after it and the general one have stood the comparison with all placements."""
    least = costs(graph, known, price, sides).min()
    assert np.isfinite(least)
    general = Partition(graph, known, given, blocks=single_blocks(graph, known, given)).plan(price)
    blockwise = Partition(graph, known, given).plan(price)
    for plan in (general, blockwise):
        assert graph.closed(plan.on_device)
        assert plan.on_device[given.device].all()
        assert not plan.on_device[given.server].any()
        assert plan.cost == pytest.approx(least, rel=1e-9)
        assert costs(graph, known, price, plan.on_device[None])[0] == pytest.approx(least, rel=1e-9)
    return blockwise


@pytest.mark.parametrize("name", MODELS)
def test_plans_of_a_whole_model_cost_what_the_best_of_all_its_placements_costs(name: str) -> None:
    graph, known = measured(name)
    rng = np.random.default_rng(7)
    inside = 0
    for number in range(DRAWS):
        given = some_pins(rng, graph, number)
        sides = all_placements(graph, given)
        assert sides is not None, f"{name} has too many placements to try them all"
        drawn = random_times(rng, known, faster=number % 4 < 2)
        plan = best_plan(graph, drawn, given, random_link(rng), sides)
        inside += not any(np.array_equal(plan.on_device, end) for end in (given.device, ~given.server))
    assert inside > 1  # with nothing but all it may or all it must at the device this would say little


@pytest.mark.parametrize("name", MODELS)
def test_so_they_do_where_sizes_are_made_up_too_and_some_results_cannot_travel(name: str) -> None:
    graph, _ = measured(name)
    rng = np.random.default_rng(8)
    for number in range(3):
        given = some_pins(rng, graph, number)
        sides = all_placements(graph, given)
        assert sides is not None
        known = random_amounts(rng, graph, faster=number % 2 == 0)
        best_plan(graph, known, given, random_rates(rng), sides)


def test_the_placements_of_every_encoder_and_shape_are_few_enough_and_no_fewer_than_its_operations() -> None:
    assert set(MODELS) >= {*ENCODERS, *SHAPES}
    for name in MODELS:
        graph, _ = measured(name)
        sides = all_placements(graph, some_pins(np.random.default_rng(0), graph, 0))
        assert sides is not None
        assert len(sides) >= graph.size  # one for each that could be the device's last


def test_all_placements_are_those_that_trying_all_sides_leaves_each_once() -> None:
    rng = np.random.default_rng(9)
    for _ in range(60):
        graph = random_graph(rng, int(rng.integers(2, 11)))
        given = random_pins(rng, graph)
        found = all_placements(graph, given)
        assert found is not None
        assert sorted(found.tolist()) == sorted(placements(graph, given).tolist())


def test_where_there_are_too_many_placements_none_are_listed() -> None:
    branches = 10
    graph = make_graph(tuple(map(str, range(branches + 1))), ((), *((0,) for _ in range(branches))))
    nothing = np.zeros(graph.size, dtype=np.bool_)
    given = pins(graph, device=nothing, server=nothing)
    found = all_placements(graph, given, most=2**branches)
    assert found is not None
    assert len(found) == 2**branches
    assert all_placements(graph, given, most=2**branches - 1) is None
