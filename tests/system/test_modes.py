"""The baselines as modes of the same pipeline: what travels, what is learned, and that a run repeats."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from common import config, messages
from common.config import EXIT_CONFIG
from common.encoder import Encoder, build_encoder
from common.errors import ConfigError
from common.int8_weights import rounded
from common.split import WINDOW_BYTES
from common.state_blob import digest, pack_state
from common.topics import Kind, parse
from common.weights_file import restore_encoder
from device.__main__ import listen
from device.contact import NeverReady
from tests.bench.in_process import run_in_process
from tests.bench.in_process_link import MemoryBroker
from tests.fleet import Fleet
from trainer import checkpoint
from trainer.demo_files import DemoFiles, DemoOptions, write_files
from trainer.deployed import deployed_encoders
from trainer.metrics import FILE_NAME

PARTS = 4
MEASURED = {"seconds", "embedding_ms_p95"}
NOWHERE = "mqtt://127.0.0.1:1"


class Overhearing(MemoryBroker):
    """Counts bytes of payload by kind of topic and device."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: dict[tuple[Kind, str | None], list[bytes]] = {}

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool, expires: bool) -> None:
        address = parse(topic)
        self.heard.setdefault((address.kind, address.device), []).append(payload)
        super().publish(topic, payload, qos=qos, retain=retain, expires=expires)

    def kinds(self) -> set[Kind]:
        """What devices sent."""
        return {kind for kind, device in self.heard if device is not None and str(kind).startswith("up/")}


def options(out: Path, mode: str, *, windows: int = 32, **fields: Any) -> DemoOptions:
    made = DemoOptions(
        devices=2,
        windows=windows,
        data=None,
        fold=1,
        order="stream",
        shard="iid",
        profiles=(),
        cut="5",
        codec=None,
        encoder="mobile",
        speed="fast",
        seed=3,
        out=out,
        mode=mode,
        trainer_settings=(("threads", 1), ("merge_each_until", 0), ("merge_every", 3)),
        fleet_settings=(("parts_per_step", PARTS),),
    )
    return replace(made, **fields)


def run(out: Path, mode: str, **fields: Any) -> tuple[DemoFiles, Overhearing]:
    out.mkdir()
    files = write_files(options(out, mode, **fields), NOWHERE, None)
    broker = Overhearing()
    run_in_process(files, broker=broker)
    return files, broker


def journal(files: DemoFiles, device: str) -> list[dict[str, Any]]:
    lines = (files.device_states[device] / "steps.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def steps(files: DemoFiles, device: str) -> list[str]:
    """Kinds of the journal's lines; telemetry comes when something changes, which a clock decides."""
    return [line["kind"] for line in journal(files, device) if line["kind"] != "telemetry"]


def learned(files: DemoFiles) -> dict[str, Any]:
    path = checkpoint.latest(files.trainer_state)
    assert path is not None
    saved = checkpoint.load(path)
    lines = [json.loads(line) for line in (files.trainer_state / FILE_NAME).read_text().splitlines()]
    return {
        "metrics": [{key: value for key, value in line.items() if key not in MEASURED} for line in lines],
        "weights": {name: digest(pack_state({name: value}, "fp32")) for name, value in saved.encoder.items()},
        "progress": (saved.weights_version, saved.steps, saved.windows),
    }


# -- server-only ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_server_only_answers_every_step_holds_no_weights_on_devices_and_repeats(tmp_path: Path) -> None:
    first, heard = run(tmp_path / "first", "server-only")
    again, _ = run(tmp_path / "again", "server-only")
    assert learned(first) == learned(again)
    for device, state in first.device_states.items():
        steps = [line for line in journal(first, device) if line["kind"] == "step"]
        assert [step["result"] for step in steps] == ["answered"] * 4
        assert all(len(step["embedding_ms"]) == PARTS and step["loss"] for step in steps)
        assert not (state / "weights.bin").exists()
        bytes_up = journal(first, device)[-1]["bytes_up"]
        assert 16 * WINDOW_BYTES < bytes_up < 1.1 * 16 * WINDOW_BYTES
        # Gradients, embeddings and little else came down: weights alone would be 855,000 bytes.
        assert journal(first, device)[-1]["bytes_down"] < 16 * 1_000
    assert heard.kinds() == {Kind.STATUS, Kind.AUDIO, Kind.TELEMETRY}
    answers = [messages.decode(messages.Gradient, one) for one in heard.heard[Kind.GRADIENT, "device-1"]]
    assert [(one.result, one.tensor, one.merge) for one in answers] == [("ok", None, False)] * 16
    # Of four steps the third is merged, the rest at the end.
    assert [line["weights_version"] for line in learned(first)["metrics"]] == [0, 0, 0, 1]


@pytest.mark.slow
@pytest.mark.broker
def test_server_only_runs_as_processes_over_a_broker(tmp_path: Path) -> None:
    with Fleet(tmp_path, broker="embedded", mode="server-only", parts_per_step=PARTS) as fleet:
        fleet.start_trainer(speed="fast", expected_devices=1, baseline_raw_audio=True)
        fleet.start_device("a", windows=3 * PARTS, baseline_raw_audio=True, audio_codec="opus")
        assert fleet.exit_status("a") == 0
        assert fleet.answered("a") == 3
        fleet.settle()
        fleet.ask_to_stop("trainer")
        assert fleet.exit_status("trainer") == 0
        assert fleet.trainer_step == 3


@pytest.mark.slow
@pytest.mark.parametrize(("codec", "share"), [("flac", 0.95), ("opus", 0.25)])
def test_flac_and_opus_make_windows_smaller(tmp_path: Path, codec: str, share: float) -> None:
    files, _ = run(tmp_path / codec, "server-only", windows=16, device_settings=(("audio_codec", codec),))
    for device in files.device_states:
        assert [line["result"] for line in journal(files, device) if line["kind"] == "step"] == ["answered"] * 2
        assert journal(files, device)[-1]["bytes_up"] < share * 8 * WINDOW_BYTES


# -- devices that learn alone -----------------------------------------------------------------------------------------


def same(one: Encoder, other: Encoder) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def farthest(one: Encoder, other: Encoder) -> float:
    """The largest difference of any weight of the stem."""
    pairs = zip(one.stem.parameters(), other.stem.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def deployed(files: DemoFiles, mode: str) -> list[Encoder]:
    return list(deployed_encoders(files, mode))


@pytest.mark.slow
def test_edge_only_sends_nothing_but_status_and_telemetry_ends_with_an_encoder_a_device_and_repeats(
    tmp_path: Path,
) -> None:
    first, heard = run(tmp_path / "first", "edge-only")
    again, _ = run(tmp_path / "again", "edge-only")
    assert heard.kinds() == {Kind.STATUS, Kind.TELEMETRY}
    for name in first.device_states:
        assert steps(first, name) == ["start", *["local"] * 4, "end"]
    encoders = deployed(first, "edge-only")
    assert len(encoders) == 2
    assert not same(*encoders)
    for one, other in zip(encoders, deployed(again, "edge-only"), strict=True):
        assert same(one, other)
    # All began with the trainer's weights, which nobody changed.
    trained = deployed(first, "split")[0]
    assert same(trained, build_encoder("mobile", seed=3))
    assert 0.0 < farthest(encoders[0], trained) < 0.02, "four steps of 5e-4 from weights in fp16"


def test_a_local_device_needs_no_fleet_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    files = write_files(options(tmp_path, "edge-only", windows=16), NOWHERE, None)
    path = files.devices["device-1"]
    path.write_text(path.read_text() + "connect_timeout_s: 0.1\n")
    settings = config.load_device(path)
    learned = []
    for _ in range(2):
        listen(settings, threading.Event())
        encoder = build_encoder("mobile", seed=99)
        fingerprint = config.fingerprint(settings.fleet)
        assert restore_encoder(settings.state_directory / "weights.bin", encoder, fingerprint=fingerprint)
        learned.append(encoder)
    start = build_encoder("mobile", seed=settings.seed)
    moved = [farthest(one, start) for one in learned]
    assert 0.0 < moved[0] < 2.5 * 5e-4, "two steps from the weights of its own seed"
    assert not same(*learned)
    assert steps(files, "device-1") == ["start", "local", "local", "end"] * 2


def test_any_other_device_without_weights_and_fleet_still_gives_up(tmp_path: Path) -> None:
    files = write_files(options(tmp_path, "federated", windows=16), NOWHERE, None)
    path = files.devices["device-1"]
    path.write_text(path.read_text() + "connect_timeout_s: 0.1\n")
    with pytest.raises(NeverReady):
        listen(config.load_device(path), threading.Event())


@pytest.mark.slow
def test_static_compression_is_a_narrower_encoder_deployed_with_weights_of_eight_bits(tmp_path: Path) -> None:
    files, heard = run(tmp_path / "run", "static-compression", windows=16)
    assert heard.kinds() == {Kind.STATUS, Kind.TELEMETRY}
    floating, encoders = deployed(files, "edge-only"), deployed(files, "static-compression")
    assert {encoder.name for encoder in encoders} == {"mobile-half"}
    for full, eight in zip(floating, encoders, strict=True):
        assert same(rounded(full), eight)
        assert not same(full, eight)


@pytest.mark.slow
def test_federated_devices_give_changes_of_all_blocks_and_go_on_from_their_mean(tmp_path: Path) -> None:
    every = (("parts_per_step", PARTS), ("sync_every_windows", 8), ("weights_codec", "fp32"), ("delta_codec", None))
    lossless = (*every, ("change_codec", "fp32"))
    first, heard = run(tmp_path / "first", "federated", fleet_settings=lossless)
    again, _ = run(tmp_path / "again", "federated", fleet_settings=lossless)
    assert heard.kinds() - {Kind.MIXTURE} == {Kind.STATUS, Kind.TELEMETRY, Kind.UPDATE}
    assert learned(first)["weights"] == learned(again)["weights"]
    manifests = [messages.decode(messages.Manifest, one) for one in heard.heard[Kind.MANIFEST, None]]
    versions = sorted({one.weights_version for one in manifests})
    assert versions[:3] == [0, 1, 2], "sixteen windows a device are two rounds of eight"
    for manifest in manifests:
        assert set(manifest.merged) == (set() if manifest.weights_version == 0 else {"device-1", "device-2"})
    (encoder,) = deployed(first, "federated")
    for name in first.device_states:
        # The last round's change was merged and came back: both stand where the trainer stands.
        own = build_encoder("mobile", seed=0)
        fleet = config.load_trainer(first.trainer).fleet
        assert restore_encoder(first.device_states[name] / "weights.bin", own, fingerprint=config.fingerprint(fleet))
        for a, b in zip(own.state_dict().values(), encoder.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.broker
def test_federated_and_edge_only_run_as_processes_over_a_broker(tmp_path: Path) -> None:
    rounds = {"parts_per_step": PARTS, "sync_every_windows": 2 * PARTS}
    with Fleet(tmp_path / "federated", broker="embedded", mode="federated", **rounds) as fleet:
        fleet.start_trainer(speed="fast", expected_devices=1)
        fleet.start_device("a", windows=4 * PARTS)
        assert fleet.exit_status("a") == 0
        assert fleet.local_steps("a") == 4
        fleet.until(lambda: fleet.seen.version >= 2, "two rounds are merged")
    with Fleet(tmp_path / "alone", broker="embedded", parts_per_step=PARTS) as fleet:
        fleet.start_trainer(speed="fast")
        fleet.start_device("a", windows=2 * PARTS, splitter={"kind": "local"})
        assert fleet.exit_status("a") == 0
        assert fleet.local_steps("a") == 2
        fleet.settle()
        assert fleet.seen.version == 0
        assert not fleet.seen.activations


@pytest.mark.slow
def test_the_heuristic_goes_by_the_profile_in_fast_mode_and_repeats(tmp_path: Path) -> None:
    slow = yaml.safe_load((config.PROFILES / "raspberry-pi-4.yaml").read_text()) | {"name": "slow", "uplink_mbps": 0.5}
    (tmp_path / "slow.yaml").write_text(yaml.safe_dump(slow))
    fields: dict[str, Any] = {
        "cut": "heuristic",
        "windows": 64,
        "device_settings": (("profile", str(tmp_path / "slow.yaml")),),
    }
    first, _ = run(tmp_path / "first", "split", **fields)
    again, _ = run(tmp_path / "again", "split", **fields)
    cuts = [[line["cuts"] for line in journal(files, "device-1") if line["kind"] == "step"] for files in (first, again)]
    assert cuts[0] == cuts[1]
    assert len({str(cut) for cut in cuts[0]}) > 1, "the slow uplink moves the cut deeper"
    assert learned(first) == learned(again)


# -- raw audio stays where it is --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["split", "federated", "edge-only", "static-compression"])
def test_in_every_other_mode_no_sound_leaves_a_device_even_where_it_would_be_permitted(
    tmp_path: Path, mode: str
) -> None:
    permitted = (("baseline_raw_audio", True),)
    chosen = options(tmp_path, mode)
    files, broker = run(
        tmp_path / "run",
        mode,
        windows=16,
        trainer_settings=(*chosen.trainer_settings, *permitted),
        device_settings=permitted,
    )
    assert Kind.STATUS in broker.kinds()
    assert Kind.AUDIO not in broker.kinds()
    assert sum(journal(files, device)[-1]["window"] for device in files.device_states) == 16


@pytest.mark.parametrize("end", ["trainer", "device"])
def test_server_only_without_the_permission_of_an_end_is_refused_by_it(tmp_path: Path, end: str) -> None:
    files = write_files(options(tmp_path, "server-only"), NOWHERE, None)
    path = files.trainer if end == "trainer" else files.devices["device-1"]
    path.write_text(path.read_text().replace("baseline_raw_audio: true\n", ""))
    load = config.load_trainer if end == "trainer" else config.load_device
    with pytest.raises(ConfigError, match=r"baseline_raw_audio: mode server-only sends raw audio.*allowed: true"):
        load(path)
    assert EXIT_CONFIG == 78


def test_no_shipped_file_permits_it() -> None:
    shipped = [path for path in config.PROFILES.parent.rglob("*.yaml") if "profiles" not in path.parts]
    assert len(shipped) >= 4
    assert not [path for path in shipped if "baseline_raw_audio" in path.read_text() or "mode:" in path.read_text()]
