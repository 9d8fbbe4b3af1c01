"""What a board is like: speed, link, memory and power, each with its source."""

from __future__ import annotations

from pydantic import Field

from common.config_types import Identity, Number, Settings


class PowerConfig(Settings):
    """The energy model of a board that cannot measure itself; each term adds to the others."""

    idle_watts: Number = Field(ge=0, le=1000, description="Watts of the board when it does nothing.")
    capture_watts: Number = Field(ge=0, le=1000, description="Watts more while the microphone is open.")
    compute_watts: Number = Field(ge=0, le=1000, description="Watts more while one core computes.")
    radio_joules_per_megabyte_up: Number = Field(ge=0, le=1000, description="Joules per 10^6 bytes sent.")
    radio_joules_per_megabyte_down: Number = Field(ge=0, le=1000, description="Joules per 10^6 bytes received.")
    source: str = Field(min_length=1, description="Where the numbers of this section come from.")


class ProfileSources(Settings):
    """Where a profile's other numbers come from; "estimate" where nobody measured."""

    compute: str = Field(min_length=1, description="Where mobile_forward_ms comes from.")
    link: str = Field(min_length=1, description="Where uplink_mbps, downlink_mbps and round_trip_ms come from.")
    memory: str = Field(min_length=1, description="Where memory_mb comes from.")


class Profile(Settings):
    """A kind of board: what an emulated device imitates, and what energy is computed from."""

    name: Identity = Field(description="Name of the profile; a shipped one is found by it.")
    mobile_forward_ms: Number = Field(
        gt=0,
        le=60_000,
        description="Milliseconds a view, of two at once, through the whole mobile encoder on one thread.",
    )
    cores: int = Field(default=4, ge=1, le=1024, description="Cores of its processor.")
    uplink_mbps: Number = Field(gt=0, le=100_000, description="Rate towards the broker in megabits per second.")
    downlink_mbps: Number = Field(gt=0, le=100_000, description="Rate from the broker in megabits per second.")
    round_trip_ms: Number = Field(ge=0, le=60_000, description="Round-trip time to the broker in milliseconds.")
    memory_mb: int = Field(ge=64, le=1_048_576, description="Memory of the board in megabytes (2^20 bytes).")
    power: PowerConfig = Field(description="The energy model.")
    sources: ProfileSources = Field(description="Where the numbers come from.")
