"""What the trainer makes of windows that came as sound: the views that their device would have made."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from common.log_mel import SAMPLE_RATE_HZ, WINDOW_SAMPLES, LogMel
from common.split import BEFORE_STEM
from common.views import NEIGHBOURHOOD_S, Views, views_of
from device.windows import Clip, Replay, Window
from trainer.batcher import Part
from trainer.listening import Listening

REACH = round(NEIGHBOURHOOD_S * SAMPLE_RATE_HZ)
HYBRID = partial(views_of, "hybrid", LogMel())


def part(
    samples: np.ndarray, *, index: int, segment: int = 0, device: str = "a", boot: str = "b" * 16, number: int = 0
) -> Part:
    return Part(
        device=device,
        boot=boot,
        step=0,
        part=number,
        last=False,
        cut=BEFORE_STEM,
        weights_version=0,
        deadline_s=1.0,
        segment=segment,
        window_index=index,
        time_s=float(index),
        room="",
        activations=torch.from_numpy(samples),
    )


def stream(windows: int, *, seed: int = 0, context_s: float = NEIGHBOURHOOD_S) -> list[Window]:
    """A long segment, from its first sample on."""
    samples = np.random.default_rng(seed).normal(0, 0.1, windows * WINDOW_SAMPLES).astype(np.float32)
    source = Replay(
        iter([Clip(samples, tuple(number * WINDOW_SAMPLES for number in range(windows)))]),
        speed="fast",
        context_s=context_s,
    )
    heard = [source.next_window(0.0) for _ in range(windows)]
    return [one for one in heard if one is not None]


def parts_of(windows: list[Window], **fields: Any) -> list[Part]:
    return [part(w.samples, index=w.index, segment=w.segment, number=i, **fields) for i, w in enumerate(windows)]


def contexts(*batches: list[Part], context_s: float = NEIGHBOURHOOD_S) -> list[tuple[np.ndarray, int]]:
    """What every window's view B could be cropped from."""
    seen = []

    def spy(excerpt: Any) -> Tensor:
        seen.append((excerpt.context, excerpt.offset))
        np.testing.assert_array_equal(excerpt.context[excerpt.offset :][:WINDOW_SAMPLES], excerpt.samples)
        return torch.zeros(2, 1, 64, 96)

    listen = Listening(lambda _: cast("Views", spy), context_s=context_s, seed=0)
    for batch in batches:
        listen(batch)
    return seen


def test_a_segment_in_one_step_has_the_neighbourhoods_that_its_device_would_have() -> None:
    windows = stream(5)
    for (context, offset), window in zip(contexts(parts_of(windows)), windows, strict=True):
        np.testing.assert_array_equal(context, window.context)
        assert offset == window.offset


def test_a_step_knows_the_window_before_it_but_not_the_one_after() -> None:
    windows = stream(4)
    seen = contexts(parts_of(windows[:2]), parts_of(windows[2:]))
    full = 2 * REACH + WINDOW_SAMPLES
    assert [len(context) for context, _ in seen] == [full - REACH, full - REACH, full, full - REACH]
    np.testing.assert_array_equal(seen[1][0], windows[1].context[:-REACH])
    np.testing.assert_array_equal(seen[2][0], windows[2].context)


def test_where_view_b_may_come_from_the_whole_recording_all_of_it_that_was_sent_is_there() -> None:
    windows = stream(9, context_s=2.5)
    seen = contexts(parts_of(windows[:4]), parts_of(windows[4:]), context_s=2.5)
    for window, (context, offset) in list(zip(windows, seen, strict=True))[4:]:
        assert offset == window.offset
        np.testing.assert_array_equal(context, window.context)
    assert [len(context) for context, _ in seen[:4]] == [3.5 * 16_000 - 640, 4 * 15_360, 4 * 15_360, 40_000 + 15_360]


def test_nothing_is_borrowed_across_a_gap_a_segment_a_boot_or_a_device() -> None:
    one, two = (window.samples for window in stream(2))
    pairs = [
        [part(one, index=0), part(two, index=2, number=1)],
        [part(one, index=13), part(two, index=14, segment=1, number=1)],
        [part(one, index=15, device="b"), part(two, index=16, device="c")],
    ]
    later_boot = [part(two, index=15, segment=1, boot="c" * 16)]
    assert {len(context) for context, _ in contexts(*pairs, later_boot)} == {WINDOW_SAMPLES}


def test_views_are_those_of_a_device_with_the_same_neighbourhood_and_generator() -> None:
    windows = stream(6)
    listen = Listening(HYBRID, context_s=NEIGHBOURHOOD_S, seed=3)
    heard = listen(parts_of(windows))
    own = Views(LogMel(), np.random.default_rng([3, *b"a"]))
    for made, window in zip(heard, windows, strict=True):
        torch.testing.assert_close(made.activations, own(window), rtol=0, atol=0)
        assert made.cut == BEFORE_STEM


def test_devices_draw_from_generators_of_their_own() -> None:
    windows = stream(3)
    a, b = parts_of(windows, device="a"), parts_of(windows, device="b")
    together = Listening(HYBRID, context_s=NEIGHBOURHOOD_S, seed=0)([*a, *b])
    alone = Listening(HYBRID, context_s=NEIGHBOURHOOD_S, seed=0)(b)
    for one, other in zip(together[3:], alone, strict=True):
        assert torch.equal(one.activations, other.activations)
    assert not torch.equal(together[0].activations[1], together[3].activations[1])
