"""Parts made from a cut compute what the whole model does, forwards and backwards, however many tensors cross."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from common.encoder import build_encoder
from common.encoder_graph import trace
from tests.models.densenet import DenseNet
from tests.models.googlenet import GoogLeNet
from tests.models.resnet import ResNet
from tests.models.transformer import Transformer
from trainer.partition_graph import CutGraph, Flags, graph_of, up_to_block
from trainer.partition_modules import run_split, split_modules


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "googlenet":
        return GoogLeNet(narrow=8)
    if name == "densenet":
        return DenseNet(layers=(2, 3), growth=8)
    if name == "resnet":
        return ResNet(layers=(1, 1), width=8)
    return Transformer(depth=2, width=16) if name == "transformer" else build_encoder(name, seed=0)


def random_cut(rng: np.random.Generator, graph: CutGraph) -> Flags:
    """A random operation with all it needs, and some more of what could run beside it."""
    side = np.zeros(graph.size, dtype=np.bool_)
    side[rng.integers(0, graph.size - 1, size=2)] = True
    for at in reversed(range(graph.size)):
        side[at] |= any(side[consumer] for consumer in graph.consumers[at])
    side[0] = True
    return side


@pytest.mark.parametrize("name", ["googlenet", "densenet", "resnet", "transformer", "mobile-half"])
def test_a_cut_model_gives_the_whole_models_output_and_gradients(name: str) -> None:
    model = build(name)
    traced = trace(model)
    graph = graph_of(traced)
    window = torch.rand(2, 1, 64, 96, generator=torch.Generator().manual_seed(1))
    whole = traced(window)
    whole.square().sum().backward()
    wanted = {key: parameter.grad.clone() for key, parameter in traced.named_parameters() if parameter.grad is not None}
    rng = np.random.default_rng(5)
    counts = set()
    for _ in range(2):
        side = random_cut(rng, graph)
        traced.zero_grad()
        parts = split_modules(traced, side)
        out, crossing = run_split(parts, window)
        assert torch.equal(out, whole)
        out.square().sum().backward()
        device_ends = parts[0](window)
        learning = [(end, tensor.grad) for end, tensor in zip(device_ends, crossing) if end.requires_grad]
        if learning:
            torch.autograd.backward([end for end, _ in learning], [grad for _, grad in learning])
        counts.add(len(crossing))
        assert len(crossing) == len(graph.crossing(side))
        for key, parameter in traced.named_parameters():
            if key in wanted:
                assert parameter.grad is not None
                assert (parameter.grad - wanted[key]).norm() <= 1e-4 * wanted[key].norm() + 1e-6, key
    if name in {"googlenet", "densenet", "transformer"}:
        assert max(counts) > 1


def test_the_parts_at_an_encoders_cut_are_its_segments() -> None:
    encoder = build_encoder("mobile", seed=0)
    traced = trace(encoder)
    window = torch.rand(2, 1, 64, 96, generator=torch.Generator().manual_seed(1))
    for cut in (0, 5, 8):
        out, crossing = run_split(split_modules(traced, up_to_block(traced, cut)), window)
        assert len(crossing) == 1
        assert torch.equal(crossing[0], encoder.forward_to(window, cut))
        assert torch.equal(out, encoder.project(encoder(window)))


def test_a_cut_against_the_arrows_or_with_an_empty_side_is_refused() -> None:
    traced = trace(build_encoder("mobile", seed=0))
    side = up_to_block(traced, 3)
    side[2] = False
    with pytest.raises(ValueError, match="needs what the server computes"):
        split_modules(traced, side)
    with pytest.raises(ValueError, match="nothing to compute"):
        split_modules(traced, np.ones(side.size, dtype=np.bool_))
