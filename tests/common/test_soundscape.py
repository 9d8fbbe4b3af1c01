from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from common.log_mel import SAMPLE_RATE_HZ, WINDOW_SAMPLES, LogMel
from common.soundscape import CLASSES, clip

TRAINING = 560


@cache
def _windows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(11)
    labels = np.arange(840) % len(CLASSES)
    waveforms = np.stack([clip(CLASSES[label], 1.5, rng)[-WINDOW_SAMPLES:] for label in labels])
    return waveforms, labels


def _accuracy(classifier: object, features: np.ndarray) -> float:
    _, labels = _windows()
    pipeline = make_pipeline(StandardScaler(), classifier).fit(features[:TRAINING], labels[:TRAINING])
    return float(pipeline.score(features[TRAINING:], labels[TRAINING:]))


def test_there_are_at_least_eight_classes() -> None:
    assert len(set(CLASSES)) == len(CLASSES) >= 8


@pytest.mark.parametrize("label", CLASSES)
def test_a_clip_is_mono_in_range_and_of_the_length_asked_for(label: str) -> None:
    for seconds in (0.3, 1.0, 4.7):
        samples = clip(label, seconds, np.random.default_rng(3))
        assert samples.shape == (round(seconds * SAMPLE_RATE_HZ),)
        assert samples.dtype == np.float32
        assert np.isfinite(samples).all()
        assert float(np.abs(samples).max()) <= 1.0
        assert float(np.ptp(samples)) > 1e-3


@pytest.mark.parametrize("label", CLASSES)
def test_the_same_draws_give_the_same_clip_and_others_another(label: str) -> None:
    first, again, other = (clip(label, 1.0, np.random.default_rng(seed)) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_an_unknown_class_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="birdsong"):
        clip("unicorn", 1.0, np.random.default_rng(0))


def test_loudness_alone_does_not_tell_the_classes_apart() -> None:
    waveforms, _ = _windows()
    rms = np.log(np.sqrt(np.mean(np.square(waveforms), axis=1, keepdims=True)) + 1e-6)
    assert _accuracy(KNeighborsClassifier(15), rms) < 0.3
    assert _accuracy(LogisticRegression(max_iter=2_000), np.concatenate([rms, rms**2], axis=1)) < 0.3


def test_simple_statistics_of_the_log_mel_tell_them_apart_with_room_to_learn() -> None:
    waveforms, _ = _windows()
    picture = LogMel()(torch.from_numpy(waveforms)).numpy()[:, 0]
    statistics = np.concatenate([picture.mean(axis=2), picture.std(axis=2)], axis=1)
    accuracy = _accuracy(LogisticRegression(C=0.1, max_iter=2_000), statistics)
    assert 0.7 < accuracy < 0.95
