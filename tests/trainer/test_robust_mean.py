from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.robust_mean import trimmed_count, weighted_sum


def slow(values: list[tuple[float, float]], trim: float) -> float:
    """One value, by its definition."""
    aside = trimmed_count(len(values), trim)
    kept = sorted(values, key=lambda each: each[1])[aside : len(values) - aside]
    return sum(w for w, _ in values) * sum(w * v for w, v in kept) / sum(w for w, _ in kept)


@pytest.mark.parametrize(
    ("contributors", "trim", "aside"),
    [(2, 0.4, 0), (3, 0.0, 0), (3, 0.15, 1), (4, 0.49, 1), (5, 0.49, 2), (8, 0.15, 1), (14, 0.15, 2), (100, 0.15, 15)],
)
def test_so_many_are_left_out_on_either_side(contributors: int, trim: float, aside: int) -> None:
    assert trimmed_count(contributors, trim) == aside


@given(
    st.lists(st.tuples(st.floats(0.01, 1), st.integers(-999, 999)), min_size=1, max_size=9, unique_by=lambda v: v[1]),
    st.sampled_from([0.0, 0.15, 0.3, 0.49]),
)
def test_every_value_is_what_the_definition_says(pairs: list[tuple[float, int]], trim: float) -> None:
    values = [(weight, value / 100) for weight, value in pairs]
    changes = [(weight, {"w": torch.tensor([[value, 0.0]])}) for weight, value in values]
    found = weighted_sum(changes, trim=trim)["w"]
    assert float(found[0, 0]) == pytest.approx(slow(values, trim), rel=1e-4, abs=1e-4)
    assert float(found[0, 1]) == 0.0


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=9), st.sampled_from([0.0, 0.15, 0.49]))
def test_equal_changes_give_the_weighted_sum(weights: list[float], trim: float) -> None:
    change = {"w": torch.tensor([1.5, -2.0, 3e-5])}
    found = weighted_sum([(weight, change) for weight in weights], trim=trim)["w"]
    torch.testing.assert_close(found, sum(weights) * change["w"], rtol=1e-5, atol=0)


def test_where_only_contributors_without_weight_are_left_nothing_is_said() -> None:
    weights = (0.5, 2.0**-160, 0.5)  # the one in the middle is nothing in float32
    changes = [(weight, {"w": torch.tensor([float(value)])}) for value, weight in enumerate(weights, start=1)]
    assert torch.equal(weighted_sum(changes, trim=0.15)["w"], torch.zeros(1))
