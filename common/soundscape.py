"""Synthetic ambient sounds: classes a listener tells apart, for a demo and for tests that need no recordings.

Every clip draws its own pitch, tempo and timbre, stands in a room of its own, under a coloured noise 0 to 15 dB softer
than itself, and is brought to a random loudness: loudness says nothing about the class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import next_fast_len

from common.log_mel import SAMPLE_RATE_HZ

_Sound = NDArray[np.float32]

LOUDEST_DB = -12.0
SOFTEST_DB = -36.0
SNR_DB = (0.0, 15.0)


def clip(label: str, seconds: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """One clip of a class from :data:`CLASSES`, mono `[seconds * 16000]` float32 within [-1, 1].

    The same state of `rng` gives the same clip. Raises ValueError for an unknown class or a length of nothing.
    """
    if label not in _MAKERS:
        raise ValueError(f"no sound class {label!r}; there are {', '.join(CLASSES)}")
    samples = round(seconds * SAMPLE_RATE_HZ)
    if samples <= 0:
        raise ValueError(f"a clip of {seconds} s holds no samples")
    event = _unit(_in_a_room(_MAKERS[label](samples, rng), rng))
    slope = rng.uniform(0.0, 1.6)
    bed = _unit(_noise(samples, rng, lambda hz: (hz + 40.0) ** -slope))
    mixture = _unit(event + bed * np.float32(_ratio(-rng.uniform(*SNR_DB))))
    loudness = np.float32(_ratio(rng.uniform(SOFTEST_DB, LOUDEST_DB)))
    return _single(np.clip(mixture * loudness, -1.0, 1.0))


def _rain(samples: int, rng: np.random.Generator) -> _Sound:
    hits = _impulses(samples, rng, per_second=rng.uniform(60.0, 900.0))
    drop = _ring(rng, hz=rng.uniform(1_500.0, 4_500.0), decay_s=rng.uniform(0.001, 0.004), modes=3)
    corner_hz = rng.uniform(600.0, 2_500.0)
    hiss = _noise(samples, rng, lambda hz: np.minimum(hz / corner_hz, 1.0) * (hz + 1_000.0) ** -0.5)
    return _single(_unit(_convolve(hits, drop)) + rng.uniform(0.3, 1.2) * _unit(hiss))


def _wind(samples: int, rng: np.random.Generator) -> _Sound:
    steepness = rng.uniform(1.2, 2.2)
    rumble = _unit(_noise(samples, rng, lambda hz: (hz + 60.0) ** -steepness))
    centre_hz, width = rng.uniform(350.0, 1_100.0), rng.uniform(0.12, 0.3)
    howl = _unit(_noise(samples, rng, lambda hz: np.exp(-((np.log(np.maximum(hz, 1.0) / centre_hz) / width) ** 2))))
    gusts, whistle = _wander(samples, rng, rng.uniform(0.3, 1.5)), _wander(samples, rng, rng.uniform(0.3, 1.5))
    return _single(rumble * np.exp(0.7 * gusts) + rng.uniform(0.2, 0.9) * howl * np.exp(0.9 * whistle))


def _engine(samples: int, rng: np.random.Generator) -> _Sound:
    hz = rng.uniform(28.0, 110.0) * np.exp(0.08 * _wander(samples, rng, 0.5))
    turns = _turns(hz)
    fade = rng.uniform(0.5, 1.2)
    weights = rng.uniform(0.3, 1.0, size=24) * np.arange(1, 25) ** -fade
    firing = 0.5 + 0.5 * np.cos(2.0 * np.pi * turns).astype(np.float32)
    clatter = _unit(_noise(samples, rng, lambda f: (f + 300.0) ** -0.8)) * firing**2
    return _single(_unit(_harmonics(turns, weights)) + rng.uniform(0.2, 0.8) * clatter)


def _siren(samples: int, rng: np.random.Generator) -> _Sound:
    place = _turns(np.full(samples, rng.uniform(0.25, 3.0))) + rng.uniform()
    up = 2.0 * np.abs(place % 1.0 - 0.5)
    shape = rng.choice(3)
    sweep = up if shape == 0 else 0.5 - 0.5 * np.cos(2.0 * np.pi * place) if shape == 1 else np.round(up)
    hz = rng.uniform(450.0, 900.0) * rng.uniform(1.4, 2.4) ** sweep
    return _harmonics(_turns(hz), rng.uniform(0.05, 1.0, size=4) / np.arange(1, 5))


def _birdsong(samples: int, rng: np.random.Generator) -> _Sound:
    sound = np.zeros(samples, dtype=np.float32)
    home_hz, spread = rng.uniform(2_000.0, 4_500.0), rng.uniform(0.1, 0.4)
    at_s, end_s = rng.uniform(0.0, 0.4), samples / SAMPLE_RATE_HZ
    while at_s < end_s:
        length_s, pause_s = rng.uniform(0.03, 0.16), rng.uniform(0.01, 0.12)
        start_hz, stop_hz = np.minimum(home_hz * np.exp(rng.normal(0.0, spread, size=2)), 7_000.0)
        trill_hz = rng.uniform(15.0, 45.0)
        for _ in range(rng.integers(1, 9)):
            time = np.linspace(0.0, 1.0, round(length_s * SAMPLE_RATE_HZ))
            hz = start_hz + (stop_hz - start_hz) * time + 150.0 * np.sin(2.0 * np.pi * trill_hz * time * length_s)
            _add(sound, at_s, (np.sin(2.0 * np.pi * _turns(hz)) * np.sin(np.pi * time) ** 2).astype(np.float32))
            at_s += length_s + pause_s
        at_s += rng.uniform(0.1, 0.7)
    return sound


def _clock(samples: int, rng: np.random.Generator) -> _Sound:
    period_s, swing = 1.0 / rng.uniform(1.2, 5.0), rng.uniform(0.0, 0.15)
    at_s = np.arange(rng.uniform(0.0, period_s), samples / SAMPLE_RATE_HZ, period_s)
    beat = np.arange(at_s.shape[0]) % 2
    ticks = np.zeros(samples, dtype=np.float32)
    ticks[np.minimum(((at_s + swing * period_s * beat) * SAMPLE_RATE_HZ).astype(int), samples - 1)] = np.where(
        beat == 0, 1.0, rng.uniform(0.4, 1.0)
    )
    return _convolve(ticks, _ring(rng, hz=rng.uniform(1_200.0, 4_500.0), decay_s=rng.uniform(0.003, 0.015), modes=5))


def _knocks(samples: int, rng: np.random.Generator) -> _Sound:
    hits = np.zeros(samples, dtype=np.float32)
    end_s, between_s = samples / SAMPLE_RATE_HZ, rng.uniform(0.12, 0.3)
    at_s = rng.uniform(0.0, 0.5)
    while at_s < end_s:
        for _ in range(rng.integers(2, 6)):
            hits[min(int(at_s * SAMPLE_RATE_HZ), samples - 1)] = rng.uniform(0.5, 1.0)
            at_s += between_s * rng.uniform(0.85, 1.15)
        at_s += rng.uniform(0.2, 0.9)
    return _convolve(hits, _ring(rng, hz=rng.uniform(90.0, 380.0), decay_s=rng.uniform(0.012, 0.05), modes=5))


def _babble(samples: int, rng: np.random.Generator) -> _Sound:
    return _single(np.sum([_voice(samples, rng) for _ in range(rng.integers(1, 3))], axis=0))


def _voice(samples: int, rng: np.random.Generator) -> _Sound:
    """A glottal pulse train through vowels that change with every syllable: the source and filter of speech."""
    hz = rng.uniform(85.0, 260.0) * np.exp(0.12 * _wander(samples, rng, 1.5))
    pulses = np.diff(np.floor(_turns(hz)), prepend=0.0).astype(np.float32)
    pulses += np.float32(0.02) * rng.standard_normal(samples, dtype=np.float32)
    rate = rng.uniform(2.5, 6.0)
    syllable = _turns(rate * np.exp(0.3 * _wander(samples, rng, 2.0))) + rng.uniform()
    loudness = (np.sin(np.pi * (syllable % 1.0)) ** 2).astype(np.float32)
    vowel = rng.integers(0, 4, size=int(syllable[-1]) + 2)[syllable.astype(int)]
    tract = rng.uniform(0.85, 1.2)
    length = _fast_length(samples)
    hz_axis = _frequencies(length)
    spoken = np.zeros(hz_axis.shape[0], dtype=np.complex64)
    for number, formants_hz in enumerate(_VOWELS_HZ):
        spoken += np.fft.rfft(pulses * loudness * (vowel == number), length) * _formants(
            tract * np.array(formants_hz), hz_axis
        )
    return _unit(_single(np.fft.irfft(spoken, length)[:samples]))


# First three formants of "ah", "ee", "oo", "eh" (Peterson and Barney 1952, rounded).
_VOWELS_HZ = ((730, 1_090, 2_440), (270, 2_290, 3_010), (300, 870, 2_240), (530, 1_840, 2_480))


def _drops(samples: int, rng: np.random.Generator) -> _Sound:
    sound = np.zeros(samples, dtype=np.float32)
    times_s = np.cumsum(rng.exponential(1.0 / rng.uniform(1.5, 6.0), size=8 * (samples // SAMPLE_RATE_HZ + 2)))
    home_hz = rng.uniform(500.0, 1_600.0)
    for at_s in times_s[times_s < samples / SAMPLE_RATE_HZ]:
        time_s = np.arange(2_400) / SAMPLE_RATE_HZ
        decay_s = rng.uniform(0.012, 0.04)
        hz = home_hz * np.exp(rng.normal(0.0, 0.25)) * (1.0 + rng.uniform(2.0, 9.0) * time_s)
        bubble = np.sin(2.0 * np.pi * _turns(hz)) * np.exp(-time_s / decay_s)
        _add(sound, at_s, (rng.uniform(0.3, 1.0) * bubble).astype(np.float32))
    return sound


def _alarm(samples: int, rng: np.random.Generator) -> _Sound:
    turns = _turns(np.full(samples, rng.uniform(700.0, 3_200.0)))
    tone = _harmonics(turns, rng.uniform(0.1, 1.0, size=3) / np.array([1.0, 3.0, 6.0]))
    beat = _turns(np.full(samples, rng.uniform(1.8, 8.0))) + rng.uniform()
    group = int(rng.integers(3, 6))
    pausing = (beat.astype(int) % group == group - 1) & bool(rng.integers(0, 2))
    return _single(tone * ((beat % 1.0 < rng.uniform(0.3, 0.65)) & ~pausing))


_MAKERS: dict[str, Callable[[int, np.random.Generator], _Sound]] = {
    "rain": _rain,
    "wind": _wind,
    "engine": _engine,
    "siren": _siren,
    "birdsong": _birdsong,
    "clock": _clock,
    "knocks": _knocks,
    "babble": _babble,
    "drops": _drops,
    "alarm": _alarm,
}
CLASSES: tuple[str, ...] = tuple(_MAKERS)


def _single(sound: NDArray[Any]) -> _Sound:
    single: _Sound = sound.astype(np.float32, copy=False)
    return single


def _ratio(level_db: float) -> float:
    return float(10.0 ** (level_db / 20.0))


def _unit(sound: _Sound) -> _Sound:
    level = float(np.sqrt(np.mean(np.square(sound, dtype=np.float32))))
    return _single(sound / np.float32(max(level, 1e-9)))


def _turns(hz: NDArray[np.floating]) -> NDArray[np.float64]:
    """Phase in turns of an oscillator with this frequency at every sample."""
    return np.cumsum(hz, dtype=np.float64) / SAMPLE_RATE_HZ


def _harmonics(turns: NDArray[np.float64], weights: NDArray[np.float64]) -> _Sound:
    """Sum of `weights[k] * sin(2 pi (k+1) turns)` by the Chebyshev recurrence: one sine for all of them."""
    angle = (2.0 * np.pi * (turns % 1.0)).astype(np.float32)
    twice_cosine = np.float32(2.0) * np.cos(angle)
    before, now = np.zeros_like(angle), np.sin(angle)
    total = np.float32(weights[0]) * now
    for weight in weights[1:]:
        before, now = now, twice_cosine * now - before
        total += np.float32(weight) * now
    return total


def _fast_length(samples: int) -> int:
    return int(next_fast_len(max(samples, 2), real=True))


def _frequencies(length: int) -> NDArray[np.float32]:
    return np.fft.rfftfreq(length, 1.0 / SAMPLE_RATE_HZ).astype(np.float32)


def _noise(
    samples: int, rng: np.random.Generator, gain: Callable[[NDArray[np.float32]], NDArray[np.floating]]
) -> _Sound:
    """Gaussian noise with an amplitude of `gain(hz)`, drawn in the spectrum."""
    length = _fast_length(samples)
    hz = _frequencies(length)
    parts = rng.standard_normal((2, hz.shape[0]), dtype=np.float32)
    spectrum = (parts[0] + 1j * parts[1]) * gain(hz)
    spectrum[0] = 0.0
    return _single(np.fft.irfft(spectrum.astype(np.complex64), length)[:samples])


def _wander(samples: int, rng: np.random.Generator, rate_hz: float) -> _Sound:
    """A slow random curve of unit deviation: a few knots a second, joined."""
    knots = rng.standard_normal(int(samples / SAMPLE_RATE_HZ * rate_hz) + 3)
    return _single(np.interp(np.arange(samples) * (rate_hz / SAMPLE_RATE_HZ), np.arange(knots.shape[0]), knots))


def _impulses(samples: int, rng: np.random.Generator, *, per_second: float) -> _Sound:
    hits = rng.random(samples, dtype=np.float32) < per_second / SAMPLE_RATE_HZ
    return _single(hits * rng.exponential(1.0, size=samples))


def _ring(rng: np.random.Generator, *, hz: float, decay_s: float, modes: int) -> _Sound:
    """What something hard does when it is hit: a few damped modes and a click."""
    time_s = np.arange(round(8.0 * decay_s * SAMPLE_RATE_HZ) + 1) / SAMPLE_RATE_HZ
    ratios = np.minimum(np.concatenate([[1.0], rng.uniform(1.2, 4.0, size=modes - 1)]) * hz, 7_500.0)
    weights = np.concatenate([[1.0], rng.uniform(0.1, 0.7, size=modes - 1)])
    ringing = weights @ np.sin(2.0 * np.pi * ratios[:, None] * time_s) * np.exp(-time_s / decay_s)
    click = 0.4 * rng.standard_normal(time_s.shape[0]) * np.exp(-time_s / (0.15 * decay_s))
    return (ringing + click).astype(np.float32)


def _formants(centres_hz: NDArray[np.float64], hz: NDArray[np.float32]) -> NDArray[np.float32]:
    peaks = [
        0.5**order / (1.0 + ((hz - centre) / (60.0 + 0.04 * centre)) ** 2) for order, centre in enumerate(centres_hz)
    ]
    return _single(np.sum(peaks, axis=0) + 0.003)


def _filtered(sound: _Sound, gain: Callable[[NDArray[np.float32]], NDArray[np.floating]]) -> _Sound:
    length = _fast_length(sound.shape[0])
    spectrum = np.fft.rfft(sound.astype(np.float32, copy=False), length) * gain(_frequencies(length))
    return _single(np.fft.irfft(spectrum, length)[: sound.shape[0]])


def _convolve(sound: _Sound, kernel: _Sound) -> _Sound:
    length = _fast_length(sound.shape[0] + kernel.shape[0])
    spectrum = np.fft.rfft(sound, length) * np.fft.rfft(kernel, length)
    return _single(np.fft.irfft(spectrum, length)[: sound.shape[0]])


def _in_a_room(sound: _Sound, rng: np.random.Generator) -> _Sound:
    """A reverberation of 0.05 to 0.4 s and a tilt, as rooms and microphones have."""
    decay_s = rng.uniform(0.05, 0.4) / 6.9
    tail = rng.standard_normal(round(7.0 * decay_s * SAMPLE_RATE_HZ)) * np.exp(
        -np.arange(round(7.0 * decay_s * SAMPLE_RATE_HZ)) / (decay_s * SAMPLE_RATE_HZ)
    )
    tail *= rng.uniform(0.05, 0.5) / np.sqrt(np.sum(np.square(tail)))
    tail[0] += 1.0
    tilt = rng.uniform(-0.35, 0.35)
    return _filtered(_convolve(sound, tail.astype(np.float32)), lambda hz: ((hz + 100.0) / 1_000.0) ** tilt)


def _add(sound: _Sound, at_s: float, grain: _Sound) -> None:
    start = int(at_s * SAMPLE_RATE_HZ)
    room = sound[start : start + grain.shape[0]]
    room += grain[: room.shape[0]]
