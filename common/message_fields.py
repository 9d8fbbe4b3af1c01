"""What one field of a message may be: a small set of rules, each checking one kind of value in both directions.

A message is a frozen dataclass whose annotations carry the rules: ``Annotated[int, whole(0, 64)]``. ``load`` turns what
MessagePack made of received bytes into the field's value, ``dump`` a field's value into what MessagePack writes. Both
raise `MessageError` that names the field.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Any, Protocol

from common.errors import MessageError
from common.limits import Limits


class Rule(Protocol):
    """How one value is checked and written."""

    def load(self, raw: object, path: str, limits: Limits) -> Any:
        """The value a received ``raw`` stands for."""

    def dump(self, value: object, path: str) -> Any:
        """What is written for ``value``."""


@dataclass(frozen=True, slots=True)
class Most:
    """The largest length of a tuple or dict; stands beside its type in the annotation and is no rule by itself."""

    length: int


@dataclass(frozen=True, slots=True)
class Plain:
    """A value that travels as it is: what it must be in words, and as a test."""

    wanted: str
    accepts: Callable[[Any], bool]
    made: Callable[[Any], Any] | None = None

    def load(self, raw: object, path: str, limits: Limits) -> Any:  # noqa: ARG002  the rule's signature
        """See `Rule`."""
        return self.dump(raw, path)

    def dump(self, value: object, path: str) -> Any:
        """See `Rule`."""
        if not self.accepts(value):
            raise wrong(path, self.wanted, value)
        return self.made(value) if self.made else value


def whole(low: int, high: int) -> Plain:
    """An integer in ``low..high``; a bool is none."""
    return Plain(f"an integer in {low}..{high}", lambda value: _is_int(value) and low <= value <= high)


def number(low: float, high: float) -> Plain:
    """A finite float in ``low..high``; an integer is taken as one, a bool is not."""
    wanted = f"a finite number in {low:g}..{high:g}"
    return Plain(wanted, lambda value: (isinstance(value, float) or _is_int(value)) and low <= value <= high, float)


def text(most: int, pattern: str = "") -> Plain:
    """Printable text of at most ``most`` characters, all of it matching ``pattern`` if there is one."""
    fits = re.compile(pattern or ".*").fullmatch
    wanted = f"printable text of at most {most} characters" + (f" that matches {pattern}" if pattern else "")
    return Plain(
        wanted,
        lambda value: isinstance(value, str) and len(value) <= most and value.isprintable() and bool(fits(value)),
    )


def blob(most: int) -> Plain:
    """At most ``most`` bytes."""
    return Plain(f"at most {most} bytes", lambda value: isinstance(value, bytes) and len(value) <= most)


def flag() -> Plain:
    """True or false."""
    return Plain("true or false", lambda value: isinstance(value, bool))


def choice(options: tuple[str, ...]) -> Plain:
    """One of a few words."""
    return Plain(f"one of {', '.join(options)}", lambda value: isinstance(value, str) and value in options)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class Hexadecimal:
    """Lower-case hexadecimal digits of exactly ``size_bytes`` bytes; they travel as those bytes."""

    size_bytes: int

    def load(self, raw: object, path: str, limits: Limits) -> str:  # noqa: ARG002
        """See `Rule`."""
        if not isinstance(raw, bytes) or len(raw) != self.size_bytes:
            raise wrong(path, f"{self.size_bytes} bytes", raw)
        return raw.hex()

    def dump(self, value: object, path: str) -> bytes:
        """See `Rule`."""
        if not isinstance(value, str) or re.fullmatch(f"[0-9a-f]{{{2 * self.size_bytes}}}", value) is None:
            raise wrong(path, f"{2 * self.size_bytes} hexadecimal digits", value)
        return bytes.fromhex(value)


@dataclass(frozen=True, slots=True)
class Many:
    """A tuple of any length up to ``most``, every item by the same rule."""

    item: Rule
    most: int

    def load(self, raw: object, path: str, limits: Limits) -> tuple[Any, ...]:
        """See `Rule`."""
        if not isinstance(raw, list) or len(raw) > self.most:
            raise wrong(path, f"a list of at most {self.most}", raw)
        return tuple(self.item.load(item, f"{path}[{i}]", limits) for i, item in enumerate(raw))

    def dump(self, value: object, path: str) -> list[Any]:
        """See `Rule`."""
        if not isinstance(value, tuple) or len(value) > self.most:
            raise wrong(path, f"a tuple of at most {self.most}", value)
        return [self.item.dump(item, f"{path}[{i}]") for i, item in enumerate(value)]


@dataclass(frozen=True, slots=True)
class Fixed:
    """A tuple of a fixed length, each place by its own rule."""

    items: tuple[Rule, ...]

    def load(self, raw: object, path: str, limits: Limits) -> tuple[Any, ...]:
        """See `Rule`."""
        if not isinstance(raw, list) or len(raw) != len(self.items):
            raise wrong(path, f"a list of {len(self.items)}", raw)
        return tuple(rule.load(item, f"{path}[{i}]", limits) for i, (rule, item) in enumerate(zip(self.items, raw)))

    def dump(self, value: object, path: str) -> list[Any]:
        """See `Rule`."""
        if not isinstance(value, tuple) or len(value) != len(self.items):
            raise wrong(path, f"a tuple of {len(self.items)}", value)
        return [rule.dump(item, f"{path}[{i}]") for i, (rule, item) in enumerate(zip(self.items, value))]


@dataclass(frozen=True, slots=True)
class Table:
    """A dict of at most ``most`` entries."""

    key: Rule
    value: Rule
    most: int

    def load(self, raw: object, path: str, limits: Limits) -> dict[Any, Any]:
        """See `Rule`."""
        entries = self._entries(raw, path)
        keys = {key: self.key.load(key, f"{path}, a key", limits) for key in entries}
        return {keys[key]: self.value.load(value, f"{path}.{key}", limits) for key, value in entries.items()}

    def dump(self, value: object, path: str) -> dict[Any, Any]:
        """See `Rule`."""
        entries = self._entries(value, path)
        keys = {key: self.key.dump(key, f"{path}, a key") for key in entries}
        return {keys[key]: self.value.dump(item, f"{path}.{key}") for key, item in entries.items()}

    def _entries(self, value: object, path: str) -> dict[Any, Any]:
        if not isinstance(value, dict) or len(value) > self.most:
            raise wrong(path, f"a map of at most {self.most} entries", value)
        return value


@dataclass(frozen=True, slots=True)
class Maybe:
    """A value or None; in a record None is left out."""

    rule: Rule

    def load(self, raw: object, path: str, limits: Limits) -> Any:
        """See `Rule`."""
        return None if raw is None else self.rule.load(raw, path, limits)

    def dump(self, value: object, path: str) -> Any:
        """See `Rule`."""
        return None if value is None else self.rule.dump(value, path)


def wrong(path: str, wanted: str, value: object) -> MessageError:
    """The error for a value that is not what its field wants; quotes little of what was received."""
    if isinstance(value, str):
        shown = repr(value[:40])
    else:
        shown = f"{type(value).__name__} of {len(value)}" if isinstance(value, Sized) else repr(value)[:40]
    return MessageError(f"{path}: not {wanted}, but {shown}")
