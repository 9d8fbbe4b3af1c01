"""A device's step against plain autograd on the windows that were answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from common.block_optimizer import BlockOptimizers
from common.encoder import Encoder, build_encoder
from common.split import block_parameters, client_names, names
from device.client_step import ClientStep, in_order
from tests.client_steps import learn

LEARNING_RATE = 0.1


class Device:
    def __init__(self) -> None:
        self.encoder = build_encoder("mobile", seed=0)
        optimizers = BlockOptimizers(self.encoder, kind="sgd", weight_decay=0.0, warmup_steps=0)
        self.step = ClientStep(self.encoder, optimizers.step)


def views(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 1, 64, 96, generator=generator) for _ in range(count)]


def gradients(encoder: Encoder, cuts: Sequence[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [1e-3 * torch.randn(2, *encoder.activation_shape(cut), generator=generator) for cut in cuts]


def expected_weights(
    cuts: Mapping[int, int], windows: Sequence[Tensor], given: Sequence[Tensor]
) -> dict[str, list[Tensor]]:
    """By hand: per block the mean of the gradients of the windows that ran through it, one window at a time."""
    totals: dict[str, list[Tensor]] = {}
    through: dict[str, int] = {}
    for part, cut in cuts.items():
        encoder = build_encoder("mobile", seed=0)
        (encoder.forward_to(windows[part], cut) * given[part]).sum().backward()
        for name in client_names(cut):
            grads = [p.grad for p in block_parameters(encoder, name) if p.grad is not None]
            totals[name] = [a + b for a, b in zip(totals.get(name, [torch.zeros_like(g) for g in grads]), grads)]
            through[name] = through.get(name, 0) + 1
    start = build_encoder("mobile", seed=0)
    return {
        name: [
            p.detach() - LEARNING_RATE * (totals[name][i] / through[name] if name in totals else 0)
            for i, p in enumerate(block_parameters(start, name))
        ]
        for name in names(start)
    }


def assert_weights(encoder: Encoder, expected: Mapping[str, Sequence[Tensor]]) -> None:
    for name, tensors in expected.items():
        for now, wanted in zip(block_parameters(encoder, name), tensors, strict=True):
            torch.testing.assert_close(now.detach(), wanted, rtol=0.0, atol=1e-6)


def test_what_travels_is_the_client_segments_output_without_its_graph() -> None:
    device = Device()
    (window,) = views(1)
    sent = device.step.forward(window, part=0, cut=5)
    assert sent.shape == (2, *device.encoder.activation_shape(5))
    assert not sent.requires_grad
    with torch.no_grad():
        assert torch.equal(sent, device.encoder.forward_to(window, 5))


@pytest.mark.parametrize("cut", [0, 3, 8])
def test_a_step_moves_the_blocks_below_the_cut_by_the_mean_over_its_windows(cut: int) -> None:
    device, windows = Device(), views(3)
    given = gradients(device.encoder, [cut] * 3)
    for part, window in enumerate(windows):
        device.step.forward(window, part=part, cut=cut)
    assert device.step.parts == 3
    moved = learn(device.step, dict(enumerate(given)), learning_rate=LEARNING_RATE)
    assert moved == list(client_names(cut))
    assert_weights(device.encoder, expected_weights(dict.fromkeys(range(3), cut), windows, given))


def test_with_mixed_cuts_every_block_takes_the_mean_over_the_windows_that_ran_through_it() -> None:
    device, windows, cuts = Device(), views(4), (2, 5, 0, 5)
    given = gradients(device.encoder, cuts)
    for part, (window, cut) in enumerate(zip(windows, cuts, strict=True)):
        device.step.forward(window, part=part, cut=cut)
    moved = learn(device.step, dict(enumerate(given)), learning_rate=LEARNING_RATE)
    assert moved == list(client_names(5))
    assert_weights(device.encoder, expected_weights(dict(enumerate(cuts)), windows, given))


def test_parts_without_an_answer_are_forgotten_and_the_mean_is_over_the_answered() -> None:
    device, windows, cuts = Device(), views(4), (3, 7, 3, 3)
    given = gradients(device.encoder, cuts)
    for part, (window, cut) in enumerate(zip(windows, cuts, strict=True)):
        device.step.forward(window, part=part, cut=cut)
    moved = learn(device.step, {0: given[0], 3: given[3]}, learning_rate=LEARNING_RATE)
    assert moved == list(client_names(3)), "the only window at cut 7 was not answered"
    assert_weights(device.encoder, expected_weights({0: 3, 3: 3}, windows, given))
    assert device.step.parts == 0
    assert learn(device.step, {1: given[1]}, learning_rate=LEARNING_RATE) == [], "too late for it"


def test_without_an_answer_nothing_moves() -> None:
    device = Device()
    device.step.forward(views(1)[0], part=0, cut=3)
    assert learn(device.step, {}, learning_rate=LEARNING_RATE) == []
    device.step.forward(views(1)[0], part=0, cut=3)
    assert learn(device.step, {5: torch.zeros(1)}, learning_rate=LEARNING_RATE) == []
    device.step.forward(views(1)[0], part=0, cut=3)
    device.step.forget()
    assert device.step.parts == 0
    assert_weights(device.encoder, expected_weights({}, [], []))


@pytest.mark.parametrize("cuts", [(8,) * 8, (5, 3, 8, 8, 5, 5, 3, 4)])
def test_part_by_part_gives_the_same_gradients_bit_for_bit_as_all_at_once(cuts: Sequence[int]) -> None:
    together, apart, windows = Device(), Device(), views(len(cuts))
    given = gradients(together.encoder, cuts)
    torch.autograd.backward(
        [together.encoder.forward_to(window, cut) for window, cut in zip(windows, cuts, strict=True)], given
    )
    for part, (window, cut) in enumerate(zip(windows, cuts, strict=True)):
        apart.step.forward(window, part=part, cut=cut)
    for part in in_order(range(len(cuts))):
        apart.step.backward(part, given[part])
    for one, other in zip(together.encoder.parameters(), apart.encoder.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or other.grad is None or torch.equal(one.grad, other.grad)


def test_a_part_is_backpropagated_once_and_its_graph_let_go_of_at_once() -> None:
    device, windows = Device(), views(2)
    given = gradients(device.encoder, [4, 4])
    for part, window in enumerate(windows):
        device.step.forward(window, part=part, cut=4)
    device.step.backward(0, given[0])
    assert device.step.parts == 1
    device.step.backward(0, given[1])
    assert learn(device.step, {}, learning_rate=LEARNING_RATE) == list(client_names(4))
    assert_weights(device.encoder, expected_weights({0: 4}, windows, given))


def test_an_earlier_steps_gradients_leave_no_trace_in_the_next() -> None:
    device, windows = Device(), views(2)
    given = gradients(device.encoder, [4, 4])
    device.step.forward(windows[0], part=0, cut=4)
    learn(device.step, {0: given[0]}, learning_rate=0.0)
    device.step.forward(windows[1], part=0, cut=4)
    learn(device.step, {0: given[1]}, learning_rate=LEARNING_RATE)
    assert_weights(device.encoder, expected_weights({0: 4}, windows[1:], given[1:]))


@pytest.mark.parametrize("shape", [(1, 64, 96), (2, 64, 96), (1, 1, 64, 96), (2, 2, 64, 96)])
def test_anything_but_two_views_of_one_window_stops_at_the_door(shape: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError, match="two views"):
        Device().step.forward(torch.zeros(shape), part=0, cut=3)
