from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from common.audio_file import AUDIO_SUFFIXES, AudioFileError, audio_seconds, read_audio, tile_to


def _tone(hz: float, seconds: float, rate_hz: int) -> np.ndarray:
    return (0.5 * np.sin(2.0 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


@pytest.mark.parametrize("suffix", sorted(AUDIO_SUFFIXES))
def test_every_format_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"tone{suffix}"
    soundfile.write(path, _tone(440.0, 1.0, 16_000), 16_000)
    samples = read_audio(path)
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    # Lossy formats may pad by a frame or two.
    assert abs(samples.shape[0] - 16_000) < 4_000
    assert float(np.sqrt(np.mean(samples[2_000:12_000] ** 2))) == pytest.approx(0.354, abs=0.02)
    assert audio_seconds(path) == pytest.approx(1.0, abs=0.25)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_any_rate_becomes_16_khz_with_the_same_tone(tmp_path: Path, rate_hz: int) -> None:
    path = tmp_path / "tone.wav"
    soundfile.write(path, _tone(1_000.0, 1.0, rate_hz), rate_hz, subtype="FLOAT")
    samples = read_audio(path)
    assert samples.shape == (16_000,)
    np.testing.assert_allclose(samples[1_000:-1_000], _tone(1_000.0, 1.0, 16_000)[1_000:-1_000], atol=0.01)


def test_channels_are_averaged(tmp_path: Path) -> None:
    path = tmp_path / "stereo.wav"
    left, right = _tone(300.0, 0.2, 16_000), _tone(700.0, 0.2, 16_000)
    soundfile.write(path, np.stack([left, right], axis=1), 16_000, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(path), (left + right) / 2.0, atol=1e-6)


def test_a_part_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "ramp.wav"
    ramp = np.linspace(0.0, 0.9, 32_000, dtype=np.float32)
    soundfile.write(path, ramp, 16_000, subtype="FLOAT")
    np.testing.assert_array_equal(read_audio(path, start_s=0.5, length_s=0.25), ramp[8_000:12_000])


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("broken.wav", b"RIFF\x00\x00nonsense", "cannot be decoded"),
        ("noise.ogg", bytes(range(256)) * 8, "cannot be decoded"),
        ("empty.flac", b"", "is empty"),
        ("missing.wav", None, "no such file"),
    ],
)
def test_a_file_that_cannot_be_read_says_which_and_why(
    tmp_path: Path, name: str, content: bytes | None, why: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    for read in (read_audio, audio_seconds):
        with pytest.raises(AudioFileError, match=why) as caught:
            read(path)
        assert caught.value.path == path
        assert name in str(caught.value)


def test_a_folder_is_not_a_recording(tmp_path: Path) -> None:
    with pytest.raises(AudioFileError, match="is a folder"):
        read_audio(tmp_path)


def test_a_recording_without_samples_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nothing.wav"
    soundfile.write(path, np.zeros(0, dtype=np.float32), 16_000)
    for read in (read_audio, audio_seconds):
        with pytest.raises(AudioFileError, match="holds no samples"):
            read(path)


def test_samples_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "nan.wav"
    soundfile.write(path, np.array([0.0, np.nan, 0.0], dtype=np.float32), 16_000, subtype="FLOAT")
    with pytest.raises(AudioFileError, match="not finite"):
        read_audio(path)


def test_a_short_clip_is_repeated_and_a_long_one_left_alone() -> None:
    short = np.array([1.0, 2.0, 3.0], dtype=np.float32)
    np.testing.assert_array_equal(tile_to(short, 7), [1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 1.0])
    assert tile_to(short, 2) is short
