from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from common.errors import ConfigError
from trainer.batcher import Part
from trainer.clap import Clap, ClapModule, clap_loss
from trainer.objective import Joined

DIM = 16


def unit(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(count, DIM, generator=generator), dim=1).requires_grad_()


def slow_loss(audio: Tensor, text: Tensor, excluded: Tensor, scale: float) -> list[float]:
    """Cross-entropy of each captioned window in both directions, candidate by candidate."""
    count = len(audio)
    losses = []
    for i in range(count):
        others = [j for j in range(count) if j == i or not excluded[i, j]]
        right = scale * float(audio[i] @ text[i])
        to_text = math.log(sum(math.exp(scale * float(audio[i] @ text[j])) for j in others)) - right
        to_audio = math.log(sum(math.exp(scale * float(audio[j] @ text[i])) for j in others)) - right
        losses.append((to_text + to_audio) / 2)
    return losses


def part(index: int, caption: str | None, *, segment: int | None = None) -> Part:
    where = index if segment is None else segment
    return Part(
        device="pi", boot="0" * 16, step=0, part=index, last=False, cut=5, weights_version=0, deadline_s=1.0,
        segment=where, window_index=index, time_s=float(index), room="", activations=torch.zeros(2, 1), caption=caption,
    )  # fmt: skip


def joined(parts: Sequence[Part], seed: int = 0) -> tuple[Joined, Tensor]:
    """A batch whose projections are leaves, view first."""
    leaf = torch.randn(2, len(parts), DIM, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    views = functional.normalize(leaf, dim=2)
    outputs = views.transpose(0, 1)
    return Joined(parts=parts, embeddings=outputs, outputs=outputs, projections=views), leaf


def clap(seed: int = 0) -> Clap:
    return Clap(DIM, text_encoder="hashed", false_negative_s=6.0, seed=seed)


def test_the_loss_equals_the_slow_one_with_pairs_left_out() -> None:
    audio, text = unit(6, 1), unit(6, 2)
    excluded = torch.eye(6, dtype=torch.bool)
    excluded[0, 3] = excluded[3, 0] = excluded[1, 2] = excluded[2, 1] = True
    loss = clap_loss(audio, text, range(6), excluded=excluded, scale=torch.tensor(9.0))
    expected = slow_loss(audio.detach(), text.detach(), excluded, 9.0)
    assert torch.allclose(loss.per_window, torch.tensor(expected), atol=1e-5)
    assert loss.mean.item() == pytest.approx(sum(expected) / 6, abs=1e-5)
    assert loss.candidates == pytest.approx((6 * 6 - 4) / 6)


def test_windows_without_a_caption_lose_nothing_weigh_nothing_and_still_get_a_gradient() -> None:
    audio, text = unit(5, 1), unit(3, 2)
    captioned = [0, 2, 4]
    apart = torch.eye(5, dtype=torch.bool)
    loss = clap_loss(audio, text, captioned, excluded=apart, scale=torch.tensor(9.0))
    expected = slow_loss(audio.detach()[captioned], text.detach(), apart[captioned][:, captioned], 9.0)
    assert torch.allclose(loss.per_window[captioned], torch.tensor(expected), atol=1e-5)
    assert loss.per_window[[1, 3]].tolist() == [0.0, 0.0]
    loss.mean.backward()
    assert audio.grad is not None
    assert audio.grad[[1, 3]].abs().max() == 0.0
    assert bool((audio.grad[captioned].abs().amax(dim=1) > 0).all())


def test_a_batch_without_any_caption_has_no_loss_and_gradients_of_zero() -> None:
    batch, leaf = joined([part(0, None), part(1, "?!"), part(2, "")])
    objective = clap()
    terms = objective(batch)
    terms.total.backward()
    assert terms.total.item() == 0.0
    assert leaf.grad is not None
    assert leaf.grad.abs().max() == 0.0
    assert objective.module.counts.tolist() == [0, 0, 3]


def test_identical_captions_are_not_negatives_of_each_other() -> None:
    same = ["a dog barks", "A dog barks!", "rain on a roof"]
    batch, _ = joined([part(i, caption) for i, caption in enumerate(same)])
    objective = clap()
    terms = objective(batch)
    apart = torch.eye(3, dtype=torch.bool)
    apart[0, 1] = apart[1, 0] = True
    with torch.no_grad():
        text, scale = objective.module.tower(same), float(objective.module.scale())
        both = [slow_loss(view, text, apart, scale) for view in batch.projections]
    assert terms.per_window.tolist() == pytest.approx([(a + b) / 2 for a, b in zip(*both)], abs=1e-5)


def test_two_captions_made_from_one_class_name_are_the_same_caption() -> None:
    batch, _ = joined([part(0, "the sound of rain"), part(1, "rain can be heard")])
    terms = clap()(batch)
    assert terms.candidates == 1.0
    assert terms.total.item() == pytest.approx(0.0, abs=1e-6)


def test_windows_of_one_stretch_are_not_negatives_even_with_different_captions() -> None:
    batch, _ = joined([part(0, "waves roll in", segment=4), part(1, "surf on a beach", segment=4)])
    assert clap()(batch).candidates == 1.0


def test_the_total_is_the_mean_over_all_windows_so_that_gradients_are_of_the_sum() -> None:
    batch, _ = joined([part(0, "rain"), part(1, "a dog"), part(2, None), part(3, "sea waves")])
    terms = clap()(batch)
    assert terms.total.item() == pytest.approx(float(terms.per_window.sum()) / 4, abs=1e-6)


def test_where_captions_come_from_is_counted() -> None:
    objective = clap()
    objective(joined([part(0, "the sound of rain"), part(1, "Somebody shovels gravel"), part(2, None)])[0])
    objective(joined([part(0, "sea waves can be heard")])[0])
    assert objective.module.counts.tolist() == [1, 2, 1]


def test_the_scale_never_passes_a_hundred_and_comes_back_from_there() -> None:
    module = ClapModule("hashed", DIM, 0)
    assert module.scale().item() == pytest.approx(1 / 0.07, rel=1e-5)
    with torch.no_grad():
        module.log_scale.fill_(9.0)
    scale = module.scale()
    assert scale.item() == pytest.approx(100.0, rel=1e-5)
    scale.backward()
    assert module.log_scale.grad is not None
    assert float(module.log_scale.grad) > 0


def test_training_brings_windows_to_their_captions() -> None:
    captions = ["rain on a roof", "a dog barks", "waves roll in", "an engine idles"]
    parts = [part(i, caption) for i, caption in enumerate(captions)]
    views = joined(parts)[0].projections.detach()
    objective = clap()
    optimizer = torch.optim.AdamW(objective.module.parameters(), lr=1e-2)
    outputs = views.transpose(0, 1)
    batch = Joined(parts=parts, embeddings=outputs, outputs=outputs, projections=views)
    first = objective(batch).total.item()
    for _ in range(50):
        optimizer.zero_grad()
        objective(batch).total.backward()
        optimizer.step()
    assert objective(batch).total.item() < first / 4


def test_the_module_goes_on_where_its_state_stood() -> None:
    one, other = clap(1), clap(2)
    one(joined([part(0, "rain"), part(1, "a dog")])[0])
    other.module.load_state_dict(one.module.state_dict())
    assert torch.equal(one.module.tower(["rain"]), other.module.tower(["rain"]))
    assert other.module.counts.tolist() == one.module.counts.tolist()


def test_the_weights_of_another_text_encoder_are_refused_in_words() -> None:
    state = {**clap().module.state_dict(), "_extra_state": {"text_encoder": "minilm"}}
    with pytest.raises(ConfigError, match="text_encoder: hashed is configured, the checkpoint has minilm"):
        clap().module.load_state_dict(state)
