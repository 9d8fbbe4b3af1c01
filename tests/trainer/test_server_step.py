from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from common.block_optimizer import BlockOptimizers
from common.encoder import Encoder, build_encoder
from common.mixture_memory import MixtureMemory
from trainer.batcher import Part
from trainer.hybrid_loss import HybridLoss
from trainer.objective import Hybrid
from trainer.server_step import NotFiniteError, ServerStep
from trainer.temporal_buffer import TemporalBuffer

CUT = 5
WINDOWS = 6
TEMPERATURE = 0.2
DIM = 128


def mixture() -> MixtureMemory:
    """One that has started, on projections all over the sphere."""
    memory = MixtureMemory(components=8, seed=0)
    generator = torch.Generator().manual_seed(3)
    memory.update(torch.nn.functional.normalize(torch.randn(256, DIM, generator=generator), dim=1))
    assert memory.started
    return memory


def drawn(memory: MixtureMemory, count: int, seed: int = 7) -> Callable[[Tensor], Tensor]:
    return partial(memory.virtual_negatives, count=count, generator=torch.Generator().manual_seed(seed))


def server_step(negatives: Callable[[Tensor], Tensor] | None) -> tuple[ServerStep, Encoder]:
    encoder = build_encoder("mobile", seed=1)
    optimizers = BlockOptimizers(encoder, kind="sgd", weight_decay=0.0, warmup_steps=0)
    loss = HybridLoss(temperature=TEMPERATURE, sw_weight=5.0, sw_projections=8, laplacian_weight=0.0)
    step = ServerStep(
        encoder,
        optimizers,
        Hybrid(
            loss,
            TemporalBuffer(),
            false_negative_s=1.0,
            directions=torch.Generator().manual_seed(5),
            negatives=negatives,
        ),
        compute=torch.device("cpu"),
    )
    return step, encoder


def batch() -> list[Part]:
    generator = torch.Generator().manual_seed(2)
    shape = (2, *build_encoder("mobile", seed=0).activation_shape(CUT))
    return [
        Part(
            device=f"pi-{index}",
            boot="a" * 16,
            step=0,
            part=0,
            last=True,
            cut=CUT,
            weights_version=0,
            deadline_s=1.0,
            segment=0,
            window_index=0,
            time_s=float(index),
            room="",
            activations=torch.randn(shape, generator=generator),
        )
        for index in range(WINDOWS)
    ]


def test_no_virtual_negatives_is_bit_for_bit_what_it_was_without_the_mixture() -> None:
    plain, with_none = server_step(None)[0], server_step(drawn(mixture(), 0))[0]
    one, other = plain.run(batch(), learning_rate=1e-3), with_none.run(batch(), learning_rate=1e-3)
    assert torch.equal(one.terms.total, other.terms.total)
    assert all(torch.equal(a, b) for a, b in zip(one.gradients, other.gradients, strict=True))


def test_every_window_meets_its_own_virtual_negatives_in_the_task_loss() -> None:
    memory = mixture()
    result = server_step(drawn(memory, 5))[0].run(batch(), learning_rate=1e-3)
    z_a, z_b = result.projections[0], result.projections[1]
    virtual = drawn(memory, 5)(z_a)
    losses = []
    for i in range(WINDOWS):
        for anchor, positive in ((z_a[i], z_b[i]), (z_b[i], z_a[i])):
            others = [z[j] for z in (z_a, z_b) for j in range(WINDOWS) if j != i] + list(virtual[i])
            logits = torch.stack([positive @ anchor] + [other @ anchor for other in others]) / TEMPERATURE
            losses.append(-logits.log_softmax(dim=0)[0])
    assert float(result.terms.task.detach()) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)
    assert result.terms.candidates == pytest.approx(1 + 2 * (WINDOWS - 1) + 5)


def test_the_same_generator_state_gives_the_same_step_with_virtual_negatives() -> None:
    results = [server_step(drawn(mixture(), 4))[0].run(batch(), learning_rate=1e-3) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(results[0].gradients, results[1].gradients, strict=True))
    another = server_step(drawn(mixture(), 4, seed=8))[0].run(batch(), learning_rate=1e-3)
    assert not torch.equal(another.gradients[0], results[0].gradients[0])


def test_before_the_mixture_has_started_there_are_simply_none() -> None:
    cold, plain = server_step(drawn(MixtureMemory(), 16))[0], server_step(None)[0]
    one, other = cold.run(batch(), learning_rate=1e-3), plain.run(batch(), learning_rate=1e-3)
    assert torch.equal(one.terms.total, other.terms.total)


def test_a_batch_without_a_finite_gradient_leaves_weights_and_moments_as_they_are() -> None:
    step, encoder = server_step(None)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    poisoned = [replace(part, activations=torch.zeros_like(part.activations)) for part in batch()]
    poisoned[0].activations.fill_(1e38)
    with pytest.raises(NotFiniteError, match="is not finite"):
        step.run(poisoned, learning_rate=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    step.run(batch(), learning_rate=1e-3)
    assert all(bool(value.isfinite().all()) for value in encoder.state_dict().values())
