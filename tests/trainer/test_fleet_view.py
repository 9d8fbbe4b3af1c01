"""The live table: what was heard of a fleet, and nothing that cannot be read."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

from rich.console import Console

from common import messages
from common.messages import DeviceStatus, Telemetry, TrainerStatus
from common.topics import Topics
from tests.common.cases import cases
from tests.fakes import FakeLink
from trainer.fleet_view import FleetView

TOPICS = Topics("barn")


def view_of(link: FakeLink, *devices: str) -> FleetView:
    return FleetView(link.as_link, TOPICS, devices=devices)


def lines(view: FleetView, *, now_s: float = 0.0) -> list[list[str]]:
    """The table's cells, a list for each device; empty cells are left out."""
    text = StringIO()
    Console(file=text, width=80).print(view.table(now_s=now_s))
    return [line.split() for line in text.getvalue().splitlines()[1:]]


def status(state: str) -> bytes:
    example = cases()[DeviceStatus]
    assert isinstance(example, DeviceStatus)
    return messages.encode(replace(example, state=state))  # type: ignore[arg-type]


def telemetry(**changed: int) -> bytes:
    example = cases()[Telemetry]
    assert isinstance(example, Telemetry)
    return messages.encode(replace(example, **changed))  # type: ignore[arg-type]


def test_a_device_shows_its_state_its_figures_and_how_long_ago_it_was_heard() -> None:
    link = FakeLink()
    view = view_of(link)
    link.put(TOPICS.status("attic"), status("ready"), retained=True)
    link.put(TOPICS.telemetry("attic"), telemetry(bytes_up=2**20, bytes_down=2**19), received_s=7.0)
    view.listen(0.0)
    figures = ["5", "800", "97/100", "2", "1", "12", "0.50", "1.5", "20", "50%"]
    assert lines(view, now_s=10.0) == [["attic", "ready", *figures, "3", "s"]]
    assert view.windows == 800


def test_devices_in_trouble_stand_first() -> None:
    link = FakeLink()
    view = view_of(link)
    for device, state in [("attic", "ready"), ("cellar", "lost"), ("barn", "ready"), ("yard", "no-audio")]:
        link.put(TOPICS.status(device), status(state))
    view.listen(0.0)
    assert [line[0] for line in lines(view)] == ["cellar", "yard", "attic", "barn"]


def test_a_name_keeps_its_beginning_beside_the_figures_of_a_year() -> None:
    link = FakeLink()
    view = view_of(link)
    counts = {"windows": 32_000_000, "steps_sent": 4_000_000, "steps_answered": 3_990_000, "local_steps": 900_000}
    link.put(TOPICS.status("microphone-kitchen"), status("no-audio"))
    link.put(TOPICS.telemetry("microphone-kitchen"), telemetry(bytes_up=2**37, bytes_down=0, **counts))
    view.listen(0.0)
    ((name, *cells),) = lines(view, now_s=43_200.0)
    assert name.startswith("microphone-")
    assert cells == ["no-audio", "5", "32M", "4M/4M", "2", "1", "900k", "0.50", "131k", "20", "50%", "12", "h"]


def test_a_long_name_gives_way_to_the_figures() -> None:
    link = FakeLink()
    view = view_of(link)
    device = "kitchen-" + "x" * 55
    link.put(TOPICS.status(device), status("ready"))
    link.put(TOPICS.telemetry(device), telemetry())
    view.listen(0.0)
    ((name, *cells),) = lines(view)
    assert name.startswith("kitchen-")
    assert cells[:4] == ["ready", "5", "800", "97/100"]


def test_the_windows_of_all_devices_are_added_up_by_what_each_said_last() -> None:
    link = FakeLink()
    view = view_of(link, "attic", "cellar")
    for device, windows in [("attic", 100), ("cellar", 20), ("attic", 130)]:
        link.put(TOPICS.telemetry(device), telemetry(windows=windows))
    view.listen(0.0)
    assert view.windows == 150


def test_expected_devices_stand_in_the_table_before_they_are_heard() -> None:
    assert lines(view_of(FakeLink(), "cellar", "attic")) == [["attic", "starting"], ["cellar", "starting"]]


def test_a_device_whose_retained_status_is_taken_away_leaves_the_table() -> None:
    link = FakeLink()
    view = view_of(link)
    link.put(TOPICS.status("attic"), status("stopped"), retained=True)
    link.put(TOPICS.telemetry("attic"), telemetry())
    link.put(TOPICS.status("attic"), b"")
    view.listen(0.0)
    assert lines(view) == []
    link.put(TOPICS.telemetry("attic"), telemetry())  # it had waited while the status overtook it
    view.listen(0.0)
    assert lines(view) == []
    assert view.windows == 0


def test_what_cannot_be_read_changes_nothing_and_hides_nothing_behind_it() -> None:
    link = FakeLink()
    view = view_of(link)
    for topic in (TOPICS.status("attic"), TOPICS.telemetry("attic"), TOPICS.trainer_status(), "elsewhere"):
        link.put(topic, b"garbage")
    link.put(TOPICS.status("cellar"), status("lost"))
    view.listen(0.0)
    assert lines(view) == [["cellar", "lost"]]
    assert view.trainer() == "no trainer was heard of"


def test_the_trainer_is_told_in_a_line() -> None:
    link = FakeLink()
    view = view_of(link)
    example = cases()[TrainerStatus]
    link.put(TOPICS.trainer_status(), messages.encode(example), retained=True)
    view.listen(0.0)
    assert view.trainer() == "trainer ready, weights version 9001 of run 20260101-1"
