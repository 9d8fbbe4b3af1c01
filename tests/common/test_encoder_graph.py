"""Any model as a graph, and the block every node of an encoder belongs to."""

from __future__ import annotations

from itertools import groupby

import pytest
import torch
from torch import Tensor, nn

from common.encoder import ENCODERS, INPUT_SHAPE, build_encoder
from common.encoder_graph import block_of, operations, trace
from common.split import block_parameters, names


@pytest.mark.parametrize("name", ENCODERS)
def test_the_graph_of_an_encoder_computes_what_the_encoder_does(name: str) -> None:
    encoder = build_encoder(name, seed=0)
    window = torch.rand(2, *INPUT_SHAPE, generator=torch.Generator().manual_seed(0))
    assert torch.equal(trace(encoder)(window), encoder.project(encoder(window)))


@pytest.mark.parametrize("name", ENCODERS)
def test_every_node_belongs_to_a_block_and_blocks_follow_each_other_in_order(name: str) -> None:
    encoder = build_encoder(name, seed=0)
    traced = trace(encoder)
    assert [block for block, _ in groupby(block_of(node) for node in operations(traced))] == list(names(encoder))
    for block in names(encoder):
        called = [
            str(node.target) for node in operations(traced) if block_of(node) == block and node.op == "call_module"
        ]
        parameters = sum(p.numel() for target in called for p in traced.get_submodule(target).parameters())
        assert parameters == sum(p.numel() for p in block_parameters(encoder, block))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        again: Tensor = self.same(self.same(x))
        return again


def test_weights_that_are_used_twice_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="same is called more than once"):
        trace(Twice())
