"""The configuration reference: every key with type, default and meaning, read off the models themselves."""

from __future__ import annotations

import json
import types
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from common.config_types import Means, PointsTo

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic.fields import FieldInfo

REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class KeyRow:
    """One key: dotted, e.g. ``broker.url``; ``default`` as it would stand in YAML, or `REQUIRED`."""

    key: str
    type: str
    default: str
    description: str


def reference(model: type[BaseModel]) -> list[KeyRow]:
    """Every key of one kind of file, sections taken apart, in the order of the models."""
    return list(_rows(model, ""))


def markdown(rows: Sequence[KeyRow]) -> str:
    """The rows as a table for the README."""
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for row in rows:
        cells = (
            f"`{row.key}`",
            row.type,
            row.default if row.default == REQUIRED else f"`{row.default}`",
            row.description,
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def describe_type(field: FieldInfo) -> str:
    """What may stand there, in words: ``integer from 1 to 64``, ``one of a, b``, ``path, or null``."""
    annotation, optional = _without_null(field.annotation)
    said = [note.text for note in _notes(field) if isinstance(note, Means | PointsTo)]
    text = said[0] if said else _describe(annotation, field)
    return f"{text}, or null" if optional and "null" not in text else text


def section(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a section written out in the same file; None for a plain value and for another file's name."""
    annotation, _ = _without_null(field.annotation)
    if any(isinstance(note, PointsTo) for note in field.metadata):
        return None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _rows(model: type[BaseModel], prefix: str) -> Iterator[KeyRow]:
    for name, field in model.model_fields.items():
        inner = section(field)
        if inner is None:
            yield KeyRow(prefix + name, describe_type(field), _default(field), field.description or "")
        else:
            yield from _rows(inner, f"{prefix}{name}.")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return REQUIRED
    value = field.get_default(call_default_factory=True, validated_data={})
    return REQUIRED if value is PydanticUndefined else json.dumps(value, default=str).strip('"') or '""'


def _without_null(annotation: Any) -> tuple[Any, bool]:
    if get_origin(annotation) in {Union, types.UnionType}:
        inner = [argument for argument in get_args(annotation) if argument is not type(None)]
        return inner[0], len(inner) < len(get_args(annotation))
    return annotation, False


def _notes(field: FieldInfo) -> list[Any]:
    """The notes on the field, then those on the type inside ``X | None``."""
    annotation, _ = _without_null(field.annotation)
    return [*field.metadata, *getattr(annotation, "__metadata__", ())]


def _describe(annotation: Any, field: FieldInfo) -> str:
    annotation = getattr(annotation, "__origin__", annotation) if hasattr(annotation, "__metadata__") else annotation
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(str, get_args(annotation)))
    if annotation is bool:
        return "true or false"
    names = {int: "integer", float: "number", str: "text", Path: "path"}
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "a section of its own"
    return names[annotation] + _bounds(field)


def _bounds(field: FieldInfo) -> str:
    low = high = ""
    for note in field.metadata:
        if isinstance(note, annotated_types.Ge):
            low = f" from {note.ge}"
        elif isinstance(note, annotated_types.Gt):
            low = f" above {note.gt}"
        elif isinstance(note, annotated_types.Le):
            high = f" to {note.le}"
        elif isinstance(note, annotated_types.Lt):
            high = f" to below {note.lt}"
        elif isinstance(note, annotated_types.MaxLen):
            high = f" of at most {note.max_length} characters"
        elif isinstance(note, annotated_types.MinLen):
            low = " that is not empty"
    return low + high
