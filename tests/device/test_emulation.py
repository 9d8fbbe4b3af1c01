from __future__ import annotations

import pytest

from device.emulation import (
    MEASURED_AT_LEAST_EVERY_S,
    MEASURED_EVERY_S,
    REMEMBERED,
    REPEATS,
    BoardSampler,
    ComputeStretch,
    ForwardTime,
)


class Time:
    """A clock that stands still unless somebody computes or sleeps; a sleep lasts `late_s` too long."""

    def __init__(self, late_s: float = 0.0) -> None:
        self.now_s = 50.0
        self.cpu_s = 3.0
        self.late_s = late_s
        self.sleeps: list[float] = []

    def clock(self) -> float:
        return self.now_s

    def cpu_clock(self) -> float:
        return self.cpu_s

    def wait(self, seconds: float) -> None:
        """The host does something else."""
        self.now_s += seconds

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now_s += seconds + self.late_s

    def compute(self, seconds: float) -> None:
        self.now_s += seconds
        self.cpu_s += seconds


class Host:
    """A machine that takes `host_ms` for a view, of two at once; timing it takes that long."""

    def __init__(self, time: Time, host_ms: float) -> None:
        self._time = time
        self.host_ms = host_ms
        self.asked_s: list[float] = []

    def once(self) -> float:
        self.asked_s.append(self._time.now_s - 50.0)
        self._time.compute(2e-3 * self.host_ms)
        return 2.0 * self.host_ms

    def least(self) -> float:
        return 2.0 * self.host_ms


def stretch(time: Time, *, host: float, board: float) -> ComputeStretch:
    return played(time, Host(time, host), board)


def played(time: Time, host: Host, board: float) -> ComputeStretch:
    return ComputeStretch(
        host=host, board_forward_ms=board, clock=time.clock, cpu_clock=time.cpu_clock, sleep=time.sleep
    )


def test_a_block_lasts_as_long_as_on_the_slower_board() -> None:
    time = Time()
    with stretch(time, host=2.0, board=10.0).block():
        time.compute(0.1)
    assert time.now_s - 50.0 == pytest.approx(0.5)


def test_a_busy_host_does_not_make_the_board_slower_while_there_is_time() -> None:
    time = Time()
    board = stretch(time, host=2.0, board=10.0)
    with board.block():
        time.compute(0.1)
        time.wait(0.3)
    assert time.now_s - 50.0 == pytest.approx(0.5)
    with board.block():
        time.compute(0.1)
        time.wait(0.9)
    assert time.now_s - 50.0 == pytest.approx(0.5 + 1.0)
    with board.block():
        time.compute(0.1)
    assert time.now_s - 50.0 == pytest.approx(0.5 + 1.0 + 0.5)


def test_others_on_the_board_make_it_slower_still() -> None:
    time = Time()
    board = stretch(time, host=2.0, board=10.0)
    board.shared = 3.0
    with board.block():
        time.compute(0.1)
    assert time.now_s - 50.0 == pytest.approx(1.5)


def test_the_load_of_a_board_is_its_own_compute_and_that_of_others() -> None:
    time, busy_s, others = Time(), 0.0, 0.0
    board = BoardSampler(cores=4, memory_mb=2**20, busy_s=lambda: busy_s, others_cpu=lambda: others, clock=time.clock)
    busy_s = 1.0
    time.wait(2.0)
    sample = board.sample()
    assert sample.cpu == pytest.approx(1.0 / 2.0 / 4)
    assert 0.0 < sample.memory < 0.01
    assert (sample.temperature_c, sample.throttled, sample.battery) == (None, None, None)
    others = 0.5
    time.wait(1.0)
    assert board.sample().cpu == pytest.approx(0.5)
    others = 1.0
    busy_s = 3.0
    time.wait(1.0)
    assert board.sample().cpu == 1.0
    others = 0.25
    busy_s = 5.0
    time.wait(1.0)
    assert board.sample(but_for_s=1.0).cpu == pytest.approx(1.0 / (4 - 1) + 0.25)


def test_a_faster_board_is_a_ratio_and_no_sleep() -> None:
    time = Time()
    apple = stretch(time, host=2.0, board=0.5)
    with apple.block():
        time.compute(0.1)
    assert time.sleeps == []
    assert apple.faster_than_host
    assert (apple.ratio, apple.slowdown) == (0.25, 1.0)
    assert apple.describe() == "the board is 4.0 times as fast as this machine: compute is not emulated"


def test_an_equal_board_is_left_alone() -> None:
    time = Time()
    same = stretch(time, host=2.0, board=2.0)
    with same.block():
        time.compute(0.1)
    assert time.sleeps == []
    assert not same.faster_than_host


def test_a_sleep_that_lasts_too_long_is_made_good_in_the_next_block() -> None:
    time = Time(late_s=0.01)
    board = stretch(time, host=1.0, board=3.0)
    for _ in range(10):
        with board.block():
            time.compute(0.02)
    # Never more than one lateness over, however many blocks.
    assert time.now_s - 50.0 == pytest.approx(10 * 0.06 + 0.01)


def test_a_lateness_longer_than_the_next_block_needs_means_no_sleep() -> None:
    time = Time(late_s=1.0)
    board = stretch(time, host=1.0, board=2.0)
    for _ in range(3):
        with board.block():
            time.compute(0.1)
    assert time.sleeps == [pytest.approx(0.1)]


def test_after_an_exception_nothing_is_slept() -> None:
    time = Time()

    def failing_block() -> None:
        with stretch(time, host=1.0, board=5.0).block():
            time.compute(0.1)
            raise KeyError

    with pytest.raises(KeyError):
        failing_block()
    assert time.sleeps == []


@pytest.mark.parametrize(("host", "board"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0), (float("nan"), 1.0)])
def test_a_forward_time_that_cannot_be_is_refused(host: float, board: float) -> None:
    with pytest.raises(ValueError, match="forward times"):
        played(Time(), Host(Time(), host), board)


def test_a_host_that_has_become_slower_does_not_make_the_board_slower() -> None:
    time = Time()
    host = Host(time, 2.0)
    board = played(time, host, 10.0)
    assert (board.slowdown, len(host.asked_s)) == (5.0, 0)
    host.host_ms = 4.0
    for _ in range(REMEMBERED):
        time.wait(MEASURED_EVERY_S)
        start_s = time.now_s
        with board.block() as slowdown:
            time.compute(0.1)
        assert time.now_s - start_s == pytest.approx(0.1 * slowdown), "measuring takes none of the board's time"
    assert (board.slowdown, len(host.asked_s)) == (2.5, REMEMBERED)


def test_the_host_is_not_measured_more_often_than_every_second_nor_where_there_is_no_time() -> None:
    time = Time()
    host = Host(time, 2.0)
    board = played(time, host, 10.0)
    for _ in range(6):
        with board.block():
            time.compute(0.1)
    assert [round(at_s, 3) for at_s in host.asked_s] == [1.1, 2.1]
    time.wait(MEASURED_EVERY_S)
    with board.block():
        time.compute(0.001)
    assert len(host.asked_s) == 2


def test_a_board_with_hardly_any_sleep_is_measured_all_the_same_and_the_next_blocks_make_it_good() -> None:
    time = Time()
    host = Host(time, 20.0)
    board = played(time, host, 22.0)
    for _ in range(2 * REMEMBERED):
        time.wait(MEASURED_AT_LEAST_EVERY_S)
        start_s = time.now_s
        for _ in range(8):
            with board.block():
                time.compute(0.1)
        assert time.now_s - start_s == pytest.approx(8 * 0.1 * 1.1)
    assert len(host.asked_s) == 2 * REMEMBERED


def test_a_board_that_has_become_faster_than_the_host_is_slowed_down_again_once_it_is_not() -> None:
    time = Time()
    host = Host(time, 20.0)
    board = played(time, host, 22.0)
    for host_ms, slowdown in ((30.0, 1.0), (11.0, 2.0)):
        host.host_ms = host_ms
        for _ in range(REMEMBERED):
            time.wait(MEASURED_AT_LEAST_EVERY_S)
            with board.block():
                time.compute(0.1)
        assert board.slowdown == slowdown
    start_s = time.now_s
    with board.block():
        time.compute(0.1)
    assert time.now_s - start_s == pytest.approx(0.2), "what measuring took while nothing was emulated is not owed"


def test_the_forward_time_is_the_quickest_after_warming_up() -> None:
    time = Time()
    pairs = [(0.001, 0.1)] * (REPEATS - 2) + [(0.001, 0.003), (0.001, 0.1)]
    durations = iter([0.001, 0.001, *(one for pair in pairs for one in pair), 0.001, 0.005])
    forward = ForwardTime(lambda: time.compute(next(durations)), clock=time.clock)
    assert forward.least() == pytest.approx(3.0)
    assert forward.once() == pytest.approx(5.0)
