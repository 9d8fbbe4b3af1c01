"""The types that configuration keys have, and how a value is refused: strictly, and saying what is allowed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo
from pydantic_core import PydanticCustomError

from common.topics import check_device_id
from common.yaml_tree import PlainText

DEFAULT_CHANGE_CODEC: Literal["ecsq"] = "ecsq"  # of weights, either way
ENCODER_DEPTH = 8  # L of every encoder; kept here so that reading a file does not load torch


@dataclass(frozen=True, slots=True)
class Means:
    """What a type is called in the reference and in error messages, where its annotation does not say it well."""

    text: str


@dataclass(frozen=True, slots=True)
class PointsTo:
    """The field holds the content of another file; the YAML names that file."""

    kind: Literal["fleet", "profile"]
    text: str


def refuse(problem: str, allowed: str, *, key: str = "") -> PydanticCustomError:
    """An error that names what is allowed; ``key`` adds to the dotted key of the field being checked."""
    return PydanticCustomError(
        "setting", "{problem}; allowed: {allowed}", {"problem": problem, "allowed": allowed, "key": key}
    )


def _number(value: Any) -> Any:
    if not isinstance(value, PlainText):
        return value
    try:
        return float(value)  # 1e-3: a number to everybody but YAML 1.1
    except ValueError:
        return value


def _path(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, str):
        return value
    if not value or value.startswith("~") or "\0" in value:
        raise refuse(f'"{value}" is no usable path', "a path, absolute or relative to this file; ~ is not expanded")
    directory = (info.context or {}).get("directory")
    return Path(value) if directory is None else Path(directory) / value


def _file(value: Path) -> Path:
    wrong = unusable(value)
    if wrong:
        raise refuse(wrong, "an existing file")
    return value


def unusable(path: Path) -> str | None:
    """Why this is no file to read, or None; a folder that may not be entered is said in the system's words."""
    try:
        return None if path.is_file() else f"no such file: {path}"
    except OSError as error:
        return f"{path}: {error.strerror}"


def _identity(value: str) -> str:
    if value.startswith("_"):
        raise refuse(f'"{value}": names that start with _ are reserved', "lower-case letters, digits and hyphens")
    try:
        return check_device_id(value)
    except ValueError as error:
        raise refuse(
            f'"{value}" cannot stand in a topic',
            "lower-case letters, digits and hyphens, 1 to 63 of them, the first no hyphen",
        ) from error


def _codec(value: str) -> str:
    from common.codec import Codec

    Codec.parse(value)
    return value


def activations_codec() -> str:
    """The codec the wire's own measurements favour; asked for late, because it loads torch."""
    from common.codec import DEFAULT_ACTIVATIONS_CODEC

    return DEFAULT_ACTIVATIONS_CODEC


def gradient_codec() -> str:
    """The same for gradients."""
    from common.codec import DEFAULT_GRADIENT_CODEC

    return DEFAULT_GRADIENT_CODEC


def as_tuple(value: Any) -> Any:
    """YAML has lists only; the models are frozen through and through."""
    return tuple(value) if isinstance(value, list) else value


Number = Annotated[float, BeforeValidator(_number)]
ConfigPath = Annotated[Path, BeforeValidator(_path), Means("path")]
ExistingFile = Annotated[Path, BeforeValidator(_path), AfterValidator(_file), Means("path of an existing file")]
Identity = Annotated[str, AfterValidator(_identity), Means("name of lower-case letters, digits and hyphens")]
CodecText = Annotated[
    str, AfterValidator(_codec), Means("codec such as fp16, int8, int4-channel, int4-zlib or ternary-zlib")
]
Cut = Annotated[int, Field(ge=0, le=ENCODER_DEPTH)]


class Settings(BaseModel):
    """Strict, frozen, nothing unknown, no NaN and no infinity."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)
