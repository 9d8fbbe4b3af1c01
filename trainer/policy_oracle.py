"""The best that can be done along traces: a dynamic programme that knows all of each, with the cost of moving.

States are those of `trainer.simulated_device`: cut, decisions since it changed, windows waiting, deepest blocks held.
Rewards and moves are computed by the simulator's own function, so that the two cannot differ. It is what policies are
judged by, and what one learns from before it learns from rewards (`trainer.policy_imitation`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.reward import RewardWeights
from trainer.simulated_costs import Tables
from trainer.simulated_device import DWELL, QUEUE_CAPACITY, Counts, Next, Row, advance, is_merge
from trainer.simulator import COSTS, Simulator

Values = NDArray[np.float64]

TOGETHER = 16  # traces worked out at once: their arrays stay in the processor's cache


class Grid:
    """Every state, numbered."""

    def __init__(self, depth: int, min_cut: int) -> None:
        cuts = range(min_cut, depth + 1)
        self._sizes = (len(cuts), DWELL, QUEUE_CAPACITY + 1, len(cuts))
        states = np.array(list(itertools.product(cuts, range(1, DWELL + 1), range(QUEUE_CAPACITY + 1), cuts)))
        self.cut, self.since, self.queue, held = states.T
        self.held = np.maximum(held, self.cut)
        self._min_cut = min_cut

    def __len__(self) -> int:
        return len(self.cut)

    def number(self, after: Next) -> Counts:
        """The numbers of the states that decisions lead to."""
        place = (after.cut - self._min_cut, after.since - 1, after.queue, after.held - self._min_cut)
        return np.ravel_multi_index(np.broadcast_arrays(*place), self._sizes)


class Oracle:
    """What every state is worth at every decision of every trace, and so what every action loses.

    Args:
        tables: the traces, of one length and depth; the simulator that is asked about must be made of the same.
        min_cut: the privacy floor.
        advance: called whenever `TOGETHER` traces more are worked out.
    """

    def __init__(
        self,
        tables: Sequence[Tables],
        *,
        min_cut: int,
        weights: RewardWeights,
        advance: Callable[[], None] = lambda: None,
    ) -> None:
        self._grid = Grid(tables[0].depth, min_cut)
        self._weights = weights
        self.actions = (*range(min_cut, tables[0].depth + 1), tables[0].depth + 1)
        self._values = np.zeros((len(tables[0]) + 1, len(tables), len(self._grid)), np.float32)
        for first in range(0, len(tables), TOGETHER):
            self._work_out(tables[first : first + TOGETHER], first)
            advance()

    def losses(self, fleet: Simulator) -> Values:
        """`[B, L + 2]`: how much less every action brings in the end than the best one; `inf` where not allowed."""
        worth = np.full((len(fleet.cut), fleet.actions), -np.inf)
        mask = fleet.mask()
        for action in self.actions:
            after = fleet.peek(np.full(len(fleet.cut), action))
            ahead = self._values[fleet.decision + 1, fleet.trace, self._grid.number(after)]
            worth[:, action] = np.where(mask[:, action], after.reward + ahead, -np.inf)
        return np.asarray(worth.max(axis=1, keepdims=True) - worth)

    def choose(self, fleet: Simulator) -> Counts:
        """The best action of every device."""
        best: Counts = self.losses(fleet).argmin(axis=1)
        return best

    def _work_out(self, tables: Sequence[Tables], first: int) -> None:
        """From the end backwards: the value of every state `[traces, states]`."""
        value = np.zeros((len(tables), len(self._grid)))
        held = slice(first, first + len(tables))
        online = np.stack([table.online for table in tables])
        for step in reversed(range(len(tables[0]))):
            worth = np.full_like(value, -np.inf)
            for action in self.actions:
                after = self._after(tables, step, action)
                made = after.reward + np.take_along_axis(value, self._grid.number(after), axis=1)
                allowed = self._allowed(action, local=tables[0].depth + 1, online=online[:, step, None])
                np.maximum(worth, np.where(allowed, made, -np.inf), out=worth)
            value = worth
            self._values[step, held] = value

    def _after(self, tables: Sequence[Tables], step: int, action: int) -> Next:
        grid = self._grid
        return advance(
            _row(tables, step, action),
            action=np.full((1, 1), action),
            cut=grid.cut[None],
            since=grid.since[None],
            queue=grid.queue[None],
            held=grid.held[None],
            whole_bytes=tables[0].whole_bytes,
            merged=is_merge(np.full((1, 1), step)),
            weights=self._weights,
        )

    def _allowed(self, action: int, *, local: int, online: NDArray[np.bool_]) -> NDArray[np.bool_]:
        if action == local:
            return np.ones((1, 1), dtype=bool)
        allowed: NDArray[np.bool_] = online & ((self._grid.since >= DWELL) | (self._grid.cut == action))
        return allowed


def _row(tables: Sequence[Tables], step: int, action: int) -> Row:
    """One decision's columns for one action, `[traces, 1]`."""
    return Row(
        **{name: np.array([[getattr(table, name)[step, action]] for table in tables]) for name in COSTS},
        uncertainty=np.array([[table.uncertainty[step]] for table in tables]),
        fetch_joules=np.array([[table.fetch_joules] for table in tables]),
        follows=np.array([[table.follows] for table in tables]),
    )
