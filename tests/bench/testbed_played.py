"""Whether boards were played as slow as their profiles state, told from what steps took in the rows that split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import median

from common.config import load_profile
from tests.bench.testbed_journal import DeviceJournal
from tests.bench.testbed_plan import Board
from trainer.simulated_costs import CutCosts


def played(
    journals: Sequence[DeviceJournal], boards: Sequence[Board], costs: CutCosts, *, warm_up: int
) -> dict[str, float]:
    """Profile -> median over the steps of all its devices: compute a window, over what the simulator has for it.

    That goes by the profile's `mobile_forward_ms` and by how the cuts' costs relate to it. Without a step
    that ended after ``warm_up`` windows: nothing.
    """
    found: defaultdict[str, list[float]] = defaultdict(list)
    for journal, board in zip(journals, boards, strict=True):
        stated_ms = load_profile(board.profile).mobile_forward_ms
        for window, cut, ms in journal.client_ms:
            if window > warm_up:
                found[board.profile].append(ms / float(costs.computed_ms[cut]) / stated_ms)
    return {profile: round(median(ratios), 3) for profile, ratios in sorted(found.items())}
