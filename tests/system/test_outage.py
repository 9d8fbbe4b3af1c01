"""Without its link a device goes on learning, and comes back by itself; and what never leaves it at all."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from common import messages
from common.config import fingerprint, load_fleet
from common.encoder import build_encoder
from device.shaped_link import ShapedLink
from tests.fleet import Fleet
from trainer.publisher import Publisher

FLOOR = 3


@pytest.mark.slow
def test_a_device_whose_link_is_cut_learns_alone_and_rejoins(tmp_path: Path) -> None:
    """It stands at the smallest cut that its floor permits: the trainer pins it below."""
    with Fleet(tmp_path, parts_per_step=4) as fleet, ShapedLink("127.0.0.1", fleet.port) as road:
        fleet.start_trainer(pins={"a": 1})
        fleet.start_device("a", url=f"mqtt://127.0.0.1:{road.port}")
        fleet.start_device("b")
        fleet.until(lambda: fleet.answered("a") >= 3 and fleet.seen.version >= 1, "both are answered")
        road.cut()
        fleet.until(lambda: fleet.seen.status["a"].state == "lost", "the broker tells of the loss")
        sent, elsewhere = fleet.seen.activations["a"], fleet.answered("b")
        alone = fleet.local_steps("a")
        fleet.until(lambda: fleet.local_steps("a") >= alone + 3, "the device learns alone")
        fleet.until(lambda: fleet.answered("b") >= elsewhere + 3, "the others carry on")
        assert fleet.seen.activations["a"] == sent
        road.restore()
        answered = fleet.answered("a")
        fleet.until(lambda: fleet.answered("a") >= answered + 3, "the device is answered again")
        assert fleet.seen.status["a"].state == "ready"
        learned_alone = [line for line in fleet.journal("a") if line["kind"] == "local"]
        assert all(line["windows"] == 4 and line["loss"] > 0 for line in learned_alone)
        assert len([line for line in fleet.journal("a") if line["kind"] == "start"]) == 1
        fleet.ask_to_stop("a", "b")
        assert [fleet.exit_status(device) for device in "ab"] == [0, 0]
        fleet.ask_to_stop("trainer")
        assert fleet.exit_status("trainer") == 0
        steps = [line for line in fleet.journal("a") if line["kind"] == "step" and line["result"] == "answered"]
        assert steps[-1]["cuts"] == {str(FLOOR): 4}
        assert min(cut for _, cut in fleet.seen.cuts) >= FLOOR


@dataclasses.dataclass
class Asking:
    """A trainer that refuses every part and asks for what it should not."""

    fleet: Fleet

    def __post_init__(self) -> None:
        self.link = self.fleet.link("trainer")
        self.version = 0
        settings = load_fleet(self.fleet.fleet_file())
        known, topics = fingerprint(settings), self.fleet.topics
        publisher = Publisher(
            self.link, topics, run="a-run", fingerprint=known, dtype=settings.weights_codec, delta_codec=None
        )
        publisher.publish(build_encoder(settings.encoder, seed=0), version=0, merged={})
        ready = messages.TrainerStatus("ready", "0123456789abcdef", 1, "a-run", known, 0)
        self.link.retain(topics.trainer_status(), messages.encode(ready))
        self.fleet.seen.on_part = self.refuse

    def refuse(self, device: str, part: messages.Activations) -> None:
        answer = messages.Gradient(part.boot, part.step, part.part, "rejected", "a test", None, 0.0, False, None)
        self.link.publish(self.fleet.topics.gradient(device), messages.encode(answer))

    def ask(self, device: str, *, pinned: int | None, allowed: tuple[int, ...]) -> None:
        self.version += 1
        wish = messages.SplitterUpdate(self.version, pinned, allowed)
        self.link.retain(self.fleet.topics.splitter(device), messages.encode(wish))


def wait_for_parts(fleet: Fleet, device: str, count: int) -> None:
    before = fleet.seen.activations[device]
    fleet.until(lambda: fleet.seen.activations[device] >= before + count, f"{device} sends {count} more parts")


@pytest.mark.parametrize("floor", [FLOOR, 6])
def test_nothing_below_the_floor_is_ever_sent_whatever_the_trainer_asks(tmp_path: Path, floor: int) -> None:
    with Fleet(tmp_path, parts_per_step=1) as fleet:
        trainer = Asking(fleet)
        fleet.start_device("a", min_cut=floor, splitter={"kind": "fixed", "cut": floor})
        wishes: list[tuple[int | None, tuple[int, ...]]] = [(pin, ()) for pin in range(floor)]
        wishes += [(None, (0,)), (None, (0, 1, 2)), (0, (0, 1)), (64, ()), (None, (64,)), (1, (1, 8))]
        for pinned, allowed in wishes:
            trainer.ask("a", pinned=pinned, allowed=allowed)
            wait_for_parts(fleet, "a", 8)
            assert min(cut for _, cut in fleet.seen.cuts) >= floor
        assert ("a", floor) in fleet.seen.cuts
        fleet.ask_to_stop("a")
        assert fleet.exit_status("a") == 0
        assert min(cut for _, cut in fleet.seen.cuts) >= floor


def test_a_cut_that_is_asked_for_within_a_step_holds_from_the_next_part_on(tmp_path: Path) -> None:
    """Whatever was in flight keeps its own cut, deeper or shallower, and the step is answered as a whole."""
    with Fleet(tmp_path, parts_per_step=8) as fleet:
        trainer = Asking(fleet)
        cuts: dict[tuple[int, int], int] = {}

        def ask_between(device: str, part: messages.Activations) -> None:
            cuts[part.step, part.part] = part.cut
            if part.part == 1:
                trainer.ask(device, pinned=7 if part.cut == 4 else 4, allowed=())
            if part.last:  # a step whose parts are all answered is over, however few were sent
                for number in range(part.part + 1):
                    trainer.refuse(device, dataclasses.replace(part, part=number))

        fleet.seen.on_part = ask_between
        trainer.ask("a", pinned=4, allowed=())
        # In real time, so that what is asked for is there before the next window.
        fleet.start_device("a", speed="realtime", splitter={"kind": "fixed", "cut": 4}, windows=16)
        assert fleet.exit_status("a") == 0
        deeper, shallower = ([cuts[step, part] for part in range(8)] for step in (0, 1))
        assert deeper in ([4, 4, *[7] * 6], [4, 4, 4, *[7] * 5]), "part 2 may have left already"
        assert shallower in ([7, 7, *[4] * 6], [7, 7, 7, *[4] * 5])
        assert [line["cut"] for line in fleet.journal("a") if line["kind"] == "cut"] == [7, 4]


def test_windows_that_close_while_a_step_is_waited_for_have_their_embeddings_at_once(tmp_path: Path) -> None:
    """Nobody answers, and a step is given up after six seconds: the embeddings of six windows do not wait for that."""
    with Fleet(tmp_path, parts_per_step=12) as fleet:
        Asking(fleet)
        fleet.seen.on_part = None
        fleet.start_device("a", speed="realtime", own_embedding=True, windows=24, deadline_ms=1000, step_timeout_s=6.0)
        assert fleet.exit_status("a") == 0
        lines = fleet.journal("a")
        # What closed before the device was ready had to wait for that.
        own_ms = [ms for line in lines for _, _, ms in line.get("taken", ())][16:]
        assert len(own_ms) == 8
        assert max(own_ms) < 3000.0
        assert lines[-1]["windows_dropped"] == lines[1]["windows_dropped"]
        sent = [part["sent_ms"] for line in lines if line["kind"] == "step" for part in line["parts"]]
        assert max(sent) > 3000.0, "their sending waits for the step"


@pytest.mark.slow
def test_a_trainer_that_is_only_said_to_be_ready_is_not_waited_for_and_the_real_one_is_joined_at_once(
    tmp_path: Path,
) -> None:
    with Fleet(tmp_path) as fleet:
        fleet.start_trainer()
        fleet.start_device("dev", windows=16)
        assert fleet.exit_status("dev") == 0
        ready = next(status for status in fleet.seen.trainer if status.state == "ready")
        fleet.ask_to_stop("trainer")
        fleet.exit_status("trainer")
        restored = fleet.link("restored")  # what a broker with persistence retains after a power cut
        restored.retain(fleet.topics.trainer_status(), messages.encode(ready))
        fleet.until(lambda: fleet.seen.trainer[-1].state == "ready", "the broker says so")
        before = len(fleet.journal("dev"))
        fleet.start_device("dev", step_timeout_s=3.0)
        fleet.until(lambda: fleet.local_steps("dev") >= 3, "it learns alone")
        steps = [line["result"] for line in fleet.journal("dev")[before:] if line["kind"] == "step"]
        assert steps == ["lost", "lost"]
        answered = fleet.answered("dev")
        fleet.start_trainer()
        fleet.until(lambda: fleet.answered("dev") > answered, "it learns with the trainer")
