"""A YAML file as plain values, with the line of every key and all that is wrong with it at once.

Stricter than YAML: one document, a mapping at the top, keys once, no tags, no merge keys, no octal, hexadecimal or
sexagesimal numbers (``010`` is 8 and ``12:30`` is 750 in YAML 1.1), bounded size, depth and number of values (an alias
counts each time it is used, so that a few lines cannot grow into gigabytes). ``1e-3`` stays text here, because YAML 1.1
says so: it arrives as `PlainText`, and a field that wants a number may read it as one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 256 * 1024
MAX_DEPTH = 16
MAX_VALUES = 10_000
MAX_DIGITS = 18

Location = tuple[str | int, ...]
_TAG = "tag:yaml.org,2002:"
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)")
_FLOAT = re.compile(r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|nan)", re.IGNORECASE)
_TEXT_TAGS = {_TAG + "str", _TAG + "timestamp", _TAG + "value"}  # dates and "=" are text to us


class PlainText(str):
    """Text written without quotes: ``1e-3`` may be meant as a number, ``"1e-3"`` may not."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where, which dotted key, and what is allowed."""

    file: Path
    line: int | None
    key: str
    message: str

    def __str__(self) -> str:
        line = "" if self.line is None else f":{self.line}"
        key = f" {self.key}:" if self.key else ""
        return f"{self.file}{line}:{key} {self.message}"


@dataclass(slots=True)
class Document:
    """What `read_document` found; ``values`` is None where the file could not be read at all."""

    file: Path
    values: dict[str, Any] | None = None
    lines: dict[Location, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    refused: set[Location] = field(default_factory=set)  # already reported: nothing more is said about these

    def line(self, location: Location) -> int:
        """The line of this key, or of the nearest section around it."""
        for length in range(len(location), -1, -1):
            if location[:length] in self.lines:
                return self.lines[location[:length]]
        return 1

    def problem(self, location: Location, message: str, line: int | None = None) -> Problem:
        """A problem with this key, at its own line unless another is given."""
        return Problem(self.file, line or self.line(location), dotted(location), message)

    def refuse(self, location: Location, message: str, line: int | None = None) -> None:
        """Note a problem; nothing more will be said about this key."""
        self.refused.add(location)
        self.problems.append(self.problem(location, message, line))


def dotted(location: Location) -> str:
    """``("pins", "pi-1")`` as ``pins.pi-1``, ``("allowed_cuts", 2)`` as ``allowed_cuts[2]``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".")


def read_document(path: Path) -> Document:
    """Read one YAML file; never raises for what the file holds, whatever that is."""
    document = Document(path)
    text = _read_text(document)
    if text is None:
        return document
    try:
        _check_depth(text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        _refuse_syntax(document, text, error)
        return document
    except (ValueError, OverflowError):  # PyYAML lets these out: an escape beyond Unicode, a version of 5,000 digits
        message = "not valid YAML: an escaped character or a `%YAML` version that does not exist"
        document.problems.append(Problem(path, None, "", message))
        return document
    except _TooDeepError as error:
        document.refuse((), f"nested too deeply; allowed: at most {MAX_DEPTH} levels", error.line)
        return document
    if not isinstance(root, yaml.MappingNode):
        found = "the file is empty" if root is None else "the file is no mapping"
        document.refuse((), f"{found}; allowed: lines of the form `key: value`")
        return document
    document.lines[()] = root.start_mark.line + 1
    try:
        document.values = _Walk(document).mapping(root, ())
    except _TooManyError:
        document.refuse((), f"too many values (aliases count each time); allowed: at most {MAX_VALUES}")
    return document


class _TooDeepError(Exception):
    def __init__(self, line: int) -> None:
        super().__init__(line)
        self.line = line


class _TooManyError(Exception):
    pass


def _read_text(document: Document) -> str | None:
    try:
        with document.file.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        document.problems.append(Problem(document.file, None, "", f"cannot be read: {error.strerror or error}"))
        return None
    if len(raw) > MAX_BYTES:
        document.problems.append(
            Problem(document.file, None, "", f"too large; allowed: at most {MAX_BYTES // 1024} KiB")
        )
        return None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        document.refuse((), "not UTF-8 text", raw[: error.start].count(b"\n") + 1)
        return None


def _check_depth(text: str) -> None:
    """Before composing, which recurses: a few kilobytes of ``[`` would exhaust the stack."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise _TooDeepError(1 if event.start_mark is None else event.start_mark.line + 1)


def _refuse_syntax(document: Document, text: str, error: yaml.YAMLError) -> None:
    if isinstance(error, yaml.reader.ReaderError):
        line = text[: error.position].count("\n") + 1
        document.refuse((), "a control character; allowed: printable text", line)
        return
    mark = getattr(error, "problem_mark", None)
    line = 1 if mark is None else mark.line + 1
    problem = str(getattr(error, "problem", None) or error)
    if "\\t" in problem:
        document.refuse((), "a tab character; allowed: spaces only, for indentation and after a colon", line)
        return
    if isinstance(error, yaml.composer.ComposerError) and "single document" in str(error):
        problem = "a second document (`---`); allowed: one"
    document.refuse((), "not valid YAML: " + " ".join(problem.split()), line)


class _Walk:
    """From nodes to values. The text's depth is bounded already; aliases can nest deeper, and each use counts."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._values = 0

    def mapping(self, node: yaml.MappingNode, at: Location) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self._document.refuse(at, "a key that is a list or a mapping; allowed: a name", line)
                continue
            key = key_node.value  # the text, even where YAML reads true (`on:`) or a number
            location = (*at, key)
            if key_node.tag == _TAG + "merge":
                self._document.refuse(location, "merge keys are not supported; allowed: write the keys out", line)
            elif key in found:
                first = self._document.lines[location]
                message = f"the key stands twice, first in line {first}; allowed: once"
                self._document.problems.append(self._document.problem(location, message, line))
            else:
                self._document.lines[location] = line
                found[key] = self._value(value_node, location)
        return found

    def _value(self, node: yaml.Node, at: Location) -> Any:
        self._values += 1
        if self._values > MAX_VALUES or len(at) > MAX_DEPTH:
            raise _TooManyError
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self.mapping(node, at)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self._item(item, (*at, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, at)
        self._document.refuse(at, f"the tag {node.tag} is not supported; allowed: no tags")
        return None

    def _item(self, node: yaml.Node, at: Location) -> Any:
        self._document.lines.setdefault(at, node.start_mark.line + 1)
        return self._value(node, at)

    def _scalar(self, node: yaml.ScalarNode, at: Location) -> str | float | bool | None:
        text = node.value
        if node.tag in _TEXT_TAGS:
            return PlainText(text) if node.style is None else str(text)
        if node.tag == _TAG + "null":
            return None
        if node.tag == _TAG + "bool" and text.lower() in yaml.SafeLoader.bool_values:
            return bool(yaml.SafeLoader.bool_values[text.lower()])
        if node.tag == _TAG + "int" and _INTEGER.fullmatch(text) and len(text) <= MAX_DIGITS:
            return int(text)
        if node.tag == _TAG + "float" and (_FLOAT.fullmatch(text) or _NOT_FINITE.fullmatch(text)):
            return float(text.lower().replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
        if node.tag in {_TAG + "int", _TAG + "float"}:
            message = f"{text[:40]} is no plain decimal number; allowed: digits, or quotes around it if it is text"
        else:
            message = f"the tag {node.tag} is not supported; allowed: no tags"
        self._document.refuse(at, message)
        return None
