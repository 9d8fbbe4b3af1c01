"""Sparse sending in a whole fleet: it repeats bit for bit, every step is closed, the rest is learned from locally."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from common import config, messages
from common.actions import LOCAL
from common.topics import Kind, Topics, parse
from tests.bench.in_process import run_in_process
from tests.bench.in_process_link import MemoryBroker
from tests.policies import update, wanting
from tests.system.test_in_process import learned, options
from tests.system.test_modes import Overhearing
from trainer.demo_files import DemoFiles, write_files
from trainer.policy_experience import Experience
from trainer.reward import RewardWeights

SHARE = 0.6
CAPTURED = 170  # so that the mixture starts and the last merge before the end tells the devices


class Watcher:
    """Hears every part that is sent."""

    def __init__(self, files: DemoFiles) -> None:
        self.broker = MemoryBroker()
        fleet = config.load_trainer(files.trainer).fleet
        self._link = self.broker.open_link(
            fleet, client_id="watcher", will=("w", b""), data_capacity=10_000, outbound_capacity=1
        )
        self._link.subscribe(Topics(fleet.fleet).every_device(Kind.ACTIVATIONS))
        self._link.start()

    def steps(self) -> dict[str, dict[int, list[messages.Activations]]]:
        """Device -> step -> its parts."""
        heard: dict[str, dict[int, list[messages.Activations]]] = {}
        while (incoming := self._link.receive(0.0)) is not None:
            part = messages.decode(messages.Activations, incoming.payload)
            heard.setdefault(str(parse(incoming.topic).device), {}).setdefault(part.step, []).append(part)
        return heard


def sparse(out: Path, **sending: object) -> DemoFiles:
    out.mkdir()
    settings = tuple((f"sending.{key}", value) for key, value in sending.items())
    plain = options(out)
    asked = type(plain)(
        **{name: getattr(plain, name) for name in plain.__slots__ if name not in ("windows", "device_settings")},
        windows=2 * CAPTURED,
        device_settings=settings,
    )
    return write_files(asked, "mqtt://127.0.0.1:1", None)


def ends(files: DemoFiles) -> list[dict[str, Any]]:
    return [json.loads((state / "steps.jsonl").read_text().splitlines()[-1]) for state in files.device_states.values()]


@pytest.mark.slow
def test_a_sparse_run_repeats_and_every_step_that_was_begun_is_closed(tmp_path: Path) -> None:
    runs = []
    for name in ("once", "again"):
        files = sparse(tmp_path / name, share=SHARE, by="uncertainty", unsent="learn")
        assert config.load_trainer(files.trainer).budget_windows == 2 * CAPTURED * SHARE
        watcher = Watcher(files)
        run_in_process(files, broker=watcher.broker)
        for steps in watcher.steps().values():
            assert [part.last for parts in steps.values() for part in parts] == [
                number == len(parts) - 1 for parts in steps.values() for number in range(len(parts))
            ]
        runs.append(learned(files))
        for end in ends(files):
            assert end["window"] == CAPTURED
            assert end["sent"] == pytest.approx(SHARE * CAPTURED, abs=12)
            # Two windows a local step, and what waits at the end is not learned from.
            assert end["local"] == pytest.approx(CAPTURED - end["sent"], abs=20)
    for what in ("progress", "metrics", "weights"):
        assert runs[0][what] == runs[1][what], f"{what} differ"


def test_what_is_not_sent_can_be_left_out_of_local_learning(tmp_path: Path) -> None:
    files = sparse(tmp_path / "run", share=SHARE, by="random", unsent="skip")
    run_in_process(files)
    assert [end["local"] for end in ends(files)] == [0, 0]


@pytest.mark.slow
def test_a_step_of_a_sparse_fleet_is_one_decision_so_that_a_policy_can_learn_from_it(tmp_path: Path) -> None:
    files = sparse(tmp_path / "run", share=0.25)
    for path in files.devices.values():
        settings = yaml.safe_load(path.read_text())
        settings["splitter"] = {"kind": "policy", "exploration": 1.0}
        path.write_text(yaml.safe_dump(settings))
    broker, settings = Overhearing(), config.load_trainer(files.trainer)
    for device in files.devices:  # as `streamsplit policy` tells it; of a file's nobody would learn
        payload = messages.encode(update(7, wanting({})))
        broker.publish(Topics(settings.fleet.fleet).policy(device), payload, qos=1, retain=True, expires=False)
    run_in_process(files, broker=broker)
    parts = settings.fleet.parts_per_step
    for device in files.devices:
        told = [messages.decode(messages.Telemetry, payload) for payload in broker.heard[Kind.TELEMETRY, device]]
        made = Experience(parts_per_step=parts, weights=RewardWeights(), actions=len(told[-1].mask))
        joined = [one for one in told if made.offer(device, one, at_s=0.0) is not None]
        assert any(one.log_prob < 0.0 for one in told)
        # The first follows nothing; a step that was begun before the device was online may be two.
        assert len(joined) >= told[-1].steps_sent + sum(one.action == LOCAL for one in told) - 3
