from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trainer.reward import RewardWeights, reward, utility

WEIGHTS = RewardWeights()


def one(**changes: float) -> float:
    given = {"utility": 1.0, "latency_ms": 0.0, "energy_joules": 0.0, "bytes_moved": 0.0, "moved": 0.0} | changes
    return float(reward(**{name: np.array([value]) for name, value in given.items()}, w=WEIGHTS)[0])


def test_every_term_is_weighed_against_its_budget() -> None:
    spent = one(latency_ms=100.0, energy_joules=0.05, bytes_moved=2304.0, moved=1.0)
    assert spent == pytest.approx(1.0 - 0.5 * 0.5 - 0.3 * 0.5 - 0.2 * 0.5 - 0.1)
    assert one() == 1.0


def test_what_is_later_than_the_worst_is_no_worse() -> None:
    assert one(latency_ms=1000.0) == one(latency_ms=1e9) < one(latency_ms=999.0)


def worth(answered: float, local: float, uncertainty: float, weights: RewardWeights = WEIGHTS) -> float:
    values = (np.array([value]) for value in (answered, local, uncertainty))
    made = utility(*values, local_utility=weights.local_utility, uncertainty_weight=weights.uncertainty_weight)
    return float(made[0])


def test_a_window_learned_from_alone_is_worth_less_and_a_lost_one_nothing() -> None:
    assert (worth(1, 0, 0.9), worth(0, 1, 0.9), worth(0, 0, 0.9)) == (1.0, 0.5, 0.0)
    assert worth(0.5, 0.25, 0.1) == pytest.approx(0.625)


def test_uncertainty_counts_for_what_is_sent_only_and_only_if_it_is_weighed() -> None:
    weighed = replace(WEIGHTS, uncertainty_weight=0.5)
    assert worth(1, 0, 0.5, weighed) == 1.0
    assert worth(1, 0, 1.0, weighed) == pytest.approx(1.25)
    assert worth(1, 0, 0.0, weighed) == pytest.approx(0.75)
    assert worth(0, 1, 1.0, weighed) == worth(0, 1, 0.0, weighed) == 0.5
