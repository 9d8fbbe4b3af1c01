"""One example of every message type: the table that drives both directions, the golden bytes and the fuzzing."""

from __future__ import annotations

from pathlib import Path

import torch

from common.codec import Codec, EncodedTensor, encode
from common.messages import (
    Activations,
    Audio,
    ComputeTimes,
    DeltaChunk,
    DesiredConfig,
    DeviceStatus,
    Embedding,
    Gradient,
    Manifest,
    ManifestEntry,
    MixtureStatistics,
    PolicyUpdate,
    SplitterUpdate,
    Telemetry,
    TrainerStatus,
    UpdateChunk,
    WeightsChunk,
)

GOLDEN = Path(__file__).parent / "golden"
BOOT = "0123456789abcdef"
DIGEST = "00112233445566778899aabbccddeeff" * 2


def tensor(codec: str, *shape: int) -> EncodedTensor:
    """A ramp of values that every codec holds the same on every machine."""
    values = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape) / 8 - 2
    return encode(values, Codec.parse(codec))


def cases() -> dict[type[object], object]:
    """A message with every field set, by its type."""
    examples = (
        DeviceStatus(
            "ready",
            BOOT,
            3,
            "0.1.0",
            "f" * 64,
            "raspberry-pi-4",
            "kitchen",
            (3, 4, 5, 8),
            ComputeTimes((1.5, 2.25), (3.0, 4.5)),
        ),
        Activations(
            BOOT,
            70_000,
            7,
            True,
            5,
            9_000,
            2_000,
            12,
            600_000,
            10**9,
            "kitchen",
            tensor("int4", 2, 3, 2, 3),
            "the sound of rain",
        ),
        Audio(BOOT, 70_000, 7, True, 2_000, 12, 600_000, 10**9, "kitchen", "pcm16", bytes(range(64))),
        Telemetry(
            boot=BOOT,
            decision_seq=17,
            policy_version=2,
            observation=(0.0, 0.25, 1.0),
            mask=(False, True, True),
            action=-1,
            log_prob=-0.5,
            cpu=0.5,
            memory=0.25,
            temperature_c=51.5,
            throttled=False,
            uplink_mbps=8.0,
            round_trip_ms=12.5,
            battery=0.75,
            queue_depth=1,
            windows_dropped=2,
            messages_dropped=3,
            energy_joules=4.5,
            uncertainty=0.5,
            cut=5,
            windows=800,
            steps_sent=100,
            steps_answered=97,
            steps_late=1,
            steps_stale=1,
            steps_lost=1,
            local_steps=12,
            loss=0.5,
            bytes_up=2**33,
            bytes_down=2**32,
            embedding_ms=20.0,
            gradient_ms=80.0,
            weights_version=9_000,
            client_ms=37.5,
        ),
        UpdateChunk("20260101-1", BOOT, 4, 8_990, 16, DIGEST, 1, 2, bytes(range(64))),
        MixtureStatistics(BOOT, 5, tensor("fp16", 3), tensor("int8", 3, 8), tensor("fp16", 3)),
        Embedding(BOOT, 70_000, 7, 9_001, 0.5, tensor("fp16", 1, 8)),
        Gradient(BOOT, 70_000, 7, "ok", "", 0.75, 0.001, True, tensor("int4-channel", 2, 4, 4, 6)),
        SplitterUpdate(6, 5, (3, 4, 5, 8), 4),
        PolicyUpdate(7, "mobile", DIGEST, bytes(range(200))),
        DesiredConfig(2, "int4-zlib", False),
        DeltaChunk("20260101-1", 9_001, "stem", DIGEST, 0, 1, bytes(range(64))),
        WeightsChunk("20260101-1", 9_001, "stem", 0, 1, bytes(range(64))),
        Manifest(
            run="20260101-1",
            fingerprint="f" * 64,
            weights_version=9_001,
            entries={"stem": ManifestEntry(DIGEST, 1, 64), "head": ManifestEntry(DIGEST, 3, 164_000)},
            merged={"pi-1": (BOOT, 4), "pi-2": (BOOT, 7)},
        ),
        TrainerStatus("ready", BOOT, 1, "20260101-1", "f" * 64, 9_001),
    )
    return {type(example): example for example in examples}


def golden_file(made: type[object]) -> Path:
    """Where the recorded bytes of a type lie."""
    return GOLDEN / f"{made.__name__}.bin"
