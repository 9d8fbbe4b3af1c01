"""Reading recordings: any format libsndfile knows, to mono at one rate."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torchaudio.functional import resample

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".mp3"})


class AudioFileError(Exception):
    """A recording that cannot be used. `path` and `why` stand by themselves; the text has both."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = path
        self.why = why


def audio_seconds(path: Path) -> float:
    """How long a recording says it is, from its header alone. Raises AudioFileError."""
    try:
        header = soundfile.info(str(path))
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise AudioFileError(path, _why(path, error)) from error
    if header.frames <= 0 or header.samplerate <= 0:
        raise AudioFileError(path, "holds no samples")
    return float(header.frames) / float(header.samplerate)


def read_audio(
    path: Path, sample_rate_hz: int = 16_000, *, start_s: float = 0.0, length_s: float | None = None
) -> NDArray[np.float32]:
    """A recording, or `length_s` of it from `start_s` on, as mono `[samples]` float32; channels are averaged.

    Raises AudioFileError for what cannot be decoded, holds nothing there, or is not finite.
    """
    try:
        with soundfile.SoundFile(str(path)) as file:
            rate_hz = int(file.samplerate)
            if start_s > 0.0:
                file.seek(min(round(start_s * rate_hz), file.frames))
            frames = -1 if length_s is None else math.ceil(length_s * rate_hz)
            channels = file.read(frames, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise AudioFileError(path, _why(path, error)) from error
    if channels.shape[0] == 0:
        raise AudioFileError(path, "holds no samples")
    mono = channels[:, 0] if channels.shape[1] == 1 else channels.mean(axis=1, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise AudioFileError(path, "holds samples that are not finite")
    return _at_rate(np.ascontiguousarray(mono, dtype=np.float32), rate_hz, sample_rate_hz)


def tile_to(samples: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """Repeats a clip shorter than `length` until it is that long; longer ones come back as they are.

    Repeated, not padded with silence: otherwise the share of silence would tell short clips
    apart before their sound does.
    """
    if samples.shape[0] >= length:
        return samples
    return np.tile(samples, -(-length // samples.shape[0]))[:length]


def _at_rate(samples: NDArray[np.float32], from_hz: int, to_hz: int) -> NDArray[np.float32]:
    if from_hz == to_hz:
        return samples
    converted: NDArray[np.float32] = resample(torch.from_numpy(samples), from_hz, to_hz).numpy()
    return converted


def _why(path: Path, error: Exception) -> str:
    if not path.exists():
        return "no such file"
    if path.is_dir():
        return "is a folder"
    if not path.stat().st_size:
        return "is empty"
    text = error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)
    return f"cannot be decoded ({text.strip().rstrip('.')})"
