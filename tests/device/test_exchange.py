from __future__ import annotations

import pytest
import torch

from common.codec import Codec, encode
from common.messages import Embedding, Gradient
from device.exchange import Exchange

BOOT = "a" * 16
GRADIENT = torch.ones(2, 3)


def exchange(parts: int = 3) -> Exchange:
    made = Exchange(4, timeout_s=10.0, grace_s=2.0)
    for part in range(parts):
        made.offer_sent(part, 5, 100, window=20 + part, closed_s=float(part) - 0.5, sent_s=float(part))
    return made


def answer(part: int, *, loss: float = 1.0, learning_rate: float = 0.1, merge: bool = False) -> Gradient:
    return Gradient(BOOT, 4, part, "ok", "", loss, learning_rate, merge, None)


def refusal(part: int, result: str) -> Gradient:
    return Gradient(BOOT, 4, part, result, f"it is {result}", None, 0.0, False, None)  # type: ignore[arg-type]


def test_a_step_is_over_when_every_part_is_answered_or_refused() -> None:
    step = exchange(3)
    step.offer_gradient(answer(0), GRADIENT, received_s=3.0)
    step.offer_gradient(answer(2), GRADIENT, received_s=3.0)
    assert not step.over(3.0)
    step.offer_gradient(refusal(1, "late"), None, received_s=3.0)
    assert step.over(3.0)
    assert sorted(step.gradients) == [0, 2]
    assert step.refused == {1: "late"}
    assert step.result() == "answered"


def test_what_was_sent_as_sound_is_answered_by_an_acknowledgement_alone() -> None:
    step = exchange(3)
    step.offer_gradient(answer(0), None, received_s=3.0)
    step.offer_gradient(answer(0), None, received_s=4.0)
    step.offer_gradient(answer(1), None, received_s=3.0)
    assert not step.over(3.0)
    step.offer_gradient(refusal(2, "late"), None, received_s=3.0)
    assert step.over(3.0)
    assert step.result() == "answered"
    assert (step.gradients, step.losses, step.learning_rate) == ({}, [1.0, 1.0], 0.1)


def test_what_a_window_took_to_compute_is_told_of_a_step_that_was_answered_whole_at_one_cut() -> None:
    step = exchange(2)
    step.computed_s = 0.06
    step.offer_gradient(answer(0), GRADIENT, received_s=3.0)
    assert step.client_ms() is None
    step.offer_gradient(answer(1), GRADIENT, received_s=3.0)
    told = step.client_ms()
    assert told is not None
    assert told == pytest.approx((5, 30.0))
    step.offer_sent(2, 6, 100, window=22, closed_s=2.0, sent_s=2.0)
    step.offer_gradient(answer(2), GRADIENT, received_s=3.0)
    assert step.client_ms() is None
    assert exchange(0).client_ms() is None


def test_a_step_with_no_part_sent_has_nothing_to_wait_for() -> None:
    assert exchange(0).over(0.0)


def test_without_any_answer_it_is_lost_the_timeout_after_its_newest_part() -> None:
    step = exchange(3)
    assert not step.over(11.9)
    assert step.over(12.0)
    assert step.result() == "lost"


def test_after_an_answer_the_rest_is_waited_for_only_the_grace_time() -> None:
    step = exchange(3)
    step.offer_gradient(answer(0), GRADIENT, received_s=3.0)
    assert not step.over(4.9)
    assert step.over(5.0)
    assert step.result() == "answered"


@pytest.mark.parametrize("result", ["rejected", "stale"])
def test_a_part_that_is_refused_as_it_comes_does_not_end_the_step_of_the_others(result: str) -> None:
    step = exchange(3)
    step.offer_gradient(refusal(0, result), None, received_s=0.1)
    assert not step.over(2.2)
    step.offer_gradient(answer(1), GRADIENT, received_s=3.0)
    assert step.over(5.0)


def test_a_second_answer_to_the_same_part_changes_nothing() -> None:
    step = exchange(2)
    step.offer_gradient(answer(0, loss=1.0), GRADIENT, received_s=2.0)
    step.offer_gradient(answer(0, loss=9.0, merge=True), 2 * GRADIENT, received_s=3.0)
    step.offer_gradient(refusal(0, "late"), None, received_s=3.0)
    assert torch.equal(step.gradients[0], GRADIENT)
    assert (step.losses, step.merge, step.refused, step.gradient_s) == ([1.0], False, {}, {0: 2.0})
    step.offer_gradient(refusal(1, "stale"), None, received_s=3.0)
    step.offer_gradient(answer(1), GRADIENT, received_s=4.0)
    assert list(step.gradients) == [0]


def test_an_answer_to_a_part_that_was_never_sent_is_passed_over() -> None:
    step = exchange(1)
    step.offer_gradient(answer(7), GRADIENT, received_s=1.0)
    step.offer_embedding(embedding(7), received_s=1.0)
    assert (step.gradients, step.gradient_s, step.embedding_s) == ({}, {}, {})


def test_one_part_that_asks_for_the_change_is_enough_and_a_refusal_never_asks() -> None:
    step = exchange(3)
    step.offer_gradient(answer(0), GRADIENT, received_s=3.0)
    step.offer_gradient(answer(1, merge=True, learning_rate=0.25), GRADIENT, received_s=3.0)
    assert step.merge
    assert step.learning_rate == 0.25
    step.offer_gradient(refusal(2, "late"), None, received_s=3.0)
    assert step.merge
    assert step.learning_rate == 0.25, "a refusal carries none"


@pytest.mark.parametrize(
    ("refusals", "expected"),
    [
        (("late", "stale", "rejected"), "stale"),
        (("late", "rejected"), "rejected"),
        (("late",), "late"),
        ((), "lost"),
    ],
)
def test_a_step_without_a_gradient_ends_as_the_most_telling_of_its_refusals(
    refusals: tuple[str, ...], expected: str
) -> None:
    step = exchange(3)
    for part, result in enumerate(refusals):
        step.offer_gradient(refusal(part, result), None, received_s=3.0)
    assert step.result() == expected
    assert step.reasons == {f"it is {result}" for result in refusals}


def embedding(part: int) -> Embedding:
    return Embedding(BOOT, 4, part, 1, 0.5, encode(torch.ones(1, 4), Codec.parse("fp32")))


def test_an_embeddings_latency_counts_from_the_end_of_its_window_a_gradients_from_its_sending() -> None:
    step = exchange(2)
    step.offer_embedding(embedding(1), received_s=1.75)
    step.offer_gradient(answer(1), GRADIENT, received_s=1.75)
    step.offer_embedding(embedding(1), received_s=9.0)
    assert step.embedding_s == {1: 1.25}, "the first one counts"
    assert step.gradient_s == {1: 0.75}
