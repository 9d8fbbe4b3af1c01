from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from common import log_mel
from common.log_mel import FRAMES, LOG_DEVIATION, LOG_MEAN, MEL_BANDS, SAMPLE_RATE_HZ, WINDOW_SAMPLES, LogMel
from common.soundscape import CLASSES, clip


def _tone(hz: float) -> torch.Tensor:
    return torch.sin(2.0 * torch.pi * hz * torch.arange(WINDOW_SAMPLES) / SAMPLE_RATE_HZ).unsqueeze(0)


def _slow_reference(waveform: np.ndarray) -> np.ndarray:
    """The same picture from the definition, frame by frame and band by band, in double precision."""
    padded = np.concatenate([waveform[120:0:-1], waveform, waveform[-2:-122:-1]]).astype(np.float64)
    taper = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(400) / 400)

    def mel(hz: float) -> float:
        return 2595.0 * math.log10(1.0 + hz / 700.0)

    corners = 700.0 * (10.0 ** (np.linspace(mel(60.0), mel(7_800.0), 66) / 2595.0) - 1.0)
    bins_hz = np.arange(257) * 16_000 / 512
    picture = np.zeros((64, 96))
    for frame in range(96):
        power = np.abs(np.fft.rfft(padded[frame * 160 : frame * 160 + 400] * taper, 512)) ** 2
        for band in range(64):
            low, middle, high = corners[band : band + 3]
            weights = np.clip(
                np.minimum((bins_hz - low) / (middle - low), (high - bins_hz) / (high - middle)), 0.0, None
            )
            picture[band, frame] = np.log(power @ weights + 1e-5)
    return (picture - LOG_MEAN) / LOG_DEVIATION


def test_it_equals_a_slow_reference_from_the_definition() -> None:
    waveform = clip("babble", 0.96, np.random.default_rng(1))
    picture = LogMel()(torch.from_numpy(waveform).unsqueeze(0))[0, 0].numpy()
    np.testing.assert_allclose(picture, _slow_reference(waveform), atol=2e-3)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_window_is_64_bands_by_96_frames(count: int) -> None:
    picture = LogMel()(torch.zeros(count, WINDOW_SAMPLES))
    assert picture.shape == (count, 1, MEL_BANDS, FRAMES)
    assert picture.dtype == torch.float32
    assert picture.is_contiguous()


@pytest.mark.parametrize("shape", [(WINDOW_SAMPLES,), (1, WINDOW_SAMPLES - 1), (1, 1, WINDOW_SAMPLES)])
def test_any_other_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="15360"):
        LogMel()(torch.zeros(shape))


def test_no_filter_is_empty_and_each_covers_two_bins() -> None:
    filters = LogMel()._filters
    assert filters.shape == (log_mel.FFT_SAMPLES // 2 + 1, MEL_BANDS)
    assert int((filters > 0).sum(dim=0).min()) >= 2
    assert float(filters.sum(dim=0).min()) > 0.5


def test_bands_are_the_first_axis_and_rise_with_frequency() -> None:
    pictures = [LogMel()(_tone(hz))[0, 0] for hz in (100.0, 1_000.0, 6_000.0)]
    loudest = [int(picture.mean(dim=1).argmax()) for picture in pictures]
    assert loudest == sorted(loudest)
    assert loudest[0] < 5
    assert loudest[2] > 50


def test_frames_are_the_second_axis_and_follow_time() -> None:
    waveform = torch.zeros(1, WINDOW_SAMPLES)
    waveform[0, WINDOW_SAMPLES // 2 :] = _tone(1_000.0)[0, WINDOW_SAMPLES // 2 :]
    loudness = LogMel()(waveform)[0, 0].mean(dim=0)
    assert float(loudness[:46].max()) < float(loudness[50:].min())


def test_a_window_looks_the_same_alone_and_in_a_batch() -> None:
    waveforms = torch.randn(5, WINDOW_SAMPLES, generator=torch.Generator().manual_seed(0)) * 0.1
    together = LogMel()(waveforms)
    alone = torch.cat([LogMel()(waveform.unsqueeze(0)) for waveform in waveforms])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_silence_and_full_scale_are_finite() -> None:
    extremes = torch.stack([torch.zeros(WINDOW_SAMPLES), torch.ones(WINDOW_SAMPLES), _tone(440.0)[0]])
    assert bool(LogMel()(extremes).isfinite().all())


def test_it_has_no_parameters_and_saves_nothing() -> None:
    assert list(LogMel().parameters()) == []
    assert LogMel().state_dict() == {}


def test_the_constants_bring_typical_audio_near_zero_mean_and_unit_deviation() -> None:
    rng = np.random.default_rng(5)
    clips = np.stack([clip(label, 0.96, rng) for label in CLASSES for _ in range(12)])
    picture = LogMel()(torch.from_numpy(clips))
    assert abs(float(picture.mean())) < 0.2
    assert float(picture.std()) == pytest.approx(1.0, abs=0.15)


def test_the_description_names_every_constant_and_can_be_written_down() -> None:
    description = log_mel.describe()
    assert json.loads(json.dumps(description)) == description
    # "taper", "mel_scale" and "pad" are names of methods, PAD_SAMPLES follows from two others.
    values = {value for name, value in vars(log_mel).items() if name.isupper() and name != "PAD_SAMPLES"}
    assert values <= set(description.values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_sees_the_same_picture() -> None:
    waveforms = torch.randn(4, WINDOW_SAMPLES, generator=torch.Generator().manual_seed(0)) * 0.1
    torch.testing.assert_close(LogMel()(waveforms), LogMel().cuda()(waveforms.cuda()).cpu(), atol=1e-3, rtol=1e-3)
