"""What can be configured of the trainer: every key with its type, bounds, default and meaning.

The models are frozen and strict: ``"8"`` is no integer, 3.0 neither; an integer may stand where a number is meant. Read
them through :mod:`common.config`, which names file, line and key of whatever is wrong. A path in a file is relative to
that file.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from common.config_fleet import FleetConfig, permits_its_mode
from common.config_types import (
    ENCODER_DEPTH,
    CodecText,
    ConfigPath,
    Cut,
    Identity,
    Means,
    Number,
    PointsTo,
    Settings,
    as_tuple,
    gradient_codec,
    refuse,
)


class DesiredConfig(Settings):
    """What the trainer asks of every device; overrides the device's own file while it runs."""

    codec: CodecText | None = Field(default=None, description="Codec of the activations; null: each device's own.")
    paused: bool = Field(default=False, description="True: devices stop learning and sending until told otherwise.")


class TrainerConfig(Settings):
    """The trainer."""

    fleet: Annotated[FleetConfig, PointsTo("fleet", "path of a fleet file")] = Field(description="The fleet it trains.")
    state_directory: ConfigPath = Field(description="Folder for checkpoints and metrics; created if absent.")
    compute: Literal["cpu", "cuda", "auto"] = Field(
        default="auto", description="Where it computes; auto: a GPU if there is one."
    )
    threads: int = Field(default=1, ge=1, le=256, description="Threads torch may use in the training thread.")
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="Seed of everything random but the first weights.")
    learning_rate: Number = Field(default=2e-3, gt=0, le=1, description="Highest learning rate, of the trainer.")
    device_rate_share: Number = Field(
        default=0.3,
        gt=0,
        le=1,
        description="Of the trainer's learning rate, where devices take steps of their own.",
    )
    schedule: Literal["anneal", "constant"] = Field(
        default="constant",
        description="anneal: one cycle over budget_windows; constant: for continuous use.",
    )
    budget_windows: int | None = Field(
        default=None,
        ge=1,
        validate_default=True,
        description="Windows of the whole run, all devices together; null: no end.",
    )
    temperature: Number = Field(default=0.1, gt=0, le=10, description="Temperature of the contrastive loss (no unit).")
    sw_weight: Number = Field(
        default=5.0, ge=0, le=1000, description="Weight of the sliced-Wasserstein term (no unit)."
    )
    sw_projections: int = Field(
        default=50, ge=1, le=4096, description="Random directions of the sliced-Wasserstein term."
    )
    laplacian_weight: Number = Field(
        default=0.01, ge=0, le=1000, description="Weight of the temporal Laplacian term (no unit)."
    )
    laplacian_window: int = Field(
        default=100, ge=1, le=10_000, description="Past windows per segment kept for the Laplacian term."
    )
    laplacian_neighbours: int = Field(
        default=5, ge=1, le=1000, description="Temporal neighbours of each window in that term."
    )
    text_encoder: Literal["hashed", "minilm"] = Field(
        default="hashed",
        description="Text tower of the objective clap. hashed: small, trained from nothing; minilm: a frozen sentence "
        "encoder, needs the extra clap.",
    )
    false_negative_s: Number = Field(
        default=6.0,
        ge=0,
        le=3600,
        description="Windows of one segment or room closer than this, in seconds, are no negatives.",
    )
    virtual_negatives: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="Negatives that each window meets beside the batch's, drawn from the mixture memory.",
    )
    merge_every: int = Field(
        default=6,
        ge=1,
        le=100_000,
        description="Training batches between two merges of the weights, after those of merge_each_until.",
    )
    merge_each_until: int = Field(
        default=60,
        ge=0,
        le=100_000,
        description="Where devices accumulate, every batch of a run up to this one is merged by itself.",
    )
    merge_deadline_s: Number = Field(
        default=10.0, gt=0, le=3600, description="Seconds to wait for the devices' changes before merging without them."
    )
    trim: Number = Field(
        default=0.15,
        ge=0,
        lt=0.5,
        description="Share of a block's changes left out on either side of every value, from three on; 0: none.",
    )
    max_lag: int = Field(
        default=16, ge=1, le=1000, description="Parts more than this many weights versions old are stale."
    )
    screening: bool = Field(
        default=True, description="Leave out devices whose activations are far from the fleet's or carry nothing."
    )
    gradient_codec: CodecText = Field(default_factory=gradient_codec, description="Codec of the gradients sent back.")
    speed: Literal["fast", "realtime"] = Field(
        default="realtime",
        description="fast: no clock decides what is learned, so that a run repeats; realtime: deadlines hold.",
    )
    expected_devices: int = Field(
        default=0, ge=0, le=100_000, description="Devices to wait for before the first batch in fast mode; 0: none."
    )
    pins: Annotated[dict[Identity, Cut], Means(f"map of device id to a cut from 0 to {ENCODER_DEPTH}")] = Field(
        default_factory=dict, description="Devices whose cut the operator fixes."
    )
    allowed_cuts: Annotated[
        tuple[Cut, ...] | None,
        BeforeValidator(as_tuple),
        Means(f"list of one or more cuts from 0 to {ENCODER_DEPTH}, or null"),
    ] = Field(
        default=None, min_length=1, description="Cuts the devices may use; null: all that a device's min_cut permits."
    )
    plan_cuts: bool = Field(
        default=True,
        description="In real time: measure at the first start what each block costs here, keep it, and tell devices "
        "that told theirs the planner's cut.",
    )
    desired: DesiredConfig = Field(default_factory=DesiredConfig, description="What devices are asked to do.")
    baseline_raw_audio: bool = Field(
        default=False,
        validate_default=True,
        description="Permit that raw audio is received: mode server-only needs it at both ends, nothing else uses it.",
    )

    @field_validator("baseline_raw_audio")
    @classmethod
    def _sound_is_permitted(cls, value: bool, info: ValidationInfo) -> bool:
        return permits_its_mode(value, info.data.get("fleet"))

    @field_validator("budget_windows")
    @classmethod
    def _anneal_needs_a_budget(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is None and info.data.get("schedule") == "anneal":
            raise refuse("schedule: anneal needs a budget", "an integer from 1, or schedule: constant")
        return value

    @field_validator("laplacian_neighbours")
    @classmethod
    def _neighbours_fit_the_window(cls, value: int, info: ValidationInfo) -> int:
        window = info.data.get("laplacian_window")
        if window is not None and value > window:
            raise refuse(f"{value} neighbours in a window of {window}", f"at most laplacian_window ({window})")
        return value

    @field_validator("allowed_cuts")
    @classmethod
    def _cuts_once(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and len(set(value)) != len(value):
            raise refuse(f"{list(value)} names a cut twice", "each cut once")
        return value
