"""Who tells a device of its path to the broker: the kernel, or the link that an emulated board plays."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from device.board import Board, round_trip_of, uplink_of
from device.shaped_link import ShapedLink

LINK: Any = SimpleNamespace(delivery_mbps=lambda: 3.0, round_trip_ms=lambda: 21.0)


def test_a_board_that_is_one_asks_the_kernel() -> None:
    board = Board(link=None, stretch=None, player=None)
    assert (uplink_of(LINK, board)(), round_trip_of(LINK, board)()) == (3.0, 21.0)


def test_an_emulated_board_asks_the_link_that_is_played_also_after_it_changed() -> None:
    with ShapedLink("127.0.0.1", 1, uplink_mbps=8.0, downlink_mbps=8.0, round_trip_ms=50.0) as played:
        board = Board(link=played, stretch=None, player=None)
        mbps, round_trip_ms = uplink_of(LINK, board), round_trip_of(LINK, board)
        assert (mbps(), round_trip_ms()) == (8.0, 50.0)
        played.shape(0.5, 0.5, 200.0, 20.0)
        assert (mbps(), round_trip_ms()) == (0.5, 200.0)
