"""The learning rate as a pure function of the windows trained so far: a resumed run continues where it stood."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["anneal", "constant"]

WARMUP_SHARE = 0.1  # of the budget, for anneal
WARMUP_WINDOWS = 500  # for constant
FIRST_SHARE = 0.04  # of the peak, at the very first step
LAST_SHARE = 0.001  # of the peak, at the end of the budget and after it


def learning_rate(windows: int, *, schedule: Schedule, peak: float, budget_windows: int | None) -> float:
    """The rate for the step after ``windows`` windows.

    ``anneal``: one cycle, up in a straight line over the first tenth of ``budget_windows``, down along a cosine to
    nearly 0 at its end. ``constant``: up over the first 500 windows, then ``peak`` for ever.

    Raises:
        ValueError: ``anneal`` without a budget, or an unknown schedule.
    """
    if schedule == "constant":
        return peak * _rise(windows / WARMUP_WINDOWS)
    if schedule != "anneal":
        raise ValueError(f"unknown schedule {schedule!r}, allowed: anneal, constant")
    if budget_windows is None or budget_windows <= 0:
        raise ValueError("the anneal schedule needs budget_windows above 0")
    progress = min(1.0, windows / budget_windows)
    if progress < WARMUP_SHARE:
        return peak * _rise(progress / WARMUP_SHARE)
    fall = (progress - WARMUP_SHARE) / (1.0 - WARMUP_SHARE)
    return peak * (LAST_SHARE + (1.0 - LAST_SHARE) * 0.5 * (1.0 + math.cos(math.pi * fall)))


def _rise(progress: float) -> float:
    return min(1.0, FIRST_SHARE + (1.0 - FIRST_SHARE) * progress)
