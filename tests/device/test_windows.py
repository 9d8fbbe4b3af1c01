from __future__ import annotations

import numpy as np
import pytest

from common.log_mel import SAMPLE_RATE_HZ, WINDOW_SAMPLES
from device.windows import (
    CONTEXT_S,
    WINDOW_S,
    Clip,
    LiveWindows,
    Replay,
    Window,
    neighbourhood,
    shuffled_clip,
    stream_clip,
)

CONTEXT_SAMPLES = round(CONTEXT_S * SAMPLE_RATE_HZ)


def _ramp(samples: int, start: int = 0) -> np.ndarray:
    # Whole numbers below 2^24 are exact in float32: a sample's value is its place.
    return np.arange(start, start + samples, dtype=np.float32)


class Clock:
    """Time that passes only when somebody waits."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def wait(self, seconds: float) -> None:
        assert seconds >= 0.0
        self.now_s += seconds


def _take(replay: Replay, count: int) -> list[Window]:
    windows = [replay.next_window(10.0) for _ in range(count)]
    return [window for window in windows if window is not None]


@pytest.mark.parametrize("seed", range(5))
def test_a_clip_of_five_seconds_is_five_contiguous_windows_from_a_random_start(seed: int) -> None:
    clip = stream_clip(_ramp(80_000), np.random.default_rng(seed))
    assert len(clip.starts) == 5
    assert set(np.diff(clip.starts)) == {WINDOW_SAMPLES}
    assert 0 <= clip.starts[0] <= 80_000 - 5 * WINDOW_SAMPLES


def test_the_start_within_the_spare_time_differs_from_pass_to_pass() -> None:
    rng = np.random.default_rng(0)
    assert len({stream_clip(_ramp(80_000), rng).starts[0] for _ in range(20)}) > 10


@pytest.mark.parametrize("begin", [stream_clip, shuffled_clip])
def test_a_clip_shorter_than_a_window_is_tiled_to_one(begin: object) -> None:
    clip = begin(_ramp(1_000), np.random.default_rng(0))  # type: ignore[operator]
    assert clip.starts == (0,)
    np.testing.assert_array_equal(clip.samples, np.tile(_ramp(1_000), 16)[:WINDOW_SAMPLES])


@pytest.mark.parametrize("samples", [WINDOW_SAMPLES, WINDOW_SAMPLES + 1, 80_000])
def test_a_shuffled_window_lies_inside_its_clip(samples: int) -> None:
    rng = np.random.default_rng(0)
    starts = [shuffled_clip(_ramp(samples), rng).starts for _ in range(200)]
    assert all(len(start) == 1 and 0 <= start[0] <= samples - WINDOW_SAMPLES for start in starts)


@pytest.mark.parametrize("start", [0, 100, CONTEXT_SAMPLES, 30_000, 80_000 - WINDOW_SAMPLES])
def test_the_context_reaches_half_a_second_to_either_side_inside_the_clip(start: int) -> None:
    context, offset = neighbourhood(_ramp(80_000), start)
    first, last = max(0, start - 8_000), min(80_000, start + WINDOW_SAMPLES + 8_000)
    np.testing.assert_array_equal(context, _ramp(last - first, first))
    assert context[offset] == start


def test_a_replay_told_so_gives_every_window_the_whole_of_its_clip() -> None:
    replay = Replay(iter([Clip(_ramp(80_000), (0, 60_000))]), speed="fast", context_s=5.0)
    for window, offset in zip(_take(replay, 3), (0, 60_000), strict=True):
        np.testing.assert_array_equal(window.context, _ramp(80_000))
        assert window.offset == offset


def test_a_live_window_told_so_remembers_more_of_what_came_before() -> None:
    live = LiveWindows(context_s=2.0)
    for start in range(0, 200_000, 1_000):
        live.push(_ramp(1_000, start), arrived_s=start / 16_000)
    offsets = []
    while (window := live.pop()) is not None:
        offsets.append(window.offset)
        assert window.context[0] == window.samples[0] - window.offset
    assert offsets == [0, 15_360, 30_720, *[32_000] * (len(offsets) - 3)]


def test_a_replay_numbers_windows_through_and_segments_by_clip() -> None:
    clips = [Clip(_ramp(50_000), (10, 10 + WINDOW_SAMPLES)), Clip(_ramp(20_000, 70_000), (5,))]
    replay = Replay(iter(clips), speed="fast")
    windows = _take(replay, 4)
    assert [(window.index, window.segment) for window in windows] == [(0, 0), (1, 0), (2, 1)]
    assert [window.samples[0] for window in windows] == [10, 10 + WINDOW_SAMPLES, 70_005]
    for window in windows:
        np.testing.assert_array_equal(window.context[window.offset :][:WINDOW_SAMPLES], window.samples)
    assert replay.state == "exhausted"
    assert replay.next_window(1.0) is None


def test_a_fast_replay_reads_no_clock_and_stamps_audio_time() -> None:
    def never(*_: object) -> float:
        raise AssertionError("the clock was read")

    replay = Replay(iter([Clip(_ramp(50_000), (0, WINDOW_SAMPLES))]), speed="fast", clock=never, wait=never)  # type: ignore[arg-type]
    assert [window.closed_s for window in _take(replay, 2)] == pytest.approx([WINDOW_S, 2.0 * WINDOW_S])


def test_in_real_time_a_window_comes_when_its_last_sample_would_be_there() -> None:
    clock = Clock()
    replay = Replay(iter([Clip(_ramp(50_000), (0, WINDOW_SAMPLES))]), speed="realtime", clock=clock, wait=clock.wait)
    assert replay.next_window(0.0) is None
    assert replay.next_window(0.9) is None
    assert clock.now_s == pytest.approx(100.9)
    window = replay.next_window(0.5)
    assert window is not None
    assert clock.now_s == pytest.approx(100.96)
    assert window.closed_s == pytest.approx(100.96)
    second = replay.next_window(1.0)
    assert second is not None
    assert second.closed_s == pytest.approx(101.92)


def test_a_replay_in_real_time_begins_when_it_is_first_asked() -> None:
    clock = Clock()
    clips = iter([Clip(_ramp(WINDOW_SAMPLES * 40), tuple(WINDOW_SAMPLES * number for number in range(40)))])
    replay = Replay(clips, speed="realtime", backlog=4, clock=clock, wait=clock.wait)
    clock.now_s += 45.0  # blocks are measured, the weights are fetched
    assert replay.waiting == 0
    window = replay.next_window(1.0)
    assert window is not None
    assert (window.samples[0], replay.dropped, replay.waiting) == (0, 0, 0)


def test_in_real_time_windows_that_nobody_takes_are_lost_and_leave_a_gap() -> None:
    clock = Clock()
    clips = iter([Clip(_ramp(WINDOW_SAMPLES * 40), tuple(WINDOW_SAMPLES * number for number in range(40)))])
    replay = Replay(clips, speed="realtime", backlog=4, clock=clock, wait=clock.wait)
    first = replay.next_window(1.0)
    clock.now_s += 10.0 * WINDOW_S + 0.01
    second = replay.next_window(0.0)
    assert first is not None
    assert second is not None
    assert replay.dropped == 5
    assert second.samples[0] == 6 * WINDOW_SAMPLES
    assert second.segment == first.segment + 1
    assert second.index == first.index + 1
    # What waits in the backlog is there at once and without another gap.
    rest = [replay.next_window(0.0) for _ in range(6)]
    assert [window.segment for window in rest if window is not None] == [second.segment] * 4


def test_an_error_of_the_clips_reaches_the_caller() -> None:
    def clips() -> object:
        yield Clip(_ramp(40_000), (0, WINDOW_SAMPLES))
        raise RuntimeError("no more of these")

    replay = Replay(clips(), speed="fast")  # type: ignore[arg-type]
    assert replay.next_window(0.0) is not None
    with pytest.raises(RuntimeError, match="no more of these"):
        replay.next_window(0.0)


@pytest.mark.parametrize("block", [160, 1_000, 7_777, 40_000])
def test_live_windows_are_contiguous_whatever_the_blocks(block: int) -> None:
    live = LiveWindows()
    stream = _ramp(100_000)
    windows: list[Window] = []
    for start in range(0, stream.shape[0], block):
        piece = stream[start : start + block]
        live.push(piece, arrived_s=(start + piece.shape[0]) / 16_000)
        while (window := live.pop()) is not None:
            windows.append(window)
    assert len(windows) == 100_000 // WINDOW_SAMPLES
    for number, window in enumerate(windows):
        first = number * WINDOW_SAMPLES
        np.testing.assert_array_equal(window.samples, stream[first : first + WINDOW_SAMPLES])
        assert (window.index, window.segment) == (number, 0)
        assert window.closed_s == pytest.approx((first + WINDOW_SAMPLES) / 16_000)
        assert window.offset == min(first, CONTEXT_SAMPLES)
        begin = first - window.offset
        np.testing.assert_array_equal(window.context, stream[begin : begin + window.context.shape[0]])
        assert window.context.shape[0] <= window.offset + WINDOW_SAMPLES + min(block, CONTEXT_SAMPLES)


def test_a_gap_forgets_the_begun_window_and_starts_a_segment_without_its_past() -> None:
    live = LiveWindows()
    live.gap()
    live.push(_ramp(20_000), arrived_s=1.25)
    first = live.pop()
    live.gap()
    live.gap()
    live.push(_ramp(WINDOW_SAMPLES, 50_000), arrived_s=3.0)
    second = live.pop()
    assert first is not None
    assert second is not None
    assert (first.segment, second.segment) == (0, 1)
    assert (second.index, second.offset) == (1, 0)
    assert second.context[0] == 50_000


def test_a_live_stream_of_two_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="mono"):
        LiveWindows().push(np.zeros((10, 2), dtype=np.float32), arrived_s=0.0)
