"""Hostile bytes: whatever arrives, only `MessageError` comes out, and little memory goes in.

Per message type: 1,000 messages with spoilt bytes, 1,000 with spoilt structure, and what hypothesis thinks of.
"""

from __future__ import annotations

import math
import random
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.codec import EncodedTensor
from common.codec import decode as decode_tensor
from common.errors import MessageError
from common.messages import MESSAGE_TYPES, Activations, Manifest, decode, decode_any, encode
from common.state_blob import unpack_state
from tests.common.cases import cases

CASES = cases()
TYPES = pytest.mark.parametrize("made", list(CASES), ids=lambda made: made.__name__)
ROUNDS = 1_000
MIB = 2**20
SEVERAL_SIZES = [0, 1, 2, 3, 7, 8, 15, 16, 31, 32, 255, 256, 65_535, 65_536]
NASTY: list[Any] = [
    None, True, False, 0, -1, 1, 65, 256, 2**31, 2**53, 2**53 + 1, 2**63, 2**64 - 1, -(2**63),
    0.0, -0.0, 0.5, 1.5, math.nan, math.inf, -math.inf, 1e308, 5e-324,
    "", "a", "\0", "a\nb", "ok", "int4", "int4-zlib", "fp32", "x" * 70, "\U0001f600" * 20,
    b"", b"\0", bytes(8), bytes(16), bytes(32), bytes(5_000),
    [], [0], [[]], [1, 2, 3], [2, 96, 4, 6], [2**22, 2**22], [0] * 200, {}, {"a": 1}, {"v": {"v": {}}},
    msgpack.Timestamp(0, 1), msgpack.ExtType(1, b""), msgpack.ExtType(127, b"x" * 20),
]  # fmt: skip


def accept_or_refuse(made: type[object], payload: bytes) -> bool:
    """Whether the message was accepted; any exception but `MessageError` is the test's failure."""
    try:
        message: Any = decode(made, payload)
    except MessageError:
        return False
    assert len(str(message)) < 5_000
    assert decode(made, encode(message)) == message
    tensor = getattr(message, "tensor", None)
    if isinstance(tensor, EncodedTensor):
        try:
            decode_tensor(tensor)
        except MessageError:
            return False
    return True


def spoil_bytes(payload: bytes, rng: random.Random) -> bytes:
    spoilt = bytearray(payload)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at = rng.randrange(len(spoilt) + 1)
        match rng.randrange(6):
            case 0 if at < len(spoilt):
                spoilt[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(spoilt):
                spoilt[at] = rng.randrange(256)
            case 2:
                del spoilt[at : at + rng.choice([1, 2, 8, 64])]
            case 3:
                spoilt[at:at] = rng.randbytes(rng.choice([1, 2, 8, 64]))
            case 4:
                spoilt[at:at] = rng.choice(
                    [b"\xdd\xff\xff\xff\xff", b"\xdf\x7f\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 600]
                )
            case _:
                spoilt = spoilt[:at] + spoilt[at // 2 :]
    return bytes(spoilt)


def spoil_structure(content: Any, rng: random.Random) -> Any:
    """The same tree with one node, anywhere, replaced, dropped, doubled or wrapped."""
    if isinstance(content, dict) and content and rng.random() < 0.9:
        key = rng.choice(list(content))
        match rng.randrange(8):
            case 0:
                return {other: value for other, value in content.items() if other != key}
            case 1:
                return {**content, rng.choice(["zz", "a", "x", "b", "seq", "é", ""]): rng.choice(NASTY)}
            case _:
                return {**content, key: spoil_structure(content[key], rng)}
    if isinstance(content, list) and content and rng.random() < 0.7:
        at = rng.randrange(len(content))
        return [*content[:at], spoil_structure(content[at], rng), *content[at + rng.choice([0, 1]) :]]
    if isinstance(content, bytes) and rng.random() < 0.6:
        return rng.choice(
            [content[:-1], content + b"\0", rng.randbytes(len(content)), bytes(rng.choice(SEVERAL_SIZES))]
        )
    if isinstance(content, int) and rng.random() < 0.5:
        return content + rng.choice([-1, 1, 2**16, 2**32])
    return rng.choice(NASTY)


@TYPES
@pytest.mark.parametrize("spoil", ["bytes", "structure"])
def test_a_spoilt_message_is_refused_or_means_something(made: type[object], spoil: str) -> None:
    rng = random.Random(f"{made.__name__} {spoil}")
    payload = encode(CASES[made])
    content = msgpack.unpackb(payload)
    attempts: Callable[[], bytes] = (
        (lambda: spoil_bytes(payload, rng))
        if spoil == "bytes"
        else (lambda: msgpack.packb(spoil_structure(content, rng)))
    )
    accepted = sum(accept_or_refuse(made, attempts()) for _ in range(ROUNDS))
    assert accepted < ROUNDS * 0.8, "the spoiling spoils too little to test anything"


TREES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@TYPES
@given(st.data())
@settings(max_examples=100)
def test_a_generated_message_is_refused_or_means_something(made: type[object], data: st.DataObject) -> None:
    content = msgpack.unpackb(encode(CASES[made]))
    keys = st.sampled_from([key for key in content if key not in {"v", "t"}])
    changed = data.draw(st.dictionaries(keys, TREES, min_size=1, max_size=3))
    accept_or_refuse(made, msgpack.packb({**content, **changed}))


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_arbitrary_bytes_are_refused(payload: bytes) -> None:
    with pytest.raises(MessageError):
        decode_any(payload)
    with pytest.raises(MessageError):
        unpack_state(payload, {"a": torch.Size([2])})


def hostile(whole: int) -> dict[str, bytes]:
    """Messages as large as a type may be, made so that a careless reader builds far more than their bytes."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = stream.compress(bytes(50 * MIB)) + stream.flush()
    content = msgpack.unpackb(encode(CASES[Activations]))
    return {
        "many empty lists": b"\xdd" + (whole - 5).to_bytes(4, "big") + b"\x90" * (whole - 5),
        "lists of empty lists": (b"\xdc\x01\x00" + b"\x90" * 256) * (whole // 259),
        "a map of empty maps": b"\xdf"
        + (1_000).to_bytes(4, "big")
        + b"".join(b"\xa2%02x\x80" % (i % 256) for i in range(1_000)),
        "lists in lists": b"\x91" * whole,
        "long lists in long lists": b"\xdc\x01\x00" * (whole // 3),
        "long maps in long maps": b"\xde\x03\xff\xa1a" * (whole // 5),
        "a length without content": b"\xdd\xff\xff\xff\xff",
        "a text of emoji": b"\xdb" + (whole - 8).to_bytes(4, "big") + "\U0001f600".encode() * (whole // 4 - 2),
        "a bomb": msgpack.packb(
            {**content, "x": {"q": "int4-zlib", "h": [1, 2 * len(bomb)], "a": bytes(8), "z": bomb}}
        ),
        "a shape without data": msgpack.packb({**content, "x": {"q": "fp32", "h": [2**20, 4], "a": b"", "z": b""}}),
    }


@pytest.mark.parametrize("name", list(hostile(1_000)))
@pytest.mark.parametrize("made", [Activations, Manifest])
def test_a_hostile_message_costs_little_memory(made: type[object], name: str) -> None:
    payload = hostile(MESSAGE_TYPES[made].max_bytes)[name]
    tracemalloc.start()
    try:
        assert not accept_or_refuse(made, payload)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 * MIB
