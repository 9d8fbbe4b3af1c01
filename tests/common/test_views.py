from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from common.log_mel import FRAMES, MEL_BANDS, WINDOW_SAMPLES, LogMel
from common.soundscape import CLASSES, clip
from common.views import Views, crops
from device.windows import Window, neighbourhood

# Every augmentation off: what a test is about is then switched on.
PLAIN: dict[str, Any] = {
    "shift_s": 0.0,
    "gain_db": 0.0,
    "mix": 0.0,
    "noise_snr_db": None,
    "time_masks": 0,
    "frequency_masks": 0,
}


def _window(samples: np.ndarray, start: int = 10_000, *, segment: int = 0) -> Window:
    context, offset = neighbourhood(samples, start)
    return Window(
        samples=context[offset : offset + WINDOW_SAMPLES],
        context=context,
        offset=offset,
        segment=segment,
        index=0,
        closed_s=0.0,
    )


def _sounds(count: int) -> list[Window]:
    return [_window(_clip(number), segment=number) for number in range(count)]


@cache
def _clip(number: int) -> np.ndarray:
    return clip(CLASSES[number % len(CLASSES)], 5.0, np.random.default_rng(number))


class Heard:
    """A log-mel that keeps the waveforms it was given."""

    def __init__(self) -> None:
        self.waveforms: list[Tensor] = []
        self._log_mel = LogMel()

    def __call__(self, waveforms: Tensor) -> Tensor:
        self.waveforms.append(waveforms.clone())
        pictures: Tensor = self._log_mel(waveforms)
        return pictures


def _plain(seed: int = 0, log_mel: Any = None, **strengths: Any) -> Views:
    return Views(log_mel or LogMel(), np.random.default_rng(seed), **{**PLAIN, **strengths})


def test_view_a_is_the_window_as_it_is_and_both_come_from_one_batch() -> None:
    heard = Heard()
    views = Views(heard, np.random.default_rng(0))
    for number, window in enumerate(_sounds(10), start=1):
        pair = views(window)
        assert pair.shape == (2, 1, MEL_BANDS, FRAMES)
        assert pair.dtype == torch.float32
        assert not pair.requires_grad
        assert len(heard.waveforms) == number
        torch.testing.assert_close(pair[:1], LogMel()(torch.from_numpy(window.samples)[None]), atol=1e-5, rtol=1e-5)
        assert not torch.equal(pair[0], pair[1])
        assert bool(pair.isfinite().all())


def test_view_a_made_first_gives_the_same_views_bit_for_bit() -> None:
    together, apart = (Views(LogMel(), np.random.default_rng(5)) for _ in range(2))
    for window in _sounds(10):
        assert torch.equal(together(window), apart(window, apart.first(window)))


def test_with_everything_off_view_b_equals_view_a() -> None:
    views = _plain()
    for window in _sounds(3):
        pair = views(window)
        assert torch.equal(pair[0], pair[1])


def test_the_same_seed_repeats_bit_for_bit_and_another_does_not() -> None:
    def made(seed: int) -> Tensor:
        views = Views(LogMel(), np.random.default_rng(seed))
        return torch.stack([views(window) for window in _sounds(8)])

    assert torch.equal(made(1), made(1))
    assert not torch.equal(made(1)[:, 1], made(2)[:, 1])
    assert torch.equal(made(1)[:, 0], made(2)[:, 0])


def test_no_draw_touches_the_global_generators() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    Views(LogMel(), np.random.default_rng(0))(_sounds(1)[0])
    assert torch.equal(before, torch.get_rng_state())


def test_a_window_is_not_changed_by_its_views() -> None:
    window = _sounds(1)[0]
    before = window.context.copy()
    Views(LogMel(), np.random.default_rng(0))(window)
    np.testing.assert_array_equal(window.context, before)


def test_crops_alone_are_unaltered_and_come_from_the_whole_recording() -> None:
    heard = Heard()
    views = crops(heard, np.random.default_rng(0), reach_s=5.0)
    sound = _clip(3)
    context, offset = neighbourhood(sound, 10_000, context_s=5.0)
    window = Window(sound[10_000 : 10_000 + WINDOW_SAMPLES], context, offset, segment=0, index=0, closed_s=0.0)
    starts = []
    for _ in range(60):
        views(window)
        other = heard.waveforms[-1][1].numpy()
        found = [at for at in np.flatnonzero(sound == other[0]) if np.array_equal(sound[at:][:WINDOW_SAMPLES], other)]
        starts.append(found[0])
    assert min(starts) < 8_000
    assert max(starts) > len(sound) - WINDOW_SAMPLES - 8_000


def test_view_b_is_cropped_from_all_of_the_context_and_nothing_else() -> None:
    ramp = np.arange(80_000, dtype=np.float32) / 80_000
    heard = Heard()
    views = _plain(log_mel=heard, shift_s=0.5)
    for _ in range(300):
        views(_window(ramp, 30_000))
    starts = [round(float(pair[1, 0]) * 80_000) for pair in heard.waveforms]
    assert min(starts) >= 22_000
    assert max(starts) <= 38_000
    assert min(starts) < 22_500
    assert max(starts) > 37_500


@pytest.mark.parametrize(("start", "allowed"), [(0, (0, 4_000)), (64_640, (60_640, 64_640))])
def test_the_shift_is_bounded_by_its_strength_and_by_what_is_there(start: int, allowed: tuple[int, int]) -> None:
    ramp = np.arange(80_000, dtype=np.float32) / 80_000
    heard = Heard()
    views = _plain(log_mel=heard, shift_s=0.25)
    for _ in range(100):
        views(_window(ramp, start))
    starts = [round(float(pair[1, 0]) * 80_000) for pair in heard.waveforms]
    assert allowed[0] <= min(starts) < max(starts) <= allowed[1]


def test_the_gain_stays_within_its_decibels() -> None:
    heard = Heard()
    views = _plain(log_mel=heard, gain_db=6.0)
    for _ in range(200):
        views(_sounds(1)[0])
    gains_db = [20.0 * float((pair[1].norm() / pair[0].norm()).log10()) for pair in heard.waveforms]
    assert -6.001 <= min(gains_db) < -4.5
    assert 4.5 < max(gains_db) <= 6.001


def test_the_background_is_an_earlier_window_of_another_segment_at_most_at_its_share() -> None:
    # Two sounds at right angles: what is in B of each can be read off.
    time = np.arange(80_000) / 16_000
    low, high = (0.1 * np.sin(2.0 * np.pi * hz * time).astype(np.float32) for hz in (500.0, 2_000.0))
    heard = Heard()
    views = _plain(log_mel=heard, mix=0.4)
    views(_window(high, 0, segment=1))
    for _ in range(100):
        views(_window(low, 0, segment=2))
    shares = []
    for pair in heard.waveforms[1:]:
        foreground, background = pair[0], torch.from_numpy(high[:WINDOW_SAMPLES])
        own = float(pair[1] @ foreground / (foreground @ foreground))
        share = float(pair[1] @ background / (background @ background))
        assert own == pytest.approx(1.0 - share, abs=1e-3)
        shares.append(share)
    assert 0.0 <= min(shares) < 0.1
    assert 0.3 < max(shares) <= 0.4


def test_there_is_no_background_before_there_is_another_segment() -> None:
    views = _plain(mix=0.4)
    window = _sounds(1)[0]
    for _ in range(5):
        pair = views(window)
        assert torch.equal(pair[0], pair[1])


def test_a_silent_background_or_window_leaves_finite_views() -> None:
    views = Views(LogMel(), np.random.default_rng(0), mix=0.4)
    silent = np.zeros(80_000, dtype=np.float32)
    loud = clip("siren", 5.0, np.random.default_rng(0))
    for number in range(20):
        assert bool(views(_window(silent if number % 2 else loud, segment=number)).isfinite().all())


def test_the_hiss_is_as_soft_as_asked() -> None:
    heard = Heard()
    views = _plain(log_mel=heard, noise_snr_db=(10.0, 20.0))
    for _ in range(50):
        views(_sounds(1)[0])
    snr_db = [20.0 * float((pair[0].norm() / (pair[1] - pair[0]).norm()).log10()) for pair in heard.waveforms]
    assert 9.8 < min(snr_db) < max(snr_db) < 20.2


def _masked(pair: Tensor) -> Tensor:
    """Where view B differs from view A: [64, 96] of bool."""
    return (pair[1] != pair[0])[0]


def test_a_time_mask_covers_all_bands_of_some_frames_only() -> None:
    views = _plain(time_masks=2, time_mask_frames=24)
    widths = []
    for _ in range(200):
        masked = _masked(views(_sounds(1)[0]))
        frames = masked.any(dim=0)
        assert frames.shape == (FRAMES,)
        # A masked frame is masked in every band, and no frame in part.
        assert torch.equal(masked, frames.expand(MEL_BANDS, FRAMES))
        widths.append(int(frames.sum()))
    assert min(widths) == 0
    assert 24 < max(widths) <= 48


def test_a_frequency_mask_covers_all_frames_of_some_bands_only() -> None:
    views = _plain(frequency_masks=2, frequency_mask_bands=12)
    widths = []
    for _ in range(200):
        masked = _masked(views(_sounds(1)[0]))
        bands = masked.any(dim=1)
        assert bands.shape == (MEL_BANDS,)
        assert torch.equal(masked, bands[:, None].expand(MEL_BANDS, FRAMES))
        widths.append(int(bands.sum()))
    assert min(widths) == 0
    assert 12 < max(widths) <= 24


def test_masks_never_wipe_a_view_nor_touch_view_a() -> None:
    views = _plain(time_masks=2, frequency_masks=2)
    for _ in range(200):
        window = _sounds(1)[0]
        pair = views(window)
        assert torch.equal(pair[:1], LogMel()(torch.from_numpy(np.stack([window.samples] * 2)))[:1])
        assert int((~_masked(pair)).sum()) >= (MEL_BANDS - 24) * (FRAMES - 48)


def test_what_is_masked_is_neither_loud_nor_silent() -> None:
    views = _plain(time_masks=2)
    pairs = [views(_sounds(1)[0]) for _ in range(20)]
    fills = [pair[1, 0][_masked(pair)] for pair in pairs]
    assert any(fill.numel() for fill in fills)
    for pair, fill in zip(pairs, fills):
        assert bool((fill == pair[0].mean()).all())


@pytest.mark.parametrize(
    ("samples", "context", "offset"),
    [
        (np.zeros(WINDOW_SAMPLES - 1), np.zeros(20_000), 0),
        (np.zeros((1, WINDOW_SAMPLES)), np.zeros(20_000), 0),
        (np.zeros(WINDOW_SAMPLES), np.zeros(WINDOW_SAMPLES - 1), 0),
        (np.zeros(WINDOW_SAMPLES), np.zeros((2, 20_000)), 0),
        (np.zeros(WINDOW_SAMPLES), np.zeros(20_000), 4_641),
        (np.zeros(WINDOW_SAMPLES), np.zeros(20_000), -1),
    ],
)
def test_a_window_of_the_wrong_shape_is_refused_at_the_door(
    samples: np.ndarray, context: np.ndarray, offset: int
) -> None:
    window = Window(samples.astype(np.float32), context.astype(np.float32), offset, segment=0, index=0, closed_s=0.0)
    with pytest.raises(ValueError, match=r"window|context"):
        _plain()(window)


def test_samples_of_double_precision_are_refused() -> None:
    window = Window(np.zeros(WINDOW_SAMPLES), np.zeros(20_000), 0, segment=0, index=0, closed_s=0.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="float32"):
        _plain()(window)


def test_a_log_mel_that_turns_its_axes_is_refused() -> None:
    turned = LogMel()
    with pytest.raises(ValueError, match=r"\[2, 1, 64, 96\]"):
        _plain(log_mel=lambda waveforms: turned(waveforms).transpose(2, 3))(_sounds(1)[0])
