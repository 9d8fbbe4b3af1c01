"""Small simulated fleets for tests: the shipped boards and encoder on short traces."""

from __future__ import annotations

from functools import cache

from trainer.link_traces import KINDS
from trainer.simulated_costs import CutCosts, Tables
from trainer.simulated_fleet import BOARDS, encoder_costs, fleet_tables, shipped_board


@cache
def costs() -> CutCosts:
    """What the default encoder costs at every cut."""
    return encoder_costs("mobile")


@cache
def small_fleet(*, seeds: int = 3, steps: int = 480) -> tuple[Tables, ...]:
    """Every kind of trace with a few seeds; half of the devices follow every version with all blocks."""
    traces = [(kind, seed) for seed in range(1, seeds + 1) for kind in KINDS]
    boards = [shipped_board(name) for name in BOARDS]
    return tuple(fleet_tables(traces, costs(), steps=steps, boards=boards, follows=(False, True)))
