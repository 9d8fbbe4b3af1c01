"""Does the mixture's uncertainty predict errors? Checked on held-out clips, not assumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.mixture_memory import MixtureMemory
from trainer.checkpoint import Checkpoint

QUARTILES = 4


@dataclass(frozen=True, slots=True)
class Calibration:
    """How the uncertainty of held-out clips goes with the errors of 5-NN on them.

    Attributes:
        uncertainty: of every held-out clip, in the order of `Scores.names`.
        auroc: chance that a clip 5-NN gets wrong is more uncertain than one it gets right; 0.5: uncertainty says
            nothing. None without errors, or with nothing else.
        error_by_quartile: share of errors from the least to the most uncertain quarter of the clips; empty for fewer
            than four clips.
    """

    uncertainty: tuple[float, ...]
    auroc: float | None
    error_by_quartile: tuple[float, ...]


def calibration(uncertainty: Sequence[float], hits: Sequence[bool]) -> Calibration:
    """Set the uncertainty of clips against whether 5-NN got them right (`Scores.knn_hits`)."""
    values, wrong = np.asarray(uncertainty, dtype=np.float64), ~np.asarray(hits, dtype=np.bool_)
    if values.shape != wrong.shape:
        raise ValueError(f"{len(values)} uncertainties for {len(wrong)} clips")
    quarters = np.array_split(wrong[np.argsort(values, kind="stable")], QUARTILES) if len(wrong) >= QUARTILES else []
    return Calibration(
        uncertainty=tuple(values.tolist()),
        auroc=_auroc(values, wrong),
        error_by_quartile=tuple(float(quarter.mean()) for quarter in quarters),
    )


def restore_mixture(checkpoint: Checkpoint) -> MixtureMemory | None:
    """The checkpoint's mixture; None where it has none, or one that has not started."""
    state = checkpoint.state.get("mixture")
    if not isinstance(state, dict):
        return None
    components, dim = state["means"].shape
    mixture = MixtureMemory(components=components, dim=dim)
    mixture.load_state_dict(state)
    return mixture if mixture.started else None


def _auroc(values: NDArray[np.float64], wrong: NDArray[np.bool_]) -> float | None:
    from sklearn.metrics import roc_auc_score  # a second to import: only who evaluates pays

    if wrong.all() or not wrong.any():
        return None
    return float(roc_auc_score(wrong, values))
