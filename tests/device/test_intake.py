from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from common.config_device import DeviceConfig
from common.encoder import build_encoder
from common.log_mel import LogMel
from common.mixture_memory import MixtureMemory
from common.views import views_of
from device.ambiguity import Ambiguity
from device.compute_time import ComputeTime
from device.intake import MOST_AHEAD, Intake
from device.journal import Totals
from device.pace import Pace
from device.windows import WINDOW_S, SourceState, Window
from tests.device.test_ambiguity import heard

PACE = Pace(
    parts_per_step=8,
    windows=None,
    min_cut=3,
    first_cut=5,
    deadline_s=2.0,
    step_timeout_s=30.0,
    start_timeout_s=30.0,
    local_learning=True,
    learn_unsent=False,
    local_waiting=32,
    lockstep=False,
)


class Source:
    """Windows that have all closed already, the n-th of them at n seconds."""

    def __init__(self, windows: int) -> None:
        self.left = windows
        self.taken = 0
        self.dropped = 0

    @property
    def state(self) -> SourceState:
        return "ok" if self.left else "exhausted"

    @property
    def waiting(self) -> int:
        return self.left

    def next_window(self, timeout_s: float) -> Window | None:
        if not self.left:
            return None
        self.left, self.taken = self.left - 1, self.taken + 1
        samples = np.zeros(15360, np.float32)
        return Window(samples, samples, 0, segment=0, index=self.taken, closed_s=float(self.taken))

    def close(self) -> None:
        self.left = 0


def intake(source: Source, totals: Totals, pace: Pace = PACE) -> Intake:
    views = views_of("hybrid", LogMel(), np.random.default_rng(0))
    ambiguity = Ambiguity(build_encoder("mobile", seed=0), MixtureMemory())
    return Intake(source, views, ambiguity, ComputeTime(totals, None), totals, pace)


def test_windows_looked_at_ahead_come_back_in_their_order_and_keep_their_time() -> None:
    made = intake(Source(5), Totals())
    for _ in range(2):
        assert made.look_ahead()
    assert made.waiting == 5
    seen = [made.next_ahead(), made.next_ahead()]
    assert [one.closed_s for one in seen if one] == [1.0, 2.0]
    assert made.next_ahead() is None
    assert made.waiting == 3


def test_no_more_is_looked_at_than_is_kept_and_no_more_than_is_wanted() -> None:
    source = Source(100)
    made = intake(source, Totals())
    for _ in range(MOST_AHEAD + 3):
        made.look_ahead()
    assert source.taken == MOST_AHEAD
    source = Source(100)
    made = intake(source, Totals(windows=7), replace(PACE, windows=9))
    assert [made.look_ahead() for _ in range(5)] == [True, True, False, False, False]
    assert source.taken == 2


def test_all_windows_that_close_while_a_step_may_be_waited_for_are_looked_at() -> None:
    assert DeviceConfig.model_fields["step_timeout_s"].default / WINDOW_S < MOST_AHEAD


def test_it_is_over_only_when_what_was_looked_at_ahead_was_dealt_with_too() -> None:
    made = intake(Source(1), Totals())
    assert not made.finished()
    made.look_ahead()
    assert not made.finished()
    assert made.next_ahead() is not None
    assert made.finished()
    assert intake(Source(5), Totals(windows=9), replace(PACE, windows=9)).finished()


def test_an_embedding_is_computed_and_timed_only_where_it_is_wanted() -> None:
    window = Source(1).next_window(0.0)
    assert window is not None
    plain = intake(Source(0), Totals()).see(window)
    assert (plain.own_s, plain.uncertainty) == (None, None)
    own = intake(Source(0), Totals(), replace(PACE, own_embedding=True)).see(window)
    assert own.own_s is not None
    assert own.own_s > 0
    assert own.uncertainty is None, "no mixture yet"
    assert torch.equal(own.views, plain.views)


def test_where_embeddings_are_computed_a_window_s_uncertainty_is_known_as_soon_as_there_is_a_mixture() -> None:
    window = Source(1).next_window(0.0)
    assert window is not None
    pace, encoder, mixture = replace(PACE, own_embedding=True), build_encoder("mobile", seed=1), heard()
    views = views_of("hybrid", LogMel(), np.random.default_rng(0))
    ambiguity = Ambiguity(encoder, mixture)
    seen = Intake(Source(0), views, ambiguity, ComputeTime(Totals(), None), Totals(), pace).see(window)
    with torch.no_grad():
        expected = float(mixture.uncertainty(encoder.project(encoder(seen.views[:1]))))
    assert seen.uncertainty == pytest.approx(expected, abs=1e-5)
    assert ambiguity.latest == seen.uncertainty


def test_an_embedding_that_is_waited_for_does_not_wait_for_view_b() -> None:
    heard: list[int] = []
    window = Source(1).next_window(0.0)
    assert window is not None
    log_mel = LogMel()

    def listen(waveforms: Tensor) -> Tensor:
        heard.append(len(waveforms))
        pictures: Tensor = log_mel(waveforms)
        return pictures

    class Embedding(Ambiguity):
        def embedding(self, first: Tensor) -> Tensor:
            heard.append(0)
            return super().embedding(first)

    views = views_of("hybrid", listen, np.random.default_rng(0))
    ambiguity = Embedding(build_encoder("mobile", seed=0), MixtureMemory())
    pace = replace(PACE, own_embedding=True)
    Intake(Source(0), views, ambiguity, ComputeTime(Totals(), None), Totals(), pace).see(window)
    assert heard == [1, 0, 1]


def test_where_no_clock_decides_and_where_only_sound_travels_nothing_is_looked_at_ahead() -> None:
    assert intake(Source(1), Totals()).looks_ahead
    assert not intake(Source(1), Totals(), replace(PACE, lockstep=True)).looks_ahead
    assert not intake(Source(1), Totals(), replace(PACE, sound="pcm16")).looks_ahead


def test_what_is_heard_during_a_pause_is_neither_kept_nor_taken_later() -> None:
    source = Source(5)
    made = intake(source, Totals())
    made.look_ahead()
    made.pass_over()
    assert made.waiting == 0
    assert made.next_ahead() is None


def test_in_fast_mode_a_pause_loses_no_window() -> None:
    source = Source(5)
    intake(source, Totals(), replace(PACE, lockstep=True)).pass_over()
    assert source.left == 5
