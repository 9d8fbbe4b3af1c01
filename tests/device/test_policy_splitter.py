from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.actions import LOCAL
from common.errors import MessageError
from common.messages import encode
from common.policy import Observation, observe
from device.policy_splitter import PolicySplitter, shipped_policy
from device.splitter import FixedSplitter
from tests.policies import DEPTH, LOCAL_PLACE, update, wanting

SEEN = observe(
    uncertainty=0.5,
    uncertainty_age_s=1.0,
    cpu=0.2,
    memory=0.4,
    temperature_c=45.0,
    throttled=False,
    uplink_mbps=20.0,
    round_trip_ms=20.0,
    battery=None,
    queue_depth=0,
    queue_capacity=16,
    cut=5,
    depth=DEPTH,
    forward_ms=20.0,
    held=5,
    version_age=None,
    follows=False,
)


def mask_of(*cuts: int, local: bool = True) -> tuple[bool, ...]:
    return (*(cut in cuts for cut in range(DEPTH + 1)), local)


OPEN = mask_of(*range(3, DEPTH + 1))


def splitter(*, exploration: float = 0.0, windows: int = 4, seed: int = 0) -> PolicySplitter:
    return PolicySplitter(
        FixedSplitter(5), encoder="mobile", depth=DEPTH, windows=windows, exploration=exploration, seed=seed
    )


def test_without_a_policy_the_fallback_decides_and_says_so() -> None:
    decision = splitter().decide(SEEN, OPEN)
    assert (decision.cut, decision.reason, decision.policy_version, decision.log_prob) == (5, "fixed", 0, 0.0)


def test_a_policy_decides_from_the_moment_it_comes_and_a_newer_one_after_it() -> None:
    made = splitter(windows=1)
    made.offer(update(3, wanting({7: 5.0})))
    assert (made.decide(SEEN, OPEN).action, made.version) == (7, 3)
    made.offer(update(4, wanting({LOCAL_PLACE: 5.0})))
    decision = made.decide(SEEN, OPEN)
    assert (decision.action, decision.local, decision.cut, decision.policy_version) == (LOCAL, True, DEPTH, 4)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (replace(update(4, wanting({3: 5.0})), data=wanting({4: 5.0})), "digest"),
        (update(4, wanting({3: 5.0}), encoder="resnet18"), "for resnet18"),
        (update(4, b"nonsense"), "not a policy"),
        (update(4, wanting({3: 5.0})[:-2]), "bytes for sizes"),
    ],
)
def test_a_policy_that_cannot_be_used_is_counted_and_the_last_good_one_stays(bad: object, reason: str) -> None:
    made = splitter(windows=1)
    made.offer(update(3, wanting({7: 5.0})))
    with pytest.raises(MessageError, match=reason):
        made.offer(bad)  # type: ignore[arg-type]
    assert (made.decide(SEEN, OPEN).action, made.version, made.refused) == (7, 3, 1)


def test_a_decision_holds_for_a_step_of_windows() -> None:
    made = splitter(exploration=1.0, windows=4)
    made.offer(update(1, wanting({})))
    decisions = [made.decide(SEEN, OPEN) for _ in range(12)]
    assert [decisions[i] is decisions[i - 1] for i in range(1, 12)] == [i % 4 != 0 for i in range(1, 12)]


def test_after_news_within_a_step_decisions_begin_with_the_steps_again() -> None:
    made = splitter(windows=8)
    made.offer(update(1, wanting({7: 5.0})))
    begun, last = [], None
    for window in range(32):
        if window and window % 8 == 0:
            made.step_over()
        decision = made.decide(SEEN if window < 4 else replace(SEEN, cpu=SEEN.cpu + 0.5), OPEN)
        if decision is not last:
            begun.append(window)
        last = decision
    assert begun == [0, 4, 8, 16, 24]


def test_it_decides_anew_when_the_link_goes_or_comes_or_the_choice_is_no_longer_allowed() -> None:
    made = splitter(windows=100)
    made.offer(update(1, wanting({7: 5.0, 6: 4.0})))
    assert made.decide(SEEN, OPEN).action == 7
    offline = made.decide(SEEN, mask_of())
    assert (offline.action, offline.policy_version) == (LOCAL, 0)
    assert made.decide(SEEN, OPEN).action == 7
    assert made.decide(SEEN, mask_of(3, 6)).action == 6


def test_where_there_is_nothing_to_choose_nothing_was_chosen() -> None:
    made = splitter(exploration=1.0, windows=1)
    made.offer(update(1, wanting({7: 5.0})))
    pinned = made.decide(SEEN, mask_of(4, local=False))
    assert (pinned.action, pinned.policy_version, pinned.log_prob) == (4, 0, 0.0)


def test_exploration_is_bounded_and_its_probabilities_are_real() -> None:
    made = splitter(exploration=0.2, windows=1, seed=3)
    made.offer(update(1, wanting({7: 1.0})))
    decisions = [made.decide(SEEN, OPEN) for _ in range(4000)]
    drawn = [decision for decision in decisions if decision.log_prob < 0.0]
    assert len(drawn) / len(decisions) == pytest.approx(0.2, abs=0.02)
    assert {decision.action for decision in decisions if decision.log_prob == 0.0} == {7}
    weights = math.e + 6.0
    for action, weight in ((7, math.e), (3, 1.0), (LOCAL, 1.0)):
        chosen = [decision for decision in drawn if decision.action == action]
        assert len(chosen) / len(drawn) == pytest.approx(weight / weights, abs=0.05)
        assert chosen[0].log_prob == pytest.approx(math.log(weight / weights), abs=1e-3)


def test_only_while_a_policy_is_the_fleets_is_anything_drawn_since_nobody_else_learns_from_it(tmp_path: Path) -> None:
    made, path = splitter(exploration=1.0, windows=1), tmp_path / "policy.bin"
    path.write_bytes(encode(update(1, wanting({}))))
    made.offer_file(path)
    assert all(made.decide(SEEN, OPEN).log_prob == 0.0 for _ in range(20))
    made.offer(update(2, wanting({})))
    assert all(made.decide(SEEN, OPEN).log_prob < 0.0 for _ in range(20))


@given(
    cuts=st.sets(st.integers(3, DEPTH)),
    logits=st.dictionaries(st.integers(0, LOCAL_PLACE), st.floats(-50, 50)),
    seed=st.integers(0, 9),
    cpu=st.floats(0, 1),
)
def test_whatever_the_policy_wants_only_what_the_mask_allows_is_done(
    cuts: set[int], logits: dict[int, float], seed: int, cpu: float
) -> None:
    made = splitter(exploration=0.5, windows=2, seed=seed)
    made.offer(update(1, wanting({0: 60.0} | logits)))
    seen: Observation = replace(SEEN, cpu=cpu)
    for mask in (OPEN, mask_of(*cuts), mask_of(), OPEN, mask_of(*cuts)):
        decision = made.decide(seen, mask)
        assert mask[decision.action]
        assert decision.local == (decision.action == LOCAL)


def test_no_policy_is_shipped_for_an_encoder_nobody_knows() -> None:
    assert shipped_policy("unheard-of") is None


@pytest.mark.parametrize(
    ("changed", "anew"),
    [
        (replace(SEEN, cpu=SEEN.cpu + 0.2), False),
        (replace(SEEN, cpu=SEEN.cpu + 0.3), True),
        (replace(SEEN, uplink=SEEN.uplink - 0.05), False),
        (replace(SEEN, uplink=SEEN.uplink - 0.07), True),  # a factor of 2.2
        (replace(SEEN, queue=0.9), False),
    ],
)
def test_a_decision_is_taken_anew_as_soon_as_load_or_link_are_no_longer_what_it_rested_on(
    changed: Observation, anew: bool
) -> None:
    made = splitter(windows=100)
    made.offer(update(3, wanting({7: 5.0})))
    first = made.decide(SEEN, OPEN)
    assert made.decide(SEEN, OPEN) is first
    assert (made.decide(changed, OPEN) is not first) is anew


def test_while_a_step_is_waited_for_a_decision_holds_but_for_news_however_many_windows_close() -> None:
    made = splitter(windows=2)
    made.offer(update(3, wanting({7: 5.0})))
    assert made.reconsider(SEEN, OPEN) is None, "nothing was decided yet"
    first = made.decide(SEEN, OPEN)
    assert [made.reconsider(SEEN, OPEN) for _ in range(5)] == [None] * 5
    busy = replace(SEEN, cpu=SEEN.cpu + 0.3)
    forbidden = made.reconsider(busy, mask_of(4))
    assert forbidden is not None
    assert forbidden.cut == 4
    assert made.decide(SEEN, OPEN) is first, "the step's decision stays what it was"
    assert made.reconsider(busy, mask_of(4, local=False)) is None, "nothing to choose"


def test_while_a_step_is_waited_for_nothing_is_drawn() -> None:
    made = splitter(exploration=1.0, windows=2)
    made.offer(update(3, wanting({})))
    made.decide(SEEN, OPEN)
    busy = replace(SEEN, cpu=SEEN.cpu + 0.3)
    found = [made.reconsider(busy, OPEN) for _ in range(20)]
    assert {one.log_prob for one in found if one} == {0.0}
    assert len({one.action for one in found if one}) == 1
