"""Where a model is best cut: the placement with the least delay, energy and bytes, by a minimum cut of its graph.

`Partition` is made once for a model, its profiles and its wire; a plan for another link or load then takes tens of
microseconds. `partition_graph` is what is cut, `partition_prices` what a placement costs, `partition_blocks` what is
kept together, `partition_placements` what is left then, `partition_network` the flow network for what is more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from trainer.partition_blocks import Blocks, block_network, failing, find_blocks, single_blocks, taken_apart
from trainer.partition_graph import Array, CutGraph, Flags
from trainer.partition_network import Network, minimum_cut
from trainer.partition_placements import cheapest
from trainer.partition_prices import Amounts, Pins, Rates, total

MEMORY_STEPS = 40  # halvings of the price of memory


class NoRoom(ValueError):
    """What has to run on the device does not fit into its memory."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A placement: which operations run on the device, [n], and what a window then costs, in units of `Weights`."""

    on_device: Flags
    cost: float

    @property
    def splits(self) -> bool:
        """Whether anything runs on the server."""
        return not self.on_device.all()


class Partition:
    """Plans for one model; ``blocks``: those of `find_blocks` for the same sizes and pins, where they are known."""

    def __init__(self, graph: CutGraph, known: Amounts, given: Pins, *, blocks: Blocks | None = None) -> None:
        self._graph = graph
        self._known = known
        self._given = given
        self._blocks = blocks or find_blocks(graph, known, given)
        self._network = None if self._blocks.placements is not None else block_network(self._blocks, known)
        self._apart: tuple[frozenset[int], Blocks, Network] | None = None  # the last blocks that did not hold
        self._whole = known.compute[:2].sum(axis=1)
        self._may_stay = not given.server.any()

    @property
    def blocks(self) -> int:
        """How many vertices are left to place."""
        return self._blocks.count

    def plan(self, price: Rates, *, memory_bytes: float | None = None) -> Plan:
        """The best placement at these prices, of those that fit into the device's memory if that is given.

        Without a bound on memory it is optimal. With one, placements are rejected and memory is given a price until one
        fits (Lagrange): what is found fits, and is the best among those that some price of memory makes optimal.

        Raises:
            NoRoom: not even what has to be on the device fits.
            ValueError: a result that cannot travel would have to.
        """
        best = self._unbounded(price)
        if memory_bytes is None or self._memory(best.on_device) <= memory_bytes:
            return best
        if self._memory(self._given.device) > memory_bytes:
            raise NoRoom(f"what has to run on the device needs more than {memory_bytes / 2**20:.0f} MiB")
        return self._bounded(price, memory_bytes)

    def _unbounded(self, price: Rates) -> Plan:
        savings = self._known.savings(price)
        blocks, network = self._holding(savings)
        if network is not None:
            return self._by_flow(blocks, network, self._whole, price)
        assert blocks.placements is not None
        return self._best(Plan(*cheapest(blocks.placements, self._known, price, savings)), self._whole, price)

    def _by_flow(self, blocks: Blocks, network: Network, whole: Array, price: Rates) -> Plan:
        side, cost = minimum_cut(network, price.vector())
        return self._best(Plan(side[blocks.of], cost), whole, price)

    def _best(self, found: Plan, whole: Array, price: Rates) -> Plan:
        """The best split or, if it is no dearer, none: the round trip is paid by every split alike."""
        if not found.splits:
            return found
        stays = float(price.vector()[:2] @ whole)
        if self._may_stay and stays <= found.cost + price.split:
            return Plan(np.ones_like(found.on_device), stays)
        return Plan(found.on_device, found.cost + price.split)

    def _holding(self, savings: Array) -> tuple[Blocks, Network | None]:
        broken = failing(self._blocks, savings)
        if not broken:
            return self._blocks, self._network
        if self._apart is None or self._apart[0] != broken:
            blocks = taken_apart(self._graph, self._blocks, broken, self._known, self._given)
            self._apart = broken, blocks, block_network(blocks, self._known)
        return self._apart[1:]

    def _bounded(self, price: Rates, memory_bytes: float) -> Plan:
        low, high = 0.0, self._dear(price)
        best = Plan(self._given.device, float("inf"))
        blocks = single_blocks(self._graph, self._known, self._given)
        for _ in range(MEMORY_STEPS):
            middle = (low + high) / 2
            compute = self._known.compute.copy()
            compute[0] += middle * self._known.memory_bytes
            network = block_network(blocks, replace(self._known, compute=compute))
            found = self._by_flow(blocks, network, compute[:2].sum(axis=1), price).on_device
            if self._memory(found) > memory_bytes:
                low = middle
                continue
            high = middle
            cost = total(self._graph, self._known, price, found)
            best = Plan(found, cost) if cost < best.cost else best
        return best

    def _dear(self, price: Rates) -> float:
        """A price of memory, in milliseconds a byte, at which nothing stays on the device that need not."""
        least = self._known.memory_bytes[self._known.memory_bytes > 0].min()
        everything = self._known.compute.sum() + self._known.sizes.sum()
        return float(everything * price.vector().max() / (least * price.device_ms))

    def _memory(self, on_device: Flags) -> float:
        return float(self._known.memory_bytes[on_device].sum())
