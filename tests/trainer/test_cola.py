from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from common.block_optimizer import BlockOptimizers, Kind
from common.encoder import Encoder, build_encoder
from trainer.batcher import Part
from trainer.cola import Bilinear, Cola, row_cross_entropy
from trainer.objective import OBJECTIVE, Joined, own_parameters
from trainer.server_step import ServerStep

CPU = torch.device("cpu")


def part(number: int, *, device: str = "a", segment: int | None = None, activations: Tensor | None = None) -> Part:
    views = torch.zeros(2, 1) if activations is None else activations
    at = number if segment is None else segment
    return Part(device, "0" * 16, 0, number, False, 5, 0, 1.0, at, number, 0.96 * number, "", views)


def slow_loss(a: Tensor, b: Tensor, matrix: Tensor, segments: list[int]) -> list[float]:
    """One window at a time: -log of its own share among its own and the other recordings' second crops."""
    losses = []
    for i in range(len(a)):
        against = [j for j in range(len(a)) if j == i or segments[j] != segments[i]]
        scores = [sum(float(a[i, p] * matrix[p, q] * b[j, q]) for p in range(3) for q in range(3)) for j in against]
        total = sum(math.exp(score) for score in scores)
        losses.append(-math.log(math.exp(scores[against.index(i)]) / total))
    return losses


def test_the_loss_is_the_share_of_the_right_crop_among_those_of_other_recordings() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(5, 2, 3, generator=generator)
    segments = [0, 0, 1, 2, 2]
    cola = Cola(3, false_negative_s=10.0)
    with torch.no_grad():
        cola.module.weight.copy_(torch.randn(3, 3, generator=generator))
    parts = [part(number, segment=segment) for number, segment in enumerate(segments)]
    terms = cola(Joined(parts, outputs, outputs, outputs.transpose(0, 1)))
    expected = slow_loss(outputs[:, 0], outputs[:, 1], cola.module.weight.detach() / 3, segments)
    assert terms.per_window.tolist() == pytest.approx(expected, rel=1e-5)
    assert float(terms.total.detach()) == pytest.approx(sum(expected) / 5, rel=1e-5)
    assert terms.candidates == pytest.approx((4 + 4 + 5 + 4 + 4) / 5)
    assert (float(terms.sliced_wasserstein), float(terms.laplacian)) == (0.0, 0.0)


def test_a_batch_of_one_recording_has_no_loss_and_finite_gradients() -> None:
    scores = torch.randn(3, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss, candidates = row_cross_entropy(scores, torch.ones(3, 3, dtype=torch.bool))
    assert loss.tolist() == [0.0, 0.0, 0.0]
    assert candidates == 1.0
    loss.sum().backward()
    assert scores.grad is not None
    assert torch.equal(scores.grad, torch.zeros(3, 3))


def head_outputs(seed: int) -> Tensor:
    encoder = build_encoder("mobile", seed=0, head="tanh")
    with torch.no_grad():
        outputs: Tensor = encoder.head(
            torch.randn(64, encoder.embedding_dim, generator=torch.Generator().manual_seed(seed))
        )
    return outputs


def test_the_first_scores_are_cosines_over_a_temperature() -> None:
    one, other = head_outputs(2), head_outputs(3)
    with torch.no_grad():
        scores = Bilinear(one.shape[1])(one, other)
    cosines = torch.nn.functional.normalize(one, dim=1) @ torch.nn.functional.normalize(other, dim=1).T
    assert torch.allclose(scores, cosines / 0.2, rtol=0.1, atol=0.1)


def test_one_step_of_adam_changes_no_score_so_much_that_it_decides_alone() -> None:
    one, other = head_outputs(2), head_outputs(3)
    bilinear = Bilinear(one.shape[1])
    optimizer = torch.optim.AdamW(bilinear.parameters(), lr=2e-3, weight_decay=0.0)
    before = bilinear(one, other).detach()
    bilinear(one[:1], other[:1]).sum().backward()
    optimizer.step()
    change = (bilinear(one, other).detach() - before).abs().max()
    assert 0.05 < float(change) < 1.0


def server_step(encoder: Encoder, cola: Cola, kind: Kind) -> tuple[ServerStep, BlockOptimizers]:
    own = own_parameters(cola)
    optimizers = BlockOptimizers(encoder, kind=kind, weight_decay=0.0, warmup_steps=0, own=own)
    return ServerStep(encoder, optimizers, cola, compute=CPU), optimizers


def test_a_step_moves_the_matrix_with_the_rate_of_the_blocks_and_answers_every_part() -> None:
    encoder = build_encoder("mobile", seed=0, head="tanh")
    cola = Cola(encoder.projection_dim, false_negative_s=0.0)
    step, optimizers = server_step(encoder, cola, "sgd")
    generator = torch.Generator().manual_seed(4)
    sent = [torch.randn(2, *encoder.activation_shape(5), generator=generator) for _ in range(4)]
    before = cola.module.weight.detach().clone()
    result = step.run([part(number, activations=views) for number, views in enumerate(sent)], learning_rate=0.5)
    assert all(float(gradient.abs().sum()) > 0 for gradient in result.gradients)
    assert cola.module.weight.grad is not None
    assert torch.allclose(cola.module.weight, before - 0.5 * cola.module.weight.grad)
    assert set(optimizers.taken) == {"5", "6", "7", "head", OBJECTIVE}


def test_cola_learns_to_tell_recordings_apart() -> None:
    encoder = build_encoder("mobile", seed=0, head="tanh")
    cola = Cola(encoder.projection_dim, false_negative_s=0.0)
    step, _ = server_step(encoder, cola, "adamw")
    generator = torch.Generator().manual_seed(5)
    shape = encoder.activation_shape(5)
    recordings = torch.randn(8, 1, shape[0], 1, 1, generator=generator)
    losses = []
    for _ in range(30):
        crops = recordings + 0.5 * torch.randn(8, 2, *shape, generator=generator)
        result = step.run([part(number, activations=views) for number, views in enumerate(crops)], learning_rate=2e-3)
        losses.append(float(result.terms.task.detach()))
    assert losses[0] > 0.3 * math.log(8), "not told apart from the start"
    assert losses[-1] < 0.5 * losses[0]
