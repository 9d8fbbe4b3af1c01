"""The block-wise graph: operations that some optimal placement keeps together become one vertex.

Two rules, applied until neither fits. Both argue on the optimal placement with the fewest operations on the device:
whatever could move to the server without a loss, has moved. D is the device's side of it.

* Chain. All consumers of v's results are in c or after it. If v is in D and c is not, nothing in D needs v: moving it
  to the server saves its results and makes those cross that v needs and that do not cross already, as all do that are
  needed at or after c. Where these are no larger, v is in D exactly when c is. In a block with one entry this is the
  published condition, that the cheapest cut inside it carries no less than the entry.
* Siblings. v and w need the same results, up to those needed at or after c, and all their consumers come after c or are
  in it. If w is not in D, v can move at no cost: they are in D together.

Sizes are compared for both directions and the codec at once, so the blocks hold for every link. What they need of the
times is that no operation inside a block is cheaper on the device; it is tested for each block whenever times change,
and a block that fails, or rests on one that fails, is taken apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from trainer.partition_graph import Array, CutGraph, Flags
from trainer.partition_network import Network, Result, build_network
from trainer.partition_placements import Placements, list_placements
from trainer.partition_prices import Amounts, Pins


@dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks of a graph for given sizes and pins, whatever the times.

    Attributes:
        of: the block of each operation, [n].
        count: how many blocks there are.
        order: operations ordered by block, [n].
        starts: where each block begins in ``order``, [count].
        inner: the operations that the rules move: those whose times are tested.
        rests_on: for some blocks others that must hold too.
        travelling: the results that leave a block and can travel, by index, those together that go the same way.
        bundles: where each way begins in ``travelling``.
        results: of every way, those first on which results can travel: whether they can, their block, the blocks that
            need them.
        device, server: the blocks whose side is given; None: there is none.
        placements: all that there are, where they are few and the blocks were found.
    """

    of: NDArray[np.int64]
    count: int
    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    inner: NDArray[np.int64]
    rests_on: dict[int, tuple[int, ...]]
    travelling: NDArray[np.int64]
    bundles: NDArray[np.int64]
    results: tuple[Result, ...]
    device: int
    server: int | None
    placements: Placements | None


@dataclass(slots=True)
class _Draft:
    """Blocks while they grow; a block is named by one of its operations."""

    graph: CutGraph
    given: Pins
    sizes: Array  # [n, 3]; infinite where the result cannot travel
    travels: Flags
    of: list[int]
    members: dict[int, int]  # block -> its operations, as bits
    below: dict[int, int]  # block -> its operations and all that come after them, as bits
    inner: set[int]
    fixed: set[int]
    rests: list[tuple[int, int]] = field(default_factory=list)  # an operation of either block

    def results(self, block: int) -> list[int]:
        """Operations of the block whose results are needed outside."""
        own = self.members[block]
        return [at for at in _bits(own) if any(not own >> user & 1 for user in self.graph.consumers[at])]

    def users(self, block: int) -> set[int]:
        """Operations outside that need the block's results."""
        own = self.members[block]
        return {user for at in _bits(own) for user in self.graph.consumers[at] if not own >> user & 1}

    def needs(self, block: int) -> set[int]:
        """Operations outside whose results the block needs."""
        own = self.members[block]
        return {parent for at in _bits(own) for parent in self.graph.parents[at] if not own >> parent & 1}

    def first(self, block: int, users: set[int]) -> int | None:
        """The block all of whose users are in or after: c of the rules; None if there is no such."""
        for candidate in {self.of[user] for user in users}:
            reach = self.members[candidate] | self.below[candidate]
            if candidate != block and all(reach >> user & 1 for user in users):
                return candidate
        return None

    def newly(self, block: int, later: int) -> frozenset[int]:
        """What the block needs and nothing at or after ``later`` does: crosses only for the block."""
        reach = self.below[later] & ~self.members[block]
        return frozenset(
            need for need in self.needs(block) if not any(reach >> user & 1 for user in self.graph.consumers[need])
        )

    def join(self, block: int, into: int) -> None:
        """Make two blocks one."""
        for at in _bits(self.members[block]):
            self.of[at] = into
        self.members[into] |= self.members.pop(block)
        self.below[into] |= self.below.pop(block)


def find_blocks(graph: CutGraph, known: Amounts, given: Pins) -> Blocks:
    """The blocks of a graph for the sizes in ``known`` and given pins, whatever its times. Takes 0.1 s."""
    draft = _draft(graph, known, given)
    while _chains(draft) or _siblings(draft):
        pass
    blocks = _finished(draft)
    sizes = travelling_sizes(blocks, known)
    listed = list_placements(blocks.of, blocks.results, sizes, device=blocks.device, server=blocks.server)
    return replace(blocks, placements=listed)


def single_blocks(graph: CutGraph, known: Amounts, given: Pins) -> Blocks:
    """Every operation its own block, those of a given side together: the general graph."""
    return _finished(_draft(graph, known, given))


def block_network(blocks: Blocks, known: Amounts) -> Network:
    """The network between the blocks."""
    return build_network(
        compute=np.add.reduceat(known.compute.take(blocks.order, axis=1), blocks.starts, axis=1),
        results=blocks.results,
        sizes=travelling_sizes(blocks, known),
        device=blocks.device,
        server=blocks.server,
    )


def travelling_sizes(blocks: Blocks, known: Amounts) -> Array:
    """Of the results that leave a block and can travel, those that go the same way together, [travelling, 3]."""
    return np.add.reduceat(known.sizes[blocks.travelling], blocks.bundles, axis=0)


def failing(blocks: Blocks, savings: Array) -> frozenset[int]:
    """The blocks with an operation inside that is cheaper on the device, and those that rest on them.

    ``savings``: of every operation, by `Amounts.savings`.
    """
    if np.minimum.reduce(savings) >= 0.0:
        return frozenset()
    broken = set(blocks.of[blocks.inner[savings[blocks.inner] < 0.0]].tolist())
    while more := {block for block, on in blocks.rests_on.items() if block not in broken and broken & set(on)}:
        broken |= more
    return frozenset(broken)


def taken_apart(graph: CutGraph, blocks: Blocks, broken: frozenset[int], known: Amounts, given: Pins) -> Blocks:
    """The same blocks but for some, whose operations stand alone again; a given side stays together."""
    free = np.isin(blocks.of, list(broken)) & ~given.device & ~given.server
    labels = np.where(free, blocks.count + np.arange(graph.size), blocks.of)
    return _labelled(graph, known.travels, labels, np.zeros(0, dtype=np.int64), [], given)


def _draft(graph: CutGraph, known: Amounts, given: Pins) -> _Draft:
    after = [0] * graph.size
    for at in reversed(range(graph.size)):
        after[at] = 1 << at
        for consumer in graph.consumers[at]:
            after[at] |= after[consumer]
    draft = _Draft(
        graph=graph,
        given=given,
        sizes=np.where(known.travels[:, None], known.sizes, np.inf),
        travels=known.travels,
        of=list(range(graph.size)),
        members={at: 1 << at for at in range(graph.size)},
        below=dict(enumerate(after)),
        inner=set(),
        fixed=set(),
    )
    for side in (given.device, given.server):
        pinned = np.flatnonzero(side).tolist()
        for at in pinned[1:]:
            draft.join(at, pinned[0])
        draft.fixed |= set(pinned[:1])
    return draft


def _chains(draft: _Draft) -> bool:
    changed = False
    for block in sorted(draft.members, reverse=True):
        if block in draft.fixed:
            continue
        users = draft.users(block)
        later = draft.first(block, users) if users else None
        if later is None:
            continue
        saved = draft.sizes[draft.results(block)].sum(axis=0)
        paid = draft.sizes[sorted(draft.newly(block, later))].sum(axis=0)
        if (paid <= saved).all():
            draft.inner |= set(_bits(draft.members[block]))
            draft.join(block, later)
            changed = True
    return changed


def _siblings(draft: _Draft) -> bool:
    alike: dict[tuple[int, frozenset[int]], list[int]] = {}
    for block in sorted(draft.members):
        users = draft.users(block)
        later = draft.first(block, users) if users and block not in draft.fixed else None
        if later is not None:
            alike.setdefault((later, draft.newly(block, later)), []).append(block)
    for (later, _), blocks in alike.items():
        if len(blocks) > 1:
            for block in blocks:
                draft.inner |= set(_bits(draft.members[block]))
            for block in blocks[1:]:
                draft.join(block, blocks[0])
            draft.rests.append((blocks[0], later))
            return True  # the others may look different now
    return False


def _finished(draft: _Draft) -> Blocks:
    inner = np.array(sorted(draft.inner), dtype=np.int64)
    return _labelled(draft.graph, draft.travels, np.array(draft.of), inner, draft.rests, draft.given)


def _labelled(
    graph: CutGraph,
    travels: Flags,
    labels: NDArray[np.int64],
    inner: NDArray[np.int64],
    rests: list[tuple[int, int]],
    given: Pins,
) -> Blocks:
    _, of = np.unique(labels, return_inverse=True)
    rests_on: dict[int, set[int]] = {}
    for one, other in rests:
        if of[one] != of[other]:
            rests_on.setdefault(int(of[one]), set()).add(int(of[other]))
    order = np.argsort(of, kind="stable")
    server = np.flatnonzero(given.server)
    ways = _ways(graph, of, travels)
    travelling = [results for (can, _, _), results in ways.items() if can]
    return Blocks(
        of=of,
        count=int(of.max()) + 1,
        order=order,
        starts=np.searchsorted(of[order], np.arange(int(of.max()) + 1)),
        inner=inner,
        rests_on={block: tuple(sorted(on)) for block, on in rests_on.items()},
        travelling=np.array([at for results in travelling for at in results], dtype=np.int64),
        bundles=np.cumsum([0, *map(len, travelling)])[:-1],
        results=tuple((can, at, list(users)) for can, at, users in ways),
        device=int(of[0]),
        server=int(of[server[0]]) if server.size else None,
        placements=None,
    )


def _ways(graph: CutGraph, of: NDArray[np.int64], travels: Flags) -> dict[tuple[bool, int, tuple[int, ...]], list[int]]:
    """The results that leave a block, by whether they can travel, their block and the blocks that need them."""
    ways: dict[tuple[bool, int, tuple[int, ...]], list[int]] = {}
    for at in sorted(range(graph.size), key=lambda at: (not travels[at], at)):
        outside = sorted({int(of[user]) for user in graph.consumers[at]} - {int(of[at])})
        if outside:
            ways.setdefault((bool(travels[at]), int(of[at]), tuple(outside)), []).append(at)
    return ways


def _bits(word: int) -> list[int]:
    places = []
    while word:
        low = word & -word
        places.append(low.bit_length() - 1)
        word ^= low
    return places
