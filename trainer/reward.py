"""What a decision was worth: one formula for the simulator, its oracle and learning from the fleet.

`reward = α·utility − β·latency/T_max − η·energy/E_budget − ρ·bytes/B_budget − switching`, per window. Everything in it
is measured (or simulated from what was measured), nothing is linear in the cut by construction: with such a formula the
best cut is always an end (the published simulator's is; see the README).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RewardWeights:
    """How much counts what, and against which budgets.

    Attributes:
        utility, latency, energy, bytes: α, β, η and ρ.
        switch: what a change of the cut costs besides its bytes: who takes over a block starts its optimizer anew.
        latency_budget_ms: T_max, window closed to embedding on the device (the paper's 200 ms).
        energy_budget_joules: E_budget of a window, above idle (the paper's 100 mJ).
        bytes_budget: B_budget of a window, both ways: 15 % of PCM16.
        most_late: a window later than this many budgets is no worse than one that late; so counts one that was lost.
        local_utility: of a window learned from alone, where one learned from with the fleet has 1.
        uncertainty_weight: how much more an ambiguous window is worth sending; 0 until measured to be so.
    """

    utility: float = 1.0
    latency: float = 0.5
    energy: float = 0.3
    bytes: float = 0.2
    switch: float = 0.1
    latency_budget_ms: float = 200.0
    energy_budget_joules: float = 0.1
    bytes_budget: float = 4608.0
    most_late: float = 5.0
    local_utility: float = 0.5
    uncertainty_weight: float = 0.0


def utility(
    answered: Values, local: Values, uncertainty: Values, *, local_utility: float, uncertainty_weight: float
) -> Values:
    """Mean utility of windows of which the shares `answered` and `local` were learned from; the rest were lost.

    What sending adds to a local step grows linearly with `uncertainty` (0 to 1), from `1 - uncertainty_weight` times to
    `1 + uncertainty_weight` times what it adds at 0.5. All arrays have one shape.
    """
    gain = (1.0 - local_utility) * (1.0 + uncertainty_weight * (2.0 * uncertainty - 1.0))
    return answered * (local_utility + gain) + local * local_utility


def with_dropped(latency_ms: Values, kept: Values, *, w: RewardWeights) -> Values:
    """Mean latency of all windows, of which the share `kept` took `latency_ms`: a dropped one is as late as can be."""
    most_ms = w.most_late * w.latency_budget_ms
    return kept * np.minimum(latency_ms, most_ms) + (1.0 - kept) * most_ms


def reward(
    *, utility: Values, latency_ms: Values, energy_joules: Values, bytes_moved: Values, moved: Values, w: RewardWeights
) -> Values:
    """The reward of decisions, all arrays of one shape.

    `utility`, `latency_ms`, `energy_joules` (above idle) and `bytes_moved` (both ways): means over a decision's
    windows; `moved`: 1 where the cut was changed, else 0.
    """
    late = np.minimum(latency_ms / w.latency_budget_ms, w.most_late)
    spent = w.energy * energy_joules / w.energy_budget_joules + w.bytes * bytes_moved / w.bytes_budget
    return w.utility * utility - w.latency * late - spent - w.switch * moved
