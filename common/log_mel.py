"""The one front end: a waveform becomes a normalised log-mel picture, the same for training, evaluation and inference.

The numbers here are part of what both ends share; :func:`describe` puts every one of them into the fingerprint.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

SAMPLE_RATE_HZ = 16_000
WINDOW_SAMPLES = 15_360
MEL_BANDS = 64
FRAMES = 96

FRAME_SAMPLES = 400
HOP_SAMPLES = 160
# The shortest power of two at which every one of the 64 filters still covers two bins (the lowest are 56 Hz wide);
# 1,024 costs twice the time.
FFT_SAMPLES = 512
LOWEST_HZ = 60.0
HIGHEST_HZ = 7_800.0
# With this on either side, 15,360 samples are exactly 96 frames.
PAD_SAMPLES = (FRAME_SAMPLES - HOP_SAMPLES) // 2
# Added before the logarithm: about -72 dB of full scale in one band, the self-noise of a small microphone.
FLOOR = 1e-5
# Mean and standard deviation of ln(mel + FLOOR) over 2,000 windows of common.soundscape, all classes alike: measured
# once, -2.25 and 3.05 (tests/common/test_log_mel.py repeats it with fewer). Never fitted on what is evaluated.
LOG_MEAN = -2.25
LOG_DEVIATION = 3.0


class LogMel(nn.Module):
    """Waveforms `[N, 15360]` float32 in [-1, 1] at 16 kHz to pictures `[N, 1, 64, 96]` (bands, then frames).

    Raises ValueError for any other shape. Without parameters; `.to(device)` moves its tables.
    """

    _taper: Tensor
    _filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        filters = melscale_fbanks(
            n_freqs=FFT_SAMPLES // 2 + 1,
            f_min=LOWEST_HZ,
            f_max=HIGHEST_HZ,
            n_mels=MEL_BANDS,
            sample_rate=SAMPLE_RATE_HZ,
            norm=None,
            mel_scale="htk",
        )
        self.register_buffer("_taper", torch.hann_window(FRAME_SAMPLES), persistent=False)
        self.register_buffer("_filters", filters, persistent=False)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Pictures of waveforms, differentiable."""
        if waveforms.dim() != 2 or waveforms.shape[1] != WINDOW_SAMPLES:
            raise ValueError(f"log-mel takes waveforms of [N, {WINDOW_SAMPLES}], not {list(waveforms.shape)}")
        padded = nn.functional.pad(waveforms, (PAD_SAMPLES, PAD_SAMPLES), mode="reflect")
        frames = padded.unfold(1, FRAME_SAMPLES, HOP_SAMPLES) * self._taper
        spectrum = torch.view_as_real(torch.fft.rfft(frames, n=FFT_SAMPLES))
        energy = spectrum.square().sum(dim=-1) @ self._filters
        normal = (torch.log(energy + FLOOR) - LOG_MEAN) / LOG_DEVIATION
        return normal.transpose(1, 2).unsqueeze(1).contiguous()


def describe() -> dict[str, int | float | str]:
    """Every constant that decides what a picture looks like, for the fingerprint."""
    return {
        "sample_rate_hz": SAMPLE_RATE_HZ,
        "window_samples": WINDOW_SAMPLES,
        "bands": MEL_BANDS,
        "frames": FRAMES,
        "frame_samples": FRAME_SAMPLES,
        "hop_samples": HOP_SAMPLES,
        "fft_samples": FFT_SAMPLES,
        "taper": "hann",
        "mel_scale": "htk",
        "lowest_hz": LOWEST_HZ,
        "highest_hz": HIGHEST_HZ,
        "pad": "reflect",
        "floor": FLOOR,
        "log_mean": LOG_MEAN,
        "log_deviation": LOG_DEVIATION,
    }
