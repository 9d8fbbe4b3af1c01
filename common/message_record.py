"""A dataclass as a MessagePack map: its rules are read from its annotations once."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, cast

from common.errors import MessageError
from common.limits import Limits
from common.message_fields import Fixed, Many, Maybe, Most, Rule, Table, choice, flag, wrong

KEYS = {
    # The fields of the messages that travel per window get one letter: a part of 1,800 bytes has no room for names.
    "boot": "b", "step": "s", "part": "p", "last": "l", "cut": "c", "weights_version": "w", "deadline_ms": "d",
    "segment": "g", "window_index": "i", "monotonic_ms": "m", "room": "r", "tensor": "x", "result": "o", "reason": "y",
    "loss": "n", "learning_rate": "k", "merge": "e", "uncertainty": "u", "codec": "q", "shape": "h", "scale": "a",
    "data": "z", "caption": "j",
}  # fmt: skip


class Checked(Protocol):
    """A record with a rule about several fields at once; it raises `MessageError` that names the field to blame."""

    def check(self, limits: Limits) -> object:
        """Raise if the fields contradict each other or the limits."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a record: its name, its key on the wire, its rule, and whether it may be absent."""

    name: str
    key: str
    rule: Rule
    optional: bool


@dataclass(frozen=True, slots=True)
class Record:
    """How a dataclass is checked and written."""

    made: type[Any]
    fields: tuple[Field, ...]
    keys: frozenset[str]
    checks: bool  # `made` is `Checked`: asked once, for asking an object costs as much as half of decoding it

    def load(self, raw: object, path: str, limits: Limits) -> Any:
        """See `Rule`."""
        if not isinstance(raw, dict):
            raise wrong(path, "a map", raw)
        unknown = raw.keys() - self.keys
        if unknown:
            raise MessageError(f"{_join(path, repr(min(unknown))[:40])}: unknown field")
        made = self.made(**{field.name: self._load_field(field, raw, path, limits) for field in self.fields})
        self._check(made, path, limits)
        return made

    def dump(self, value: object, path: str) -> dict[str, Any]:
        """See `Rule`."""
        if not isinstance(value, self.made):
            raise wrong(path, f"a {self.made.__name__}", value)
        fields = self.fields
        dumped = {field.key: field.rule.dump(getattr(value, field.name), _join(path, field.name)) for field in fields}
        self._check(value, path, Limits())
        return {key: item for key, item in dumped.items() if item is not None}

    def _load_field(self, field: Field, raw: dict[str, object], path: str, limits: Limits) -> Any:
        if field.key not in raw and not field.optional:
            raise MessageError(f"{_join(path, field.name)}: missing")
        return field.rule.load(raw.get(field.key), _join(path, field.name), limits)

    def _check(self, made: object, path: str, limits: Limits) -> None:
        if self.checks:
            try:
                cast("Checked", made).check(limits)
            except MessageError as error:
                raise MessageError(_join(path, str(error))) from error


def record(made: type[Any]) -> Record:
    """The rules in a dataclass's annotations.

    Raises:
        TypeError: an annotation without a rule (an int needs its range, a text its length).
    """
    hints = typing.get_type_hints(made, include_extras=True)
    names = [field.name for field in dataclasses.fields(made)]
    rules = {name: _rule_of(hints[name], f"{made.__name__}.{name}") for name in names}
    fields = tuple(Field(name, KEYS.get(name, name), rules[name], _may_miss(rules[name])) for name in names)
    return Record(made, fields, frozenset(field.key for field in fields), hasattr(made, "check"))


def _may_miss(rule: Rule) -> bool:
    return isinstance(rule, Maybe)


def _rule_of(hint: Any, path: str, most: int | None = None) -> Rule:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated and isinstance(arguments[1], Most):
        return _rule_of(arguments[0], path, arguments[1].length)
    if origin is Annotated:
        return cast("Rule", arguments[1])
    if hint is bool:
        return flag()
    if origin is Literal:
        return choice(arguments)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return record(hint)
    inner = [_rule_of(argument, path) for argument in arguments if argument not in {types.NoneType, Ellipsis}]
    if origin in {types.UnionType, typing.Union} and len(arguments) == 2 and arguments[1] is types.NoneType:
        return Maybe(inner[0])
    if origin is tuple and arguments[-1] is not Ellipsis:
        return Fixed(tuple(inner))
    if origin is tuple and most is not None:
        return Many(inner[0], most)
    if origin is dict and most is not None:
        return Table(inner[0], inner[1], most)
    raise TypeError(f"{path}: {hint} has no rule")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
