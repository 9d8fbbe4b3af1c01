"""What the results of the accuracy table come to, as one object of plain data, made from the stored results alone.

Accuracies and shares are percent, differences are points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

import numpy as np

from common.split import WINDOW_BYTES
from device.windows import WINDOW_S
from tests.bench.accuracy_results import Evaluated, Result, RowResults
from tests.bench.accuracy_rows import AUROC, COMPARISONS, HEADLINE, ZERO_SHOT, Comparison
from tests.bench.statistics import Estimate, auroc_interval, mean_sd, paired_bootstrap

TRAFFIC = ("bytes_per_hour", "bytes_up_per_hour", "bytes_down_per_hour", "sent", "of_pcm16", "answered")

Cases = Mapping[tuple[int, int], Result]


def summary(found: Sequence[RowResults]) -> dict[str, Any]:
    """``rows`` by name, an object for each comparison whose two rows were run, and ``auroc``; nothing for others.

    ``bytes_alone`` are rows of which only the bytes are told.
    """
    by_name = {one.row.name: one for one in found if one.cases}
    told = {name: row_summary(one) for name, one in by_name.items()}
    result: dict[str, Any] = {
        "rows": {name: figures for name, figures in told.items() if not by_name[name].row.bytes_alone},
        "bytes_alone": {name: _alone(figures) for name, figures in told.items() if by_name[name].row.bytes_alone},
    }
    for comparison in COMPARISONS:
        if comparison.a in by_name and comparison.b in by_name:
            compared = compare(by_name[comparison.a], by_name[comparison.b], comparison)
            if compared is not None:
                result[comparison.name] = compared
    predicted = auroc(by_name[AUROC.row].cases) if AUROC.row in by_name else None
    if predicted is not None:
        result["auroc"] = predicted
    if HEADLINE.name in by_name:
        result["above"] = above(by_name[HEADLINE.name], list(by_name.values()))
    zero_shot = by_name[ZERO_SHOT[0]].cases if ZERO_SHOT[0] in by_name else {}
    if zero_shot:
        result["zero_shot"] = prompted(zero_shot)
    return result


def above(ours: RowResults, rows: Sequence[RowResults]) -> list[str]:
    """Titles of the rows whose probe is above ours in the mean of the runs (fold, seed, same clips) that both have."""
    titles = []
    for one in rows:
        both = [key for key, case in one.cases.items() if key in ours.cases and case.clips == ours.cases[key].clips]
        gains = [accuracy(one.cases[key], "linear") - accuracy(ours.cases[key], "linear") for key in both]
        if gains and mean(gains) > 0 and not one.row.bytes_alone:
            titles.append(one.row.title)
    return titles


def prompted(cases: Cases) -> dict[str, Any]:
    """Zero-shot accuracy by prompts: mean over the cases, with the spread over them."""
    by_case = {key: 100 * accuracy(case, "zero_shot") for key, case in cases.items()}
    center, spread = mean_sd(list(by_case.values()))
    by_fold = {str(fold): round(mean(by_case[key] for key in cases if key[0] == fold), 2) for fold in _folds(cases)}
    return {"mean": round(center, 2), "sd": _rounded(spread), "by_fold": by_fold, "cases": len(cases)}


def row_summary(found: RowResults) -> dict[str, Any]:
    """The row's figures: means over its cases, and the spread over them.

    ``linear_sd`` is over the (fold, seed) cases; ``linear_sd_seeds`` is the mean over folds of that over seeds alone.
    ``bytes_per_hour`` is up and down together, for one device and hour of captured sound; ``sent`` the share of windows
    that travelled, ``answered`` the lowest share of steps that were answered.
    """
    cases = list(found.cases.values())
    linear = [100 * accuracy(case, "linear") for case in cases]
    by_fold = {
        fold: [100 * accuracy(case, "linear") for case in cases if case.fold == fold] for fold in _folds(found.cases)
    }
    spreads = [spread for values in by_fold.values() if (spread := mean_sd(values)[1]) is not None]
    zero_shot = [100 * accuracy(case, "zero_shot") for case in cases if case.encoders[0].zero_shot]
    return {
        "title": found.row.title,
        "linear": round(mean(linear), 2),
        "linear_sd": _rounded(mean_sd(linear)[1]),
        "linear_sd_seeds": _rounded(mean(spreads)) if spreads else None,
        "linear_by_fold": {str(fold): round(mean(values), 2) for fold, values in by_fold.items()},
        "knn": round(mean(100 * accuracy(case, "knn") for case in cases), 2),
        "precision_at_10": round(100 * _mean_of(cases, lambda one: one.precision_at_10), 2),
        "silhouette": round(_mean_of(cases, lambda one: one.silhouette), 4),
        "effective_rank": round(_mean_of(cases, lambda one: one.effective_rank), 2),
        "zero_shot": round(mean(zero_shot), 2) if zero_shot else None,
        "folds": len(by_fold),
        "seeds": len({case.seed for case in cases}),
        "cases": len(cases),
        "encoders": len(cases[0].encoders),
        "wall_s": round(mean(case.wall_s for case in cases), 1),
        "cpu_s": round(mean(case.cpu_s for case in cases), 1),
        "current": found.current,
        **_traffic(cases),
    }


def compare(a: RowResults, b: RowResults, comparison: Comparison) -> dict[str, Any] | None:
    """Accuracy of the linear probe, ``a`` minus ``b``, paired; None where they have nothing in common.

    Untrained encoders have no seeds of training: theirs stand against every seed of the other row.
    """
    cases_a = {key: case for key, case in a.cases.items() if key[0] in comparison.folds}
    cases_b = dict(b.cases)
    if not b.row.trained:
        of_fold = {fold: case for (fold, _), case in cases_b.items()}
        cases_b = {(fold, seed): of_fold[fold] for fold, seed in cases_a if fold in of_fold}
    keys = _full_grid([key for key in cases_a if key in cases_b and cases_a[key].clips == cases_b[key].clips])
    if not keys:
        return None
    drawn = paired_bootstrap(
        {key: clip_means(cases_a[key], "linear") for key in keys},
        {key: clip_means(cases_b[key], "linear") for key in keys},
    )
    return _estimate(drawn, keys, digits=2) | {"current": a.current and b.current}


def auroc(cases: Cases) -> dict[str, Any] | None:
    """How well a clip's uncertainty predicts that 5-NN is wrong about it; None where no uncertainty was kept."""
    keys = _full_grid([key for key, case in cases.items() if case.encoders[0].uncertainty])
    if not keys:
        return None
    drawn = auroc_interval(
        {key: [float(value) for value in cases[key].encoders[0].uncertainty] for key in keys},
        {key: clip_means(cases[key], "knn") for key in keys},
    )
    return _estimate(drawn, keys, digits=3)


def accuracy(case: Result, probe: str) -> float:
    """Share of the held-out clips that a probe (``linear``, ``knn``, ``zero_shot``) got right, mean of the encoders."""
    return float(np.mean(clip_means(case, probe)))


def clip_means(case: Result, probe: str) -> list[float]:
    """For each held-out clip the share of the case's encoders with which the probe was right."""
    hits = np.array([[int(hit) for hit in getattr(one, probe)] for one in case.encoders], dtype=np.float64)
    return [float(value) for value in hits.mean(axis=0)]


def _alone(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {key: figures[key] for key in ("title", "current", *TRAFFIC)}


def _traffic(cases: Sequence[Result]) -> dict[str, Any]:
    heard = [case for case in cases if case.windows]
    if not heard:
        return dict.fromkeys(TRAFFIC)
    an_hour = 3600 / WINDOW_S

    def per_hour(count: Callable[[Result], int]) -> int:
        return round(mean(count(case) * an_hour / case.windows for case in heard))

    sent = [case for case in heard if case.steps_sent]
    both = per_hour(lambda case: case.bytes_up + case.bytes_down)
    return {
        "bytes_per_hour": both,
        "bytes_up_per_hour": per_hour(lambda case: case.bytes_up),
        "bytes_down_per_hour": per_hour(lambda case: case.bytes_down),
        "sent": round(100 * mean(case.windows_sent / case.windows for case in heard), 1),
        "of_pcm16": round(100 * both / (WINDOW_BYTES * an_hour), 2),
        "answered": round(100 * min(case.steps_answered / case.steps_sent for case in sent), 2) if sent else None,
    }


def _mean_of(cases: Sequence[Result], figure: Callable[[Evaluated], float | None]) -> float:
    values = [value for case in cases for one in case.encoders if (value := figure(one)) is not None]
    return mean(values) if values else float("nan")


def _folds(cases: Cases) -> list[int]:
    return sorted({fold for fold, _ in cases})


def _full_grid(keys: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Every fold with those seeds that all of them have: what is not finished yet must not weigh one fold more."""
    folds = sorted({fold for fold, _ in keys})
    seeds = sorted(seed for seed in {seed for _, seed in keys} if all((fold, seed) in keys for fold in folds))
    return [(fold, seed) for fold in folds for seed in seeds]


def _estimate(drawn: Estimate, keys: Sequence[tuple[int, int]], *, digits: int) -> dict[str, Any]:
    return {
        "mean": round(drawn.mean, digits),
        "ci95": [round(drawn.low, digits), round(drawn.high, digits)],
        "folds": sorted({fold for fold, _ in keys}),
        "seeds": len({seed for _, seed in keys}),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
