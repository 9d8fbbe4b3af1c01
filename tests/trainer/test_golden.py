"""Split training equals plain training: see `tests.golden` for both sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import pytest
import torch

from common.encoder import Encoder
from common.split import BEFORE_STEM, client_names, names
from tests.golden import (
    Fleet,
    Gradients,
    Heard,
    Kind,
    StepResult,
    Unsplit,
    add_share,
    changes,
    hear,
    relative_error,
    smooth_kinks,
    weights,
    worst,
)
from trainer.batcher import Part

STEPS = 5
DEPTH = 8
ENCODERS = ("mobile", "resnet18")
# Rounding alone is 3e-6 to 5e-6 in a block's gradient (the stem's, which adds up most), 5e-7 in the loss, 1e-7 in the
# weights; a part in the wrong place or a wrong share is 1e-2 and more.
TOLERANCE = 1e-5
LEARNING_RATE = {"sgd": 1e-2, "adamw": 1e-3}
# After five small steps the change is 1e-3 of the weights, and they have seven digits.
CHANGE_TOLERANCE = 2e-3
# Adam divides by the gradient's own size: where that is near rounding, the step is not. Measured 1e-4.
ADAM_TOLERANCE = 1e-3
WEIGHT_DECAY = {"sgd": 0.0, "adamw": 1e-2}
Stream = Sequence[Mapping[str, Sequence[Heard]]]
CUTS = range(DEPTH + 1)


@pytest.fixture
def _smooth(monkeypatch: pytest.MonkeyPatch) -> None:
    smooth_kinks(monkeypatch)


class Plain:
    """What plain training came to, to be compared with."""

    def __init__(self, encoder_name: str, stream: Stream, kind: Kind, learning_rate: float) -> None:
        unsplit = Unsplit.of(encoder_name, kind, learning_rate, WEIGHT_DECAY[kind])
        self.start: Gradients = weights(unsplit.encoder)
        self.steps: list[StepResult] = [unsplit.step(heard) for heard in stream]
        self.encoder: Encoder = unsplit.encoder


def one_device(windows: int, steps: int = STEPS) -> Stream:
    return [{"a": batch} for batch in hear(windows, seed=5, steps=steps)]


@lru_cache(maxsize=4)
def plain_one_device(encoder_name: str, kind: Kind, steps: int) -> tuple[Stream, Plain]:
    """Every cut has the same reference, so it is computed once; only under the `_smooth` fixture."""
    stream = one_device(windows_of(encoder_name), steps)
    return stream, Plain(encoder_name, stream, kind, LEARNING_RATE[kind])


def windows_of(encoder_name: str) -> int:
    return 3 if encoder_name == "mobile" else 2


def assert_equal(fleet: Fleet, steps: Sequence[StepResult], plain: Plain, cuts: Mapping[str, int]) -> None:
    for split, whole in zip(steps, plain.steps, strict=True):
        assert split.loss == pytest.approx(whole.loss, rel=TOLERANCE)
        assert split.task == pytest.approx(whole.task, rel=TOLERANCE)
        assert worst(split.gradients, whole.gradients) < TOLERANCE
    assert worst(weights(fleet.encoder), weights(plain.encoder)) < TOLERANCE
    assert worst(changes(fleet.encoder, plain.start), changes(plain.encoder, plain.start)) < CHANGE_TOLERANCE
    for name, device in fleet.devices.items():
        for block in client_names(cuts[name]):
            pairs = zip(weights(device.encoder)[block], weights(fleet.encoder)[block], strict=True)
            assert all(torch.equal(held, published) for held, published in pairs)


@pytest.mark.usefixtures("_smooth")
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(("encoder_name", "count"), [("mobile", STEPS), ("resnet18", 2), ("efficientnet-b0", 2)])
def test_one_device_at_any_cut_trains_like_no_split_at_all(encoder_name: str, count: int, cut: int) -> None:
    stream, plain = plain_one_device(encoder_name, "sgd", count)
    fleet = Fleet(encoder_name, ["a"], kind="sgd", parts_per_step=len(stream[0]["a"]))
    steps = [fleet.step(heard, {"a": cut}, learning_rate=LEARNING_RATE["sgd"]) for heard in stream]
    assert_equal(fleet, steps, plain, {"a": cut})


@pytest.mark.usefixtures("_smooth")
@pytest.mark.parametrize(("encoder_name", "cuts"), [("mobile", (3, 5)), ("mobile", (8, 0)), ("resnet18", (3, 5))])
def test_two_devices_at_different_cuts_with_unequal_windows_train_like_one_batch(
    encoder_name: str, cuts: tuple[int, int]
) -> None:
    longer, shorter = hear(windows_of(encoder_name), 5, steps=STEPS), hear(1, 4, steps=STEPS)
    stream = [{"a": a, "b": b} for a, b in zip(longer, shorter, strict=True)]
    plain = Plain(encoder_name, stream, "sgd", LEARNING_RATE["sgd"])
    fleet = Fleet(encoder_name, ["b", "a"], kind="sgd", parts_per_step=3)
    at = dict(zip("ab", cuts, strict=True))
    steps = [fleet.step(heard, at, learning_rate=LEARNING_RATE["sgd"]) for heard in stream]
    assert_equal(fleet, steps, plain, at)


@pytest.mark.usefixtures("_smooth")
@pytest.mark.parametrize("encoder_name", ENCODERS)
def test_a_cut_that_changes_every_step_makes_no_difference(encoder_name: str) -> None:
    stream, plain = plain_one_device(encoder_name, "sgd", STEPS)
    fleet = Fleet(encoder_name, ["a"], kind="sgd", parts_per_step=len(stream[0]["a"]))
    fleet.let_cuts_move()
    moves = (5, 8, 0, 3, 7)
    steps = [
        fleet.step(h, {"a": cut}, learning_rate=LEARNING_RATE["sgd"]) for h, cut in zip(stream, moves, strict=True)
    ]
    assert_equal(fleet, steps, plain, {"a": DEPTH})


@pytest.mark.usefixtures("_smooth")
@pytest.mark.parametrize(("encoder_name", "windows"), [("mobile", 8), ("resnet18", 3)])
def test_windows_sent_as_parts_are_the_same_as_windows_in_one_batch(encoder_name: str, windows: int) -> None:
    stream = one_device(windows)
    plain = Plain(encoder_name, stream, "sgd", LEARNING_RATE["sgd"])
    fleet = Fleet(encoder_name, ["a"], kind="sgd", parts_per_step=windows)
    steps = [fleet.step(heard, {"a": 5}, learning_rate=LEARNING_RATE["sgd"]) for heard in stream]
    assert_equal(fleet, steps, plain, {"a": 5})


@pytest.mark.usefixtures("_smooth")
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(("encoder_name", "count"), [("mobile", STEPS), ("resnet18", 2)])
def test_with_adamw_the_weights_move_alike_at_any_cut(encoder_name: str, count: int, cut: int) -> None:
    stream, plain = plain_one_device(encoder_name, "adamw", count)
    fleet = Fleet(
        encoder_name, ["a"], kind="adamw", parts_per_step=len(stream[0]["a"]), weight_decay=WEIGHT_DECAY["adamw"]
    )
    for heard in stream:
        fleet.step(heard, {"a": cut}, learning_rate=LEARNING_RATE["adamw"])
    split, whole = changes(fleet.encoder, plain.start), changes(plain.encoder, plain.start)
    assert worst(split, whole) < ADAM_TOLERANCE


@pytest.mark.usefixtures("_smooth")
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize(("encoder_name", "cut"), [("mobile", 5), ("mobile", 8), ("resnet18", 3)])
def test_devices_that_sum_gradients_up_train_like_one_encoder_with_one_optimizer(
    encoder_name: str, cut: int, kind: Kind
) -> None:
    longer, shorter = hear(windows_of(encoder_name), 5, steps=STEPS), hear(1, 4, steps=STEPS)
    stream = [{"a": a, "b": b} for a, b in zip(longer, shorter, strict=True)]
    plain = Plain(encoder_name, stream, kind, LEARNING_RATE[kind])
    fleet = Fleet(
        encoder_name, ["b", "a"], kind=kind, parts_per_step=3, weight_decay=WEIGHT_DECAY[kind], accumulates=True
    )
    for heard, whole in zip(stream, plain.steps, strict=True):
        step = fleet.step(heard, {"a": cut, "b": cut}, learning_rate=LEARNING_RATE[kind])
        assert step.loss == pytest.approx(whole.loss, rel=1e-3 if kind == "adamw" else TOLERANCE)
    tolerance = {"sgd": CHANGE_TOLERANCE, "adamw": ADAM_TOLERANCE}[kind]
    assert worst(changes(fleet.encoder, plain.start), changes(plain.encoder, plain.start)) < tolerance


@pytest.mark.parametrize("encoder_name", ENCODERS)
def test_the_encoders_as_they_are_train_alike_up_to_single_units_that_flip(encoder_name: str) -> None:
    learning_rate = 1e-3
    stream = one_device(windows_of(encoder_name))
    plain = Plain(encoder_name, stream, "sgd", learning_rate)
    fleet = Fleet(encoder_name, ["a"], kind="sgd", parts_per_step=len(stream[0]["a"]))
    steps = [fleet.step(heard, {"a": 5}, learning_rate=learning_rate) for heard in stream]
    for split, whole in zip(steps, plain.steps, strict=True):
        assert split.loss == pytest.approx(whole.loss, rel=TOLERANCE)
        assert worst(split.gradients, whole.gradients) < 1e-2, "one ReLU at zero is 1e-3 here, see `smooth_kinks`"
    assert worst(weights(fleet.encoder), weights(plain.encoder)) < TOLERANCE


@pytest.mark.usefixtures("_smooth")
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("encoder_name", ENCODERS)
def test_windows_that_enter_before_the_stem_train_like_no_split_at_all(encoder_name: str, kind: Kind) -> None:
    windows = windows_of(encoder_name)
    stream = [{"a": a, "b": b} for a, b in zip(hear(windows, 5, steps=3), hear(1, 4, steps=3), strict=True)]
    plain = Plain(encoder_name, stream, kind, LEARNING_RATE[kind])
    fleet = Fleet(encoder_name, [], kind=kind, parts_per_step=windows, weight_decay=WEIGHT_DECAY[kind])
    for heard, whole in zip(stream, plain.steps, strict=True):
        batch = [before_stem(device, number, window) for device in "ab" for number, window in enumerate(heard[device])]
        result = fleet.server_step.run(batch, learning_rate=LEARNING_RATE[kind])
        assert float(result.terms.total.detach()) == pytest.approx(whole.loss, rel=TOLERANCE)
        if kind == "sgd":
            gradients: Gradients = {}
            add_share(gradients, fleet.encoder, dict.fromkeys(names(fleet.encoder), 1.0))
            assert worst(gradients, whole.gradients) < TOLERANCE
        fleet.ledger.count(batch)
        fleet.ledger.commit(fleet.ledger.preview())
    tolerance = {"sgd": CHANGE_TOLERANCE, "adamw": ADAM_TOLERANCE}[kind]
    assert worst(changes(fleet.encoder, plain.start), changes(plain.encoder, plain.start)) < tolerance


def before_stem(device: str, number: int, heard: Heard) -> Part:
    return Part(
        device=device,
        boot="b" * 16,
        step=0,
        part=number,
        last=False,
        cut=BEFORE_STEM,
        weights_version=0,
        deadline_s=1.0,
        segment=heard.segment,
        window_index=number,
        time_s=heard.time_ms / 1e3,
        room="",
        activations=heard.views,
    )


def test_the_comparison_notices_a_gradient_that_belongs_to_another_part(monkeypatch: pytest.MonkeyPatch) -> None:
    smooth_kinks(monkeypatch)
    stream, plain = plain_one_device("mobile", "sgd", STEPS)
    fleet = Fleet("mobile", ["a"], kind="sgd", parts_per_step=3)
    run = fleet.server_step.run

    def swapped(*args: object, **kwargs: object) -> object:
        result = run(*args, **kwargs)  # type: ignore[arg-type]
        result.gradients.reverse()
        return result

    monkeypatch.setattr(fleet.server_step, "run", swapped)
    step = fleet.step(stream[0], {"a": 5}, learning_rate=LEARNING_RATE["sgd"])
    whole = plain.steps[0].gradients
    assert relative_error(step.gradients["0"], whole["0"]) > 1e-2
    assert relative_error(step.gradients["7"], whole["7"]) < TOLERANCE
