"""The planner finds what trying every placement finds, and the block-wise graph loses nothing."""

from __future__ import annotations

import numpy as np
import pytest

from tests.trainer.random_graphs import (
    cheapest,
    costs,
    placements,
    random_amounts,
    random_graph,
    random_pins,
    random_rates,
)
from trainer.partition import Partition
from trainer.partition_blocks import single_blocks
from trainer.partition_graph import make_graph
from trainer.partition_prices import Amounts, Rates, pins, total

GRAPHS = 100  # python -m tests.bench.planner tries thousands


@pytest.mark.parametrize("faster", [True, False], ids=["server faster", "any times"])
@pytest.mark.parametrize("blockwise", [True, False], ids=["blocks", "operations"])
def test_a_plan_costs_what_the_best_of_all_placements_costs(blockwise: bool, faster: bool) -> None:
    rng = np.random.default_rng(7)
    for _ in range(GRAPHS):
        graph = random_graph(rng, int(rng.integers(2, 11)))
        known, given = random_amounts(rng, graph, faster=faster), random_pins(rng, graph)
        blocks = None if blockwise else single_blocks(graph, known, given)
        partition = Partition(graph, known, given, blocks=blocks)
        for _ in range(2):
            price = random_rates(rng)
            if np.isinf(cheapest(graph, known, price, given)):
                with pytest.raises(ValueError, match="cannot travel"):
                    partition.plan(price)
                continue
            plan = partition.plan(price)
            assert graph.closed(plan.on_device)
            assert plan.on_device[given.device].all()
            assert not plan.on_device[given.server].any()
            assert plan.cost == pytest.approx(total(graph, known, price, plan.on_device), rel=1e-9)
            assert plan.cost == pytest.approx(cheapest(graph, known, price, given), rel=1e-9)


def chain(*, device: float, server: float, values: tuple[float, ...]) -> tuple[Amounts, Partition]:
    size = len(values)
    graph = make_graph(tuple(map(str, range(size))), ((), *((at,) for at in range(size - 1))))
    compute = np.stack([np.full(size, device), np.zeros(size), np.full(size, server)])
    sizes = np.array(values)[:, None] * np.array((1.0, 1.0, 0.0))
    known = Amounts(compute, sizes, np.full(size, 10.0), np.ones(size, dtype=np.bool_))
    none = np.zeros(size, dtype=np.bool_)
    return known, Partition(graph, known, pins(graph, device=none, server=none))


def price(*, byte: float = 1.0, split: float = 0.0) -> Rates:
    return Rates(1.0, 0.0, 1.0, byte, byte, 0.0, split)


def test_in_a_chain_only_tensors_smaller_than_all_before_them_are_left_to_cut_at() -> None:
    _, partition = chain(device=2.0, server=1.0, values=(9.0, 5.0, 7.0, 5.0, 2.0, 3.0, 1.0))
    assert (
        partition.blocks == 4
    )  # the input; up to 7 and 5, which lose to the first 5; up to 3, which loses to 2; the last


def test_the_round_trip_is_paid_by_any_split_and_never_twice() -> None:
    _, partition = chain(device=2.0, server=1.0, values=(1.0, 1.0, 1.0, 1.0))
    assert partition.plan(price(split=0.5)).splits
    whole = partition.plan(price(split=5.0))
    assert not whole.splits
    assert whole.cost == 8.0
    assert partition.plan(price(split=0.5)).cost == pytest.approx(2.0 + 2.0 + 3.0 + 0.5)


def test_a_slower_server_takes_blocks_apart_and_a_faster_one_puts_them_together_again() -> None:
    known, partition = chain(device=2.0, server=1.0, values=(9.0, 5.0, 7.0, 5.0, 8.0))
    loaded = Rates(1.0, 0.0, 4.0, 0.01, 0.01, 0.0, 0.0)
    assert partition.plan(loaded).cost == pytest.approx(known.compute[0].sum())
    assert partition.plan(price(byte=0.01)).cost == pytest.approx(2.0 + 4.0 + 0.18)


def test_what_does_not_fit_into_memory_is_rejected_for_something_that_does() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        graph = random_graph(rng, 8)
        known, given = random_amounts(rng, graph, faster=True), random_pins(rng, graph)
        rates = random_rates(rng)
        partition = Partition(graph, known, given)
        room = known.memory_bytes[given.device].sum() * 1.3
        if np.isinf(cheapest(graph, known, rates, given)):
            continue
        plan = partition.plan(rates, memory_bytes=room)
        assert known.memory_bytes[plan.on_device].sum() <= room
        assert graph.closed(plan.on_device)
        sides = placements(graph, given)
        least = costs(graph, known, rates, sides[sides @ known.memory_bytes <= room]).min()
        assert plan.cost >= least - 1e-9
        if np.isfinite(least):
            assert plan.cost == pytest.approx(total(graph, known, rates, plan.on_device))


def test_a_floor_that_does_not_fit_into_memory_is_said() -> None:
    _, partition = chain(device=2.0, server=1.0, values=(1.0, 1.0))
    with pytest.raises(ValueError, match="needs more than"):
        partition.plan(price(byte=100.0), memory_bytes=5.0)


def test_an_operation_that_would_have_to_be_on_both_sides_is_named() -> None:
    graph = make_graph(("x", "a", "b"), ((), (0,), (1,)))
    with pytest.raises(ValueError, match="a would have to run on both sides"):
        pins(graph, device=np.array([False, False, True]), server=np.array([False, True, False]))
