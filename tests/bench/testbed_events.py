"""How soon a cut follows what happens to its device, and whether it comes to rest. Pure functions over journals.

"The first telemetry that shows it": the first message after the change whose load is 0.7 or more (others take the
processor), or whose uplink is nearer, as a ratio, to the new rate than to the old. Without a link nothing can be told:
there the change itself counts, which is the stricter measure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tests.bench.testbed_journal import DeviceJournal, Told

BUSY = 0.7
AFTER_S = 40.0  # how long a reaction is waited for


@dataclass(frozen=True, slots=True)
class Reaction:
    """What a device did when something happened; seconds, None where it did nothing.

    ``since_shown_s``: from the first telemetry that shows it, or from the change where no link is left to tell;
    ``since_change_s``: from the change itself. ``changes``: moves of the cut in the whole run, ``closest_s`` the
    shortest time between two of them. ``local_steps``: during an outage; ``lost_later``: steps after it that were not
    answered, None where the device did not come back.
    """

    since_shown_s: float | None
    since_change_s: float | None
    changes: int
    closest_s: float | None
    local_steps: int
    lost_later: int | None


def reaction(journal: DeviceJournal) -> Reaction:
    """The reaction to the second of a journal's conditions, which is the first change; nothing where there is none."""
    moves_s = [move.monotonic_s for move in journal.moves]
    gaps = [later - earlier for earlier, later in pairwise(moves_s)]
    closest_s = min(gaps) if gaps else None
    if len(journal.conditions) < 2:
        return Reaction(None, None, len(moves_s), closest_s, 0, 0)
    (_, before), (changed_s, after) = journal.conditions[:2]
    moved_s = next((at_s for at_s in moves_s if changed_s <= at_s <= changed_s + AFTER_S), None)
    shown_s = changed_s if not after["up"] else _shown_s(journal.told, changed_s, before, after)
    local_steps, lost_later = _outage(journal, changed_s, after)
    return Reaction(
        since_shown_s=None if moved_s is None or shown_s is None else max(0.0, moved_s - shown_s),
        since_change_s=None if moved_s is None else moved_s - changed_s,
        changes=len(moves_s),
        closest_s=closest_s,
        local_steps=local_steps,
        lost_later=lost_later,
    )


def _shown_s(told: Sequence[Told], changed_s: float, before: dict[str, Any], after: dict[str, Any]) -> float | None:
    between = math.sqrt(before["uplink_mbps"] * after["uplink_mbps"])
    for one in told:
        if one.monotonic_s < changed_s:
            continue
        slower = one.uplink_mbps is not None and (one.uplink_mbps < between) == (after["uplink_mbps"] < between)
        if (after["others_cpu"] > 0 and one.cpu >= BUSY) or (after["uplink_mbps"] != between and slower):
            return one.monotonic_s
    return None


def _outage(journal: DeviceJournal, changed_s: float, after: dict[str, Any]) -> tuple[int, int | None]:
    """Local steps while it lasts, and steps lost after it."""
    if after["up"] or len(journal.conditions) < 3:
        return 0, 0
    ends_s = journal.conditions[2][0]
    back_s = next(
        (move.monotonic_s for move in journal.moves if move.monotonic_s > ends_s and move.cut is not None), None
    )
    local_steps = sum(changed_s <= at_s < ends_s for at_s in journal.local_steps_s)
    if back_s is None:
        return local_steps, None
    return local_steps, sum(at_s > back_s and result != "answered" for at_s, result in journal.steps)
