"""Which cuts the blocks leave: the published condition, block by block, and nothing lost on whole models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import fx, nn

from common.compute_profile import ComputeProfile, Cost
from common.encoder_graph import trace
from tests.models.googlenet import MODULES, Inception
from tests.models.resnet import Bottleneck
from tests.trainer.whole_models import NARROW, OWN
from trainer.partition import Partition
from trainer.partition_blocks import find_blocks, single_blocks
from trainer.partition_graph import graph_of
from trainer.partition_prices import Amounts, LinkState, Wire, amounts, pins, rates, total

WIRE = Wire(up_bits=4.0, down_bits=1.0, codec_ns=10.0, header_bytes=300.0, weight_bits=8.0, input_bytes=30_720.0)
MODELS = {**NARROW, "mobile": OWN["mobile"]}


def made_up(traced: fx.GraphModule, x: torch.Tensor, seed: int) -> ComputeProfile:
    """True values and parameters, times of random machines: what the rules argue on must hold for any."""
    rng = np.random.default_rng(seed)
    counts: dict[str, int] = {}

    class Counting(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            result = super().run_node(n)
            counts[n.name] = result.numel() if isinstance(result, torch.Tensor) else 0
            return result

    with torch.no_grad():
        Counting(traced).run(x)
    nodes = tuple(
        Cost(name, float(rng.uniform(0, 1)), float(rng.uniform(0, 2)), counts[name], int(rng.integers(0, 99)), 1)
        for name in graph_of(traced).names
    )
    return ComputeProfile("model", "made up", torch.__version__, 1.0, 0, (), nodes)


@pytest.mark.parametrize("name", MODELS)
def test_blocks_lose_nothing_on_whole_models_at_any_link_and_load(name: str) -> None:
    traced = trace(MODELS[name]())
    graph = graph_of(traced)
    profile = made_up(traced, torch.zeros(2, 1, 64, 96), seed=1)
    known = amounts(graph, profile.slower(12), profile, WIRE)
    nothing = np.zeros(graph.size, dtype=np.bool_)
    given = pins(graph, device=nothing, server=nothing)
    blocks, general = (
        Partition(graph, known, given),
        Partition(graph, known, given, blocks=single_blocks(graph, known, given)),
    )
    assert blocks.blocks < graph.size / 5
    for mbps in (0.05, 0.5, 4.0, 40.0, 400.0):
        for load in (1.0, 6.0, 30.0):  # at 30 the device is the faster one: blocks are taken apart
            link = LinkState(mbps, 2 * mbps, 50.0)
            price = rates(WIRE, link, local_iterations=200, server_slowdown=load)
            one, other = blocks.plan(price), general.plan(price)
            assert one.cost == pytest.approx(other.cost, rel=1e-9)
            assert one.cost == pytest.approx(total(graph, known, price, one.on_device), rel=1e-9)


def vertices(module: nn.Module, x: torch.Tensor) -> int:
    """How many vertices a block becomes behind its entry, by its own sizes alone."""
    traced = fx.symbolic_trace(module)
    graph = graph_of(traced)
    profile = made_up(traced, x, seed=0)
    known = amounts(graph, profile, profile, WIRE)
    sizes = known.sizes.copy()
    sizes[0] = sizes[1:].max(axis=0) * x.numel() / max(cost.output_values for cost in profile.nodes[1:])  # no sound
    known = Amounts(known.compute, sizes, known.memory_bytes, known.travels)
    nothing = np.zeros(graph.size, dtype=np.bool_)
    return find_blocks(graph, known, pins(graph, device=nothing, server=nothing)).count - 1


@pytest.mark.parametrize("name", MODULES)
def test_an_inception_becomes_one_vertex_exactly_where_its_narrowest_inside_is_as_wide_as_its_entry(name: str) -> None:
    channels, one, reduce3, _, reduce5, _, pooled = MODULES[name]
    inside = one + reduce3 + reduce5 + pooled
    assert (inside < channels) == (name in {"4a", "4b", "4c", "4d", "5a", "5b"})
    collapsed = vertices(Inception(*MODULES[name]), torch.zeros(1, channels, 2, 3)) == 1
    assert collapsed == (inside >= channels)


def test_a_bottleneck_becomes_one_vertex_where_its_input_skips_it_though_it_is_narrow_inside() -> None:
    assert vertices(Bottleneck(64, 16, stride=1), torch.zeros(1, 64, 4, 6)) == 1
    assert vertices(Bottleneck(32, 16, stride=2), torch.zeros(1, 32, 4, 6)) > 1
