"""A graph as a flow network, and its minimum cut: the source's side is the device (DADS, Hu et al. 2019; 2507.01041).

Arcs lead from the source to each vertex with the cost of its place on the server, and from it to the sink with that of
its place on the device. A result that several need goes through a vertex of its own, so that it is paid once. From
every consumer an arc without limit leads back: nothing on the device may need what is on the server. Where one side is
given, an arc without limit says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from ortools.graph.python import max_flow

from trainer.partition_graph import Array, Flags

Result = tuple[bool, int, list[int]]
RATES = 6
FULL_SCALE = 2.0**44  # all limited capacities together, in the solver's integers: rounding is below 6e-14 of the whole
UNLIMITED = 2**46
IMPOSSIBLE = "no placement is possible: a result that cannot travel lies between the two given sides"


@dataclass(frozen=True, slots=True)
class Network:
    """A network for any rates.

    Attributes:
        size: vertices that have a side; the source is ``vertices``, the sink the one after.
        tails, heads: of the limited arcs, then of the unlimited ones.
        amounts: of what each limited arc carries, in the order of `Rates.vector`, [limited, 6].
    """

    size: int
    vertices: int
    tails: NDArray[np.int32]
    heads: NDArray[np.int32]
    amounts: Array


def build_network(
    *, compute: Array, results: Sequence[Result], sizes: Array, device: int, server: int | None
) -> Network:
    """Arcs and amounts of a network.

    Args:
        compute: of each vertex what `Amounts.compute` says of an operation, [3, size].
        results: those that can travel first; whether it can, the vertex it is made at, the vertices that need it.
        sizes: of the results that can travel, [travelling, 3].
        device: a vertex that is the device's, as the one with the input is.
        server: one that is the server's; None: there is none.
    """
    size = compute.shape[1]
    shared = size
    tails: list[int] = []
    heads: list[int] = []
    back_tails: list[int] = []
    back_heads: list[int] = []
    for travels, at, consumers in results:
        through = consumers[0]
        if len(consumers) > 1:
            through = shared
            shared += 1
            back_tails += [through] * len(consumers)
            back_heads += consumers
        back_tails += consumers
        back_heads += [at] * len(consumers)
        (tails if travels else back_tails).append(at)
        (heads if travels else back_heads).append(through)
    source, sink = shared, shared + 1
    if server is not None:
        back_tails.append(server)
        back_heads.append(sink)
    own = list(range(size))
    amounts = np.zeros((2 * size + len(tails), RATES))
    amounts[:size, 2] = compute[2]
    amounts[size : 2 * size, :2] = compute[:2].T
    amounts[2 * size :, 3:] = sizes
    all_tails = [source] * size + own + tails + back_tails + [source]
    all_heads = own + [sink] * size + heads + back_heads + [device]
    ends = np.array((all_tails, all_heads), dtype=np.int32)
    return Network(size, shared, ends[0], ends[1], amounts)


def capacities(network: Network, limited: Array) -> NDArray[np.int64]:
    """The integer capacities of all arcs, [arcs], from the prices of the limited ones."""
    whole = limited.sum()
    limits = np.full(network.tails.size, UNLIMITED, dtype=np.int64)
    limits[: limited.size] = limited * (FULL_SCALE / whole if whole > 0 else 0.0)
    return limits


def minimum_cut(network: Network, rates: Array) -> tuple[Flags, float]:
    """Which of the vertices are on the device in a minimum cut, [size], and what it costs.

    ``rates`` as `Rates.vector`; what any split costs beside is not in it.

    Raises:
        ValueError: a result that cannot travel lies between the two given sides.
        RuntimeError: the solver gave up, which it does not for capacities of this size.
    """
    limited = network.amounts @ rates
    solver = max_flow.SimpleMaxFlow()
    solver.add_arcs_with_capacity(network.tails, network.heads, capacities(network, limited))
    if solver.solve(network.vertices, network.vertices + 1) != solver.OPTIMAL:
        raise RuntimeError("the maximum flow was not found")
    if solver.optimal_flow() >= UNLIMITED:
        raise ValueError(IMPOSSIBLE)
    side = np.zeros(network.vertices + 2, dtype=np.bool_)
    side[solver.get_source_side_min_cut()] = True
    cut = side[network.tails[: limited.size]] > side[network.heads[: limited.size]]
    return side[: network.size], float(limited[cut].sum())
