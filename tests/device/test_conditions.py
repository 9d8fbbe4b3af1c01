from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError
from device.conditions import Condition, ConditionPlayer, read_conditions, write_conditions
from device.emulation import ComputeStretch
from device.shaped_link import ShapedLink
from tests.device.test_shaped_link import connect, served
from tests.fakes import KnownHost

HEADER = "at_s,uplink_mbps,downlink_mbps,round_trip_ms"


def conditions_of(tmp_path: Path, text: str) -> tuple[Condition, ...]:
    path = tmp_path / "conditions.csv"
    path.write_text(text, encoding="utf-8")
    return read_conditions(path)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "conditions.csv"
    wanted = (Condition(0.0, 8.0, 16.0, 50.0), Condition(12.5, 0.5, 1.0, 200.0, 20.0, False, 0.75, 2.0))
    write_conditions(path, wanted)
    assert read_conditions(path) == wanted


def test_what_is_left_out_is_a_quiet_board_on_a_steady_link_that_is_up(tmp_path: Path) -> None:
    assert conditions_of(tmp_path, f"{HEADER}\n0,8,16,50\n") == (Condition(0.0, 8.0, 16.0, 50.0),)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "at_s"),
        (f"{HEADER}\n", "one line"),
        ("at_s,uplink_mbps\n0,8\n", "columns downlink_mbps, round_trip_ms"),
        (f"{HEADER},weather\n0,8,8,50,rain\n", "columns weather"),
        (f"{HEADER}\n0,8,8,50\n0,4,4,50\n", "must rise"),
        (f"{HEADER}\n0,0,8,50\n", ":2: uplink_mbps is '0'"),
        (f"{HEADER}\n0,8,8,nan\n", ":2: round_trip_ms is 'nan'"),
        (f"{HEADER}\n0,8,8\n", ":2: round_trip_ms is None"),
        (f"{HEADER},slowdown\n0,8,8,50,0.5\n", ":2: slowdown is '0.5'"),
    ],
)
def test_a_file_that_says_something_else_is_refused_in_words(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        conditions_of(tmp_path, text)


@given(st.text() | st.binary(max_size=200).map(lambda data: data.decode("latin-1")))
def test_no_text_whatever_is_a_bug(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    try:
        found = conditions_of(tmp_path_factory.mktemp("any"), f"{HEADER}\n{text}")
    except ConfigError:
        return
    assert all(isinstance(one, Condition) for one in found)


def test_a_player_shapes_the_link_cuts_it_and_takes_the_processor() -> None:
    stretch = ComputeStretch(host=KnownHost(1.0), board_forward_ms=2.0)
    seen: list[tuple[Condition, float, float | None]] = []
    last = threading.Event()
    wanted = (
        Condition(0.0, 8.0, 8.0, 0.0),
        Condition(0.01, 0.5, 0.5, 0.0, others_cpu=1.0, slowdown=2.0),
        Condition(0.02, 0.5, 0.5, 0.0, up=False),
        Condition(0.03, 4.0, 4.0, 0.0),
    )

    with served("echo") as target, ShapedLink("127.0.0.1", target) as link:

        def note(condition: Condition) -> None:
            seen.append((condition, stretch.shared, link.uplink_mbps))
            if condition == wanted[2]:
                # Before the outage begins: what holds now is the condition before.
                assert player.others_cpu == 1.0
            if condition == wanted[3]:
                with pytest.raises(ConnectionRefusedError):
                    connect(link.port)
                last.set()

        player = ConditionPlayer(wanted, link=link, stretch=stretch, on_change=note)
        player.start()
        assert last.wait(20.0)
        player._thread.join(20.0)
        connect(link.port).close()
        assert link.uplink_mbps == pytest.approx(4.0)
        player.stop()
    assert [condition for condition, _, _ in seen] == list(wanted)
    assert [shared for _, shared, _ in seen] == [1.0, 1.0, 2.0, 1.0]
    assert (stretch.shared, player.others_cpu) == (1.0, 0.0)


def test_a_player_that_is_stopped_plays_no_more() -> None:
    stretch = ComputeStretch(host=KnownHost(1.0), board_forward_ms=2.0)
    begun = threading.Event()
    with served("echo") as target, ShapedLink("127.0.0.1", target) as link:
        player = ConditionPlayer(
            (Condition(0.0, 8.0, 8.0, 0.0), Condition(3600.0, 1.0, 1.0, 0.0)),
            link=link,
            stretch=stretch,
            on_change=lambda _: begun.set(),
        )
        player.start()
        assert begun.wait(20.0)
        player.stop()
        assert link.uplink_mbps == pytest.approx(8.0)
