"""Where one device's encoder is best cut: the planner on the chain of stem, blocks and head, whose times it told."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from common.compute_profile import ComputeProfile, Cost
from common.messages import ComputeTimes
from trainer.partition import Partition
from trainer.partition_graph import CutGraph, Flags, make_graph
from trainer.partition_prices import LinkState, Rates, Wire, amounts, pins, rates, total

SOUND = Cost("sound", 0.0, 0.0, 0, 0, 0)
BEFORE_CUT = 2  # sound and stem run on the device at every cut


class ChainPlan:
    """The delay of a window's training at every cut a device may use, and the least of them.

    The head is the trainer's, so that every cut splits and the round trip decides nothing between them.
    """

    def __init__(
        self,
        told: ComputeTimes,
        server: ComputeProfile,
        wire: Wire,
        *,
        cuts: Collection[int],
        local_iterations: int,
    ) -> None:
        """``told``: of the same encoder as ``server``; ``cuts``: at least one of 0..L; ``wire``: measured there.

        Raises:
            ValueError: not one time for each of stem, blocks and head.
        """
        if not len(told.forward_ms) == len(told.backward_ms) == len(server.blocks):
            raise ValueError(f"times of {len(told.forward_ms)} and {len(told.backward_ms)}, not {len(server.blocks)}")
        self._device = replace(server, blocks=_timed(server, told), hardware="told by a device")
        self._wire = replace(wire, codec_ns=wire.codec_ns * _whole_ms(self._device) / _whole_ms(server))
        self._local_iterations = local_iterations
        self._graph = _chain(server)
        known = amounts(self._graph, _by_block(self._device), _by_block(server), self._wire)
        self._known = replace(known, travels=self._only(cuts))
        nothing = np.zeros(self._graph.size, dtype=np.bool_)
        head = nothing.copy()
        head[-1] = True
        first = self._before(min(cuts))
        self._partition = Partition(self._graph, self._known, pins(self._graph, device=first, server=head))

    def best_cut(self, link: LinkState, *, slowdown: float) -> int:
        """The cut of least delay; ``slowdown``: how many times as long as it told the device computes now."""
        plan = self._partition.plan(self._rates(link, slowdown))
        return int(plan.on_device.sum()) - BEFORE_CUT

    def delay_ms(self, cut: int, link: LinkState, *, slowdown: float) -> float:
        """Milliseconds of a window's training at this cut; infinite where the device may not use it."""
        return total(self._graph, self._known, self._rates(link, slowdown), self._before(cut))

    def client_ms(self, cut: int) -> float:
        """What the device told that a window takes there, forward and backward."""
        return self._device.client_ms(cut)

    def _rates(self, link: LinkState, slowdown: float) -> Rates:
        return rates(self._wire, link, local_iterations=self._local_iterations, device_slowdown=slowdown)

    def _before(self, cut: int) -> Flags:
        side: Flags = np.arange(self._graph.size) < cut + BEFORE_CUT
        return side

    def _only(self, cuts: Collection[int]) -> Flags:
        """Results travel at the cuts that are allowed and nowhere else."""
        travels = np.zeros(self._graph.size, dtype=np.bool_)
        travels[np.array(sorted(cuts)) + BEFORE_CUT - 1] = True
        return travels


def as_merged(profile: ComputeProfile, periods: Mapping[str, int]) -> ComputeProfile:
    """The same, but a block that is merged in every k-th version counts with a k-th of its parameters."""
    return replace(
        profile,
        blocks=tuple(
            replace(block, parameters=math.ceil(block.parameters / periods.get(block.name, 1)))
            for block in profile.blocks
        ),
    )


def _chain(profile: ComputeProfile) -> CutGraph:
    names = (SOUND.name, *(block.name for block in profile.blocks))
    return make_graph(names, ((), *((at,) for at in range(len(profile.blocks)))))


def _by_block(profile: ComputeProfile) -> ComputeProfile:
    """The same, with its blocks as the operations."""
    return replace(profile, nodes=(SOUND, *profile.blocks))


def _timed(server: ComputeProfile, told: ComputeTimes) -> tuple[Cost, ...]:
    times = zip(server.blocks, told.forward_ms, told.backward_ms, strict=True)
    return tuple(replace(block, forward_ms=forward, backward_ms=backward) for block, forward, backward in times)


def _whole_ms(profile: ComputeProfile) -> float:
    return sum(block.train_ms for block in profile.blocks)
