from __future__ import annotations

import math
from itertools import pairwise

import pytest

from trainer.schedule import learning_rate


def _anneal(windows: int) -> float:
    return learning_rate(windows, schedule="anneal", peak=2e-3, budget_windows=16_000)


def _constant(windows: int) -> float:
    return learning_rate(windows, schedule="constant", peak=2e-3, budget_windows=None)


def test_anneal_rises_over_a_tenth_and_falls_to_almost_nothing() -> None:
    assert _anneal(1_600) == pytest.approx(2e-3)
    assert 0.0 < _anneal(0) < 0.05 * 2e-3
    assert _anneal(800) == pytest.approx((0.04 + 0.5 * 0.96) * 2e-3)
    assert _anneal(8_800) == pytest.approx(1e-3, rel=0.01)
    assert _anneal(16_000) == pytest.approx(2e-6)
    assert _anneal(99_999) == _anneal(16_000)


def test_anneal_has_one_peak_and_no_step() -> None:
    rates = [_anneal(windows) for windows in range(0, 16_001, 10)]
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert max(abs(a - b) for a, b in pairwise(rates)) < 0.01 * 2e-3


def test_anneal_falls_along_a_cosine() -> None:
    for share in (0.1, 0.3, 0.7):
        expected = 0.001 + 0.999 * 0.5 * (1 + math.cos(math.pi * (share - 0.1) / 0.9))
        assert _anneal(int(share * 16_000)) == pytest.approx(2e-3 * expected, rel=1e-6)


def test_constant_rises_shortly_and_stays() -> None:
    assert 0.0 < _constant(0) < _constant(100) < _constant(500)
    assert _constant(500) == _constant(10_000_000) == 2e-3


def test_anneal_needs_a_budget_and_names_are_checked() -> None:
    with pytest.raises(ValueError, match="needs budget_windows"):
        learning_rate(0, schedule="anneal", peak=1.0, budget_windows=None)
    with pytest.raises(ValueError, match="allowed: anneal, constant"):
        learning_rate(0, schedule="cosine", peak=1.0, budget_windows=None)  # type: ignore[arg-type]
