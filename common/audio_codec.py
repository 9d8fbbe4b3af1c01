"""A window as sound to bytes and back: for the server-only baseline, the only one that sends any.

PCM16 is the measure; FLAC and Opus go through soundfile, each window a whole file of its own, since a window must be
readable whatever was lost before it. An Ogg container costs some 800 bytes a window that way (measured).
"""

from __future__ import annotations

import io
from typing import Literal, get_args

import numpy as np
import soundfile
from numpy.typing import NDArray

from common.errors import MessageError
from common.log_mel import SAMPLE_RATE_HZ, WINDOW_SAMPLES

AudioCodec = Literal["pcm16", "flac", "opus"]
AUDIO_CODECS: tuple[AudioCodec, ...] = get_args(AudioCodec)
OPUS_BITS_PER_SECOND = 24_000
# libsndfile knows no bit rate, only a compression from 0 to 1 for 256 down to 6 kbit/s (measured: 0.5 is 131 kbit/s).
_OPUS_COMPRESSION = (256_000 - OPUS_BITS_PER_SECOND) / 250_000
_FILES = {"flac": ("FLAC", "PCM_16"), "opus": ("OGG", "OPUS")}
_FULL_SCALE = 32_768


def encode_audio(samples: NDArray[np.float32], codec: AudioCodec) -> bytes:
    """The bytes of a window [15360] float32 in [-1, 1]; what is louder is clipped."""
    whole = np.clip(np.rint(samples * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1).astype("<i2")
    if codec == "pcm16":
        return whole.tobytes()
    form, subtype = _FILES[codec]
    file = io.BytesIO()
    compression = _OPUS_COMPRESSION if codec == "opus" else None
    soundfile.write(file, whole, SAMPLE_RATE_HZ, format=form, subtype=subtype, compression_level=compression)
    return file.getvalue()


def decode_audio(data: bytes, codec: AudioCodec) -> NDArray[np.float32]:
    """The window [15360] float32 that ``data`` holds, a fresh array.

    Raises:
        MessageError: not a window of that codec: another length, rate, format or number of channels, or damaged.
    """
    if codec == "pcm16":
        if len(data) != 2 * WINDOW_SAMPLES:
            raise MessageError(f"audio: {len(data)} bytes of pcm16, a window has {2 * WINDOW_SAMPLES}")
        return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(_FULL_SCALE)
    try:
        samples = _read(data, codec)
    except (soundfile.LibsndfileError, RuntimeError, ValueError) as error:
        raise MessageError(f"audio: no {codec}: {error}") from error
    if samples.shape != (WINDOW_SAMPLES,) or not np.isfinite(samples).all():
        raise MessageError(f"audio: {codec} of {samples.shape[0]} samples, a window has {WINDOW_SAMPLES}")
    return samples


def _read(data: bytes, codec: AudioCodec) -> NDArray[np.float32]:
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        found = (file.format, file.subtype, file.samplerate, file.channels)
        if found != (*_FILES[codec], SAMPLE_RATE_HZ, 1):
            raise MessageError(f"audio: {found} is not the {codec} of a window")
        # One more than a window has: whatever length the header claims, no more than this is allocated.
        samples: NDArray[np.float32] = file.read(WINDOW_SAMPLES + 1, dtype="float32")
    return samples
