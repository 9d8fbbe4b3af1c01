"""What a splitter may do: an action is a cut or `LOCAL`, a local step with nothing sent.

A mask has one place per cut 0..L and `LOCAL` last, so that `mask[action]` is right for every action.
"""

from __future__ import annotations

from collections.abc import Collection

LOCAL = -1


def allowed_mask(
    *,
    depth: int,
    min_cut: int,
    device_cuts: Collection[int],
    allowed_by_trainer: Collection[int] | None,
    pinned_cut: int | None,
    online: bool,
    current_cut: int | None = None,
    decisions_since_change: int = 0,
    dwell: int = 0,
) -> tuple[bool, ...]:
    """Which of the cuts 0..depth, and `LOCAL`, may be chosen now.

    The privacy floor comes first: no cut below `min_cut` is ever allowed, whatever the trainer allows or pins; a pin
    below it means the smallest cut that is allowed. `device_cuts`: what this device can run now. `allowed_by_trainer`:
    None or empty is "all"; a wish that leaves nothing is void. Offline only `LOCAL` is left. A pin leaves one cut and
    not `LOCAL`. For `dwell` decisions after a change of the cut the current one stays the only cut.
    Raises ValueError for a `min_cut` outside 0..depth.
    """
    if not 0 <= min_cut <= depth:
        raise ValueError(f"min_cut is {min_cut}, allowed is 0 to {depth}")
    runnable = frozenset(cut for cut in device_cuts if min_cut <= cut <= depth)
    if not online or not runnable:
        return _mask(depth, frozenset(), local=True)
    if pinned_cut is not None:
        return _mask(depth, frozenset({_at_or_above(runnable, pinned_cut)}), local=False)
    cuts = runnable & frozenset(allowed_by_trainer or ()) or runnable
    if current_cut in cuts and decisions_since_change < dwell:
        cuts = frozenset({current_cut})
    return _mask(depth, cuts, local=True)


def _mask(depth: int, cuts: frozenset[int], *, local: bool) -> tuple[bool, ...]:
    return (*(cut in cuts for cut in range(depth + 1)), local)


def _at_or_above(cuts: frozenset[int], wanted: int) -> int:
    return min((cut for cut in cuts if cut >= wanted), default=max(cuts))
