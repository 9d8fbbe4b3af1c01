"""Every placement that blocks leave, where these are few: all are priced at once, and no flow is needed.

Ten blocks in a row leave eleven placements. What they cost is linear in what is measured of the operations, so that a
plan from new times is two matrix products, where building a network and solving it takes some twenty calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.partition_graph import Array, Flags
from trainer.partition_network import IMPOSSIBLE, Result
from trainer.partition_prices import Amounts, Rates

MOST = 256


@dataclass(frozen=True, slots=True)
class Placements:
    """Some placements of a graph's operations.

    Attributes:
        sides: the operations on the device, [placements, n].
        on_device: the same as 0 and 1.
        carried: bytes up, bytes of gradients and values of the results that travel, [placements, 3].
    """

    sides: Flags
    on_device: Array
    carried: Array


def list_placements(
    of: NDArray[np.int64],
    results: Sequence[Result],
    sizes: Array,
    *,
    device: int,
    server: int | None,
) -> Placements | None:
    """All placements of blocks on which nothing on the device needs the server; None where they are more than `MOST`.

    Args:
        of: the block of each operation, [n].
        results: those that leave a block, first those that can travel, as in `partition_network`.
        sizes: of the results that can travel, [travelling, 3].
        device: a block whose side is given.
        server: likewise; None: there is none.
    """
    sides = _closed(int(of.max()) + 1, results, device=device, server=server)
    if sides is None:
        return None
    carried = np.zeros((len(sides), 3))
    for (_, at, users), size in zip(results, sizes):
        carried += np.outer(sides[:, at] & ~sides[:, users].all(axis=1), size)
    placed = sides[:, of]
    placed.flags.writeable = False  # plans hand its rows out
    return Placements(placed, placed.astype(np.float64), carried)


def cheapest(listed: Placements, known: Amounts, price: Rates, savings: Array) -> tuple[Flags, float]:
    """Which operations are on the device in the cheapest placement, [n], and what it costs.

    What any split costs beside is not in it, as in `minimum_cut`. ``savings``: by `Amounts.savings`.

    Raises:
        ValueError: there is none.
    """
    if not len(listed.sides):
        raise ValueError(IMPOSSIBLE)
    link = np.array((price.up_byte, price.down_byte, price.value))
    costs = listed.on_device.dot(savings) + listed.carried.dot(link)  # `@` takes twice as long to begin
    best = int(costs.argmin())
    return listed.sides[best], float(costs[best] + price.server_ms * np.add.reduce(known.compute[2]))


def _closed(count: int, results: Sequence[Result], *, device: int, server: int | None) -> Flags | None:
    """The sides of blocks in all such placements, [placements, count], True for the device."""
    needs = [0] * count
    for _, at, users in results:
        for user in users:
            needs[user] |= 1 << at
    found = [0]
    for block in _in_order(needs):
        either = [] if block == device else found
        found = either + [side | 1 << block for side in found if block != server and needs[block] & ~side == 0]
        if len(found) > MOST:
            return None
    stays = [(at, users) for can, at, users in results if not can]
    possible = [
        side
        for side in found
        if all(not side >> at & 1 or all(side >> user & 1 for user in users) for at, users in stays)
    ]
    return np.array([[side >> block & 1 for block in range(count)] for side in possible], np.bool_).reshape(-1, count)


def _in_order(needs: Sequence[int]) -> list[int]:
    """Every block after those that it needs."""
    done, order, left = 0, [], list(range(len(needs)))
    while left:
        ready = [block for block in left if needs[block] & ~done == 0]
        order += ready
        done |= sum(1 << block for block in ready)
        left = [block for block in left if block not in ready]
    return order
