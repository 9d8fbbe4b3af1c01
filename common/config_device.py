"""What can be configured of a device: every key with its type, bounds, default and meaning; see `config_trainer`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from common.config_fleet import FleetConfig, permits_its_mode
from common.config_profile import Profile
from common.config_sending import SendingConfig
from common.config_types import (
    ENCODER_DEPTH,
    CodecText,
    ConfigPath,
    Cut,
    ExistingFile,
    Identity,
    Means,
    Number,
    PointsTo,
    Settings,
    activations_codec,
    as_tuple,
    refuse,
)
from common.link_address import BrokerAddress


class SourceConfig(Settings):
    """Where a device's sound comes from."""

    kind: Literal["folder", "microphone", "soundscape"] = Field(
        description="folder: replay recordings; microphone: listen; soundscape: synthetic sounds, needs no data."
    )
    path: ConfigPath | None = Field(
        default=None, validate_default=True, description="Folder of recordings; with kind folder, and only there."
    )
    list: ExistingFile | None = Field(
        default=None,
        description="Text file naming the recordings to use, one path relative to path per line; null: all.",
    )
    captions: ExistingFile | None = Field(
        default=None,
        description="CSV with the columns file and caption, for the objective clap; null: captions.csv in path, "
        "else captions made from the names of the class folders (supervised).",
    )
    order: Literal["stream", "shuffled"] = Field(
        default="stream",
        description="stream: contiguous windows of shuffled clips; shuffled: one random window of each clip.",
    )
    repeat: bool = Field(default=True, description="Begin again when every recording was played.")
    card: str | None = Field(
        default=None,
        min_length=1,
        description="Name of the sound card of a microphone, or a part of it; null: the default.",
    )
    classes: Annotated[tuple[str, ...] | None, BeforeValidator(as_tuple), Means("list of sound classes, or null")] = (
        Field(default=None, min_length=1, description="Sounds a soundscape is made of; null: all it knows.")
    )
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="Seed of the order of clips and of synthetic sounds.")

    @field_validator("path")
    @classmethod
    def _folder_has_a_path(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        kind = info.data.get("kind")
        if kind == "folder" and value is None:
            raise refuse("kind folder needs a path", "the folder of recordings")
        if kind in {"microphone", "soundscape"} and value is not None:
            raise refuse(f"kind {kind} has no path", "only with kind: folder")
        return value

    @field_validator("list", "captions", "card", "classes")
    @classmethod
    def _belongs_to_the_kind(cls, value: object, info: ValidationInfo) -> object:
        owner = {"card": "microphone", "classes": "soundscape"}.get(str(info.field_name), "folder")
        kind = info.data.get("kind", owner)
        if value is not None and kind != owner:
            raise refuse(f"kind {kind} has no {info.field_name}", f"only with kind: {owner}")
        return value

    @field_validator("classes")
    @classmethod
    def _known_classes(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        from common.soundscape import CLASSES

        unknown = [name for name in value or () if name not in CLASSES]
        if unknown:
            raise refuse(f"no such sound: {', '.join(unknown)}", ", ".join(CLASSES))
        return value


class SplitterConfig(Settings):
    """How the device chooses its cut."""

    kind: Literal["fixed", "heuristic", "planned", "policy", "local"] = Field(
        default="fixed",
        description="fixed: always cut; heuristic: from load and link; planned: the trainer's planner says, without a "
        "plan as heuristic; policy: by a learned policy, without one as planned; local: nothing is sent, it learns "
        "alone.",
    )
    cut: Cut = Field(default=5, description="Blocks of the encoder that run on the device; the others start there.")
    policy: ExistingFile | None = Field(
        default=None,
        description="Policy to begin with, from streamsplit train-policy; null: the shipped one, if there is one.",
    )
    exploration: Number = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Share of the decisions that are drawn by chance, so that streamsplit policy can learn from them; "
        "none is while the policy is a file's.",
    )


class DeviceConfig(Settings):
    """One device."""

    id: Identity = Field(description="Name of the device; stands in its topics, unique in the fleet.")
    room: str = Field(
        default="", max_length=64, description="Devices that hear the same sounds share a room; empty: alone."
    )
    fleet: Annotated[FleetConfig, PointsTo("fleet", "path of a fleet file")] = Field(
        description="The fleet it is part of."
    )
    profile: Annotated[
        Profile | None, PointsTo("profile", "name of a shipped profile, path of a profile file, or null")
    ] = Field(
        default=None,
        description="The board it is, or imitates: gives the energy model; null: unknown.",
    )
    emulate: bool = Field(
        default=False,
        description="Imitate the profile's speed and link, so that one machine can play several boards; needs a "
        "profile and a broker without TLS.",
    )
    measure_compute: bool = Field(
        default=True,
        description="Measure at the first start what each block costs here, keep it, and tell the fleet.",
    )
    emulate_conditions: ExistingFile | None = Field(
        default=None,
        validate_default=True,
        description="CSV file of what happens to an emulated link and processor over time (device/conditions.py says "
        "its columns); null: nothing.",
    )
    source: SourceConfig = Field(description="Where its sound comes from.")
    speed: Literal["fast", "realtime"] = Field(
        default="realtime",
        description="fast: as fast as it computes, no clock decides what is learned; realtime: as it sounds.",
    )
    windows: int | None = Field(default=None, ge=1, description="Windows after which it ends; null: never.")
    min_cut: Cut = Field(
        default=3, description="Privacy floor: nothing below this cut is ever sent, whatever the trainer asks."
    )
    splitter: SplitterConfig = Field(
        default_factory=SplitterConfig, validate_default=True, description="How the cut is chosen."
    )
    sending: SendingConfig = Field(default_factory=SendingConfig, description="What is sent of what is captured.")
    codec: CodecText = Field(default_factory=activations_codec, description="Codec of the activations.")
    state_directory: ConfigPath = Field(description="Folder where it keeps its weights; created if absent.")
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="Seed of the augmentation and of everything random.")
    deadline_ms: int = Field(
        default=2000,
        ge=1,
        le=600_000,
        description="Milliseconds after its newest part within which the trainer should answer.",
    )
    step_timeout_s: Number = Field(
        default=30.0,
        gt=0,
        le=3600,
        description="Seconds after which an unanswered step counts as lost; more than deadline_ms. In real time no "
        "less than twice what a step's windows last.",
    )
    connect_timeout_s: Number = Field(
        default=30.0, gt=0, le=3600, description="Seconds to wait for the broker at start before going on without it."
    )
    own_embedding: bool = Field(
        default=False,
        description="Compute every window's embedding here as well, as soon as it closes: the trainer's answer is not "
        "waited for; costs a forward pass, and all blocks follow the fleet's versions.",
    )
    local_learning: bool = Field(default=True, description="Go on learning alone while the link is gone.")
    local_learning_rate: Number = Field(default=5e-4, gt=0, le=1, description="Learning rate of those local steps.")
    local_replayed: int = Field(
        default=0,
        ge=0,
        le=64,
        description="Past windows that join each local step; the latest 256 are kept in memory, never as sound.",
    )
    local_virtual_negatives: int = Field(
        default=0, ge=0, le=1024, description="Negatives of each window of a local step drawn from the mixture memory."
    )
    local_sw_weight: Number = Field(
        default=0.0, ge=0, le=1000, description="Weight of the sliced-Wasserstein term in local steps (no unit)."
    )
    telemetry_every_steps: int = Field(
        default=1,
        ge=1,
        le=10_000,
        description="Steps between two telemetry messages; in real time one comes about every 8 windows. Above 1 "
        "streamsplit policy learns nothing from this device.",
    )
    baseline_raw_audio: bool = Field(
        default=False,
        validate_default=True,
        description="Permit that raw audio leaves this device: server-only needs it at both ends, nothing else does.",
    )
    audio_codec: Literal["pcm16", "flac", "opus"] = Field(
        default="pcm16", description="How a window travels in mode server-only; opus: at 24 kbit/s."
    )

    @field_validator("room")
    @classmethod
    def _room_can_be_shown(cls, value: str) -> str:
        if not value.isprintable():
            raise refuse(f"{value!r}", "printable text, without tabs and line ends")
        return value

    @field_validator("baseline_raw_audio")
    @classmethod
    def _sound_is_permitted(cls, value: bool, info: ValidationInfo) -> bool:
        return permits_its_mode(value, info.data.get("fleet"))

    @field_validator("emulate")
    @classmethod
    def _a_board_can_be_played(cls, value: bool, info: ValidationInfo) -> bool:
        if value and "profile" in info.data and info.data["profile"] is None:
            raise refuse("no board to imitate", "only with a profile")
        fleet = info.data.get("fleet")
        if value and fleet is not None and BrokerAddress.parse(fleet.broker.url).secure:
            raise refuse(
                "a link with TLS cannot be played: it names the host it reaches", "only with an mqtt:// broker"
            )
        return value

    @field_validator("emulate_conditions")
    @classmethod
    def _conditions_are_emulated(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and not (info.data.get("emulate") and info.data.get("profile")):
            raise refuse("conditions of a board that is not emulated", "only with a profile and emulate: true")
        return value

    @field_validator("speed")
    @classmethod
    def _a_microphone_is_in_real_time(cls, value: str, info: ValidationInfo) -> str:
        source = info.data.get("source")
        if source is not None and source.kind == "microphone" and value == "fast":
            raise refuse("a microphone cannot be read faster than it hears", "realtime")
        return value

    @field_validator("splitter")
    @classmethod
    def _cut_respects_the_floor(cls, value: SplitterConfig, info: ValidationInfo) -> SplitterConfig:
        floor = info.data.get("min_cut", 0)
        if value.cut < floor:
            raise refuse(f"cut {value.cut} is below min_cut {floor}", f"from {floor} to {ENCODER_DEPTH}", key="cut")
        return value

    @field_validator("step_timeout_s")
    @classmethod
    def _outlasts_the_deadline(cls, value: float, info: ValidationInfo) -> float:
        deadline_s = info.data.get("deadline_ms", 0) / 1000
        if value <= deadline_s:
            raise refuse(f"{value:g} s are over before deadline_ms", f"above {deadline_s:g}")
        return value
