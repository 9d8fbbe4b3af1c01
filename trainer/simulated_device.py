"""One decision of a simulated device: what it leads to and what it was worth, for whole arrays of devices.

State is small and whole on purpose (cut, decisions since it changed, windows waiting, deepest blocks held), so that the
oracle can enumerate it: the same function moves the simulator and the dynamic programme.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.link_traces import STEP_S
from trainer.reward import RewardWeights, reward, utility, with_dropped
from trainer.simulated_costs import MERGE_BATCHES, WINDOWS

Values = NDArray[np.float64]
Counts = NDArray[np.intp]

QUEUE_CAPACITY = 16  # windows: older ones are dropped (device/senses.py calls this many a full queue)
DWELL = 2  # decisions for which a cut is kept: 16 windows


@dataclass(frozen=True, slots=True)
class Row:
    """One decision's columns of `Tables`, for the action taken; every array of one shape."""

    service_s: Values
    delay_s: Values
    answered: Values
    local: Values
    bytes_moved: Values
    joules: Values
    uncertainty: Values
    fetch_joules: Values
    follows: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a device counts of a decision: means over its windows.

    Attributes:
        kept: share of the windows that found a place in the queue; the others were dropped.
        answered, local: shares of the kept that are learned from with the fleet, and alone.
        latency_ms: of the kept, window taken up to embedding, the wait in the queue included.
        energy_joules, bytes_moved: of every window, the dropped and what was fetched included.
    """

    kept: Values
    answered: Values
    local: Values
    latency_ms: Values
    energy_joules: Values
    bytes_moved: Values


@dataclass(frozen=True, slots=True)
class Next:
    """Where a decision leads: the new state, what came of it, and the reward."""

    cut: Counts
    since: Counts
    queue: Counts
    held: Counts
    outcome: Outcome
    reward: Values


def advance(
    row: Row,
    *,
    action: Counts,
    cut: Counts,
    since: Counts,
    queue: Counts,
    held: Counts,
    whole_bytes: Values,
    merged: NDArray[np.bool_],
    weights: RewardWeights,
) -> Next:
    """Take `action` (an index into the mask: `L + 1` is local) in the given state.

    A move deeper fetches what is not held at the current version, charged in bytes and energy, not in time: windows go
    on at the old cut meanwhile. `merged`: a new version came; only blocks before the cut follow it, or all. Windows
    that find the queue full are dropped and count as lost and as late as can be. `whole_bytes`: [L + 1].
    """
    depth = len(whole_bytes) - 1
    held = np.where(merged & ~row.follows, cut, held)
    is_local = action > depth
    target = np.where(is_local, cut, action)
    moved = target != cut
    fetched = np.maximum(whole_bytes[target] - whole_bytes[np.maximum(held, 0)], 0.0) / WINDOWS
    served = np.minimum(queue + WINDOWS, np.floor(WINDOWS * STEP_S / row.service_s)).astype(np.intp)
    waiting = queue + WINDOWS - served
    after = np.minimum(waiting, QUEUE_CAPACITY)
    kept = 1.0 - (waiting - after) / WINDOWS
    outcome = Outcome(
        kept=kept,
        answered=row.answered,
        local=row.local,
        latency_ms=1e3 * (row.delay_s + 0.5 * (queue + after) * row.service_s),
        energy_joules=kept * row.joules + fetched * row.fetch_joules,
        bytes_moved=kept * row.bytes_moved + fetched,
    )
    return Next(
        cut=target,
        since=np.where(moved, 1, np.minimum(since + 1, DWELL)),
        queue=after,
        held=np.maximum(target, held),
        outcome=outcome,
        reward=_worth(outcome, row.uncertainty, moved, weights),
    )


def _worth(outcome: Outcome, uncertainty: Values, moved: NDArray[np.bool_], weights: RewardWeights) -> Values:
    return reward(
        utility=utility(
            outcome.kept * outcome.answered,
            outcome.kept * outcome.local,
            uncertainty,
            local_utility=weights.local_utility,
            uncertainty_weight=weights.uncertainty_weight,
        ),
        latency_ms=with_dropped(outcome.latency_ms, outcome.kept, w=weights),
        energy_joules=outcome.energy_joules,
        bytes_moved=outcome.bytes_moved,
        moved=moved.astype(np.float64),
        w=weights,
    )


def is_merge(step: NDArray[np.intp], every: int = MERGE_BATCHES) -> NDArray[np.bool_]:
    """Whether a version was published before this decision."""
    merges: NDArray[np.bool_] = step % every == 0
    return merges
