"""The same network through other maximum-flow libraries: what the choice of OR-tools rests on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from trainer.partition_graph import Array, Flags
from trainer.partition_network import Network, capacities, minimum_cut

Solve = Callable[[Network, Array], Flags]
SCIPY_BITS = 16  # fewer: SciPy takes 32-bit integers


def by_ortools(network: Network, rates: Array) -> Flags:
    """What the planner uses (Apache-2.0, compiled)."""
    return minimum_cut(network, rates)[0]


def by_igraph(network: Network, rates: Array) -> Flags:
    """python-igraph (GPL, compiled)."""
    import igraph

    limits = capacities(network, network.amounts @ rates)
    arcs = np.stack((network.tails, network.heads), axis=1).tolist()
    graph = igraph.Graph(network.vertices + 2, arcs, directed=True)
    found = graph.mincut(network.vertices, network.vertices + 1, capacity=limits.tolist())
    return _side(network, found.partition[0])


def by_scipy(network: Network, rates: Array) -> Flags:
    """scipy.sparse.csgraph (BSD, compiled): a flow, whose residual graph is then searched."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    limits = (capacities(network, network.amounts @ rates) >> SCIPY_BITS).astype(np.int32)
    size = network.vertices + 2
    arcs = csr_array((limits, (network.tails, network.heads)), shape=(size, size))
    left = arcs - maximum_flow(arcs, network.vertices, network.vertices + 1).flow
    left.data[left.data < 0] = 0
    left.eliminate_zeros()
    reached = breadth_first_order(left, network.vertices, return_predecessors=False)
    return _side(network, reached.tolist())


def by_networkx(network: Network, rates: Array) -> Flags:
    """networkx.minimum_cut (BSD, Python)."""
    import networkx as nx

    limits = capacities(network, network.amounts @ rates).tolist()
    graph = nx.DiGraph()
    graph.add_weighted_edges_from(zip(network.tails.tolist(), network.heads.tolist(), limits), weight="capacity")
    _, (device, _) = nx.minimum_cut(graph, network.vertices, network.vertices + 1)
    return _side(network, list(device))


def _side(network: Network, members: list[int]) -> Flags:
    side = np.zeros(network.vertices + 2, dtype=np.bool_)
    side[members] = True
    return side[: network.size]


def installed() -> dict[str, Solve]:
    """The libraries that are here, by name; igraph is no dependency of the project."""
    import importlib.util

    known = {"ortools": by_ortools, "igraph": by_igraph, "scipy": by_scipy, "networkx": by_networkx}
    return {name: solve for name, solve in known.items() if importlib.util.find_spec(name)}
