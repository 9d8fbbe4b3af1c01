"""Whether a move is due when something happens to a device: by rewards in the simulator, where conditions stay."""

from __future__ import annotations

import numpy as np

from device.conditions import Condition
from tests.bench.policy import MIN_CUT, WEIGHTS
from tests.bench.policy_baselines import constant
from tests.bench.testbed_plan import Plan, conditions
from trainer.link_traces import MOST_LOAD, Trace
from trainer.simulated_costs import WINDOWS, Board, CutCosts, tables
from trainer.simulated_fleet import encoder_costs, shipped_board
from trainer.simulator import Simulator

DECISIONS = 40  # five minutes of one thing


def moves_due(plan: Plan) -> dict[str, bool]:
    """Whether each event's first change makes another action the best one for its board; False without a change."""
    costs = encoder_costs(plan.encoder)
    follows = bool(plan.row(plan.subject).device.get("own_embedding"))
    due = {}
    for event in plan.events.devices:
        board = shipped_board(event.profile or plan.events.link.profile)
        before, *later = conditions(plan.events.link, event.changes)
        best = {best_action(board, costs, one, follows=follows) for one in (before, *later[:1])}
        due[event.name] = len(best) > 1
    return due


def best_action(board: Board, costs: CutCosts, condition: Condition, *, follows: bool) -> int:
    """The action that earns most if nothing changes any more; one beyond the last cut is local."""
    if not condition.up:
        return costs.depth + 1
    everywhere = np.ones(DECISIONS * WINDOWS, np.float32)
    trace = Trace(
        uplink_mbps=condition.uplink_mbps * everywhere,
        downlink_mbps=condition.downlink_mbps * everywhere,
        round_trip_ms=condition.round_trip_ms * everywhere,
        online=everywhere > 0.0,
        load=min(condition.others_cpu, MOST_LOAD) * everywhere,
        uncertainty=0.5 * everywhere,
    )
    table = tables(trace, board, costs, follows=follows)

    def earned(action: int) -> float:
        fleet = Simulator(
            [table], batch=1, min_cut=MIN_CUT, first_cut=min(action, costs.depth), weights=WEIGHTS, seed=0,
            in_order=True,
        )  # fmt: skip
        choose = constant(action)
        return sum(float(fleet.step(choose(fleet)).reward[0]) for _ in range(DECISIONS))

    return max(range(MIN_CUT, costs.depth + 2), key=earned)
