from __future__ import annotations

import numpy as np
import pytest
import torch

from common.encoder import build_encoder
from common.log_mel import LogMel
from common.mixture_memory import MixtureMemory
from trainer.calibration import calibration, restore_mixture
from trainer.checkpoint import Checkpoint
from trainer.evaluate import clip_uncertainty
from trainer.probe_set import ProbeSet


def _mixture() -> MixtureMemory:
    mixture = MixtureMemory(components=4, dim=128, seed=0)
    points = torch.randn(256, 128, generator=torch.Generator().manual_seed(0))
    mixture.update(torch.nn.functional.normalize(points, dim=1))
    assert mixture.started
    return mixture


def test_auroc_is_the_share_of_pairs_in_which_the_wrong_clip_is_the_more_uncertain() -> None:
    rng = np.random.default_rng(0)
    uncertainty, hits = np.round(rng.random(40), 1), rng.random(40) < 0.6
    wrong, right = uncertainty[~hits], uncertainty[hits]
    pairs = [float(w > r) + 0.5 * float(w == r) for w in wrong for r in right]
    checked = calibration(uncertainty.tolist(), hits.tolist())
    assert checked.auroc == pytest.approx(np.mean(pairs))
    assert checked.uncertainty == tuple(uncertainty.tolist())


def test_uncertainty_that_knows_every_error_has_auroc_one_and_errors_in_the_last_quartile_only() -> None:
    checked = calibration([i / 8 for i in range(8)], [True] * 6 + [False] * 2)
    assert checked.auroc == 1.0
    assert checked.error_by_quartile == (0.0, 0.0, 0.0, 1.0)


def test_quartiles_of_a_number_that_four_does_not_divide_hold_every_clip_once() -> None:
    checked = calibration([0.9, 0.1, 0.5, 0.3, 0.7, 0.2], [False, True, True, False, True, True])
    assert checked.error_by_quartile == (0.0, 0.5, 0.0, 1.0)


def test_without_errors_or_with_nothing_else_there_is_no_auroc_and_three_clips_have_no_quartiles() -> None:
    assert calibration([0.1, 0.2, 0.3], [True, True, True]).auroc is None
    assert calibration([0.1, 0.2, 0.3], [False, False, False]).auroc is None
    assert calibration([0.1, 0.2, 0.3], [False, True, True]).error_by_quartile == ()


def test_uncertainties_and_results_of_different_clips_are_our_own_bug() -> None:
    with pytest.raises(ValueError, match="2 uncertainties for 1 clips"):
        calibration([0.1, 0.2], [True])


def test_a_clips_uncertainty_is_the_mean_over_its_own_windows_in_the_order_of_the_held_out_clips() -> None:
    sound = torch.randn(6, 15_360, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.01, 0.3, 6)[:, None]
    pictures = LogMel()(sound).half()
    names = np.array(["a", "b", "c", "d"])
    held = np.array([True, False, True, True])
    clips = ProbeSet(pictures, np.array([0, 2, 3, 4]), np.array(["x", "y", "x", "y"]), held, names)
    encoder, mixture = build_encoder("mobile", seed=0).eval(), _mixture()
    with torch.no_grad():
        each = mixture.uncertainty(encoder.project(encoder(pictures.float()))).numpy()
    expected = [each[:2].mean(), each[3], each[4:].mean()]
    assert clip_uncertainty(encoder, mixture, clips) == pytest.approx(expected, abs=1e-4)


def test_the_mixture_comes_back_from_a_checkpoint_and_one_that_has_not_started_does_not() -> None:
    mixture = _mixture()

    def saved(state: dict[str, object]) -> Checkpoint:
        return Checkpoint("r", "f", "mobile", {}, state, 1, 1, 1)

    restored = restore_mixture(saved({"mixture": mixture.state_dict()}))
    assert restored is not None
    points = torch.nn.functional.normalize(torch.randn(5, 128, generator=torch.Generator().manual_seed(2)), dim=1)
    assert torch.equal(restored.uncertainty(points), mixture.uncertainty(points))
    assert restore_mixture(saved({})) is None
    assert restore_mixture(saved({"mixture": MixtureMemory().state_dict()})) is None
