"""The cut that is planned for a device, against trying every cut of a delay formula that is written out here."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection
from dataclasses import replace

import numpy as np
import pytest

from common.compute_profile import ComputeProfile, Cost
from common.messages import ComputeTimes, DeviceStatus, Telemetry
from tests.common.cases import BOOT, cases
from trainer.chain_plan import ChainPlan, as_merged
from trainer.partition_prices import LinkState, Wire
from trainer.planned_cuts import APART_S, BETTER, MOVED, PlannedCuts

L = 8
WIRE = Wire(up_bits=4.0, down_bits=1.6, codec_ns=40.0, header_bytes=180.0, weight_bits=4.0, input_bytes=30_720.0)
VALUES = (49_152, 18_432, 18_432, 9_216, 9_216, 4_608, 4_608, 9_216, 384, 256)
PARAMETERS = (176, 2_592, 4_440, 6_216, 15_792, 22_800, 59_232, 87_072, 229_056, 82_000)
NAMES = ("stem", *map(str, range(L)), "head")
MERGED_EVERY = 24


def profile(block_ms: float) -> ComputeProfile:
    rows = zip(NAMES, VALUES, PARAMETERS, strict=True)
    blocks = tuple(Cost(name, block_ms, 2 * block_ms, values, weights, 0) for name, values, weights in rows)
    return ComputeProfile("mobile", "a test", "2", 1.0, 0, blocks, ())


def times(block_ms: float) -> ComputeTimes:
    return ComputeTimes((block_ms,) * (L + 2), (2 * block_ms,) * (L + 2))


SERVER = profile(0.2)


def delay_ms(told: ComputeTimes, cut: int, link: LinkState, slowdown: float) -> float:
    """A window's training at a cut, term by term."""
    device = [a + b for a, b in zip(told.forward_ms, told.backward_ms, strict=True)]
    server = [block.forward_ms + block.backward_ms for block in SERVER.blocks]
    up_ms, down_ms = 8e-3 / link.uplink_mbps, 8e-3 / link.downlink_mbps  # a byte
    activations = VALUES[cut] * (WIRE.up_bits / 8 * up_ms + WIRE.down_bits / 8 * down_ms)
    headers = WIRE.header_bytes * (up_ms + down_ms)
    codec = VALUES[cut] * WIRE.codec_ns * 1e-6 * sum(device) / sum(server) * slowdown
    weights = sum(PARAMETERS[: cut + 1]) * WIRE.weight_bits / 8 / MERGED_EVERY * (up_ms + down_ms)
    compute = slowdown * sum(device[: cut + 1]) + sum(server[cut + 1 :])
    return compute + activations + headers + codec + weights + link.round_trip_ms


def cheapest(told: ComputeTimes, cuts: Collection[int], link: LinkState, slowdown: float) -> int:
    return min(cuts, key=lambda cut: delay_ms(told, cut, link, slowdown))


def link(mbps: float, round_trip_ms: float = 50.0) -> LinkState:
    return LinkState(mbps, mbps, round_trip_ms)


def test_the_planned_cut_is_the_cheapest_of_all_that_the_device_may_use() -> None:
    rng = np.random.default_rng(3)
    chosen = set()
    for _ in range(300):
        told = ComputeTimes(*(tuple(rng.lognormal(0.0, 1.5, L + 2).tolist()) for _ in range(2)))
        cuts = sorted(rng.choice(L + 1, size=int(rng.integers(1, L + 2)), replace=False).tolist())
        plan = ChainPlan(told, SERVER, WIRE, cuts=cuts, local_iterations=MERGED_EVERY)
        for slowdown in (1.0, float(rng.lognormal(0.0, 1.0))):
            at = link(float(rng.lognormal(1.0, 1.5)), float(rng.uniform(0.0, 200.0)))
            best = plan.best_cut(at, slowdown=slowdown)
            assert best in cuts
            least_ms = delay_ms(told, cheapest(told, cuts, at, slowdown), at, slowdown)
            assert plan.delay_ms(best, at, slowdown=slowdown) == pytest.approx(least_ms, rel=1e-9)
            assert plan.delay_ms(best, at, slowdown=slowdown) == pytest.approx(delay_ms(told, best, at, slowdown))
            chosen.add(best)
    assert chosen == set(range(L + 1))


def test_a_block_that_is_merged_seldom_costs_its_part_of_a_merge() -> None:
    merged = as_merged(SERVER, {"7": 10, "4": 1})
    assert [block.parameters for block in merged.blocks] == [*PARAMETERS[:8], 22_906, PARAMETERS[9]]
    slow = link(0.5)
    whole, spread = (
        ChainPlan(times(1.0), one, WIRE, cuts=range(3, L + 1), local_iterations=MERGED_EVERY)
        for one in (SERVER, merged)
    )
    saved_ms = (229_056 - 22_906) * WIRE.weight_bits / 8 / MERGED_EVERY * 2 * 8e-3 / 0.5
    for cut in range(3, L + 1):
        cheaper = whole.delay_ms(cut, slow, slowdown=1.0) - spread.delay_ms(cut, slow, slowdown=1.0)
        assert cheaper == pytest.approx(saved_ms if cut == L else 0.0, abs=1e-6)


def test_a_cut_that_is_not_allowed_has_no_delay_worth_having() -> None:
    plan = ChainPlan(times(1.0), SERVER, WIRE, cuts=(3, 5), local_iterations=MERGED_EVERY)
    assert math.isinf(plan.delay_ms(4, link(8.0), slowdown=1.0))


def telemetry(
    mbps: float | None,
    *,
    round_trip_ms: float | None = 50.0,
    client_ms: float | None = None,
    action: int = 5,
) -> Telemetry:
    example = cases()[Telemetry]
    assert isinstance(example, Telemetry)
    return replace(example, uplink_mbps=mbps, round_trip_ms=round_trip_ms, client_ms=client_ms, action=action)


def status(compute: ComputeTimes | None, cuts: tuple[int, ...] = tuple(range(3, L + 1))) -> DeviceStatus:
    return DeviceStatus("ready", BOOT, 1, "", "", "", "", cuts, compute)


class Fleet:
    """Plans of a fleet with a clock of its own; every call is later than the last by ``step_s``."""

    def __init__(self, *, allowed: tuple[int, ...] = (), step_s: float = APART_S) -> None:
        self.planned = PlannedCuts(SERVER, WIRE, local_iterations=MERGED_EVERY, allowed_cuts=allowed, min_cut=3)
        self._clock = itertools.count(step=step_s)

    def join(self, compute: ComputeTimes | None, cuts: tuple[int, ...] = tuple(range(3, L + 1))) -> int | None:
        self.planned.join("pi", status(compute, cuts), now_s=next(self._clock))
        return self.planned.cut("pi")

    def hear(self, told: Telemetry) -> int | None:
        before = self.planned.cut("pi")
        news = self.planned.hear("pi", told, now_s=next(self._clock))
        now = self.planned.cut("pi")
        assert news == (now != before)
        return now


SLOW = times(4.0)  # at 4 ms a block shallow cuts are best but for slow links
ALLOWED = tuple(range(3, L + 1))


def test_a_device_is_planned_for_once_its_times_and_its_link_are_known() -> None:
    fleet = Fleet()
    assert fleet.hear(telemetry(8.0)) is None
    assert fleet.join(SLOW) is None
    assert fleet.hear(telemetry(None)) is None
    assert fleet.hear(telemetry(8.0)) == cheapest(SLOW, ALLOWED, link(8.0), 1.0)


def test_a_device_without_times_or_with_those_of_another_encoder_is_left_alone() -> None:
    fleet = Fleet()
    for compute in (None, ComputeTimes((1.0,) * L, (1.0,) * L), ComputeTimes((1.0,) * (L + 2), ())):
        fleet.join(compute)
        assert fleet.hear(telemetry(8.0)) is None


def test_a_link_that_moves_far_enough_is_planned_for_anew() -> None:
    fleet = Fleet()
    fleet.join(SLOW)
    fast, slow = (cheapest(SLOW, ALLOWED, link(mbps), 1.0) for mbps in (20.0, 0.3))
    assert fast < slow
    assert fleet.hear(telemetry(20.0)) == fast
    assert fleet.hear(telemetry(0.3)) == slow
    assert fleet.hear(telemetry(20.0)) == fast


def test_a_small_change_is_not_looked_at_and_small_changes_add_up() -> None:
    fleet = Fleet()
    fleet.join(SLOW)
    mbps = 20.0
    deeper = cheapest(SLOW, ALLOWED, link(0.3), 1.0)
    cuts = [fleet.hear(telemetry(mbps := mbps / (0.9 * MOVED))) for _ in range(40)]
    assert cuts[0] == cuts[1] != deeper
    assert cuts[-1] == cheapest(SLOW, ALLOWED, link(0.01), 1.0)


def test_a_device_is_not_planned_for_more_often_than_every_few_seconds() -> None:
    fleet = Fleet(step_s=0.3 * APART_S)
    fleet.join(SLOW)
    first = fleet.hear(telemetry(20.0))
    assert [fleet.hear(telemetry(0.3)) for _ in range(4)] == [first] * 3 + [cheapest(SLOW, ALLOWED, link(0.3), 1.0)]


def test_a_cut_that_is_hardly_better_is_not_worth_the_move() -> None:
    fleet = Fleet()
    fleet.join(SLOW)
    kept = fleet.hear(telemetry(20.0))
    assert kept is not None
    moved = 0
    for mbps in np.geomspace(20.0, 0.05, 300):
        at = link(float(mbps))
        now = fleet.hear(telemetry(float(mbps)))
        assert now is not None
        best_ms = delay_ms(SLOW, cheapest(SLOW, ALLOWED, at, 1.0), at, 1.0)
        if now != kept:
            assert best_ms <= BETTER * delay_ms(SLOW, kept, at, 1.0)
            moved += 1
        kept = now
    assert moved


def test_a_device_that_computes_slower_than_it_told_is_given_less_to_do() -> None:
    fleet = Fleet()
    quick = times(0.1)
    fleet.join(quick)
    deep, shallow = (cheapest(quick, ALLOWED, link(4.0), slowdown) for slowdown in (1.0, 60.0))
    assert fleet.hear(telemetry(4.0)) == deep > shallow
    told_ms = sum(quick.forward_ms[:6]) + sum(quick.backward_ms[:6])
    cuts = [fleet.hear(telemetry(4.0, client_ms=60.0 * told_ms)) for _ in range(30)]
    assert cuts[-1] == shallow
    cuts = [fleet.hear(telemetry(4.0, client_ms=told_ms)) for _ in range(60)]
    assert cuts[-1] == deep


@pytest.mark.parametrize("action", [-1, 64])
def test_a_measurement_that_is_not_of_a_cut_says_nothing_of_the_times(action: int) -> None:
    fleet = Fleet()
    fleet.join(times(0.1))
    first = fleet.hear(telemetry(4.0))
    assert {fleet.hear(telemetry(4.0, client_ms=1e9, action=action)) for _ in range(30)} == {first}


def test_measurements_beyond_belief_leave_a_plan_that_can_be_undone() -> None:
    fleet = Fleet()
    fleet.join(SLOW)
    first = fleet.hear(telemetry(8.0))
    for client_ms, mbps, round_trip_ms in ((0.0, 0.0, 0.0), (1e12, 1e12, 1e12), (0.0, 1e12, None)):
        for _ in range(50):
            assert fleet.hear(telemetry(mbps, client_ms=client_ms, round_trip_ms=round_trip_ms)) in ALLOWED
    told_ms = sum(SLOW.forward_ms[:6]) + sum(SLOW.backward_ms[:6])
    assert [fleet.hear(telemetry(8.0, client_ms=told_ms)) for _ in range(60)][-1] == first


@pytest.mark.parametrize(
    ("told", "allowed", "wanted"),
    [
        ((4, 5, 6, 7, 8), (), (4, 5, 6, 7, 8)),
        ((4, 5, 6, 7, 8), (3, 6), (6,)),
        ((4, 5), (7, 8), (4, 5)),  # a wish that leaves nothing is void
        ((), (), (3, 4, 5, 6, 7, 8)),
        ((40,), (), (3, 4, 5, 6, 7, 8)),
    ],
)
def test_only_cuts_of_the_device_are_planned_and_of_these_the_operators(
    told: tuple[int, ...], allowed: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    for mbps in (100.0, 0.05):
        fleet = Fleet(allowed=allowed)
        fleet.join(SLOW, told)
        assert fleet.hear(telemetry(mbps)) == cheapest(SLOW, wanted, link(mbps), 1.0)


def test_a_device_that_comes_back_is_planned_for_at_once_by_what_its_link_was() -> None:
    fleet = Fleet()
    fleet.join(SLOW)
    fleet.hear(telemetry(0.3))
    assert fleet.join(SLOW) == cheapest(SLOW, ALLOWED, link(0.3), 1.0)
    floor = (7, 8)
    assert fleet.join(SLOW, floor) == cheapest(SLOW, floor, link(0.3), 1.0)
    quick = times(0.01)
    assert fleet.join(quick) == cheapest(quick, ALLOWED, link(0.3), 1.0)
    assert fleet.join(None) is None
