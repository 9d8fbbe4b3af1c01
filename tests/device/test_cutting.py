from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common import messages
from common.block_optimizer import BlockOptimizers
from common.encoder import build_encoder
from common.messages import TrainerStatus
from common.mixture_memory import MixtureMemory
from common.policy import Observation
from common.split import client_names, names
from common.topics import Topics
from device.ambiguity import Ambiguity
from device.contact import Contact
from device.cutting import DWELL_WINDOWS, Cutting
from device.energy import EnergyMeter
from device.journal import Journal
from device.mailbox import Mailbox
from device.mixture_replica import MixtureReplica
from device.replica import Replica
from device.senses import Senses
from device.splitter import Decision, FixedSplitter
from device.telemetry import Resources
from device.weights_exchange import WeightsExchange
from tests.device.test_intake import PACE as WITHOUT_END
from tests.device.test_intake import Source
from tests.fakes import FakeLink
from tests.published import FINGERPRINT, Published, everywhere, learn

BOOT = "b" * 16
TOPICS = Topics("home")
SHALLOW, DEEP = 3, 6
PACE = replace(WITHOUT_END, first_cut=SHALLOW, lockstep=True)


class Wish:
    """A splitter that somebody tells what to want."""

    cut = SHALLOW
    news: int | None = None

    def decide(self, observation: Observation, mask: tuple[bool, ...]) -> Decision:
        return FixedSplitter(self.cut).decide(observation, mask)

    def reconsider(self, observation: Observation, mask: tuple[bool, ...]) -> Decision | None:
        return None if self.news is None else FixedSplitter(self.news).decide(observation, mask)

    def step_over(self) -> None:
        pass


class Board:
    def sample(self, but_for_s: float = 0.0) -> Resources:
        return Resources(cpu=0.0, memory=0.0, temperature_c=None, throttled=None, battery=None)


class Device:
    """At cut 3, connected, with all blocks of the fleet's first version."""

    def __init__(self, path: Path, fleet: Published) -> None:
        self.link, self.wish = FakeLink(), Wish()
        link, encoder = self.link.as_link, build_encoder("mobile", seed=99)
        self.path = path / "steps.jsonl"
        self.journal = Journal(self.path)
        self.encoder = encoder
        self.replica = Replica(encoder, device="pi", boot=BOOT, dtype="fp32", change_codec="fp32")
        mixture = MixtureReplica(MixtureMemory(), boot=BOOT, fingerprint=FINGERPRINT, path=path / "mixture.bin")
        self.mailbox = Mailbox(
            link,
            TOPICS,
            boot=BOOT,
            encoder=encoder,
            replica=self.replica,
            mixture=mixture,
            fingerprint=FINGERPRINT,
            limits=messages.Limits(),
        )
        self.mailbox.trainer = TrainerStatus("ready", "c" * 16, 1, fleet.run, FINGERPRINT, fleet.version)
        self.weights = WeightsExchange(
            link,
            TOPICS,
            self.replica,
            encoder,
            mixture,
            device="pi",
            boot=BOOT,
            fingerprint=FINGERPRINT,
            path=path / "weights.bin",
        )
        self.waiting = 0
        self.ambiguity = Ambiguity(encoder, mixture.mixture)
        self.senses = Senses(
            device="pi",
            boot=BOOT,
            depth=encoder.depth,
            link=link,
            topics=TOPICS,
            source=Source(0),
            waiting=lambda: self.waiting,
            mailbox=self.mailbox,
            ambiguity=self.ambiguity,
            replica=self.replica,
            journal=self.journal,
            energy=EnergyMeter(power=None, measure=False),
            sampler=Board(),
            every_steps=1,
            every_window=False,
            uplink_mbps=lambda: None,
            round_trip_ms=lambda: None,
            forward_ms=None,
            follows_all=False,
        )
        contact = Contact(
            link,
            TOPICS,
            self.mailbox,
            self.replica,
            self.weights,
            device="pi",
            broker="here",
            pace=PACE,
            stop=threading.Event(),
        )
        self.optimizers = BlockOptimizers(encoder, kind="sgd", weight_decay=0.0, warmup_steps=0)
        self.cutting = Cutting(
            self.wish,
            self.senses,
            contact,
            self.mailbox,
            self.replica,
            self.weights,
            self.optimizers,
            self.journal,
            depth=encoder.depth,
            pace=PACE,
        )
        self.receive(fleet, names(encoder))

    def receive(self, fleet: Published, blocks: tuple[str, ...]) -> None:
        """A version of which only these blocks arrive."""
        self.replica.offer_manifest(fleet.manifest())
        for chunk in fleet.chunks(blocks):
            self.replica.offer_chunk(chunk)
        self.weights.keep_up(cut=self.cutting.cut, target=self.cutting.target)

    def moves(self) -> list[tuple[Any, Any]]:
        lines = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
        return [(line["before"], line["cut"]) for line in lines if line["kind"] == "cut"]


@pytest.fixture
def fleet() -> Published:
    return Published()


@pytest.fixture
def device(tmp_path: Path, fleet: Published) -> Device:
    return Device(tmp_path, fleet)


def test_a_cut_moves_at_once_where_the_blocks_for_it_are_here(device: Device) -> None:
    device.wish.cut = DEEP
    assert device.cutting.sends_next()
    assert device.cutting.cut == DEEP
    assert device.moves() == [(SHALLOW, DEEP)]


def test_while_a_step_is_waited_for_the_cut_moves_on_news_alone(device: Device) -> None:
    device.cutting.reconsider()
    assert device.moves() == [], "nothing was decided yet"
    device.cutting.sends_next()
    device.wish.cut = DEEP
    device.cutting.reconsider()
    assert device.cutting.cut == SHALLOW
    device.wish.news = DEEP
    device.cutting.reconsider()
    assert device.cutting.cut == DEEP
    assert device.moves() == [(SHALLOW, DEEP)]


def test_it_waits_for_blocks_of_an_older_version_and_moves_when_they_have_come(
    device: Device, fleet: Published
) -> None:
    fleet.next(everywhere(fleet.encoder, 0.5, names(fleet.encoder)))
    device.receive(fleet, client_names(SHALLOW))
    device.wish.cut = DEEP
    assert device.cutting.sends_next(), "at the cut where it is"
    assert (device.cutting.cut, device.cutting.target) == (SHALLOW, DEEP)
    device.receive(fleet, client_names(DEEP))
    device.cutting.move()
    assert device.cutting.cut == DEEP


def test_a_cut_is_kept_for_the_dwell_time(device: Device) -> None:
    device.wish.cut = DEEP
    device.cutting.sends_next()
    device.wish.cut = SHALLOW
    at = []
    for _ in range(DWELL_WINDOWS):
        device.cutting.sends_next()
        at.append(device.cutting.cut)
    assert at == [DEEP] * (DWELL_WINDOWS - 1) + [SHALLOW], "with the one it moved for as many as it dwells"


def test_without_the_link_nothing_is_sent_and_the_cut_stays(device: Device) -> None:
    device.link.connected = False
    device.wish.cut = DEEP
    assert not device.cutting.sends_next()
    assert device.cutting.cut == SHALLOW
    device.link.connected = True
    device.wish.cut = SHALLOW
    assert device.cutting.sends_next()
    assert device.moves() == [(SHALLOW, None), (None, SHALLOW)]


def test_what_was_learned_in_a_block_is_told_before_the_block_is_given_up(device: Device) -> None:
    device.wish.cut = DEEP
    device.cutting.sends_next()
    device.cutting.give_up()
    learn(device.encoder, 0.5, client_names(DEEP))
    device.replica.trained(client_names(DEEP))
    device.optimizers.step(client_names(DEEP), 0.0)
    device.link.take_published()
    device.wish.cut = SHALLOW
    for _ in range(DWELL_WINDOWS + 1):
        device.cutting.sends_next()
    assert device.link.take_published() == []
    device.cutting.give_up()
    topics = {one.topic for one in device.link.take_published()}
    assert topics
    assert all("/up/update/" in topic for topic in topics)
    assert set(device.optimizers.taken) == set(client_names(SHALLOW))
    device.cutting.give_up()
    assert device.link.take_published() == [], "once"
