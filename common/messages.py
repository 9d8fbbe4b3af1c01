"""Every message of the protocol as a frozen dataclass whose annotations are its rules.

To add one: write the dataclass here, a case in ``tests/common/cases.py``, and record its golden bytes with
``python -m tests.common.record_golden``. ``python -m common.messages FILE`` prints a captured message.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from common.captions import MOST_CHARACTERS
from common.chunks import CHUNK_BYTES, CHUNK_DATA_BYTES
from common.codec import EncodedTensor
from common.errors import MessageError
from common.limits import Limits
from common.message_fields import Hexadecimal, Most, blob, number, text, whole
from common.message_wire import (
    LONGEST_MAP,
    MESSAGE_TYPES,
    PROTOCOL_VERSION,
    decode,
    decode_any,
    encode,
    max_bytes,
    message,
)
from common.policy_network import MOST_BYTES
from common.topics import IDENTITY, MAX_CHUNKS, WEIGHTS_NAME

__all__ = [
    "MESSAGE_TYPES", "PROTOCOL_VERSION", "Activations", "Audio", "ComputeTimes", "DeltaChunk", "DesiredConfig",
    "DeviceStatus", "Embedding", "EncodedTensor", "Gradient", "GradientResult", "Limits", "Manifest", "ManifestEntry",
    "MixtureStatistics", "PolicyUpdate", "SplitterUpdate", "Telemetry", "TrainerStatus", "UpdateChunk", "WeightsChunk",
    "decode", "decode_any", "encode", "max_bytes",
]  # fmt: skip

KIB = 1024

Boot = Annotated[str, Hexadecimal(8)]
Digest = Annotated[str, Hexadecimal(32)]
Counter = Annotated[int, whole(0, 2**53)]
Bytes = Annotated[int, whole(0, 2**53)]
Cut = Annotated[int, whole(0, 64)]
Part = Annotated[int, whole(0, 1_023)]
Milliseconds = Annotated[int, whole(0, 2**53)]
# The others of a batch wait for it, and MQTT 5 has 32 bits for the expiry that follows from it.
Deadline = Annotated[int, whole(0, 3_600_000)]
ShortText = Annotated[str, text(64)]
Caption = Annotated[str, text(MOST_CHARACTERS)]
Name = Annotated[str, text(128)]
DeviceId = Annotated[str, text(63, IDENTITY.pattern)]
WeightsName = Annotated[str, text(32, WEIGHTS_NAME.pattern)]
# A share computed in float32 may pass its end by one rounding: that is no reason to drop a message.
Share = Annotated[float, number(-1e-6, 1 + 1e-6)]
Amount = Annotated[float, number(0, 1e12)]
Finite = Annotated[float, number(-1e30, 1e30)]
GradientResult = Literal["ok", "stale", "late", "rejected"]
Index = Annotated[int, whole(0, MAX_CHUNKS - 1)]
Count = Annotated[int, whole(1, MAX_CHUNKS)]


@dataclass(frozen=True, slots=True)
class ComputeTimes:
    """Milliseconds of one window's two views through stem, blocks and head, in this order, on the device."""

    forward_ms: Annotated[tuple[Amount, ...], Most(66)]
    backward_ms: Annotated[tuple[Amount, ...], Most(66)]


@message("status", max_bytes=2 * KIB)
@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """A device's state; as ``lost`` its last will. A smaller ``seq`` of the same boot is older."""

    state: Literal["ready", "paused", "no-audio", "stopped", "lost"]
    boot: Boot
    seq: Counter
    software: ShortText
    fingerprint: Name
    profile: ShortText
    room: ShortText
    cuts: Annotated[tuple[Cut, ...], Most(65)]
    compute: ComputeTimes | None = None  # where it was measured


@message("act", max_bytes=4 * KIB * KIB)
@dataclass(frozen=True, slots=True)
class Activations:
    """One part: the activations of one window at the cut, [2, C, H, W] (view A, view B) or [2, D] at the last cut."""

    boot: Boot
    step: Counter
    part: Part
    last: bool
    cut: Cut
    weights_version: Counter
    deadline_ms: Deadline
    segment: Counter
    window_index: Counter
    monotonic_ms: Milliseconds
    room: ShortText
    tensor: EncodedTensor
    caption: Caption | None = None  # only in a fleet whose objective is clap


@message("audio", max_bytes=64 * KIB)
@dataclass(frozen=True, slots=True)
class Audio:
    """One window as sound, for the server-only baseline: ``data`` is what `common.audio_codec` made of 15,360 samples.

    Published only where the files of both ends set ``baseline_raw_audio``.
    """

    boot: Boot
    step: Counter
    part: Part
    last: bool
    deadline_ms: Deadline
    segment: Counter
    window_index: Counter
    monotonic_ms: Milliseconds
    room: ShortText
    codec: Literal["pcm16", "flac", "opus"]
    data: Annotated[bytes, blob(63 * KIB)]


@message("telemetry", max_bytes=16 * KIB)
@dataclass(frozen=True, slots=True)
class Telemetry:
    """What a device is and did: resources, the last decision and what it saw, and counters since its boot.

    ``cpu``, ``memory``, ``battery``, ``uncertainty`` and the observation are shares in 0..1; ``action`` is a cut, -1 is
    a local step; ``client_ms`` is what computing a window at the cut ``action`` took, forward and backward; ``None``
    means that the device cannot measure it.
    """

    boot: Boot
    decision_seq: Counter
    policy_version: Counter
    observation: Annotated[tuple[Share, ...], Most(64)]
    mask: Annotated[tuple[bool, ...], Most(66)]
    action: Annotated[int, whole(-1, 64)]
    log_prob: Annotated[float, number(-1e6, 1e-6)]
    cpu: Share
    memory: Share
    temperature_c: Annotated[float, number(-100, 250)] | None
    throttled: bool | None
    uplink_mbps: Amount | None
    round_trip_ms: Amount | None
    battery: Share | None
    queue_depth: Counter
    windows_dropped: Counter
    messages_dropped: Counter
    energy_joules: Amount
    uncertainty: Share | None
    cut: Cut
    windows: Counter
    steps_sent: Counter
    steps_answered: Counter
    steps_late: Counter
    steps_stale: Counter
    steps_lost: Counter
    local_steps: Counter
    loss: Finite | None
    bytes_up: Bytes
    bytes_down: Bytes
    embedding_ms: Amount | None
    gradient_ms: Amount | None
    weights_version: Counter
    client_ms: Amount | None = None  # in real time, where a whole step was answered at that cut


@message("update", max_bytes=CHUNK_BYTES)
@dataclass(frozen=True, slots=True)
class UpdateChunk:
    """One chunk of the change of a device's blocks since ``base_version`` of ``run``; ``digest`` is of the whole one.

    ``local_windows``: on how many windows that were never sent it was learned, besides those that were answered.
    """

    run: ShortText
    boot: Boot
    seq: Counter
    base_version: Counter
    local_windows: Counter
    digest: Digest
    index: Index
    count: Count
    data: Annotated[bytes, blob(CHUNK_DATA_BYTES)]

    def check(self, limits: Limits) -> None:  # noqa: ARG002
        """The index lies in the count."""
        _check_index(self.index, self.count)


@message("mixture", max_bytes=64 * KIB)
@dataclass(frozen=True, slots=True)
class MixtureStatistics:
    """What a device heard in local steps since its last such message, by the K components it lay nearest to.

    ``mass`` [K]: how many projections; ``means`` [K, d] of these; ``variances`` [K] around them, mean over the values.
    """

    boot: Boot
    seq: Counter
    mass: EncodedTensor
    means: EncodedTensor
    variances: EncodedTensor


@message("emb", max_bytes=64 * KIB)
@dataclass(frozen=True, slots=True)
class Embedding:
    """Embedding [1, D] and uncertainty of view A of one part."""

    boot: Boot
    step: Counter
    part: Part
    weights_version: Counter
    uncertainty: Share
    tensor: EncodedTensor


@message("grad", max_bytes=4 * KIB * KIB)
@dataclass(frozen=True, slots=True)
class Gradient:
    """The answer to a part. ``merge`` asks the device to publish its change after this step."""

    boot: Boot
    step: Counter
    part: Part
    result: GradientResult
    reason: Annotated[str, text(200)]
    loss: Finite | None
    learning_rate: Annotated[float, number(0, 1e3)]
    merge: bool
    tensor: EncodedTensor | None


@message("splitter", max_bytes=2 * KIB)
@dataclass(frozen=True, slots=True)
class SplitterUpdate:
    """The cuts a device may use, the one it must use while an operator pins it, and the one the planner finds best."""

    version: Counter
    pinned_cut: Cut | None
    allowed_cuts: Annotated[tuple[Cut, ...], Most(65)]
    planned_cut: Cut | None = None  # where the device told what its blocks cost, and what its link carries


@message("policy", max_bytes=60 * KIB)
@dataclass(frozen=True, slots=True)
class PolicyUpdate:
    """The splitter's network: ``data`` is what `common.policy_network` packs, ``digest`` is of it.

    Its owner is the process that learns policies; pins and allowed cuts are the trainer's and travel apart.
    """

    version: Counter
    encoder: ShortText
    digest: Digest
    data: Annotated[bytes, blob(MOST_BYTES)]


@message("config", max_bytes=2 * KIB)
@dataclass(frozen=True, slots=True)
class DesiredConfig:
    """Settings that a device takes over while it runs; ``None`` leaves its own."""

    version: Counter
    codec: Annotated[str, text(24)] | None
    paused: bool


@message("weights", max_bytes=CHUNK_BYTES)
@dataclass(frozen=True, slots=True)
class WeightsChunk:
    """One chunk of the weights of one block."""

    run: ShortText
    weights_version: Counter
    name: WeightsName
    index: Index
    count: Count
    data: Annotated[bytes, blob(CHUNK_DATA_BYTES)]

    def check(self, limits: Limits) -> None:  # noqa: ARG002
        """The index lies in the count."""
        _check_index(self.index, self.count)


@message("delta", max_bytes=CHUNK_BYTES)
@dataclass(frozen=True, slots=True)
class DeltaChunk:
    """One chunk of what leads a block from the weights whose digest is ``base`` to those of ``weights_version``."""

    run: ShortText
    weights_version: Counter
    name: WeightsName
    base: Digest
    index: Index
    count: Count
    data: Annotated[bytes, blob(CHUNK_DATA_BYTES)]

    def check(self, limits: Limits) -> None:  # noqa: ARG002
        """The index lies in the count."""
        _check_index(self.index, self.count)


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """What the weights of one block must be: digest and size of the whole, and the number of chunks."""

    digest: Digest
    chunks: Count
    size_bytes: Bytes


@message("manifest", max_bytes=512 * KIB)
@dataclass(frozen=True, slots=True)
class Manifest:
    """Which weights belong together; ``merged`` names for each device the (boot, seq) of its change that is in them."""

    run: ShortText
    fingerprint: Name
    weights_version: Counter
    entries: Annotated[dict[WeightsName, ManifestEntry], Most(128)]
    merged: Annotated[dict[DeviceId, tuple[Boot, Counter]], Most(LONGEST_MAP)]


@message("trainer", max_bytes=2 * KIB)
@dataclass(frozen=True, slots=True)
class TrainerStatus:
    """The trainer's state; as ``lost`` its last will."""

    state: Literal["ready", "stopped", "lost"]
    boot: Boot
    seq: Counter
    run: ShortText
    fingerprint: Name
    weights_version: Counter


def _check_index(index: int, count: int) -> None:
    if index >= count:
        raise MessageError(f"index: {index} of {count}")


def _main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m common.messages FILE\n")
        return 2
    try:
        payload = Path(arguments[0]).read_bytes()
        sys.stdout.write(f"{decode_any(payload)}\n{len(payload)} bytes\n")
    except (OSError, MessageError) as error:
        sys.stderr.write(f"{arguments[0]}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
