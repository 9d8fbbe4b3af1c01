"""Devices that cannot be believed are left out; honest ones never are, and nothing of theirs is changed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from trainer.batcher import Part
from trainer.screening import (
    ENOUGH_WINDOWS,
    FIRST_QUARANTINE_BATCHES,
    KEPT,
    LAPSE_BATCHES,
    LONGEST_QUARANTINE_BATCHES,
    MEMORY_WINDOWS,
    Kinship,
    Screening,
)

HONEST = [f"device-{number}" for number in range(1, 8)]
WINDOWS = 8
DIM = 16


def part(device: str, activations: Tensor, *, cut: int = 5, boot: str = "a" * 16) -> Part:
    return Part(device, boot, 0, 0, False, cut, 0, 1.0, 0, 0, 0.0, "", activations)


def sound(rng: torch.Generator, scale: float = 1.0) -> Tensor:
    """Activations as a normalisation leaves them: a root mean square of nearly 1."""
    values = torch.randn(2, 8, 4, 6, generator=rng)
    spread = 1.0 + 0.03 * torch.randn(2, 1, 1, 1, generator=rng)
    return scale * spread * values / values.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()


def related(count: int, rng: torch.Generator, closeness: float = 1.0) -> Tensor:
    """Projections [2, count, DIM] of two views of each window: the nearer, the closer they are."""
    window = torch.randn(count, DIM, generator=rng)
    views = [closeness * window + torch.randn(count, DIM, generator=rng) for _ in range(2)]
    return functional.normalize(torch.stack(views), dim=2)


class Run:
    """A trainer that gets a step of every device in each batch."""

    def __init__(self, seed: int = 0) -> None:
        self.screening = Screening()
        self.rng = torch.Generator().manual_seed(seed)

    def batch(
        self, hostile: Tensor | None = None, *, scale: float = 1.0, aligned: bool = True, times: int = 1
    ) -> list[str]:
        """Why the hostile device's parts were refused; the honest ones' must not be."""
        reasons = []
        taken: list[str] = []
        for _ in range(WINDOWS):
            for device in HONEST:
                assert self.screening.judge(part(device, sound(self.rng, scale))) == ""
                taken.append(device)
            for _ in range(times if hostile is not None else 0):
                assert hostile is not None
                reasons.append(self.screening.judge(part("hostile", hostile)))
        if hostile is not None and not any(reasons):
            taken += ["hostile"] * WINDOWS
        views = [
            related(taken.count(device), self.rng, 1.0 if device in HONEST or aligned else 0.0)
            for device in dict.fromkeys(taken)
        ]
        self.screening.observe(sorted(taken), torch.cat([views[i] for i in self._order(taken)], dim=1))
        return reasons

    @staticmethod
    def _order(taken: Sequence[str]) -> list[int]:
        names = list(dict.fromkeys(taken))
        return [names.index(device) for device in sorted(names)]


@pytest.mark.parametrize(
    "wrong",
    [
        torch.rand(2, 8, 4, 6, generator=torch.Generator().manual_seed(1)) * 2 - 1,
        torch.full((2, 8, 4, 6), 6e4),
        torch.full((2, 8, 4, 6), 1e6),
        torch.zeros(2, 8, 4, 6),
        torch.cat([sound(torch.Generator().manual_seed(1))[:1], torch.full((1, 8, 4, 6), 9.0)]),
        torch.nn.functional.one_hot(torch.tensor([7, 7]), 192).view(2, 8, 4, 6) * 192**0.5,
    ],
    ids=["uniform noise", "huge", "at the limit", "nothing", "one view", "one peak"],
)
def test_activations_unlike_the_fleet_s_are_refused_from_the_second_batch_on(wrong: Tensor) -> None:
    run = Run()
    run.batch(wrong)
    for _ in range(5):
        reasons = run.batch(wrong)
        assert all("the fleet's lie within" in reason for reason in reasons)
    assert run.screening.refused["hostile"] == 5 * WINDOWS
    assert not run.screening.trusts("hostile")
    assert all(run.screening.trusts(device) for device in HONEST)


def test_however_much_it_sends_one_device_moves_no_bound() -> None:
    run = Run()
    for _ in range(10):
        run.batch(torch.full((2, 8, 4, 6), 6e4), times=50)


def test_honest_devices_are_never_refused_while_their_scale_drifts() -> None:
    run = Run()
    for step in range(150):
        run.batch(scale=math.exp(0.03 * step))
    assert sum(run.screening.refused.values()) == 0


def test_a_sudden_change_of_all_devices_locks_nobody_out_for_long() -> None:
    screening, rng = Screening(), torch.Generator().manual_seed(0)
    refused = []
    for batch in range(20):
        for device in HONEST:
            scale = 1.0 if batch < 10 else 5.0
            refused += [bool(screening.judge(part(device, sound(rng, scale)))) for _ in range(WINDOWS)]
        screening.observe([], torch.zeros(2, 0, DIM))
    per_batch = len(HONEST) * WINDOWS
    assert sum(refused[: 10 * per_batch]) == 0
    assert sum(refused) <= KEPT * len(HONEST)
    assert not any(refused[13 * per_batch :])


def test_of_two_devices_nobody_can_tell_which_is_wrong() -> None:
    screening, rng = Screening(), torch.Generator().manual_seed(0)
    for _ in range(20):
        for _ in range(WINDOWS):
            assert screening.judge(part("a", sound(rng))) == ""
            assert screening.judge(part("b", 100.0 * sound(rng))) == ""
        screening.observe([], torch.zeros(2, 0, DIM))


def test_a_device_that_has_gone_has_no_vote_any_more() -> None:
    screening, rng = Screening(), torch.Generator().manual_seed(0)
    for _ in range(4):
        for device in ("a", "b", "c"):
            for _ in range(WINDOWS):
                screening.judge(part(device, 40.0 * sound(rng)))
        screening.observe([], torch.zeros(2, 0, DIM))
    for device in ("a", "b", "c"):
        screening.forget(device)
    for device in ("d", "e", "f"):
        for _ in range(WINDOWS):
            screening.judge(part(device, sound(rng)))
    screening.observe([], torch.zeros(2, 0, DIM))
    assert screening.judge(part("d", sound(rng))) == ""


def slow_score(devices: Sequence[str], views: Tensor, device: str) -> float:
    """Every comparison, one after the other."""
    rows = [row for row, name in enumerate(devices) if name == device]
    won = of = 0.0
    for i in rows:
        for j in rows:
            if i == j:
                continue
            own = float(views[0, i] @ views[1, i])
            for other in (float(views[0, i] @ views[1, j]), float(views[0, j] @ views[1, i])):
                won += 1.0 if own > other else 0.5 if own == other else 0.0
                of += 1.0
    return won / of


def test_kinship_is_the_share_of_comparisons_that_a_window_s_own_view_wins() -> None:
    rng = torch.Generator().manual_seed(5)
    devices = ["b", "a", "b", "a", "a", "b", "c"]
    views = related(len(devices), rng)
    views[:, 5] = views[:, 2]  # ties
    batches = math.ceil(MEMORY_WINDOWS)
    kinship = Kinship()
    for _ in range(batches):
        kinship.observe(devices, views)
    for device in ("a", "b"):
        assert kinship.score(device) == pytest.approx(slow_score(devices, views, device), abs=1e-5)
    assert kinship.score("c") is None, "a window alone is compared with nothing"
    assert kinship.score("stranger") is None


@pytest.mark.parametrize("seed", range(5))
def test_noise_of_the_right_scale_is_left_out_once_it_has_been_heard_long_enough(seed: int) -> None:
    run = Run(seed)
    batches = 0
    while not any(run.batch(sound(run.rng), aligned=False)):
        batches += 1
        assert batches < 80
    assert batches > ENOUGH_WINDOWS / WINDOWS
    assert not run.screening.trusts("hostile")
    assert sum(run.screening.refused[device] for device in HONEST) == 0


def test_it_is_tried_again_and_then_left_out_for_twice_as_long() -> None:
    run = Run(1)
    out = [any(run.batch(sound(run.rng), aligned=False)) for _ in range(600)]
    starts = [i for i in range(1, 600) if out[i] and not out[i - 1]]
    ends = [i for i in range(1, 600) if out[i - 1] and not out[i]]
    assert [end - start for start, end in zip(starts, ends, strict=False)][:2] == [
        FIRST_QUARANTINE_BATCHES,
        2 * FIRST_QUARANTINE_BATCHES,
    ]


def test_while_nobody_s_views_are_alike_the_encoder_has_not_learned_and_nobody_is_left_out() -> None:
    screening, rng = Screening(), torch.Generator().manual_seed(0)
    devices = sorted(HONEST * WINDOWS)
    for _ in range(120):
        screening.observe(devices, related(len(devices), rng, 0.3))
    assert all(screening.trusts(device) for device in HONEST)
    assert all(screening.judge(part(device, sound(rng))) == "" for device in HONEST)


def test_a_device_whose_windows_are_hard_to_tell_apart_is_not_left_out() -> None:
    screening, rng = Screening(), torch.Generator().manual_seed(0)
    devices = sorted(HONEST * WINDOWS) + ["rain"] * WINDOWS
    for _ in range(300):
        easy, hard = related(len(HONEST) * WINDOWS, rng, 1.0), related(WINDOWS, rng, 0.45)
        screening.observe(devices, torch.cat([easy, hard], dim=1))
        assert screening.trusts("rain")


def alike(rng: torch.Generator) -> Tensor:
    """Projections [2, WINDOWS, DIM] of a quiet room: views differ, windows do not."""
    return functional.normalize(3.0 + torch.randn(2, WINDOWS, DIM, generator=rng), dim=2)


class Rooms:
    """Lively rooms, and one more whose sound is given batch by batch."""

    def __init__(self) -> None:
        self.screening, self.rng = Screening(), torch.Generator().manual_seed(0)

    def batch(self, views: Tensor, *, lively: Sequence[str] = HONEST, last: str = "room") -> bool:
        """Whether the last one was left out."""
        devices, every = sorted([*lively] * WINDOWS), [related(len(lively) * WINDOWS, self.rng)]
        out = bool(self.screening.judge(part(last, sound(self.rng))))
        if not out:
            devices, every = devices + [last] * WINDOWS, [*every, views]
        self.screening.observe(devices, torch.cat(every, dim=1))
        return out

    def sentences(self, batches: int) -> list[int]:
        """How often in a row a quiet room is left out, each time that it is."""
        runs = [0]
        for _ in range(batches):
            if self.batch(alike(self.rng)):
                runs[-1] += 1
            elif runs[-1]:
                runs.append(0)
        return [length for length in runs if length]


def test_a_quiet_room_is_never_left_out_for_long() -> None:
    assert Rooms().sentences(1200)[:4] == [FIRST_QUARANTINE_BATCHES, *[LONGEST_QUARANTINE_BATCHES] * 3]


def test_a_room_that_comes_to_life_is_forgiven() -> None:
    rooms = Rooms()
    assert rooms.sentences(700)[1] == LONGEST_QUARANTINE_BATCHES
    for _ in range(LONGEST_QUARANTINE_BATCHES + 200):
        rooms.batch(related(WINDOWS, rooms.rng))
    assert rooms.sentences(400)[0] == FIRST_QUARANTINE_BATCHES


def test_devices_that_have_gone_are_no_measure_for_those_that_are_left() -> None:
    rooms = Rooms()
    for _ in range(60):
        rooms.batch(related(WINDOWS, rooms.rng))
    for device in HONEST[:-1]:
        rooms.screening.forget(device)
    assert not any(rooms.batch(alike(rooms.rng), lively=HONEST[-1:]) for _ in range(200))


def test_leaving_again_and_again_wipes_nothing_out() -> None:
    rooms = Rooms()
    out = []
    for batch in range(120):
        out.append(rooms.batch(alike(rooms.rng)))
        if batch % 10 == 9:
            rooms.screening.forget("room")
    assert any(out)


def fill(screening: Screening, devices: str, rng: torch.Generator, *, cut: int = 5, batches: int = 3) -> None:
    for _ in range(batches):
        for device in devices:
            for _ in range(WINDOWS):
                screening.judge(part(device, sound(rng), cut=cut))
        screening.observe([], torch.zeros(2, 0, DIM))


def test_with_too_few_devices_left_to_compare_with_nobody_is_refused() -> None:
    screening, rng = Screening(), torch.Generator().manual_seed(0)
    fill(screening, "abc", rng)
    assert "the fleet's lie within" in screening.judge(part("a", 3.0 * sound(rng)))
    screening.forget("b")
    screening.observe([], torch.zeros(2, 0, DIM))
    assert screening.judge(part("a", 3.0 * sound(rng))) == ""


def test_devices_that_moved_their_cut_have_no_vote_any_more_at_the_old_one() -> None:
    screening, rng = Screening(), torch.Generator().manual_seed(0)
    fill(screening, "abcd", rng, cut=3)
    fill(screening, "abcd", rng, cut=5, batches=LAPSE_BATCHES - 1)
    assert "the fleet's lie within" in screening.judge(part("a", 3.0 * sound(rng), cut=3))
    fill(screening, "abcd", rng, cut=5, batches=2)
    assert screening.judge(part("a", 3.0 * sound(rng), cut=3)) == ""
