from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from common.contrastive import info_nce, not_negatives


def _views(count: int, dim: int = 16, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = normalize(torch.randn(count, dim, generator=generator), dim=1)
    return a, normalize(a + 0.5 * torch.randn(count, dim, generator=generator), dim=1)


def _none(count: int) -> torch.Tensor:
    return torch.eye(count, dtype=torch.bool)


def _slow(
    z_a: torch.Tensor, z_b: torch.Tensor, temperature: float, excluded: torch.Tensor, virtual: torch.Tensor | None
) -> tuple[list[float], float]:
    """Loops and plain exponentials, in double precision."""
    views = [z_a.double(), z_b.double()]
    count = len(z_a)
    losses, candidates = [0.0] * count, 0
    for side in (0, 1):
        for i in range(count):
            anchor = views[side][i]
            positive = math.exp(float(anchor @ views[1 - side][i]) / temperature)
            total, seen = positive, 1
            for j in range(count):
                if j == i or bool(excluded[i, j]):
                    continue
                for view in views:
                    total += math.exp(float(anchor @ view[j]) / temperature)
                    seen += 1
            if virtual is not None:
                for row in virtual if virtual.dim() == 2 else virtual[i]:
                    total += math.exp(float(anchor @ row.double()) / temperature)
                    seen += 1
            losses[i] += -math.log(positive / total) / 2.0
            candidates += seen
    return losses, candidates / (2 * count)


@pytest.mark.parametrize("virtual_shape", [None, (5, 16), (6, 3, 16), (0, 16), (6, 0, 16)])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_definition_written_as_loops(virtual_shape: tuple[int, ...] | None, masked: bool) -> None:
    z_a, z_b = _views(6)
    excluded = _none(6)
    if masked:
        excluded[0, 1] = excluded[1, 0] = excluded[4, 2] = excluded[2, 4] = excluded[0, 5] = excluded[5, 0] = True
    virtual = None
    if virtual_shape is not None:
        virtual = normalize(torch.randn(virtual_shape, generator=torch.Generator().manual_seed(1)), dim=-1)
    loss = info_nce(z_a, z_b, temperature=0.1, excluded=excluded, virtual_negatives=virtual)
    expected, candidates = _slow(z_a, z_b, 0.1, excluded, virtual)
    assert loss.per_window.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert float(loss.mean) == pytest.approx(sum(expected) / 6, rel=1e-5)
    assert loss.candidates == pytest.approx(candidates)


def test_collapsed_projections_cost_the_logarithm_of_the_candidates() -> None:
    z = normalize(torch.ones(7, 16), dim=1)
    loss = info_nce(z, z, temperature=0.1, excluded=_none(7), virtual_negatives=z[:3])
    assert loss.candidates == 1 + 2 * 6 + 3
    assert float(loss.mean) == pytest.approx(math.log(loss.candidates), rel=1e-5)


def test_orthogonal_windows_have_the_loss_of_the_closed_form() -> None:
    z = torch.eye(8)
    loss = info_nce(z, z, temperature=0.5, excluded=_none(8))
    assert float(loss.mean) == pytest.approx(math.log(1.0 + 14.0 * math.exp(-2.0)), rel=1e-5)


@pytest.mark.parametrize("count", [1, 3])
def test_without_any_negative_the_loss_and_its_gradient_are_zero(count: int) -> None:
    z_a, z_b = _views(count)
    z_a.requires_grad_()
    z_b.requires_grad_()
    loss = info_nce(z_a, z_b, temperature=0.1, excluded=torch.ones(count, count, dtype=torch.bool))
    loss.mean.backward()
    assert loss.per_window.tolist() == pytest.approx([0.0] * count, abs=1e-6)
    assert loss.candidates == 1.0
    for z in (z_a, z_b):
        assert z.grad is not None
        assert torch.allclose(z.grad, torch.zeros_like(z), atol=1e-6)


def test_one_lonely_window_does_not_disturb_the_others() -> None:
    z_a, z_b = _views(4)
    z_a.requires_grad_()
    excluded = _none(4)
    excluded[3, :] = excluded[:, 3] = True
    loss = info_nce(z_a, z_b, temperature=0.1, excluded=excluded)
    loss.mean.backward()
    alone = info_nce(z_a[:3], z_b[:3], temperature=0.1, excluded=_none(3))
    assert torch.allclose(loss.per_window[:3], alone.per_window, atol=1e-6)
    assert loss.per_window[3].item() == pytest.approx(0.0, abs=1e-6)
    assert z_a.grad is not None
    assert torch.isfinite(z_a.grad).all()


def test_excluded_pairs_receive_no_gradient_from_each_other() -> None:
    z_a, z_b = _views(3)
    z_a.requires_grad_()
    excluded = _none(3)
    excluded[0, 1] = excluded[1, 0] = True
    info_nce(z_a, z_b, temperature=0.1, excluded=excluded).per_window[0].backward()
    assert z_a.grad is not None
    assert z_a.grad[1].abs().sum() == 0.0
    assert z_a.grad[2].abs().sum() > 0.0


def test_gradient_equals_finite_differences() -> None:
    z_a, z_b = (view.double().requires_grad_() for view in _views(3, dim=4))
    excluded = _none(3)
    excluded[0, 2] = excluded[2, 0] = True
    assert torch.autograd.gradcheck(lambda a, b: info_nce(a, b, temperature=0.5, excluded=excluded).mean, (z_a, z_b))


def test_no_gradient_reaches_virtual_negatives() -> None:
    z_a, z_b = _views(3)
    virtual = z_a.detach().clone().requires_grad_()
    z_a.requires_grad_()
    loss = info_nce(z_a, z_b, temperature=0.1, excluded=_none(3), virtual_negatives=virtual)
    loss.mean.backward()
    assert virtual.grad is None


def test_the_order_of_the_windows_does_not_matter() -> None:
    z_a, z_b = _views(6)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    one = info_nce(z_a, z_b, temperature=0.1, excluded=_none(6)).per_window[order]
    other = info_nce(z_a[order], z_b[order], temperature=0.1, excluded=_none(6)).per_window
    assert torch.allclose(one, other, atol=1e-6)


def test_shapes_that_do_not_fit_are_refused_in_a_sentence() -> None:
    z_a, z_b = _views(3)
    with pytest.raises(ValueError, match="views must both be"):
        info_nce(z_a, z_b[:2], temperature=0.1, excluded=_none(3))
    with pytest.raises(ValueError, match="excluded must be bool"):
        info_nce(z_a, z_b, temperature=0.1, excluded=_none(2))
    with pytest.raises(ValueError, match="excluded must be bool"):
        info_nce(z_a, z_b, temperature=0.1, excluded=_none(3).float())


def test_the_mask_follows_its_rules_pair_by_pair() -> None:
    devices = ["a", "a", "a", "b", "b", "c", "c", "a"]
    segments = [1, 1, 2, 1, 1, 7, 7, 1]
    times_s = [0.0, 1.0, 1.5, 0.5, 9.0, 0.0, 2.0, 3.1]
    rooms = ["hall", "hall", "hall", "hall", "hall", "", "", "hall"]
    mask = not_negatives(devices, segments, times_s, rooms, within_s=3.0)
    for i in range(len(devices)):
        for j in range(len(devices)):
            near = abs(times_s[i] - times_s[j]) <= 3.0
            one_device = devices[i] == devices[j]
            segment = one_device and segments[i] == segments[j]
            room = not one_device and rooms[i] == rooms[j] != ""
            assert bool(mask[i, j]) == (i == j or (near and (segment or room))), (i, j)
    assert torch.equal(mask, mask.T)


def test_devices_without_a_room_stay_negatives() -> None:
    mask = not_negatives(["a", "b"], [0, 0], [0.0, 0.0], ["", ""], within_s=3.0)
    assert torch.equal(mask, torch.eye(2, dtype=torch.bool))
