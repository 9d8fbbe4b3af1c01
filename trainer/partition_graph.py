"""What the planner cuts: operations in the order they run, and who needs whose result."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import fx

from common.encoder_graph import block_of, operations

Flags = NDArray[np.bool_]
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CutGraph:
    """A directed acyclic graph in topological order.

    Attributes:
        names: of the operations; the first is the input.
        parents: for each operation the earlier ones whose results it needs, each once, ascending.
        consumers: for each operation the later ones that need its result, ascending.
    """

    names: tuple[str, ...]
    parents: tuple[tuple[int, ...], ...]
    consumers: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        """How many operations there are."""
        return len(self.names)

    def closed(self, on_device: Flags) -> bool:
        """Whether no operation on the device needs the result of one that is on the server."""
        return all(on_device[parent] for at, parents in enumerate(self.parents) if on_device[at] for parent in parents)

    def crossing(self, on_device: Flags) -> list[int]:
        """The operations on the device whose results the server needs, each once however many need it."""
        return [
            at
            for at, consumers in enumerate(self.consumers)
            if on_device[at] and any(not on_device[consumer] for consumer in consumers)
        ]


def make_graph(names: tuple[str, ...], parents: tuple[tuple[int, ...], ...]) -> CutGraph:
    """A graph from the parents of each operation.

    Raises:
        ValueError: a parent that does not come earlier.
    """
    consumers: list[list[int]] = [[] for _ in names]
    for at, sources in enumerate(parents):
        for source in sources:
            if not 0 <= source < at:
                raise ValueError(f"{names[at]} needs operation {source}, which does not run before it")
            consumers[source].append(at)
    return CutGraph(names, parents, tuple(tuple(later) for later in consumers))


def graph_of(traced: fx.GraphModule) -> CutGraph:
    """The graph of a traced model; constants are on both sides and no part of it."""
    nodes = operations(traced)
    place = {node: at for at, node in enumerate(nodes)}
    parents = tuple(tuple(sorted({place[s] for s in node.all_input_nodes if s in place})) for node in nodes)
    return make_graph(tuple(node.name for node in nodes), parents)


def up_to_block(traced: fx.GraphModule, cut: int) -> Flags:
    """Which operations run on the device at a cut 0..L of an encoder: stem and the blocks before it."""
    device = {"stem", *(str(index) for index in range(cut))}
    return np.array([block_of(node) in device for node in operations(traced)])
