"""The topics of the protocol: the only place where a topic string is built or taken apart.

streamsplit/v1/<fleet>/<device>/<kind>[/<chunk>]     kind: up/… and down/…
streamsplit/v1/<fleet>/_weights/<name>/<chunk>
streamsplit/v1/<fleet>/_weights/<name>/delta/<chunk>
streamsplit/v1/<fleet>/_weights/manifest
streamsplit/v1/<fleet>/_trainer/status
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from common.errors import MessageError

PROTOCOL = "v1"
ROOT = f"streamsplit/{PROTOCOL}"
MAX_CHUNKS = 65_536
MAX_TOPIC_CHARACTERS = 256
IDENTITY = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
WEIGHTS_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
CHUNK_NUMBER = re.compile(r"0|[1-9][0-9]{0,4}")


class Kind(StrEnum):
    """What a topic carries; the value is its part after the device (or after the fleet where no device is named)."""

    STATUS = "up/status"
    ACTIVATIONS = "up/activations"
    AUDIO = "up/audio"
    TELEMETRY = "up/telemetry"
    UPDATE = "up/update"
    MIXTURE = "up/mixture"
    EMBEDDING = "down/embedding"
    GRADIENT = "down/gradient"
    SPLITTER = "down/splitter"
    POLICY = "down/policy"
    CONFIG = "down/config"
    WEIGHTS = "_weights"
    DELTA = "_weights/delta"
    MANIFEST = "_weights/manifest"
    TRAINER_STATUS = "_trainer/status"


DATA_KINDS = frozenset({Kind.ACTIVATIONS, Kind.AUDIO, Kind.TELEMETRY, Kind.EMBEDDING, Kind.GRADIENT})
FLEET_KINDS = frozenset({Kind.WEIGHTS, Kind.DELTA, Kind.MANIFEST, Kind.TRAINER_STATUS})
DEVICE_KINDS = frozenset(Kind) - FLEET_KINDS


@dataclass(frozen=True, slots=True)
class Address:
    """A topic taken apart; ``device`` is None on the fleet's own topics, ``name`` is the block of a weights topic."""

    kind: Kind
    device: str | None = None
    name: str | None = None
    chunk: int | None = None


def check_device_id(text: str) -> str:
    """The id itself if it can stand in a topic, a file name and a certificate.

    Raises:
        ValueError: anything but lower-case letters, digits and hyphens, 1 to 63 of them, the first no hyphen.
    """
    if IDENTITY.fullmatch(text) is None:
        raise ValueError(
            f"{text!r} is no id: lower-case letters, digits and hyphens, at most 63, starting with no hyphen"
        )
    return text


@dataclass(frozen=True, slots=True)
class Topics:
    """Every topic of one fleet.

    Raises:
        ValueError: a fleet or device id that does not fit ``check_device_id``, a bad weights name, a bad chunk number.
    """

    fleet: str

    def __post_init__(self) -> None:
        check_device_id(self.fleet)

    def client_id(self, name: str) -> str:
        """How a device, or ``_trainer``, is called at the broker, which throws out the first of two of one name.

        The slash stands in no name: no two members of any fleets are called alike.
        """
        return f"{self.fleet}/{name}"

    def status(self, device: str) -> str:
        """Retained and the last will: a device's state."""
        return self._of_device(device, Kind.STATUS)

    def activations(self, device: str) -> str:
        """One message per part."""
        return self._of_device(device, Kind.ACTIVATIONS)

    def audio(self, device: str) -> str:
        """One message per window, as sound: for the server-only baseline and nothing else."""
        return self._of_device(device, Kind.AUDIO)

    def telemetry(self, device: str) -> str:
        """One message every few steps."""
        return self._of_device(device, Kind.TELEMETRY)

    def update(self, device: str, chunk: int) -> str:
        """One chunk of the change of a device's blocks."""
        return f"{self._of_device(device, Kind.UPDATE)}/{_chunk(chunk)}"

    def mixture(self, device: str) -> str:
        """What a device heard by itself, in the terms of its mixture memory."""
        return self._of_device(device, Kind.MIXTURE)

    def embedding(self, device: str) -> str:
        """One message per part whose cut is below the last."""
        return self._of_device(device, Kind.EMBEDDING)

    def gradient(self, device: str) -> str:
        """The answer to a part."""
        return self._of_device(device, Kind.GRADIENT)

    def splitter(self, device: str) -> str:
        """Retained: the cuts a device may use, or the one it must."""
        return self._of_device(device, Kind.SPLITTER)

    def policy(self, device: str) -> str:
        """Retained: the policy by which a device chooses its cut."""
        return self._of_device(device, Kind.POLICY)

    def config(self, device: str) -> str:
        """Retained: desired settings."""
        return self._of_device(device, Kind.CONFIG)

    def weights(self, name: str, chunk: int) -> str:
        """Retained: one chunk of the weights of one block."""
        return f"{self._weights(name)}/{_chunk(chunk)}"

    def weights_filter(self, name: str) -> str:
        """Every chunk of one block."""
        return f"{self._weights(name)}/+"

    def delta(self, name: str, chunk: int) -> str:
        """One chunk of what leads one block from a version to the next; not retained."""
        return f"{self._weights(name)}/delta/{_chunk(chunk)}"

    def delta_filter(self, name: str) -> str:
        """Every chunk of the deltas of one block."""
        return f"{self._weights(name)}/delta/+"

    def manifest(self) -> str:
        """Retained, published last: which weights belong together."""
        return f"{ROOT}/{self.fleet}/{Kind.MANIFEST}"

    def trainer_status(self) -> str:
        """Retained and the last will: the trainer's state."""
        return f"{ROOT}/{self.fleet}/{Kind.TRAINER_STATUS}"

    def every_device(self, kind: str) -> str:
        """The filter for one kind of topic of all devices.

        Raises:
            ValueError: not a kind that belongs to a device.
        """
        if kind not in DEVICE_KINDS:
            raise ValueError(f"{kind!r} is no topic of a device; known are {', '.join(sorted(DEVICE_KINDS))}")
        return f"{ROOT}/{self.fleet}/+/{kind}" + ("/+" if kind == Kind.UPDATE else "")

    def down(self, device: str) -> str:
        """The filter for everything sent to one device."""
        return f"{ROOT}/{self.fleet}/{check_device_id(device)}/down/#"

    def parse(self, topic: str) -> Address:
        """Take a topic of this fleet apart.

        Raises:
            MessageError: no topic of the protocol, or one of another fleet.
        """
        address = parse(topic)
        if topic.split("/")[2] != self.fleet:
            raise MessageError(f"topic {topic!r} is not of the fleet {self.fleet!r}")
        return address

    def _of_device(self, device: str, kind: Kind) -> str:
        return f"{ROOT}/{self.fleet}/{check_device_id(device)}/{kind}"

    def _weights(self, name: str) -> str:
        if WEIGHTS_NAME.fullmatch(name) is None or name == "manifest":
            raise ValueError(f"{name!r} is no name for weights")
        return f"{ROOT}/{self.fleet}/{Kind.WEIGHTS}/{name}"


def parse(topic: str) -> Address:
    """Take a topic of any fleet apart.

    Raises:
        MessageError: no topic of the protocol.
    """
    levels = topic.split("/") if len(topic) <= MAX_TOPIC_CHARACTERS else []
    if len(levels) < 5 or "/".join(levels[:2]) != ROOT or IDENTITY.fullmatch(levels[2]) is None:
        raise MessageError(f"no topic of the protocol: {topic[:MAX_TOPIC_CHARACTERS]!r}")
    address = _parse_fleet(levels[3:]) if levels[3].startswith("_") else _parse_device(levels[3], levels[4:])
    if address is None:
        raise MessageError(f"no topic of the protocol: {topic!r}")
    return address


def is_data(topic: str) -> bool:
    """Whether a message may be dropped when newer ones wait (a bounded queue); if not, the latest per topic is kept."""
    levels = topic.split("/")
    return len(levels) == 6 and "/".join(levels[4:]) in DATA_KINDS


def _parse_fleet(levels: list[str]) -> Address | None:
    match levels:
        case ["_trainer", "status"]:
            return Address(Kind.TRAINER_STATUS)
        case ["_weights", "manifest"]:
            return Address(Kind.MANIFEST)
        case ["_weights", name, chunk] if name != "manifest" and WEIGHTS_NAME.fullmatch(name) and _is_chunk(chunk):
            return Address(Kind.WEIGHTS, name=name, chunk=int(chunk))
        case ["_weights", name, "delta", chunk] if (
            name != "manifest" and WEIGHTS_NAME.fullmatch(name) and _is_chunk(chunk)
        ):
            return Address(Kind.DELTA, name=name, chunk=int(chunk))
    return None


def _parse_device(device: str, levels: list[str]) -> Address | None:
    kind = "/".join(levels[:2])
    if IDENTITY.fullmatch(device) is None or kind not in DEVICE_KINDS:
        return None
    match levels[2:]:
        case [] if kind != Kind.UPDATE:
            return Address(Kind(kind), device=device)
        case [chunk] if kind == Kind.UPDATE and _is_chunk(chunk):
            return Address(Kind.UPDATE, device=device, chunk=int(chunk))
    return None


def _is_chunk(text: str) -> bool:
    return CHUNK_NUMBER.fullmatch(text) is not None and int(text) < MAX_CHUNKS


def _chunk(number: int) -> str:
    if not 0 <= number < MAX_CHUNKS:
        raise ValueError(f"chunk {number} is not in 0..{MAX_CHUNKS - 1}")
    return str(number)
