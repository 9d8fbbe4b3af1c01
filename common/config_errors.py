"""What pydantic found, in an operator's words: the key, what is wrong with it, and what is allowed."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from common.config_reference import describe_type, reference, section

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

    from common.yaml_tree import Location

SHOWN_CHARACTERS = 60


def explain(model: type[BaseModel], details: Any) -> tuple[Location, str]:
    """Key and message for one entry of ``ValidationError.errors()``."""
    kind, value = details["type"], details["input"]
    location: Location = tuple(part for part in details["loc"] if part != "[key]")
    inside, field = _field_at(model, location)
    if kind == "setting":
        extra = details["ctx"]["key"]
        return (*location, extra) if extra else location, details["msg"]
    if kind == "extra_forbidden":
        return location, _unknown(model, inside, str(location[-1]))
    allowed = "a value" if field is None else describe_type(field)
    if kind == "missing":
        return location, f"is missing; allowed: {allowed}"
    if kind == "value_error":
        return location, f"{details['ctx']['error']}"
    if value is None:
        return location, f"is empty (null); allowed: {allowed}"
    return location, f"{_show(value)} does not fit{_hint(kind, value, _choices(field))}; allowed: {allowed}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``, did you mean "x"?`` or nothing."""
    close = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1)
    close = close or difflib.get_close_matches(name.lower(), known, n=1)
    return f' (did you mean "{close[0]}"?)' if close else ""


def _unknown(model: type[BaseModel], inside: type[BaseModel], name: str) -> str:
    suggestion = did_you_mean(name, inside.model_fields)
    elsewhere = [row.key for row in reference(model) if row.key.rpartition(".")[2] == name]
    if not suggestion and elsewhere:
        suggestion = f' (did you mean "{elsewhere[0]}"?)'
    return f"unknown key{suggestion}; allowed: {', '.join(inside.model_fields)}"


def _field_at(model: type[BaseModel], location: Location) -> tuple[type[BaseModel], FieldInfo | None]:
    """The section a key stands in, and the nearest field around what went wrong."""
    inside, field = model, None
    for part in location:
        if not isinstance(part, str) or part not in inside.model_fields:
            break
        field = inside.model_fields[part]
        deeper = section(field)
        if deeper is None:
            break
        inside = deeper
    return inside, field


def _choices(field: FieldInfo | None) -> list[str]:
    annotation = None if field is None else field.annotation
    return [str(choice) for choice in get_args(annotation)] if get_origin(annotation) is Literal else []


def _show(value: object) -> str:
    if isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, dict | list | tuple):
        text = "a section" if isinstance(value, dict) else "a list" if value else "an empty list"
    else:
        text = f'the text "{value}"' if isinstance(value, str) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"


def _hint(kind: str, value: object, allowed: Sequence[str]) -> str:
    if kind == "string_type" and isinstance(value, bool):
        return " (YAML reads on, off, yes and no as true and false: put text in quotes)"
    if kind == "string_type" and isinstance(value, int | float):
        return " (a number where text is meant: put it in quotes)"
    if kind == "bool_type" and isinstance(value, str):
        return " (text is never taken for true or false: write it without quotes)"
    if kind == "literal_error" and isinstance(value, str):
        return did_you_mean(value, allowed)
    if kind in {"int_type", "float_type"} and isinstance(value, str):
        return " (text is never taken for a number: write digits without quotes)"
    return ""
