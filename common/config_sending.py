"""What a device sends of what it captures."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from common.config_types import Number, Settings


class SendingConfig(Settings):
    """Sparse sending: of the captured windows only a share travels."""

    share: Number = Field(default=1.0, ge=0.01, le=1, description="Share of the captured windows that is sent.")
    by: Literal["uncertainty", "random"] = Field(
        default="uncertainty",
        description="uncertainty: those the device is least certain about; random: any, as a control.",
    )
    unsent: Literal["learn", "skip"] = Field(
        default="learn", description="learn: local steps on what is not sent, where local_learning is on; skip: none."
    )
