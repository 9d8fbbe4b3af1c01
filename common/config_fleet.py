"""What every device and the trainer of one fleet share: the broker, the encoder, the optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from common.config_types import DEFAULT_CHANGE_CODEC, ExistingFile, Identity, Number, Settings, refuse
from common.errors import ConfigError
from common.link_address import BrokerAddress

HEADS = {"hybrid": "mlp", "cola": "tanh", "clap": "mlp"}
"""The head that each objective trains: one of `common.encoder.HEADS`."""
SHARED_KEYS = (
    "encoder", "objective", "mode", "parts_per_step", "optimizer", "client_updates", "values_per_merge",
    "weights_codec",
)  # fmt: skip
"""What must be the same at both ends, or they would train different things."""


class BrokerConfig(Settings):
    """Where the MQTT broker is and how to sign on."""

    url: str = Field(description="Address of the broker: mqtt://HOST[:PORT], or mqtts://HOST[:PORT] for TLS.")
    username: str | None = Field(default=None, min_length=1, description="User name at the broker; null: none.")
    password_file: ExistingFile | None = Field(
        default=None, description="File whose first line is the password; keep it readable to the service alone."
    )
    ca: ExistingFile | None = Field(
        default=None, description="Certificate authority that signed the broker's certificate (PEM)."
    )
    certificate: ExistingFile | None = Field(default=None, description="This end's own certificate (PEM); needs key.")
    key: ExistingFile | None = Field(
        default=None, validate_default=True, description="Private key of that certificate (PEM); needs certificate."
    )
    keepalive_s: int = Field(
        default=30, ge=5, le=3600, description="MQTT keep-alive in seconds: how soon a dead link is noticed."
    )

    @field_validator("url")
    @classmethod
    def _address(cls, url: str) -> str:
        try:
            address = BrokerAddress.parse(url)
        except ConfigError as error:
            raise refuse(
                f"{str(error).partition(': expected')[0]} is not understood",
                "mqtt://HOST[:PORT] or mqtts://HOST[:PORT]",
            ) from error
        if address.username is not None or address.password is not None:
            raise refuse("a user or password in the address", "broker.username and broker.password_file")
        return url

    @field_validator("password_file")
    @classmethod
    def _belongs_to_a_user(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("username", "") is None:
            raise refuse("a password without a user", "only together with username")
        return value

    @field_validator("ca", "certificate", "key")
    @classmethod
    def _only_with_tls(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("url", "").startswith("mqtt:"):
            raise refuse("TLS files with an mqtt:// address", "only with an mqtts:// url")
        return value

    @field_validator("key")
    @classmethod
    def _belongs_to_a_certificate(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if "certificate" in info.data and (value is None) != (info.data["certificate"] is None):
            missing = "certificate" if value is not None else "key"
            raise refuse(f"{missing} is missing", "certificate and key together, or neither")
        return value


class OptimizerConfig(Settings):
    """How both ends turn gradients into weights."""

    kind: Literal["adamw", "sgd"] = Field(
        default="adamw", description="Optimizer of every block, on devices and trainer alike."
    )
    weight_decay: Number = Field(default=1e-4, ge=0, le=1, description="Decoupled weight decay per step (a fraction).")
    warmup_steps: int = Field(
        default=20,
        ge=0,
        le=100_000,
        description="Steps over which the learning rate rises linearly after a block changes owner.",
    )


class FleetConfig(Settings):
    """What every device and the trainer of one fleet share."""

    fleet: Identity = Field(description="Name of the fleet; stands in every topic.")
    broker: BrokerConfig = Field(description="The MQTT broker.")
    encoder: Literal["mobile", "mobile-half", "resnet18", "efficientnet-b0"] = Field(
        default="mobile", description="The encoder all of them train together."
    )
    first_seed: int = Field(
        default=0,
        ge=0,
        le=2**32 - 1,
        description="Seed of the first weights: both ends build them, so that those of a new fleet need not travel.",
    )
    objective: Literal["hybrid", "cola", "clap"] = Field(
        default="hybrid",
        description="What is trained: hybrid, the Hybrid Loss; cola, a bilinear form over two crops of a recording; "
        "clap, sound and captions in one space. Of the trainer's keys for the loss, cola heeds false_negative_s alone, "
        "clap that and text_encoder.",
    )
    mode: Literal["split", "server-only", "federated"] = Field(
        default="split",
        description="split: as described here; the others are baselines, see Modes. server-only: raw audio is sent; "
        "federated: devices learn alone and their changes of all blocks are merged.",
    )
    sync_every_windows: int = Field(
        default=200,
        ge=1,
        le=1_000_000,
        description="In mode federated: windows that a device learns from between two changes it sends.",
    )
    parts_per_step: int = Field(
        default=8, ge=1, le=64, description="Windows (parts) a device sends before one optimizer step."
    )
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="The optimizer at both ends.")
    client_updates: Literal["accumulated", "averaged"] = Field(
        default="accumulated",
        description="How the devices' blocks learn. accumulated: devices sum up gradients, a merge is one optimizer "
        "step with all of them; averaged: each device takes steps of its own, a merge is their mean. Mode federated "
        "always averages.",
    )
    values_per_merge: int = Field(
        default=24_000,
        ge=1,
        le=2**31 - 1,
        description="Where devices accumulate: a block of up to so many values takes part in every merge, one of up to "
        "twice as many in every second, and so on.",
    )
    weights_codec: Literal["fp32", "fp16"] = Field(default="fp16", description="Number format of the whole weights.")
    negligible_change: Number = Field(
        default=1e-4,
        ge=0,
        le=1,
        description="A change shorter than this share of its blocks is kept back; no merge waits for it.",
    )
    delta_codec: Literal["int8", "int4", "ecsq", "ternary"] | None = Field(
        default=DEFAULT_CHANGE_CODEC,
        description="Number format of the step from version to version; null: every version travels whole.",
    )
    change_codec: Literal["fp32", "fp16", "int8", "int4", "ecsq", "ternary"] = Field(
        default=DEFAULT_CHANGE_CODEC,
        description="Number format of the changes that devices send; what it rounds away goes with the next change.",
    )
    max_message_bytes: int = Field(
        default=4 * 1024 * 1024, ge=65_536, le=268_435_455, description="Largest MQTT message accepted, in bytes."
    )

    @field_validator("mode")
    @classmethod
    def _captions_travel_with_activations(cls, value: str, info: ValidationInfo) -> str:
        if value == "server-only" and info.data.get("objective") == "clap":
            raise refuse("objective clap in mode server-only: sound travels without captions", "split")
        return value

    @property
    def accumulates(self) -> bool:
        """Whether devices sum up gradients instead of taking optimizer steps of their own."""
        return self.mode == "split" and self.client_updates == "accumulated"

    @property
    def head(self) -> str:
        """The head of the encoder that the objective needs."""
        return HEADS[self.objective]


def permits_its_mode(raw_audio: bool, fleet: FleetConfig | None) -> bool:
    """``raw_audio`` as it is; raises where the fleet's mode sends raw audio and this end does not permit it."""
    if fleet is not None and fleet.mode == "server-only" and not raw_audio:
        raise refuse("mode server-only sends raw audio, which is not permitted here", "true, or another mode")
    return raw_audio
