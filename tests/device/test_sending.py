"""A share of the captured windows is sent: always met, and the more uncertain ones."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from device.intake import SeenWindow
from device.sending import HORIZON, Sending, ShareOfValues
from device.windows import Window

SILENCE = np.zeros(15360, np.float32)
SEEN = SeenWindow(Window(SILENCE, SILENCE, 0, segment=0, index=0, closed_s=0.0), torch.zeros(2, 1, 64, 96), 0.0)


def chosen(values: Iterable[float | None], share: float, seed: int = 0) -> list[bool]:
    chooser = ShareOfValues(share, seed=seed)
    return [chooser.choose(value) for value in values]


@given(
    st.lists(st.one_of(st.none(), st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0])), max_size=600),
    st.floats(0.02, 1.0),
    st.integers(0, 5),
)
def test_the_share_is_met_at_every_moment_for_any_values(values: list[float | None], share: float, seed: int) -> None:
    sent = 0
    for count, one in enumerate(chosen(values, share, seed), 1):
        sent += one
        assert abs(sent - share * count) <= HORIZON + 1


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["uniform", "skewed", "two values", "rising", "falling", "bursts"])
def test_of_two_thousand_windows_the_share_is_sent_whatever_they_are_like(share: float, kind: str) -> None:
    rng = np.random.default_rng(3)
    time = np.linspace(0, 1, 2000)
    values = {
        "uniform": rng.uniform(size=2000),
        "skewed": rng.beta(0.4, 6, size=2000),
        "two values": rng.integers(0, 2, size=2000).astype(float),
        "rising": time + 0.05 * rng.normal(size=2000),
        "falling": 1 - time,
        "bursts": np.repeat(rng.uniform(size=100), 20),
    }[kind]
    sent = sum(chosen(values.tolist(), share))
    assert abs(sent / 2000 - share) < 0.015


def test_what_is_chosen_is_more_uncertain_than_the_rest_nearly_as_much_as_if_all_were_known_before() -> None:
    values = np.random.default_rng(1).beta(4, 4, size=4000)
    mask = np.array(chosen(values.tolist(), 0.25))
    best = np.sort(values)[-1000:].mean()
    assert values[mask].mean() - values.mean() > 0.8 * (best - values.mean())
    assert values[mask].mean() > values[~mask].mean() + 0.15


def test_it_follows_a_drift_instead_of_the_values_of_long_ago() -> None:
    rng = np.random.default_rng(2)
    values = np.concatenate([rng.uniform(0.0, 0.3, 1000), rng.uniform(0.5, 0.8, 1000)])
    mask = np.array(chosen(values.tolist(), 0.25))
    late = slice(1300, 2000)
    assert abs(mask[late].mean() - 0.25) < 0.04
    assert values[late][mask[late]].mean() > values[late].mean() + 0.06


def test_no_long_silence_and_no_long_burst_where_values_are_like_the_recent_ones() -> None:
    values = np.random.default_rng(4).uniform(size=4000)
    gaps = np.diff(np.flatnonzero(chosen(values.tolist(), 0.25)))
    assert gaps.max() <= 8 * 4


def test_equal_values_are_chosen_like_any_others() -> None:
    assert sum(chosen([0.5] * 1000, 0.25)) == pytest.approx(250, abs=10)


def test_the_same_seed_chooses_the_same_windows_and_another_seed_others() -> None:
    values = [None] * 400
    assert chosen(values, 0.25, seed=1) == chosen(values, 0.25, seed=1)
    assert chosen(values, 0.25, seed=1) != chosen(values, 0.25, seed=2)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        ShareOfValues(share, seed=0)


def never(seen: SeenWindow) -> float | None:
    raise AssertionError("nothing is computed")


def test_with_a_share_of_one_everything_is_sent_and_nothing_computed() -> None:
    sending = Sending(share=1.0, by="uncertainty", uncertainty=never, seed=0)
    assert all(sending.wants(SEEN, must=False) for _ in range(20))


def test_at_random_nothing_is_computed() -> None:
    sending = Sending(share=0.25, by="random", uncertainty=never, seed=0)
    assert sum(sending.wants(SEEN, must=False) for _ in range(400)) == pytest.approx(100, abs=8)


def test_before_the_mixture_has_started_any_are_sent_and_then_the_uncertain_ones() -> None:
    values = iter([None] * 200 + [0.1, 0.9] * 200)
    sending = Sending(share=0.25, by="uncertainty", uncertainty=lambda _: next(values), seed=0)
    first = [sending.wants(SEEN, must=False) for _ in range(200)]
    assert sum(first) == pytest.approx(50, abs=8)
    then = [sending.wants(SEEN, must=False) for _ in range(400)]
    assert sum(then[1::2]) > 90
    assert sum(then[0::2]) < 10


def test_a_window_that_closes_a_step_is_sent_and_counts() -> None:
    sending = Sending(share=0.25, by="random", uncertainty=never, seed=0)
    assert all(sending.wants(SEEN, must=True) for _ in range(10))
    assert sum(sending.wants(SEEN, must=False) for _ in range(400)) == pytest.approx(92, abs=8)
