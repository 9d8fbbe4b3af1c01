from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from common.audio_codec import AUDIO_CODECS, AudioCodec, decode_audio, encode_audio
from common.errors import MessageError
from common.log_mel import SAMPLE_RATE_HZ, WINDOW_SAMPLES
from common.soundscape import CLASSES, clip

CODECS = pytest.mark.parametrize("codec", AUDIO_CODECS)


def window(seed: int = 0) -> np.ndarray:
    return clip(CLASSES[seed % len(CLASSES)], 1.0, np.random.default_rng(seed))[:WINDOW_SAMPLES]


@pytest.mark.parametrize("codec", ["pcm16", "flac"])
def test_pcm16_and_flac_lose_nothing_but_what_sixteen_bits_cannot_hold(codec: AudioCodec) -> None:
    sound = window()
    decoded = decode_audio(encode_audio(sound, codec), codec)
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, sound, atol=0.5 / 32_768 + 1e-7)
    np.testing.assert_array_equal(decode_audio(encode_audio(decoded, codec), codec), decoded)


def test_pcm16_is_two_bytes_a_sample() -> None:
    assert len(encode_audio(window(), "pcm16")) == 30_720


def test_what_is_too_loud_is_clipped_and_does_not_wrap() -> None:
    loud = np.full(WINDOW_SAMPLES, 1.5, np.float32)
    assert decode_audio(encode_audio(loud, "pcm16"), "pcm16").min() == pytest.approx(1.0, abs=1e-4)


def test_opus_keeps_a_window_long_and_alike_at_about_24_kbit_a_second() -> None:
    for seed in range(5):
        sound = window(seed)
        data = encode_audio(sound, "opus")
        decoded = decode_audio(data, "opus")
        assert 1_000 < len(data) < 6_000
        assert decoded.shape == (WINDOW_SAMPLES,)
        loudness = np.sqrt([np.mean(one**2) for one in (sound, decoded)])
        assert loudness[1] == pytest.approx(loudness[0], rel=0.5)


@CODECS
@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_half_a_file_is_refused(codec: AudioCodec, cut: int) -> None:
    with pytest.raises(MessageError):
        decode_audio(encode_audio(window(), codec)[:cut], codec)


@pytest.mark.parametrize(("form", "subtype", "codec"), [("FLAC", "PCM_16", "flac"), ("OGG", "OPUS", "opus")])
def test_another_rate_length_or_number_of_channels_is_refused(form: str, subtype: str, codec: AudioCodec) -> None:
    def file(samples: np.ndarray, rate_hz: int) -> bytes:
        made = io.BytesIO()
        soundfile.write(made, samples, rate_hz, format=form, subtype=subtype)
        return made.getvalue()

    decode_audio(file(window(), SAMPLE_RATE_HZ), codec)
    for samples, rate_hz in (
        (window(), 8_000),
        (window()[:-160], SAMPLE_RATE_HZ),
        (np.tile(window(), 100), SAMPLE_RATE_HZ),
        (np.stack([window(), window()], axis=1), SAMPLE_RATE_HZ),
    ):
        with pytest.raises(MessageError):
            decode_audio(file(samples, rate_hz), codec)


@pytest.mark.parametrize(("sent", "said"), [("flac", "opus"), ("opus", "flac")])
def test_a_file_of_another_codec_than_it_says_is_refused(sent: AudioCodec, said: AudioCodec) -> None:
    with pytest.raises(MessageError):
        decode_audio(encode_audio(window(), sent), said)


@CODECS
@settings(max_examples=60)
@given(data=st.binary(max_size=400), spoilt=st.lists(st.tuples(st.integers(0, 3_000), st.integers(0, 255)), max_size=4))
def test_whatever_arrives_a_window_or_a_message_error_comes_out(
    codec: AudioCodec, data: bytes, spoilt: list[tuple[int, int]]
) -> None:
    good = bytearray(encode_audio(window(), codec))
    for place, value in spoilt:
        good[place % len(good)] = value
    for received in (data, bytes(good), bytes(good[:64]) + data):
        try:
            decoded = decode_audio(received, codec)
        except MessageError:
            continue
        assert decoded.shape == (WINDOW_SAMPLES,)
        assert np.isfinite(decoded).all()
