"""The best that could have been done along a trace: a dynamic programme that knows all of it.

States are those of `trainer.simulated_device`: cut, decisions since it changed, windows waiting, deepest blocks held.
Rewards and moves are computed by the simulator's own function, so that the two cannot differ.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from trainer.reward import RewardWeights
from trainer.simulated_costs import Tables
from trainer.simulated_device import DWELL, QUEUE_CAPACITY, Counts, Next, advance, is_merge, row_of

Values = NDArray[np.float64]


class Grid:
    """Every state, numbered."""

    def __init__(self, depth: int, min_cut: int) -> None:
        cuts = range(min_cut, depth + 1)
        self._sizes = (len(cuts), DWELL, QUEUE_CAPACITY + 1, len(cuts))
        states = np.array(list(itertools.product(cuts, range(1, DWELL + 1), range(QUEUE_CAPACITY + 1), cuts)))
        self.cut, self.since, self.queue, self.held = states.T
        self.min_cut = min_cut
        self.depth = depth

    def number(self, after: Next) -> Counts:
        """The numbers of the states that decisions lead to."""
        place = (after.cut - self.min_cut, after.since - 1, after.queue, after.held - self.min_cut)
        return np.ravel_multi_index(place, self._sizes)


def best_return(table: Tables, *, first_cut: int, min_cut: int, weights: RewardWeights) -> float:
    """The largest sum of rewards along the trace, from `first_cut` with nothing waiting."""
    return float(plan(table, first_cut=first_cut, min_cut=min_cut, weights=weights)[0])


def plan(table: Tables, *, first_cut: int, min_cut: int, weights: RewardWeights) -> tuple[float, list[int]]:
    """The largest sum of rewards and the actions that reach it (`L + 1` is local)."""
    grid = Grid(table.depth, min_cut)
    local = table.depth + 1
    value = np.zeros(len(grid.cut))
    choices: list[Counts] = []
    nexts: list[list[Counts]] = []
    actions = [*range(min_cut, table.depth + 1), local]
    for step in reversed(range(len(table))):
        worth = np.full((len(actions), len(value)), -np.inf)
        leads = []
        for number, action in enumerate(actions):
            after = _after(table, grid, step, action, weights)
            leads.append(grid.number(after))
            allowed = _allowed(grid, action, local=local, online=bool(table.online[step]))
            worth[number] = np.where(allowed, after.reward + value[leads[-1]], -np.inf)
        choices.append(worth.argmax(axis=0))
        nexts.append(leads)
        value = worth.max(axis=0)
    state = int(
        np.flatnonzero((grid.cut == first_cut) & (grid.since == DWELL) & (grid.queue == 0) & (grid.held == first_cut))[
            0
        ]
    )
    best, taken = float(value[state]), []
    for choice, leads in zip(reversed(choices), reversed(nexts), strict=True):
        number = int(choice[state])
        taken.append(actions[number])
        state = int(leads[number][state])
    return best, taken


def _after(table: Tables, grid: Grid, step: int, action: int, weights: RewardWeights) -> Next:
    taken = np.full(grid.cut.shape, action)
    return advance(
        row_of(table, step, taken),
        action=taken,
        cut=grid.cut,
        since=grid.since,
        queue=grid.queue,
        held=np.maximum(grid.held, grid.cut),
        whole_bytes=table.whole_bytes,
        merged=is_merge(np.full(grid.cut.shape, step)),
        weights=weights,
    )


def _allowed(grid: Grid, action: int, *, local: int, online: bool) -> NDArray[np.bool_]:
    if action == local:
        return np.ones(grid.cut.shape, dtype=bool)
    allowed: NDArray[np.bool_] = online & ((grid.since >= DWELL) | (grid.cut == action))
    return allowed
