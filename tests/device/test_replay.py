from __future__ import annotations

import torch

from device.replay import Past, Replay


def past(number: int) -> Past:
    return Past(torch.full((2, 1, 64, 96), float(number)), number, 0.96 * number)


def held(replay: Replay) -> set[int]:
    return {one.segment for one in replay.draw(10_000)}


def test_what_is_drawn_was_put_in_and_none_of_it_twice() -> None:
    replay = Replay(8, seed=0)
    assert replay.draw(3) == []
    for number in range(5):
        replay.add(past(number))
    drawn = replay.draw(4)
    assert len({one.segment for one in drawn}) == 4
    for one in drawn:
        assert one.views.dtype == torch.float32
        assert torch.equal(one.views, past(one.segment).views)
        assert one.time_s == past(one.segment).time_s
    assert held(replay) == set(range(5))


def test_it_never_holds_more_than_its_capacity_and_forgets_gradually() -> None:
    replay = Replay(32, seed=0)
    for number in range(320):
        replay.add(past(number))
    assert len(replay) == 32
    assert len(held(replay)) == 32
    ages = [319 - number for number in held(replay)]
    assert min(ages) == 0, "the newest is always there"
    assert sum(age > 64 for age in ages) >= 2, "and some are much older than the last 32"


def test_the_same_seed_keeps_and_draws_the_same() -> None:
    runs = []
    for _ in range(2):
        replay = Replay(4, seed=3)
        for number in range(20):
            replay.add(past(number))
        runs.append([one.segment for one in replay.draw(3)])
    assert runs[0] == runs[1]


def test_without_capacity_nothing_is_kept() -> None:
    replay = Replay(0, seed=0)
    assert replay.draw(5) == []
