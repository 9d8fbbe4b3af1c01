from __future__ import annotations

import pytest
import torch

from common.block_optimizer import BlockOptimizers
from common.encoder import Encoder, build_encoder
from common.split import block_parameters, names


def _with_gradients(seed: int = 0) -> Encoder:
    encoder = build_encoder("mobile", seed=0)
    _draw_gradients(encoder, seed)
    return encoder


def _draw_gradients(encoder: Encoder, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in encoder.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def _weights(encoder: Encoder, name: str) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in block_parameters(encoder, name)]


def test_sgd_is_exactly_the_weights_minus_rate_times_gradient() -> None:
    encoder = _with_gradients()
    expected = [torch.add(p.detach(), p.grad, alpha=-0.1) for p in encoder.parameters() if p.grad is not None]
    BlockOptimizers(encoder, kind="sgd", weight_decay=0.0, warmup_steps=0).step(names(encoder), 0.1)
    assert all(torch.equal(p, e) for p, e in zip(encoder.parameters(), expected, strict=True))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_blocks_together_are_one_torch_optimizer(kind: str) -> None:
    ours, reference = _with_gradients(), _with_gradients()
    optimizers = BlockOptimizers(ours, kind=kind, weight_decay=0.01, warmup_steps=0)  # type: ignore[arg-type]
    if kind == "sgd":
        whole: torch.optim.Optimizer = torch.optim.SGD(reference.parameters(), lr=1e-3, weight_decay=0.01)
    else:
        whole = torch.optim.AdamW(reference.parameters(), lr=1e-3, weight_decay=0.01)
    for seed in range(4):
        _draw_gradients(ours, seed)
        _draw_gradients(reference, seed)
        optimizers.step(names(ours), 1e-3)
        whole.step()
    for mine, theirs in zip(ours.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-6, atol=1e-7)


def test_only_the_named_blocks_move() -> None:
    encoder = _with_gradients()
    still = _weights(encoder, "5")
    moved = _weights(encoder, "4")
    optimizers = BlockOptimizers(encoder, kind="adamw", weight_decay=0.0, warmup_steps=0)
    optimizers.step(["4"], 1e-3)
    assert all(torch.equal(a, b) for a, b in zip(still, _weights(encoder, "5"), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(moved, _weights(encoder, "4"), strict=True))
    assert optimizers.taken == ("4",)


def test_the_rate_rises_in_a_straight_line_after_taking_over() -> None:
    encoder = _with_gradients()
    optimizers = BlockOptimizers(encoder, kind="sgd", weight_decay=0.0, warmup_steps=4)
    gradient = block_parameters(encoder, "0")[0].grad
    assert gradient is not None
    shares = []
    for _ in range(6):
        before = _weights(encoder, "0")[0]
        optimizers.step(["0"], 1.0)
        shares.append(float(((before - _weights(encoder, "0")[0]) / gradient).median()))
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0], abs=1e-4)


def test_a_released_block_starts_anew_and_the_others_go_on() -> None:
    encoder = _with_gradients()
    optimizers = BlockOptimizers(encoder, kind="adamw", weight_decay=0.0, warmup_steps=3)
    for _ in range(3):
        optimizers.step(["0", "1"], 1e-3)
    optimizers.release(["0", "7"])
    assert optimizers.taken == ("1",)
    optimizers.step(["0", "1"], 1e-3)
    state = optimizers.state_dict()
    assert (state["0"]["steps"], state["1"]["steps"]) == (1, 4)
    assert float(state["0"]["optimizer"]["state"][0]["step"]) == 1.0


def test_zero_drops_the_gradients_of_the_named_blocks_only() -> None:
    encoder = _with_gradients()
    BlockOptimizers(encoder, kind="sgd", weight_decay=0.0, warmup_steps=0).zero(["stem", "0"])
    assert all(p.grad is None for p in block_parameters(encoder, "0"))
    assert all(p.grad is not None for p in block_parameters(encoder, "1"))


def test_a_saved_state_can_be_gone_back_to_more_than_once() -> None:
    encoder = _with_gradients()
    optimizers = BlockOptimizers(encoder, kind="adamw", weight_decay=0.01, warmup_steps=0)
    optimizers.step(["stem"], 1e-3)
    saved, start = optimizers.state_dict(), [p.detach().clone() for p in block_parameters(encoder, "stem")]
    ends = []
    for _ in range(2):
        optimizers.load_state_dict(saved)
        for parameter, value in zip(block_parameters(encoder, "stem"), start, strict=True):
            parameter.data.copy_(value)
        _draw_gradients(encoder, 9)
        optimizers.step(["stem"], 1e-3)
        ends.append([p.detach().clone() for p in block_parameters(encoder, "stem")])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_saved_state_continues_bit_for_bit(kind: str) -> None:
    one, two = _with_gradients(), _with_gradients()
    first = BlockOptimizers(one, kind=kind, weight_decay=0.01, warmup_steps=5, momentum=0.9)  # type: ignore[arg-type]
    for seed in range(3):
        _draw_gradients(one, seed)
        first.step(["stem", "0"], 1e-3)
    two.load_state_dict(one.state_dict())
    second = BlockOptimizers(two, kind=kind, weight_decay=0.01, warmup_steps=5, momentum=0.9)  # type: ignore[arg-type]
    second.step(["3"], 1e-9)
    two.load_state_dict(one.state_dict())
    second.load_state_dict(first.state_dict())
    assert second.taken == ("stem", "0")
    for encoder, optimizers in ((one, first), (two, second)):
        _draw_gradients(encoder, 9)
        optimizers.step(["stem", "0"], 1e-3)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed: adamw, sgd"):
        BlockOptimizers(build_encoder("mobile", 0), kind="lion", weight_decay=0.0, warmup_steps=0)  # type: ignore[arg-type]
