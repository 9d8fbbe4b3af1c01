"""Hostile messages on every topic, through a real broker, at a running trainer and device.

Spoilt messages and garbage go everywhere. What is well formed by chance goes to the real ends only where it may mean
nothing: a well-formed status of the trainer or manifest *is* the trainer's word, which only the broker's ACL protects.
Well-formed messages of devices that do not exist, of another run and of another fleet come on purpose.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgpack
import psutil
import pytest
import torch

from common import messages
from common.change_blob import pack_blocks
from common.codec import Codec, encode
from common.config import fingerprint, load_fleet
from common.encoder import build_encoder
from common.errors import MessageError
from common.split import block_state
from common.state_blob import digest
from common.topics import FLEET_KINDS, Kind, parse
from tests.common.cases import cases
from tests.common.test_messages_fuzz import spoil_bytes, spoil_structure
from tests.fleet import Fleet

ROUNDS = 200
PER_ROUND = 4
MIB = 2**20
GROWTH_BYTES = 50 * MIB
CUT = 5
BOOT = "feedfacefeedface"
TYPES: dict[Kind, type[object]] = {
    Kind.STATUS: messages.DeviceStatus,
    Kind.ACTIVATIONS: messages.Activations,
    Kind.TELEMETRY: messages.Telemetry,
    Kind.UPDATE: messages.UpdateChunk,
    Kind.MIXTURE: messages.MixtureStatistics,
    Kind.EMBEDDING: messages.Embedding,
    Kind.GRADIENT: messages.Gradient,
    Kind.SPLITTER: messages.SplitterUpdate,
    Kind.CONFIG: messages.DesiredConfig,
    Kind.WEIGHTS: messages.WeightsChunk,
    Kind.DELTA: messages.DeltaChunk,
    Kind.MANIFEST: messages.Manifest,
    Kind.TRAINER_STATUS: messages.TrainerStatus,
}
OBEYED = {Kind.STATUS, Kind.SPLITTER, Kind.CONFIG, Kind.MANIFEST, Kind.TRAINER_STATUS}
TO_TRAINER = {Kind.STATUS, Kind.ACTIVATIONS, Kind.UPDATE, Kind.MIXTURE}
FOR_WATCHERS = {Kind.TELEMETRY}  # neither trainer nor device subscribes to it
UNKNOWN = [
    "streamsplit/v1/test/a/up",
    "streamsplit/v1/test/a/up/audio",
    "streamsplit/v1/test/a/up/update/x",
    "streamsplit/v1/test/a/up/update/99999999",
    "streamsplit/v1/test/a/down/nothing",
    "streamsplit/v1/test/a/down/gradient/1",
    "streamsplit/v1/test/A B/up/status",
    "streamsplit/v1/test/_trainer/up/status",
    "streamsplit/v1/test//up/activations",
    "streamsplit/v1/test/_weights/stem/x",
    "streamsplit/v1/test/_weights/stem/70000",
    "streamsplit/v1/test/_weights/stem/delta/x",
    "streamsplit/v2/test/a/down/config",
    "streamsplit/v1/other/a/down/config",
    "streamsplit",
]
ACTIVATIONS = encode(torch.linspace(-2, 2, 2 * 96 * 4 * 6).reshape(2, 96, 4, 6), Codec.parse("int8"))


def examples() -> dict[Kind, object]:
    """A well-formed message of every kind; the activations have the shape that the trainer expects."""
    known = cases()
    made = {kind: known[type_] for kind, type_ in TYPES.items()}
    part = messages.Activations(BOOT, 1, 0, True, CUT, 1, 2_000, 1, 1, 1, "", ACTIVATIONS)
    return made | {Kind.ACTIVATIONS: part}


def topic_of(fleet: Fleet, kind: Kind, device: str, rng: random.Random) -> str:
    topics = fleet.topics
    match kind:
        case Kind.UPDATE:
            return topics.update(device, rng.choice([0, 1, 7]))
        case Kind.WEIGHTS:
            return topics.weights(rng.choice(["stem", "0", "3", "head", "mixture", "other"]), rng.choice([0, 1]))
        case Kind.DELTA:
            return topics.delta(rng.choice(["stem", "0", "3", "head", "other"]), rng.choice([0, 1]))
        case Kind.MANIFEST:
            return topics.manifest()
        case Kind.TRAINER_STATUS:
            return topics.trainer_status()
    return f"streamsplit/v1/{topics.fleet}/{device}/{kind}"


def is_well_formed(kind: Kind, payload: bytes) -> bool:
    try:
        messages.decode(TYPES[kind], payload)
    except MessageError:
        return False
    return True


def spoilt(kind: Kind, payload: bytes, rng: random.Random) -> bytes:
    """Garbage, spoilt bytes, a spoilt structure, or what belongs on another topic."""
    match rng.randrange(8):
        case 0:
            return rng.randbytes(rng.choice([0, 1, 40, 5_000]))
        case 1 | 2 | 3:
            return spoil_bytes(payload, rng)
        case 4:
            other = rng.choice([one for one in TYPES if one is not kind])
            return messages.encode(examples()[other])
        case _:
            packed: bytes = msgpack.packb(spoil_structure(msgpack.unpackb(payload), rng))
            return packed


def attacks(fleet: Fleet, kind: Kind, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    payload = messages.encode(examples()[kind])
    while True:
        made = spoilt(kind, payload, rng)
        real = kind in FLEET_KINDS or rng.random() < 0.7
        if real and kind in OBEYED and is_well_formed(kind, made):
            continue
        yield topic_of(fleet, kind, "a" if real else f"ghost-{rng.randrange(20)}", rng), made


def change_of_a_ghost(run: str) -> messages.UpdateChunk:
    """A whole, correct change of a block, worth as many windows as a change can be, from a device that is not there."""
    encoder = build_encoder("mobile", seed=0)
    poison = {name: torch.full_like(value, 1e3) for name, value in block_state(encoder, "stem").items()}
    blob = pack_blocks({"stem": poison}, "fp16")
    return messages.UpdateChunk(run, BOOT, 1, 0, 2**40, digest(blob), 0, 1, blob)


def well_formed(fleet: Fleet) -> list[tuple[str, bytes]]:
    """Messages that are right in every field and still nobody's."""
    topics, known = fleet.topics, examples()
    part = known[Kind.ACTIVATIONS]
    assert isinstance(part, messages.Activations)
    largest = 2**53
    odd_parts = [
        dataclasses.replace(part, step=largest, segment=largest, window_index=largest, monotonic_ms=largest),
        dataclasses.replace(part, weights_version=largest, part=1_023),
        dataclasses.replace(part, cut=3),
        dataclasses.replace(part, cut=64),
        dataclasses.replace(part, deadline_ms=0),
        part,
    ]
    made = [(topics.activations(device), messages.encode(one)) for one in odd_parts for device in ("a", "ghost")]
    patient = {**msgpack.unpackb(messages.encode(part)), "d": largest}
    made += [(topics.activations(device), msgpack.packb(patient)) for device in ("a", "ghost")]
    made += [(topics.update("ghost", 0), messages.encode(change_of_a_ghost(fleet.seen.manifests[-1].run)))]
    made += [(topics.gradient("a"), messages.encode(known[Kind.GRADIENT]))]
    made += [(topics.embedding("a"), messages.encode(known[Kind.EMBEDDING]))]
    for number in range(8):
        status = messages.DeviceStatus("ready", BOOT, number, "", "f" * 64, "", "", (number,))
        made.append((topics.status(f"ghost-{number}"), messages.encode(status)))
        chunk = messages.WeightsChunk("another-run", number, "stem", 0, 1 + 60_000 * (number % 2), bytes(60_000))
        made.append((topics.weights("stem", 0), messages.encode(chunk)))
    own = fingerprint(load_fleet(fleet.fleet_file()))
    late_will = messages.TrainerStatus("lost", BOOT, 0, "", own, 0)
    made.append((topics.trainer_status(), messages.encode(late_will)))
    made += [
        (topics.config("a"), messages.encode(messages.DesiredConfig(1, codec, paused=False)))
        for codec in ("no-codec", "", "int8-")
    ]
    return made


def dropped(log: str) -> Counter[str]:
    """Messages that a process said it dropped, by the kind of their topic."""
    found: Counter[str] = Counter()
    for topic in re.findall(r"dropped a message of \d+ bytes on (.*?): ", log):
        try:
            found[parse(topic).kind] += 1
        except MessageError:
            found["unknown"] += 1
    return found


def memory_bytes(fleet: Fleet) -> dict[str, int]:
    return {name: psutil.Process(fleet.processes[name].pid).memory_info().rss for name in ("a", "trainer")}


class Hostile:
    """Throws messages at the fleet, and waits until the broker has passed them on and the device has looked at them."""

    def __init__(self, fleet: Fleet, rng: random.Random) -> None:
        self._fleet = fleet
        self._rng = rng
        self._link = fleet.link("hostile", "streamsplit/end")
        self._rounds = 0

    def throw(self, made: list[tuple[str, bytes]]) -> None:
        """One in ten stays retained; not on the device's own status, which a trainer that starts later depends on."""
        for topic, payload in made:
            if self._rng.random() < 0.1 and topic != self._fleet.topics.status("a"):
                self._link.retain(topic, payload)
            else:
                assert self._link.publish(topic, payload, qos=1)
        self._rounds += 1
        sent = self._fleet.seen.activations["a"]
        self._link.publish("streamsplit/end", str(self._rounds).encode(), qos=1)
        self._fleet.until(self._is_passed_on, "the broker takes what is thrown at it")
        self._fleet.until(lambda: self._fleet.seen.activations["a"] > sent, "the device works on")

    def _is_passed_on(self) -> bool:
        while (incoming := self._link.receive(0.0)) is not None:
            if incoming.payload == str(self._rounds).encode():
                return True
        return False


@pytest.mark.slow
def test_whatever_is_thrown_at_them_trainer_and_device_stay_up(tmp_path: Path) -> None:
    rng = random.Random(20_240_229)
    with Fleet(tmp_path, parts_per_step=4) as fleet:
        fleet.seen.hostile = True
        fleet.start_trainer()
        fleet.start_device("a", step_timeout_s=4.0)
        fleet.until(lambda: fleet.answered("a") >= 12, "a while of peace")
        before = memory_bytes(fleet)

        hostile = Hostile(fleet, rng)
        sources = {kind: attacks(fleet, kind, rng) for kind in TYPES}
        for _ in range(ROUNDS // PER_ROUND):
            made = [next(source) for source in sources.values() for _ in range(PER_ROUND)]
            made += [(rng.choice(UNKNOWN), rng.randbytes(20)) for _ in range(PER_ROUND)]
            made += rng.sample(well_formed(fleet), 10)
            rng.shuffle(made)
            hostile.throw(made)
        fleet.settle()
        calm = fleet.answered("a")
        fleet.until(lambda: fleet.answered("a") >= calm + 6, "the device is answered as before")
        growth = {name: now - before[name] for name, now in memory_bytes(fleet).items()}
        assert max(growth.values()) < GROWTH_BYTES, growth

        fleet.start_device("b", windows=16)
        assert fleet.exit_status("b") == 0
        assert fleet.answered("b") >= 1
        fleet.ask_to_stop("a")
        assert fleet.exit_status("a") == 0
        manifest = fleet.retained_weights()
        assert not any(device.startswith("ghost") for one in fleet.seen.manifests for device in one.merged)
        assert manifest.run == fleet.seen.trainer[-1].run
        fleet.ask_to_stop("trainer")
        assert fleet.exit_status("trainer") == 0

        # Whole weights are asked for by a newcomer only: b is one, and finds what was left retained.
        refused = {"trainer": dropped(fleet.log("trainer")), "a": dropped(fleet.log("a")) + dropped(fleet.log("b"))}
        print(growth, refused)
        for one in TYPES.keys() - FOR_WATCHERS:
            assert refused["trainer" if one in TO_TRAINER else "a"][one] > 0, f"{one}: nothing was dropped in words"
        assert "unknown" in refused["trainer"]
        assert "unknown" in refused["a"]
        for name in ("trainer", "a", "b"):
            assert "Traceback" not in fleet.log(name)
