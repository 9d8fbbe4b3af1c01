from __future__ import annotations

import time

import pytest

from device.compute_time import ComputeTime
from device.emulation import ComputeStretch
from device.journal import Totals
from tests.fakes import KnownHost


def compute(seconds: float) -> None:
    until_s = time.thread_time() + seconds
    while time.thread_time() < until_s:
        pass


def test_what_is_computed_counts_and_what_is_waited_for_does_not() -> None:
    totals = Totals()
    with ComputeTime(totals, None).block():
        compute(0.02)
    compute(0.02)
    assert 0.02 <= totals.busy_s < 0.04


def test_on_a_slower_board_it_counts_as_that_boards_seconds() -> None:
    totals, slept = Totals(), list[float]()
    stretch = ComputeStretch(host=KnownHost(2.0), board_forward_ms=10.0, sleep=slept.append)
    with ComputeTime(totals, stretch).block():
        compute(0.02)
    assert totals.busy_s >= 5 * 0.02
    assert len(slept) == 1


def test_what_ends_in_an_error_is_not_counted() -> None:
    totals = Totals()
    with pytest.raises(RuntimeError), ComputeTime(totals, None).block():
        raise RuntimeError
    assert totals.busy_s == 0.0
