"""What a generated trace of link and load does to an emulated board, and what a device made of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from device.conditions import Condition
from tests.bench.testbed_figures import fate_name, quantile
from tests.bench.testbed_journal import DeviceJournal
from trainer.link_traces import STEP_S, Trace

LEAST_MBPS = 1e-3  # what a link is shaped to at least


def trace_conditions(trace: Trace) -> tuple[Condition, ...]:
    """A condition for each window of the trace; while it is offline the link keeps the rate that it had.

    Others that take a share of the processor make our own compute last as much longer, as in the simulator.
    """
    found: list[Condition] = []
    for step in range(len(trace)):
        load, online = float(trace.load[step]), bool(trace.online[step])
        of = trace if online or not found else None
        found.append(
            Condition(
                at_s=step * STEP_S,
                uplink_mbps=max(LEAST_MBPS, float(of.uplink_mbps[step])) if of else found[-1].uplink_mbps,
                downlink_mbps=max(LEAST_MBPS, float(of.downlink_mbps[step])) if of else found[-1].downlink_mbps,
                round_trip_ms=float(of.round_trip_ms[step]) if of else found[-1].round_trip_ms,
                up=online,
                others_cpu=load,
                slowdown=1.0 / (1.0 - load),
            )
        )
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Along:
    """A device's life along a trace.

    Of the windows after its warm-up: ``p50_ms``, ``p95_ms`` until the embedding was there, None where it never came;
    ``fates``: how many each decision took. Of all its life: ``answered`` and ``unanswered`` steps, local steps, moves
    of the cut and how close two of them came.
    """

    windows: int
    p50_ms: float | None
    p95_ms: float | None
    fates: dict[str, int]
    answered: int
    unanswered: int
    local_steps: int
    moves: int
    closest_s: float | None


def along(journal: DeviceJournal, *, warm_up: int) -> Along:
    """What a journal says of the windows from ``warm_up`` on, and of all moves and steps."""
    windows = [seen for index, seen in sorted(journal.windows.items()) if index >= warm_up]
    times = [seen.embedding_ms for seen in windows]
    moves_s = [move.monotonic_s for move in journal.moves]
    answered = sum(result == "answered" for _, result in journal.steps)
    return Along(
        windows=len(windows),
        p50_ms=quantile(times, 0.5),
        p95_ms=quantile(times, 0.95),
        fates=dict(sorted(Counter(fate_name(seen.fate) for seen in windows).items())),
        answered=answered,
        unanswered=len(journal.steps) - answered,
        local_steps=len(journal.local_steps_s),
        moves=len(moves_s),
        closest_s=_closest_s(moves_s),
    )


def _closest_s(moves_s: Sequence[float]) -> float | None:
    return min((later - earlier for earlier, later in pairwise(moves_s)), default=None)
