from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from common.actions import allowed_mask
from common.policy import OBSERVATION_NAMES, ROUND_TRIP_MS, observe
from device.senses import QUEUE_CAPACITY as DEVICE_QUEUE_CAPACITY
from device.telemetry import LinkEstimate
from tests.trainer.simulated import small_fleet
from trainer.reward import RewardWeights
from trainer.simulated_costs import WINDOWS
from trainer.simulated_device import QUEUE_CAPACITY, Counts
from trainer.simulator import Masks, Simulator, SplitterEnv

L = 8


def fleet(seed: int = 0, *, batch: int = 16) -> Simulator:
    return Simulator(small_fleet(), batch=batch, min_cut=3, first_cut=5, weights=RewardWeights(), seed=seed)


def any_allowed(mask: Masks, rng: np.random.Generator) -> Counts:
    chosen: Counts = (rng.random(mask.shape) * mask).argmax(axis=1)
    return chosen


def test_gymnasium_finds_nothing_wrong_with_the_environment() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*alternative render modes.*")
        check_env(SplitterEnv(small_fleet(), min_cut=3, first_cut=5))


def test_an_episode_ends_as_a_truncation_and_a_forbidden_action_is_a_local_step() -> None:
    env = SplitterEnv(small_fleet(steps=80), min_cut=3, first_cut=5)
    env.reset(seed=1)
    for _ in range(10):
        observation, reward, terminated, truncated, info = env.step(np.int64(0))  # below the floor
        assert not terminated
        assert env.observation_space.contains(observation)
        assert np.isfinite(reward)
        assert not info["action_mask"][:3].any()
        if truncated:
            break
    assert truncated


def test_the_same_seed_gives_the_same_run_and_another_another() -> None:
    def run(seed: int) -> list[float]:
        simulator, rng = fleet(seed), np.random.default_rng(9)
        return [float(simulator.step(any_allowed(simulator.mask(), rng)).reward.sum()) for _ in range(30)]

    assert run(1) == run(1) != run(2)


def test_masks_are_those_of_a_device() -> None:
    simulator, rng = fleet(), np.random.default_rng(0)
    for _ in range(60):
        mask = simulator.mask()
        online = simulator._columns["online"][simulator.trace, simulator.decision]
        for i in range(16):
            expected = allowed_mask(
                depth=L,
                min_cut=3,
                device_cuts=range(3, L + 1),
                allowed_by_trainer=None,
                pinned_cut=None,
                online=bool(online[i]),
                current_cut=int(simulator.cut[i]),
                decisions_since_change=int(simulator._since[i]) * WINDOWS,
                dwell=16,
            )
            assert tuple(mask[i]) == expected
        simulator.step(any_allowed(mask, rng))


def test_what_is_not_allowed_is_refused() -> None:
    simulator = fleet()
    with pytest.raises(ValueError, match="not allowed"):
        simulator.step(np.zeros(16, dtype=np.intp))


def test_observations_are_those_of_a_device_that_measured_the_same() -> None:
    simulator, rng = fleet(), np.random.default_rng(1)
    for _ in range(40):
        simulator.step(any_allowed(simulator.mask(), rng))
        seen = simulator.observe()
        for i in range(16):
            measured = (simulator._rate, simulator._round_trip_ms, simulator._seen, simulator._ambient)
            rate, trip, uncertainty, ambient = (float(v[i]) for v in measured)
            heat = ambient + 0.4 * float(simulator._cpu[i])
            table = small_fleet()[simulator.trace[i]]
            expected = observe(
                uncertainty=None if np.isnan(uncertainty) else uncertainty,
                uncertainty_age_s=float(simulator._age_s[i]),
                cpu=float(simulator._cpu[i]),
                memory=float(simulator._memory[i]),
                temperature_c=None if np.isnan(ambient) else 30.0 + 55.0 * heat,
                throttled=None,
                uplink_mbps=None if np.isnan(rate) else rate,
                round_trip_ms=None if np.isnan(trip) else trip,
                battery=float(simulator._battery[i]),
                queue_depth=int(simulator._queue[i]),
                queue_capacity=QUEUE_CAPACITY,
                cut=int(simulator.cut[i]),
                depth=L,
                forward_ms=table.forward_ms,
                held=int(simulator._held[i]),
                version_age=float(simulator._version_age[i]),
                follows=table.follows,
            )
            assert dict(zip(OBSERVATION_NAMES, seen[i], strict=True)) == pytest.approx(
                dict(zip(OBSERVATION_NAMES, expected.values(), strict=True))
            )


def test_a_link_that_does_not_jump_is_estimated_as_a_device_does() -> None:
    from common.policy import LINK_SMOOTHING
    from trainer.simulator import _smoothed

    estimate, mean = LinkEstimate(alpha=LINK_SMOOTHING), np.array([np.nan])
    for mbps in (3.0, 4.0, 2.5):  # no jumps: a device starts anew from the second reading of one, inside a step
        estimate.uplink(mbps)
        mean = _smoothed(mean, np.array([mbps]))
        assert mean[0] == pytest.approx(estimate.uplink_mbps)
    assert QUEUE_CAPACITY == DEVICE_QUEUE_CAPACITY


def test_the_round_trip_is_known_at_every_cut_and_grows_old_in_an_outage_only() -> None:
    tables = [
        replace(table, round_trip_ms=np.linspace(20.0, 400.0, len(table)), online=np.arange(len(table)) % 20 < 15)
        for table in small_fleet()
    ]
    simulator = Simulator(
        tables, batch=len(tables), min_cut=3, first_cut=L, weights=RewardWeights(), seed=0, in_order=True
    )
    place = OBSERVATION_NAMES.index("round_trip")
    for step in range(40):
        before = simulator.observe()[:, place]
        mask = simulator.mask()
        simulator.step(np.where(mask[:, L], L, L + 1))  # at the last cut nothing is answered
        told = simulator.observe()[:, place]
        assert ((told != before) == (step % 20 < 15)).all()
        if step % 20 < 15:
            mean_ms = ROUND_TRIP_MS[0] * (ROUND_TRIP_MS[1] / ROUND_TRIP_MS[0]) ** told
            assert mean_ms == pytest.approx(tables[0].round_trip_ms[step], rel=0.6)


def test_noise_touches_what_is_observed_and_never_what_it_was_worth() -> None:
    tables = [replace(table, uncertainty=table.uncertainty) for table in small_fleet()]
    one, other = (
        Simulator(tables, batch=len(tables), min_cut=3, first_cut=5, weights=RewardWeights(), seed=seed, in_order=True)
        for seed in (1, 2)
    )
    for _ in range(20):
        action = np.where(one.mask()[:, 5], 5, L + 1)
        assert np.array_equal(one.step(action).reward, other.step(action).reward)
    assert not np.array_equal(one.observe(), other.observe())


def test_devices_may_begin_at_any_cut_from_the_floor_on() -> None:
    anywhere = Simulator(small_fleet(), batch=200, min_cut=3, first_cut=None, weights=RewardWeights(), seed=0)
    assert set(anywhere.cut.tolist()) == set(range(3, anywhere.depth + 1))


def test_where_versions_come_more_seldom_what_was_fetched_is_held_for_longer() -> None:
    """A device goes down, up, waits for a version and goes down again: without one in between it fetches nothing."""

    def bytes_fetched_again(merge_every: int) -> float:
        tables = [replace(one, online=np.ones_like(one.online)) for one in small_fleet()[:1]]
        fleet = Simulator(tables, batch=1, min_cut=3, first_cut=5, weights=RewardWeights(), seed=0, in_order=True)
        fleet.merge_every = merge_every
        path = [8, 8, 5, 5, 5, 5, 5, 8]
        moved = [float(fleet.step(np.array([cut])).outcome.bytes_moved[0]) for cut in path]
        assert moved[0] > 10_000, "the first time all of it is fetched"
        return moved[-1]

    assert bytes_fetched_again(48) < 10_000 < bytes_fetched_again(6)
