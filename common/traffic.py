"""What a topic's messages are counted as, and what one weighs on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from common.errors import MessageError
from common.topics import Kind, parse

TRAFFIC: dict[Kind, str] = {
    Kind.ACTIVATIONS: "activations",
    Kind.AUDIO: "audio",
    Kind.GRADIENT: "gradients",
    Kind.EMBEDDING: "embeddings",
    Kind.WEIGHTS: "weights",
    Kind.DELTA: "weights",
    Kind.MANIFEST: "weights",
    Kind.UPDATE: "changes",
    Kind.MIXTURE: "changes",
    Kind.TELEMETRY: "telemetry",
}
REST = "rest"  # statuses, settings, acknowledgements, subscriptions, keep-alive
KINDS = (*dict.fromkeys(TRAFFIC.values()), REST)
EXPIRY_BYTES = 5  # the one property of MQTT 5 that we set


@lru_cache(maxsize=4096)
def kind_of(topic: str) -> str:
    """What messages of this topic are counted as."""
    try:
        return TRAFFIC.get(parse(topic).kind, REST)
    except MessageError:
        return REST


def packet_bytes(topic: str, payload: bytes, *, qos: int, expires: bool = False, version_5: bool = True) -> int:
    """The size of a PUBLISH packet (MQTT 5 and 3.1.1, section 3.3)."""
    properties = (1 + (EXPIRY_BYTES if expires else 0)) if version_5 else 0
    rest = 2 + len(topic.encode()) + (2 if qos else 0) + properties + len(payload)
    length = 1
    while rest >= 128**length:
        length += 1
    return 1 + length + rest


def with_rest(counted: Mapping[str, int], total: int) -> dict[str, int]:
    """Every kind, what was not counted as one being the rest of all bytes at the socket."""
    named = {kind: counted.get(kind, 0) for kind in KINDS if kind != REST}
    return {**named, REST: max(0, total - sum(named.values()))}
