"""The benchmark of the planner compares like with like."""

from __future__ import annotations

import json

import numpy as np
import pytest

from common import profiling
from common.encoder import ENCODERS
from tests.bench import planner
from tests.bench.flow_libraries import installed
from tests.bench.planner_traces import BASELINES, _spent
from tests.trainer.random_graphs import random_amounts, random_graph, random_pins, random_rates
from tests.trainer.whole_models import NARROW, SHAPES
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


@pytest.fixture
def shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes that are narrow and shallow, and profiles of one run each: nothing but the figures themselves differs."""
    assert NARROW.keys() == SHAPES.keys()
    monkeypatch.setattr(planner, "SHAPES", NARROW)
    monkeypatch.setattr(planner, "PROFILE_REPEATS", 1)
    monkeypatch.setattr(profiling, "WARM_UP", 0)


@pytest.mark.usefixtures("shortened")
def test_the_benchmark_ends_with_one_object_of_everything_that_was_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert planner.main(["--quick", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    models = {*SHAPES, *ENCODERS}
    assert found["mismatches"] == 0
    assert found["compared"] == 2 * (200 + 10 * len(models))  # block-wise and general, of random graphs and models
    assert found["enumerated"].keys() == models
    assert all(found["enumerated"].values())  # of none there were too many
    for key in ("speedup_blockwise", "plan_ms"):
        assert found[key].keys() == models
        assert min(found[key].values()) > 0
    assert found["delay_reduction"].keys() == {*BASELINES, "mean_of_baselines"}
    assert len(BASELINES) == 4
