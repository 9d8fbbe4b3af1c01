from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from trainer.probes import Scores, mean_scores, score


def _made_up(clips: int = 60, classes: int = 3, spread: float = 1.5) -> tuple[NDArray[np.float64], NDArray[np.str_]]:
    rng = np.random.default_rng(0)
    labels = np.array([f"c{i % classes}" for i in range(clips)])
    centres = rng.standard_normal((classes, 8))
    return centres[np.arange(clips) % classes] + spread * rng.standard_normal((clips, 8)), labels


def _score(features: NDArray[np.float64], labels: NDArray[np.str_], held: NDArray[np.bool_]) -> Scores:
    names = np.array([f"{i:02}.wav" for i in range(len(labels))])
    return score(features, labels, held, names, effective_rank=2.0)


def _standardised(
    features: NDArray[np.float64], held: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    scaler = StandardScaler().fit(features[~held])
    return scaler.transform(features[~held]), scaler.transform(features[held])


def _cosine_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return 1.0 - float(a @ b) / float(np.linalg.norm(a) * np.linalg.norm(b))


def test_accuracies_are_to_the_last_digit_what_scikit_learn_calls_the_score() -> None:
    features, labels = _made_up()
    held = np.arange(60) % 4 == 1
    training, scored = _standardised(features, held)
    linear = LogisticRegression(C=0.1, max_iter=5000).fit(training, labels[~held])
    knn = KNeighborsClassifier(5, metric="cosine").fit(training, labels[~held])
    scores = _score(features, labels, held)
    assert scores.linear == linear.score(scored, labels[held])
    assert scores.knn == knn.score(scored, labels[held])
    assert 0.0 < scores.knn < 1.0, "otherwise the comparison says little"


def test_precision_at_10_counts_the_ten_nearest_training_clips_of_the_same_class() -> None:
    features, labels = _made_up()
    held = np.arange(60) % 4 == 1
    training, scored = _standardised(features, held)
    right = []
    for clip, label in zip(scored, labels[held], strict=True):
        nearest = sorted(range(len(training)), key=lambda i: _cosine_distance(clip, training[i]))[:10]
        right += [labels[~held][i] == label for i in nearest]
    assert _score(features, labels, held).precision_at_10 == pytest.approx(np.mean(right))


def test_the_silhouette_is_that_of_the_held_out_clips_alone() -> None:
    features, labels = _made_up()
    held = np.arange(60) % 4 == 1
    _, scored = _standardised(features, held)
    own = labels[held]
    values = []
    for i, clip in enumerate(scored):
        to = {
            label: np.mean(
                [_cosine_distance(clip, scored[j]) for j in range(len(scored)) if own[j] == label and j != i]
            )
            for label in set(own)
        }
        inside, outside = to[own[i]], min(value for label, value in to.items() if label != own[i])
        values.append((outside - inside) / max(inside, outside))
    assert _score(features, labels, held).silhouette == pytest.approx(np.mean(values))


def test_where_no_silhouette_is_defined_there_is_none() -> None:
    features, labels = _made_up()
    assert _score(features, labels, labels == "c1").silhouette is None
    assert _score(features, labels, np.arange(60) < 3).silhouette is None


def test_hits_stand_in_the_order_of_the_names() -> None:
    features, labels = _made_up(spread=0.01)
    held = np.arange(60) % 10 == 0
    wrong = labels.copy()
    wrong[20] = "c0" if labels[20] != "c0" else "c1"
    scores = _score(features, wrong, held)
    assert scores.names == ("00.wav", "10.wav", "20.wav", "30.wav", "40.wav", "50.wav")
    assert scores.knn_hits == scores.linear_hits == (True, True, False, True, True, True)


def test_with_fewer_than_ten_training_clips_all_of_them_are_retrieved() -> None:
    features, labels = _made_up(clips=9, spread=0.01)
    scores = _score(features, labels, np.arange(9) >= 6)
    assert scores.precision_at_10 == pytest.approx(1 / 3)


def test_a_mean_has_the_mean_of_each_figure_and_no_clips() -> None:
    one = Scores(0.5, 0.25, 0.4, None, 4.0, 9, 2, ("a", "b"), (True, False), (False, False))
    other = Scores(1.0, 0.75, 0.6, 0.5, 6.0, 9, 2, ("a", "b"), (True, True), (True, True))
    assert mean_scores([one, other]) == Scores(0.75, 0.5, 0.5, 0.5, 5.0, 9, 2)
    assert mean_scores([one, one]).silhouette is None
