from __future__ import annotations

import math

import numpy as np
import pytest

from tests.trainer.simulated import small_fleet
from trainer.link_traces import STEP_S
from trainer.reward import RewardWeights
from trainer.simulated_costs import WINDOWS, Tables
from trainer.simulated_device import DWELL, QUEUE_CAPACITY, Counts, Row, advance

L = 8
W = RewardWeights()


def row_of(table: Tables, step: int, action: Counts) -> Row:
    names = ("service_s", "delay_s", "answered", "local", "bytes_moved", "joules")
    return Row(
        **{name: getattr(table, name)[step, action] for name in names},
        uncertainty=np.full(action.shape, table.uncertainty[step]),
        fetch_joules=np.full(action.shape, table.fetch_joules),
        follows=np.full(action.shape, table.follows),
    )


def slow(t: Tables, d: int, a: int, cut: int, since: int, queue: int, held: int, *, merged: bool) -> dict[str, float]:
    """One device with plain numbers."""
    held = cut if merged and not t.follows else held
    target = cut if a > L else a
    fetched = max(0.0, t.whole_bytes[target] - t.whole_bytes[held]) / WINDOWS
    served = min(queue + WINDOWS, math.floor(WINDOWS * STEP_S / t.service_s[d, a]))
    waiting = queue + WINDOWS - served
    after = min(waiting, QUEUE_CAPACITY)
    kept = 1 - (waiting - after) / WINDOWS
    late = min(5.0, (t.delay_s[d, a] + (queue + after) / 2 * t.service_s[d, a]) / 0.2)
    worth = kept * (t.answered[d, a] + 0.5 * t.local[d, a]) - 0.5 * (kept * late + (1 - kept) * 5.0)
    worth -= 0.3 * (kept * t.joules[d, a] + fetched * t.fetch_joules) / 0.1
    worth -= 0.2 * (kept * t.bytes_moved[d, a] + fetched) / 4608 + 0.1 * (target != cut)
    now = 1 if target != cut else min(since + 1, DWELL)
    return {"cut": target, "since": now, "queue": after, "held": max(target, held), "reward": worth}


def test_whole_arrays_of_devices_do_what_one_does_with_plain_numbers() -> None:
    rng = np.random.default_rng(0)
    for table in small_fleet(seeds=1)[2:8]:  # three follow every version
        for step in (0, 7, 50):
            action, cut, queue = rng.integers(3, L + 2, 64), rng.integers(3, L + 1, 64), rng.integers(0, 17, 64)
            since, held = rng.integers(1, DWELL + 1, 64), np.maximum(cut, rng.integers(3, L + 1, 64))
            merged = step % 50 == 0
            after = advance(
                row_of(table, step, action),
                action=action,
                cut=cut,
                since=since,
                queue=queue,
                held=held,
                whole_bytes=table.whole_bytes,
                merged=np.full(64, merged),
                weights=W,
            )
            for i in range(64):
                expected = slow(
                    table, step, action[i], cut[i], since[i], queue[i], held[i], merged=merged
                )  # fmt: skip
                found = {name: getattr(after, name)[i] for name in expected}
                assert found == pytest.approx(expected)
