from __future__ import annotations

import itertools
import math
import random

import pytest
import torch

from trainer.batcher import PATIENCE, Batcher, Part, Refusal

BOOT = "a" * 16
OTHER_BOOT = "b" * 16


def part(
    device: str = "a",
    number: int = 0,
    *,
    step: int = 0,
    last: bool = False,
    boot: str = BOOT,
    version: int = 0,
    deadline_s: float = 2.0,
) -> Part:
    return Part(
        device=device,
        boot=boot,
        step=step,
        part=number,
        last=last,
        cut=5,
        weights_version=version,
        deadline_s=deadline_s,
        segment=0,
        window_index=number,
        time_s=0.0,
        room="",
        activations=torch.zeros(1),
    )


def batcher(*devices: str, expected: int = 0, max_lag: int = 1) -> Batcher:
    made = Batcher(max_lag=max_lag, parts_per_step=4, expected_devices=expected)
    for device in devices:
        made.join(device, BOOT)
    return made


def add(to: Batcher, *parts: Part, now_s: float = 0.0, version: int = 0) -> list[Refusal | None]:
    return [to.add(each, now_s=now_s, weights_version=version) for each in parts]


def refusal(to: Batcher, one: Part, *, version: int = 0) -> Refusal:
    refused = to.add(one, now_s=0.0, weights_version=version)
    assert refused is not None
    return refused


def step_of(device: str, windows: int, step: int = 0) -> list[Part]:
    return [part(device, number, step=step, last=number + 1 == windows) for number in range(windows)]


def test_an_empty_batch_is_never_due() -> None:
    gathering = batcher("a")
    assert not gathering.due(1e9)
    assert gathering.seconds_left(0.0) is None
    assert gathering.take() == []


def test_it_closes_when_the_step_of_every_live_device_is_complete() -> None:
    gathering = batcher("a", "b")
    add(gathering, *step_of("a", 3))
    assert not gathering.due(0.0)
    add(gathering, *step_of("b", 2)[:1])
    assert not gathering.due(0.0)
    add(gathering, *step_of("b", 2)[1:])
    assert gathering.due(0.0)


def test_the_last_part_completes_nothing_while_an_earlier_one_is_missing() -> None:
    gathering = batcher("a")
    first, second, third = step_of("a", 3)
    add(gathering, first, third)
    assert not gathering.due(0.0)
    add(gathering, second)
    assert gathering.due(0.0)


def test_it_closes_the_longest_deadline_after_the_newest_part() -> None:
    gathering = batcher("a", "b")
    add(gathering, part("a", 0, deadline_s=2.0), now_s=10.0)
    add(gathering, part("b", 0, deadline_s=3.0), now_s=11.0)
    assert gathering.seconds_left(12.0) == 2.0
    assert not gathering.due(13.9)
    assert gathering.due(14.0)
    assert gathering.seconds_left(20.0) == 0.0


def test_a_batch_closed_by_the_deadline_holds_what_arrived_and_the_rest_is_late() -> None:
    gathering = batcher("a")
    first, second, third = step_of("a", 3)
    add(gathering, first, second)
    assert gathering.due(2.0)
    assert gathering.take() == [first, second]
    late = refusal(gathering, third)
    assert late.result == "late"
    assert "step 0 was closed" in late.reason


def test_a_part_of_a_step_that_the_device_has_left_behind_is_late_and_its_parts_are_dropped() -> None:
    gathering = batcher("a")
    add(gathering, *step_of("a", 3, step=4)[:2])
    newer = step_of("a", 1, step=5)
    add(gathering, *newer)
    assert refusal(gathering, part("a", 2, step=4, last=True)).result == "late"
    assert gathering.due(0.0)
    assert gathering.take() == newer


def test_a_part_older_than_max_lag_versions_is_stale_and_one_from_the_future_too() -> None:
    gathering = batcher("a", max_lag=1)
    assert add(gathering, part("a", 0, version=9), version=10) == [None]
    stale = refusal(gathering, part("a", 1, version=8), version=10)
    assert stale.result == "stale"
    assert stale.reason == "computed with version 8, now at 10"
    assert refusal(gathering, part("a", 1, version=11), version=10).result == "stale"


def test_parts_of_an_unknown_device_another_boot_or_beyond_the_step_are_rejected_in_words() -> None:
    gathering = batcher("a")
    assert refusal(gathering, part("stranger")).result == "rejected"
    assert "not known as ready" in refusal(gathering, part("a", boot=OTHER_BOOT)).reason
    assert refusal(gathering, part("a", 4)).reason == "part 4 of a step of 4"
    assert not gathering.due(1e9)


def test_a_device_that_comes_back_with_another_boot_starts_its_steps_anew() -> None:
    gathering = batcher("a")
    add(gathering, *step_of("a", 1, step=7))
    gathering.take()
    gathering.join("a", BOOT)
    assert refusal(gathering, part("a", step=7)).result == "late", "the same boot again is no news"
    gathering.join("a", OTHER_BOOT)
    assert add(gathering, part("a", boot=OTHER_BOOT, last=True)) == [None]
    assert refusal(gathering, part("a", step=8)).result == "rejected"


def test_nobody_waits_for_a_device_that_left_and_its_parts_are_gone() -> None:
    gathering = batcher("a", "b")
    add(gathering, *step_of("a", 2), *step_of("b", 2)[:1])
    assert not gathering.due(0.0)
    gathering.leave("b")
    gathering.leave("never-came")
    assert gathering.live == ("a",)
    assert gathering.due(0.0)
    assert {each.device for each in gathering.take()} == {"a"}


def test_a_silent_device_is_awaited_for_a_few_batches_and_again_once_it_sends() -> None:
    gathering = batcher("a", "silent")
    for step in range(PATIENCE):
        add(gathering, *step_of("a", 1, step=step))
        assert not gathering.due(0.0), "it may only be slow"
        gathering.take()
    add(gathering, *step_of("a", 1, step=PATIENCE))
    assert gathering.due(0.0)
    gathering.take()
    add(gathering, *step_of("silent", 1))
    assert not gathering.due(0.0), "the other one is awaited as ever"
    gathering.take()
    add(gathering, *step_of("a", 1, step=PATIENCE + 1))
    assert not gathering.due(0.0), "it has sent again, so it is awaited again"


def test_the_first_batch_waits_for_the_expected_devices_and_later_ones_do_not() -> None:
    gathering = batcher("a", expected=2)
    add(gathering, *step_of("a", 1))
    assert not gathering.due(0.0)
    gathering.join("b", BOOT)
    add(gathering, *step_of("b", 1))
    assert gathering.due(0.0)
    gathering.take()
    gathering.leave("b")
    add(gathering, *step_of("a", 1, step=1))
    assert gathering.due(0.0)


def test_a_part_that_comes_twice_counts_once() -> None:
    gathering = batcher("a")
    first, second = step_of("a", 2)
    add(gathering, first, first, second, second)
    assert gathering.take() == [first, second]


def test_the_batch_has_one_order_whatever_order_its_parts_came_in() -> None:
    parts = [*step_of("a", 3), *step_of("b", 2), *step_of("c", 1)]
    rng = random.Random(0)
    for _, order in zip(range(20), itertools.repeat(parts)):
        shuffled = rng.sample(order, len(order))
        gathering = batcher("c", "a", "b")
        add(gathering, *shuffled)
        assert gathering.due(0.0)
        assert [(each.device, each.part) for each in gathering.take()] == [(each.device, each.part) for each in parts]


def hold_up(gathering: Batcher, step: int, *, others: tuple[str, ...] = ("a", "b")) -> float:
    """The others complete a step at 0 s, "slow" goes on sending beginnings of steps: when the batch closes."""
    for device in others:
        add(gathering, *step_of(device, 2, step=step))
    for now_s in range(100):
        if gathering.due(float(now_s)):
            return float(now_s)
        add(gathering, part("slow", 0, step=1000 * step + now_s, deadline_s=60.0), now_s=float(now_s))
    raise AssertionError("it never closes")


def test_a_device_that_goes_on_sending_holds_the_others_up_no_longer_than_they_asked_and_soon_not_at_all() -> None:
    gathering = batcher("a", "b", "slow")
    waited = []
    for step in range(1, 24):
        waited.append(hold_up(gathering, step))
        assert {each.device for each in gathering.take()} >= {"a", "b"}
    assert waited[:PATIENCE] == [2.0] * PATIENCE, "the deadline of the others, not its own"
    assert waited[PATIENCE : PATIENCE + 8] == [0.0] * 8, "nobody waits"
    assert sum(waited) <= 2.0 * 4


def test_a_new_boot_is_no_new_start_for_a_device_that_holds_the_others_up() -> None:
    gathering = batcher("a", "b", "slow")
    for step in range(1, PATIENCE + 1):
        hold_up(gathering, step)
        gathering.take()
    gathering.join("slow", OTHER_BOOT)
    add(gathering, part("slow", 0, step=9999, boot=OTHER_BOOT))
    add(gathering, *step_of("a", 1, step=50), *step_of("b", 1, step=50))
    assert gathering.due(0.0)


def test_complete_steps_make_good_what_a_lost_part_held_up() -> None:
    gathering = batcher("a", "b", "slow")
    for step in range(1, 20, 3):
        hold_up(gathering, step)
        gathering.take()
        for more in (1, 2):
            for device in ("a", "b", "slow"):
                number = 1000 * step + 500 + more if device == "slow" else step + more
                add(gathering, *step_of(device, 2, step=number))
            assert gathering.due(0.0)
            gathering.take()
    add(gathering, *step_of("a", 2, step=100), *step_of("b", 2, step=100), part("slow", 0, step=999_999))
    assert not gathering.due(0.0), "it is still awaited"


def test_nobody_waits_for_a_device_whose_parts_cannot_be_used_in_this_batch() -> None:
    gathering = batcher("a", "b")
    gathering.excuse("b")
    gathering.excuse("stranger")
    add(gathering, *step_of("a", 1))
    assert gathering.due(0.0)
    gathering.take()
    add(gathering, *step_of("a", 1, step=1))
    assert not gathering.due(0.0), "in the next one it is awaited as ever"


def played(devices: int, *, within_s: float, minutes: int, lost: float = 0.0, parts: int = 8) -> list[float]:
    """When batches close, in seconds: devices switched on at any time within ``within_s``, a part every 0.96 s."""
    rng, gathering = random.Random(0), Batcher(max_lag=1, parts_per_step=parts)
    timeout_s = max(30.0, 2 * 0.96 * parts)  # as `device.assembly` has it
    next_s = {f"d{number:02}": rng.uniform(0.0, within_s) for number in range(devices)}
    step, sent, waits_from = dict.fromkeys(next_s, 0), dict.fromkeys(next_s, 0), dict.fromkeys(next_s, 0.0)
    closed, joined = [], set[str]()
    for tick in range(minutes * 60 * 4):
        now_s = tick / 4
        for device, due_s in next_s.items():
            if sent[device] == parts and now_s - waits_from[device] >= timeout_s:  # it gives the step up
                step[device], sent[device] = step[device] + 1, 0
            if now_s < due_s or sent[device] == parts:
                continue
            if device not in joined:
                joined.add(device)
                gathering.join(device, BOOT)
            number, sent[device] = sent[device], sent[device] + 1
            if rng.random() >= lost:
                one = part(device, number, step=step[device], last=number + 1 == parts)
                gathering.add(one, now_s=now_s, weights_version=0)
            next_s[device], waits_from[device] = now_s + 0.96, now_s
        if gathering.due(now_s):
            closed.append(now_s)
            for device in {each.device for each in gathering.take()}:
                step[device], sent[device] = step[device] + 1, 0
    return closed


@pytest.mark.parametrize(
    ("devices", "within_s", "lost", "parts"),
    [(30, 60.0, 0.0, 8), (50, 120.0, 0.0, 8), (30, 60.0, 0.05, 8), (30, 60.0, 0.0, 32), (30, 60.0, 0.0, 64)],
)
def test_devices_that_are_switched_on_one_after_another_soon_learn_in_step(
    devices: int, within_s: float, lost: float, parts: int
) -> None:
    step_s = 0.96 * parts
    minutes = math.ceil(45 * step_s / 60)
    closed = played(devices, within_s=within_s, minutes=minutes, lost=lost, parts=parts)
    later = [at_s for at_s in closed if at_s >= 22 * step_s]
    fastest = (60 * minutes - 22 * step_s) / (step_s + 0.3)  # with lost parts the deadline is waited for
    assert len(later) >= (0.7 if lost else 0.9) * fastest


def test_a_hostile_device_and_a_silent_one_together_hold_nobody_up_for_long() -> None:
    gathering = batcher("a", "b", "silent", "slow")
    waited = []
    for step in range(1, 12):
        waited.append(hold_up(gathering, step))
        assert {each.device for each in gathering.take()} >= {"a", "b"}
    assert waited[:PATIENCE] == [2.0] * PATIENCE, "as long as the others asked, for their step took no time"
    assert waited[2 * PATIENCE :] == [0.0] * (11 - 2 * PATIENCE)


def test_one_complete_device_closes_no_batch_while_most_are_in_the_middle_of_their_step() -> None:
    gathering = batcher("quick", "b", "c", "d")
    add(gathering, *step_of("quick", 2))
    for number in range(30):
        for device in "bcd":
            add(gathering, part(device, number % 4, step=number // 4), now_s=float(number))
        assert not gathering.due(float(number))


def test_whoever_began_when_most_were_complete_has_as_long_as_they_had() -> None:
    gathering = batcher("a", "b", "c", "d")
    for number in range(4):
        for device in "ab":
            add(gathering, part(device, number, last=number == 3), now_s=3.0 * number)
    for number in range(3):
        for device in "cd":
            add(gathering, part(device, number), now_s=10.0 + 3.0 * number)
    assert not gathering.due(17.9)
    assert gathering.due(18.0)
