"""A fleet inside one process learns what processes learn over a real broker, bit for bit, and counts the same bytes."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from broker.start import open_broker
from common.config_fleet import FleetConfig
from common.link_queues import Incoming
from common.state_blob import digest, pack_state
from tests.bench.in_process import FleetFailed, InTurn, run_in_process
from tests.bench.in_process_link import MemoryBroker, matches
from trainer import checkpoint, demo
from trainer.demo_files import DemoFiles, DemoOptions, write_files
from trainer.metrics import FILE_NAME

STEPS = 50
PARTS = 2
DEVICES = 2
OPEN: dict[str, Any] = {"will": None, "data_capacity": 8, "outbound_capacity": 8}
MEASURED = {"seconds", "embedding_ms_p95"}


def options(out: Path) -> DemoOptions:
    return DemoOptions(
        devices=DEVICES,
        windows=STEPS * PARTS * DEVICES,
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
        trainer_settings=(("threads", 1), ("merge_each_until", 12), ("merge_every", 10)),
        fleet_settings=(("parts_per_step", PARTS),),
    )


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


def transferred(files: DemoFiles) -> int:
    ends = [json.loads((state / "steps.jsonl").read_text().splitlines()[-1]) for state in files.device_states.values()]
    assert all(end["kind"] == "end" for end in ends)
    return sum(end["bytes_up"] + end["bytes_down"] for end in ends)


@pytest.mark.slow
def test_fifty_steps_in_one_process_are_those_of_processes_over_a_broker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("within", "between"):
        (tmp_path / name).mkdir()
    within = write_files(options(tmp_path / "within"), "mqtt://127.0.0.1:1", None)
    run_in_process(within)
    with open_broker("embedded", directory=tmp_path / "broker") as broker:
        between = write_files(options(tmp_path / "between"), broker.url, None)
        demo.train(options(tmp_path / "between"), between, broker.url, Console(quiet=True))
    once, again = learned(within), learned(between)
    assert once["progress"] == again["progress"] == (once["progress"][0], STEPS, STEPS * PARTS * DEVICES)
    for what in ("metrics", "weights"):
        assert once[what] == again[what], f"{what} differ"
    # The embedded broker speaks MQTT 3.1.1: a byte or six less for each message, and a handshake more for each end.
    assert transferred(within) == pytest.approx(transferred(between), rel=0.03)


def test_an_error_in_one_of_the_threads_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_files(options(tmp_path), "mqtt://127.0.0.1:1", None)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("device.loop.DeviceLoop._take", broken)
    with pytest.raises(FleetFailed, match="a bug"):
        run_in_process(files)


def test_of_all_devices_one_computes_at_a_time_and_who_waits_lets_the_others() -> None:
    turn = threading.Lock()
    hub = MemoryBroker()
    fleet = FleetConfig.model_validate({"fleet": "f", "broker": {"url": "mqtt://127.0.0.1:1"}})
    one, other = (InTurn(hub.open_link(fleet, client_id=name, **OPEN), turn) for name in ("f-one", "f-other"))
    one.start()
    one.subscribe("streamsplit/v1/f/one/#")
    assert turn.locked()
    came: list[Incoming | None] = []

    def work() -> None:
        other.start()  # returns as soon as the first one waits
        other.publish("streamsplit/v1/f/one/down/config", b"hello")
        other.give_up()

    thread = threading.Thread(target=work)
    thread.start()
    came.append(one.receive(30.0))
    thread.join(30.0)
    assert [found.payload for found in came if found] == [b"hello"]
    assert turn.locked(), "who has received goes on computing"
    one.give_up()
    one.give_up()
    assert not turn.locked()


@pytest.mark.parametrize(
    ("topic_filter", "topic", "expected"),
    [
        ("a/+/c", "a/b/c", True),
        ("a/+/c", "a/b/c/d", False),
        ("a/#", "a/b/c", True),
        ("a/#", "a", True),
        ("a/b", "a/b", True),
        ("a/b", "a", False),
        ("a/+", "a", False),
    ],
)
def test_filters_match_as_mqtt_says(topic_filter: str, topic: str, expected: bool) -> None:
    assert matches(topic_filter, topic) is expected
