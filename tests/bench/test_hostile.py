from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch

from common import messages
from common.change_blob import pack_blocks, unpack_blocks
from common.codec import Codec, decode, digest, encode
from common.encoder import build_encoder
from common.errors import MessageError
from common.link import Link
from common.split import block_state, client_names, names
from common.topics import Topics
from tests.bench.hostile import HUGE, MANY_WINDOWS, NAN_EVERY_STEPS, HostileLink
from tests.bench.in_process import run_in_process
from trainer import checkpoint
from trainer.demo_files import DemoOptions, write_files
from trainer.run_report import read_device

CUT = 5
TOPICS = Topics("f")
ENCODER = build_encoder("mobile", seed=0)


class Said:
    """A link that remembers."""

    connected = True

    def __init__(self) -> None:
        self.payloads: list[bytes] = []

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, expiry_s: float | None = None) -> bool:
        self.payloads.append(payload)
        return True


def hostile(said: Said) -> HostileLink:
    return HostileLink(cast("Link", said), ENCODER, cut=CUT, seed=0)


def activations(step: int) -> bytes:
    tensor = encode(torch.zeros(2, *ENCODER.activation_shape(CUT)), Codec.parse("int4-zlib"))
    return messages.encode(messages.Activations("ab" * 8, step, 0, False, CUT, 1, 1000, 0, 0, 0, "", tensor))


def update() -> bytes:
    change = {name: block_state(ENCODER, name) for name in client_names(CUT)}
    blob = pack_blocks(change, "int4")
    return messages.encode(messages.UpdateChunk("run", "ab" * 8, 1, 1, 200, digest(blob), 0, 1, blob))


def test_its_activations_are_noise_or_huge_and_pass_every_check() -> None:
    said = Said()
    link = hostile(said)
    link.publish(TOPICS.activations("d"), activations(0))
    link.publish(TOPICS.activations("d"), activations(1))
    small, huge = (decode(messages.decode(messages.Activations, payload).tensor) for payload in said.payloads)
    assert 0.5 < float(small.abs().max()) <= 1.0
    assert HUGE / 2 < float(huge.abs().max()) <= HUGE


def test_now_and_then_they_are_nan_which_is_refused() -> None:
    said = Said()
    hostile(said).publish(TOPICS.activations("d"), activations(NAN_EVERY_STEPS - 1))
    with pytest.raises(MessageError, match="NaN"):
        decode(messages.decode(messages.Activations, said.payloads[0]).tensor)


def test_its_changes_are_huge_then_noise_then_garbage_of_very_many_windows() -> None:
    said = Said()
    link = hostile(said)
    for _ in range(3):
        link.publish(TOPICS.update("d", 0), update(), qos=1)
    chunks = [messages.decode(messages.UpdateChunk, payload) for payload in said.payloads]
    assert {chunk.local_windows for chunk in chunks} == {MANY_WINDOWS}
    assert all(digest(chunk.data) == chunk.digest for chunk in chunks)
    expected = {name: block_state(ENCODER, name) for name in names(ENCODER)}
    huge, noise = (unpack_blocks(chunk.data, expected) for chunk in chunks[:2])
    assert set(huge) == set(noise) == set(client_names(CUT))
    assert float(huge["0"][next(iter(huge["0"]))].abs().max()) > HUGE / 10
    assert float(noise["0"][next(iter(noise["0"]))].abs().max()) < 1.0
    with pytest.raises(MessageError):
        unpack_blocks(chunks[2].data, expected)


def test_everything_else_goes_its_way() -> None:
    said = Said()
    link = hostile(said)
    link.publish(TOPICS.telemetry("d"), b"as it is")
    assert said.payloads == [b"as it is"]
    assert link.connected


@pytest.mark.slow
def test_a_fleet_with_a_hostile_device_ends_its_run_with_finite_weights(tmp_path: Path) -> None:
    files = write_files(_options(tmp_path), "mqtt://127.0.0.1:1", None)
    run_in_process(files, meddle={"device-3": lambda link: cast("Link", HostileLink(link, ENCODER, cut=CUT, seed=0))})
    path = checkpoint.latest(files.trainer_state)
    assert path is not None
    assert all(torch.isfinite(value).all() for value in checkpoint.load(path).encoder.values())
    harmful = read_device(files.device_states["device-3"] / "steps.jsonl")
    assert harmful.results["rejected"] >= 5, "all but the first steps, in which nobody can tell"
    honest = [read_device(files.device_states[name] / "steps.jsonl") for name in ("device-1", "device-2")]
    assert all(run.results["answered"] == run.sent == 8 for run in honest)


def _options(out: Path) -> DemoOptions:
    return DemoOptions(
        devices=3,
        windows=3 * 8 * 2,
        data=None,
        fold=1,
        order="stream",
        shard="iid",
        profiles=(),
        cut=str(CUT),
        codec=None,
        encoder="mobile",
        speed="fast",
        seed=3,
        out=out,
        trainer_settings=(("threads", 1), ("merge_each_until", 0), ("merge_every", 4)),
        fleet_settings=(("parts_per_step", 2),),
    )
