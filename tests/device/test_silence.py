from __future__ import annotations

from device.silence import FIRST_S, LONGEST_S, Silence


def test_after_two_unanswered_steps_the_trainer_is_away_for_a_minute_then_for_twice_as_long() -> None:
    silence = Silence()
    silence.step_lost(100.0, heard=7)
    assert not silence.holds(100.0, heard=7), "one may be lost"
    silence.step_lost(140.0, heard=7)
    assert silence.holds(140.0, heard=7)
    assert silence.holds(140.0 + FIRST_S - 0.1, heard=7)
    assert not silence.holds(140.0 + FIRST_S, heard=7), "it is tried again"
    silence.step_lost(300.0, heard=7)
    assert silence.holds(300.0 + 2 * FIRST_S - 0.1, heard=7)
    for step in range(20):
        silence.step_lost(1000.0 * step, heard=7)
    assert not silence.holds(19_000.0 + LONGEST_S, heard=7)


def test_whatever_the_trainer_says_brings_it_back_at_once() -> None:
    silence = Silence()
    for _ in range(5):
        silence.step_lost(0.0, heard=7)
    assert silence.holds(1.0, heard=7)
    assert not silence.holds(1.0, heard=8)
    silence.step_lost(2.0, heard=8)
    assert not silence.holds(2.0, heard=8), "lost steps are counted anew"
