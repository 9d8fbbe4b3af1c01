"""Messages to bytes and back: one MessagePack map with ``v`` the protocol's version, ``t`` the type, then the fields.

Everything received is suspect: the size is checked first, then MessagePack is read with every length bounded, then the
version, the type, and each field by its rule. Only `MessageError` comes out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgpack

from common.codec import EncodedTensor
from common.errors import MessageError
from common.limits import Limits
from common.message_fields import wrong
from common.message_record import Record, record

PROTOCOL_VERSION = 1
LONGEST_LIST = 256
LONGEST_MAP = 1_024
LONGEST_TEXT_BYTES = 1_024

Message = TypeVar("Message")


@dataclass(frozen=True, slots=True)
class Wire:
    """How one message type travels: its name in ``t``, the most bytes it may have, and the rules of its fields."""

    tag: str
    max_bytes: int
    record: Record


MESSAGE_TYPES: dict[type[Any], Wire] = {}
_BY_TAG: dict[str, type[Any]] = {}


def message(tag: str, *, max_bytes: int) -> Callable[[type[Message]], type[Message]]:
    """Make a dataclass a message of the protocol."""

    def register(made: type[Message]) -> type[Message]:
        MESSAGE_TYPES[made] = Wire(tag, max_bytes, record(made))
        _BY_TAG[tag] = made
        made.__str__ = _describe  # type: ignore[method-assign]
        return made

    return register


def max_bytes(made: type[Any]) -> int:
    """The most bytes a message of this type may have."""
    return MESSAGE_TYPES[made].max_bytes


def encode(message: object) -> bytes:
    """The bytes of a message.

    Raises:
        ValueError: a field breaks its rule. This is our own mistake, so it is no `MessageError`.
    """
    wire = MESSAGE_TYPES[type(message)]
    try:
        fields = wire.record.dump(message, "")
    except MessageError as error:
        raise ValueError(f"{type(message).__name__}: {error}") from error
    payload: bytes = msgpack.packb({"v": PROTOCOL_VERSION, "t": wire.tag, **fields})
    if len(payload) > wire.max_bytes:
        raise ValueError(f"{type(message).__name__}: {len(payload)} bytes, allowed are {wire.max_bytes}")
    return payload


def decode(made: type[Message], payload: bytes, *, limits: Limits = Limits()) -> Message:  # noqa: B008  a frozen value
    """The message that ``payload`` must be.

    Raises:
        MessageError: anything off: too large, no MessagePack, another version or type, a field unknown, missing, or
            against its rule, sizes that contradict each other. The text starts with the field's name.
    """
    wire = MESSAGE_TYPES[made]
    raw = _open(payload, min(wire.max_bytes, limits.max_message_bytes), limits)
    if raw["t"] != wire.tag:
        raise MessageError(f"t: a {raw['t']!r} where {wire.tag!r} is expected")
    loaded: Message = wire.record.load({key: raw[key] for key in raw if key not in {"v", "t"}}, "", limits)
    return loaded


def decode_any(payload: bytes, *, limits: Limits = Limits()) -> object:  # noqa: B008
    """The message of whatever type ``payload`` says it is.

    Raises:
        MessageError: as `decode`.
    """
    tag = _open(payload, limits.max_message_bytes, limits)["t"]
    return decode(_BY_TAG[tag], payload, limits=limits)


def _open(payload: bytes, most_bytes: int, limits: Limits) -> dict[str, Any]:
    """The map, with a version and a type that are known; nothing else in it is checked yet."""
    if len(payload) > most_bytes:
        raise MessageError(f"{len(payload)} bytes, allowed are {most_bytes}")
    raw = _unpack(payload, limits)
    if not isinstance(raw, dict):
        raise MessageError(f"not a map, but {type(raw).__name__}")
    version, tag = raw.get("v"), raw.get("t")
    if type(version) is not int or version != PROTOCOL_VERSION:
        raise wrong("v", f"protocol version {PROTOCOL_VERSION}", version)
    if not isinstance(tag, str) or tag not in _BY_TAG:
        raise wrong("t", "a type of message", tag)
    return raw


def _unpack(payload: bytes, limits: Limits) -> object:
    items = 0

    def count(length: int) -> None:
        nonlocal items
        items += 1 + length
        if items > limits.max_items:
            raise MessageError(f"more than {limits.max_items} items")

    def take_list(values: list[object]) -> list[object]:
        count(len(values))
        return values

    def take_map(pairs: list[tuple[object, object]]) -> dict[str, object]:
        count(len(pairs))
        made = {key: value for key, value in pairs if isinstance(key, str)}
        if len(made) != len(pairs):
            raise MessageError("a map with a key twice, or with one that is no text")
        return made

    try:
        return msgpack.unpackb(
            payload,
            strict_map_key=True,
            list_hook=take_list,
            object_pairs_hook=take_map,
            max_str_len=min(LONGEST_TEXT_BYTES, len(payload)),
            max_bin_len=len(payload),
            max_array_len=min(LONGEST_LIST, len(payload)),
            max_map_len=min(LONGEST_MAP, len(payload) // 2),
            max_ext_len=0,
        )
    except (ValueError, TypeError, OverflowError, msgpack.exceptions.UnpackException) as error:
        raise MessageError(f"no MessagePack: {error or type(error).__name__}") from error


def _describe(message: Any) -> str:
    fields = ((field.name, getattr(message, field.name)) for field in dataclasses.fields(message))
    return f"{type(message).__name__}({', '.join(f'{name}={_short(value)}' for name, value in fields)})"


def _short(value: object) -> str:
    """A value for the log: bytes and long texts elided, nothing unprintable."""
    match value:
        case bytes():
            return f"<{len(value)} B>"
        case str():
            return repr(value if len(value) <= 40 else f"{value[:12]}…")
        case EncodedTensor():
            return str(value)
        case float():
            return f"{value:.4g}"
        case tuple() | list():
            return f"({', '.join(map(_short, value[:8]))}{', …' if len(value) > 8 else ''})"
        case dict():
            return f"{{{', '.join(map(_short, list(value)[:8]))}{', …' if len(value) > 8 else ''}}}"
    return repr(value)[:40]
