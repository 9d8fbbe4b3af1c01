"""What features of labelled clips are worth: probes fitted on the training clips, scored clip by clip on the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NEIGHBOURS = 5
RETRIEVED = 10
PROBE_C = 0.1


@dataclass(frozen=True, slots=True)
class Scores:
    """Figures of one encoder on the held-out clips; accuracies are fractions.

    The tuples have one entry per held-out clip, in the order of ``names``: that of the split (sorted relative paths),
    less the recordings that could not be read. Encoders scored on one `ProbeSet` can so be compared clip by clip. A
    mean of several encoders has no such entries: its tuples are empty.

    Attributes:
        linear: logistic regression, C = 0.1.
        knn: 5 nearest neighbours, cosine distance of the standardised features.
        precision_at_10: of the 10 nearest training clips, by the same distance, those of the held-out clip's class.
        silhouette: of the held-out clips' classes, same distance (Rousseeuw 1987): -1..1; None where it is not defined
            (one class, or every clip its own).
        effective_rank: of the embeddings of the held-out clips' windows.
        clips: clips in all; ``held_out``: those scored.
        names: relative paths of the held-out clips.
        linear_hits, knn_hits: which of them the probe got right; their means are ``linear`` and ``knn``.
    """

    linear: float
    knn: float
    precision_at_10: float
    silhouette: float | None
    effective_rank: float
    clips: int
    held_out: int
    names: tuple[str, ...] = ()
    linear_hits: tuple[bool, ...] = ()
    knn_hits: tuple[bool, ...] = ()


def score(
    features: NDArray[np.float64],
    labels: NDArray[np.str_],
    held: NDArray[np.bool_],
    names: NDArray[np.str_],
    *,
    effective_rank: float,
) -> Scores:
    """Fit the probes on the features [clips, F] that are not ``held`` [clips], and score them on those that are."""
    from sklearn.linear_model import LogisticRegression  # a second to import: only who evaluates pays
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler

    known, asked = labels[~held], labels[held]
    scaler = StandardScaler().fit(features[~held])
    training, scored = scaler.transform(features[~held]), scaler.transform(features[held])
    linear = LogisticRegression(C=PROBE_C, max_iter=5000).fit(training, known).predict(scored) == asked
    neighbours = KNeighborsClassifier(min(NEIGHBOURS, len(training)), metric="cosine").fit(training, known)
    knn = neighbours.predict(scored) == asked
    nearest = neighbours.kneighbors(scored, min(RETRIEVED, len(training)), return_distance=False)
    return Scores(
        linear=float(np.mean(linear)),
        knn=float(np.mean(knn)),
        precision_at_10=float(np.mean(known[nearest] == asked[:, None])),
        silhouette=_silhouette(scored, asked),
        effective_rank=effective_rank,
        clips=len(labels),
        held_out=len(asked),
        names=tuple(names[held].tolist()),
        linear_hits=tuple(linear.tolist()),
        knn_hits=tuple(knn.tolist()),
    )


def mean_scores(scores: Sequence[Scores]) -> Scores:
    """Mean of each figure over scores on the same clips; without entries for single clips."""
    silhouettes = [one.silhouette for one in scores if one.silhouette is not None]
    return Scores(
        linear=float(np.mean([one.linear for one in scores])),
        knn=float(np.mean([one.knn for one in scores])),
        precision_at_10=float(np.mean([one.precision_at_10 for one in scores])),
        silhouette=float(np.mean(silhouettes)) if silhouettes else None,
        effective_rank=float(np.mean([one.effective_rank for one in scores])),
        clips=scores[0].clips,
        held_out=scores[0].held_out,
    )


def _silhouette(features: NDArray[np.float64], labels: NDArray[np.str_]) -> float | None:
    from sklearn.metrics import silhouette_score

    if not 2 <= len(set(labels)) < len(labels):
        return None
    return float(silhouette_score(features, labels, metric="cosine"))
