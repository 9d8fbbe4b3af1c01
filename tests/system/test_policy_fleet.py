"""A fleet by policies and plans: without one, corrupted, lured, pinned, with a higher floor; the wire is watched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from common import messages
from common.encoder import build_encoder
from common.messages import Activations, SplitterUpdate, Telemetry
from common.profiling import cached_profile
from common.topics import Kind, Topics, parse
from device import cutting, policy_splitter
from tests.bench.in_process import run_in_process
from tests.bench.in_process_link import MemoryLink
from tests.policies import LOCAL_PLACE, update, wanting
from tests.system.test_modes import Overhearing, options
from trainer.demo_files import write_files

PARTS, WINDOWS = 4, 16
# Below every floor first of all; then the smallest cuts; sometimes alone.
GREEDY = wanting({0: 9.0, 1: 9.0, 2: 9.0, 3: 2.0, 4: 1.0, LOCAL_PLACE: 1.0})


class Fleet(Overhearing):
    """Says what devices sent, and holds policies and pins for them before they come.

    ``lured``: the devices that are told of a plan below any floor.
    """

    def __init__(self, lured: Collection[str] = ()) -> None:
        super().__init__()
        self.lured = lured
        self.moves: dict[str, list[tuple[int, str]]] = {}  # by device: where to, and why

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool, expires: bool) -> None:
        address = parse(topic)
        if address.kind is Kind.SPLITTER and address.device in self.lured:
            payload = messages.encode(replace(messages.decode(SplitterUpdate, payload), planned_cut=0))
        super().publish(topic, payload, qos=qos, retain=retain, expires=expires)

    def plans(self, device: str) -> list[int | None]:
        payloads = self.heard.get((Kind.SPLITTER, device), [])
        return [messages.decode(SplitterUpdate, payload).planned_cut for payload in payloads]

    def activations(self, device: str) -> list[Activations]:
        return [messages.decode(Activations, payload) for payload in self.heard.get((Kind.ACTIVATIONS, device), [])]

    def telemetry(self, device: str) -> list[Telemetry]:
        return [messages.decode(Telemetry, payload) for payload in self.heard.get((Kind.TELEMETRY, device), [])]


def run(
    out: Path,
    devices: list[Mapping[str, Any]],
    policies: Mapping[int, bytes],
    pins: Mapping[int, int],
    lured: Collection[int],
) -> Fleet:
    """One run of devices with these settings; returns what went over the wire, devices by their number."""
    made = options(out, "split", windows=WINDOWS * len(devices), devices=len(devices), speed="realtime")
    files = write_files(made, "mqtt://127.0.0.1:1", None)
    names = list(files.devices)
    for name, changes in zip(names, devices, strict=True):
        _edit(files.devices[name], {"windows": WINDOWS, "splitter": {"kind": "policy", "exploration": 1.0}, **changes})
    _edit(
        files.trainer,
        {"pins": {names[number]: cut for number, cut in pins.items()}, "plan_cuts": True, "merge_every": 3},
    )
    _edit(files.trainer.parent / "fleet.yaml", {"values_per_merge": 10**6})
    _measure(files.trainer_state, list(files.device_states.values()))
    broker = Fleet({names[number] for number in lured})
    fleet = yaml.safe_load((files.trainer.parent / "fleet.yaml").read_text())["fleet"]
    for number, payload in policies.items():
        broker.publish(Topics(fleet).policy(names[number]), payload, qos=1, retain=True, expires=False)
    for number, cut in pins.items():  # as an earlier life of the trainer left them
        payload = messages.encode(SplitterUpdate(1, cut, ()))
        broker.publish(Topics(fleet).splitter(names[number]), payload, qos=1, retain=True, expires=False)
    run_in_process(files, broker=broker)
    for number, name in enumerate(names):
        lines = map(json.loads, (files.device_states[name] / "steps.jsonl").read_text().splitlines())
        broker.moves[str(number)] = [(line["cut"], line["reason"]) for line in lines if line["kind"] == "cut"]
    broker.heard = {
        (kind, str(names.index(one)) if one in names else one): v for (kind, one), v in broker.heard.items()
    }
    return broker


def _measure(trainer: Path, devices: Collection[Path]) -> None:
    """What blocks cost stands on every disk before, for tracing a model is not for one thread among others."""
    encoder = build_encoder("mobile", seed=0)
    cached_profile(encoder, trainer, nodes=False)
    made = next(trainer.glob("profile-*.json"))
    for folder in devices:
        folder.mkdir(parents=True)
        shutil.copy(made, folder)


def _edit(path: Path, changes: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | dict(changes)))


@pytest.mark.slow
def test_nothing_below_the_floor_is_ever_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_splitter, "POLICIES", tmp_path / "none-shipped")
    slow = ("device-07", "device-08")  # bytes decide: with all weights in every third batch, cut 5 has the fewest
    monkeypatch.setattr(MemoryLink, "delivery_mbps", lambda link: 0.02 if link.client_id.endswith(slow) else 100.0)
    monkeypatch.setattr(psutil, "cpu_percent", lambda **_: 20.0)  # a busy host is no reason for the rules to move
    monkeypatch.setattr(cutting, "DWELL_WINDOWS", 0)  # nor is what the rules did before a plan one to wait with it
    (tmp_path / "run").mkdir()
    good = messages.encode(update(7, GREEDY))
    broken = messages.encode(messages.PolicyUpdate(8, "mobile", "00" * 32, GREEDY))
    devices: list[Mapping[str, Any]] = [
        {},  # no policy
        {},  # a corrupted one
        {},  # pinned below the floor
        {"min_cut": 4},
        {},  # a policy, the default floor
        {"splitter": {"kind": "local"}},
        {"splitter": {"kind": "planned", "cut": 8}, "measure_compute": True},
        {"splitter": {"kind": "planned", "cut": 8}, "measure_compute": True, "min_cut": 6},
        {"splitter": {"kind": "planned"}},  # told of a plan below the floor
        {},  # likewise, without a policy
        {},  # likewise, with one
    ]
    policies = {1: broken, 2: good, 3: good, 4: good, 10: good}
    seen = run(tmp_path / "run", devices, policies, pins={2: 0}, lured=(8, 9, 10))
    cuts = {device: {part.cut for part in seen.activations(str(device))} for device in range(len(devices))}
    told = {device: seen.telemetry(str(device)) for device in range(len(devices))}
    for device in (0, 1):  # the fallback's rules, which begin at their cut
        assert seen.activations(str(device))[0].cut == 5
        assert min(cuts[device]) >= 3
    assert seen.activations("2")[-1].cut == 3  # a step may have begun at the first cut before the pin came
    assert cuts[2] <= {3, 5}
    assert min(cuts[3]) >= 4
    assert min(cuts[4]) >= 3
    assert cuts[5] == set()
    for device, planned in ((6, 5), (7, 6)):  # the planner's answer comes once the link is known
        assert seen.plans(str(device)) == [None, planned]
        assert seen.moves[str(device)][-1] == (planned, "planned")
        assert min(cuts[device]) == seen.activations(str(device))[-1].cut == planned
        assert any(one.client_ms for one in told[device])
    for device in (8, 9):
        assert seen.moves[str(device)][-1] == (3, "planned: cut 0 is not allowed")
        assert min(cuts[device]) == seen.activations(str(device))[-1].cut == 3
    assert min(cuts[10]) >= 3
    for device in (0, 1, 2, 5, 6, 7, 8, 9):
        assert {one.policy_version for one in told[device]} == {0}
    for device in (3, 4, 10):
        by_policy = [one for one in told[device] if one.policy_version == 7]
        assert by_policy
        assert all(one.log_prob < 0.0 and not any(one.mask[:3]) for one in by_policy)
        seqs = [one.decision_seq for one in told[device]]
        assert seqs == sorted(seqs)
