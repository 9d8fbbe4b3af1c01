"""A fleet by policies: without one, with a corrupted one, pinned, with a higher floor; the wire is watched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from common import messages
from common.messages import Activations, Telemetry
from common.topics import Kind, Topics
from device import policy_splitter
from tests.bench.in_process import run_in_process
from tests.policies import LOCAL_PLACE, update, wanting
from tests.system.test_modes import Overhearing, options
from trainer.demo_files import write_files

PARTS, WINDOWS = 4, 16
# Below every floor first of all; then the smallest cuts; sometimes alone.
GREEDY = wanting({0: 9.0, 1: 9.0, 2: 9.0, 3: 2.0, 4: 1.0, LOCAL_PLACE: 1.0})


class Fleet(Overhearing):
    """Says what devices sent, and holds policies for them before they come."""

    def activations(self, device: str) -> list[Activations]:
        return [messages.decode(Activations, payload) for payload in self.heard.get((Kind.ACTIVATIONS, device), [])]

    def telemetry(self, device: str) -> list[Telemetry]:
        return [messages.decode(Telemetry, payload) for payload in self.heard.get((Kind.TELEMETRY, device), [])]


def run(out: Path, devices: list[Mapping[str, Any]], policies: Mapping[int, bytes], pins: Mapping[int, int]) -> Fleet:
    """One run of devices with these settings; returns what went over the wire, devices by their number."""
    made = options(out, "split", windows=WINDOWS * len(devices), devices=len(devices), speed="realtime")
    files = write_files(made, "mqtt://127.0.0.1:1", None)
    names = list(files.devices)
    for name, changes in zip(names, devices, strict=True):
        _edit(files.devices[name], {"windows": WINDOWS, "splitter": {"kind": "policy", "exploration": 1.0}, **changes})
    _edit(files.trainer, {"pins": {names[number]: cut for number, cut in pins.items()}})
    broker = Fleet()
    fleet = yaml.safe_load((files.trainer.parent / "fleet.yaml").read_text())["fleet"]
    for number, payload in policies.items():
        broker.publish(Topics(fleet).policy(names[number]), payload, qos=1, retain=True, expires=False)
    run_in_process(files, broker=broker)
    broker.heard = {
        (kind, str(names.index(one)) if one in names else one): v for (kind, one), v in broker.heard.items()
    }
    return broker


def _edit(path: Path, changes: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | dict(changes)))


@pytest.mark.slow
def test_nothing_below_the_floor_is_ever_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_splitter, "POLICIES", tmp_path / "none-shipped")
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
    ]
    seen = run(tmp_path / "run", devices, {1: broken, 2: good, 3: good, 4: good}, pins={2: 0})
    cuts = {device: {part.cut for part in seen.activations(str(device))} for device in range(6)}
    told = {device: seen.telemetry(str(device)) for device in range(6)}
    for device in (0, 1):  # the fallback's rules, which begin at their cut
        assert seen.activations(str(device))[0].cut == 5
        assert min(cuts[device]) >= 3
    assert seen.activations("2")[-1].cut == 3  # a step may have begun at the first cut before the pin came
    assert cuts[2] <= {3, 5}
    assert min(cuts[3]) >= 4
    assert min(cuts[4]) >= 3
    assert cuts[5] == set()
    for device in (0, 1, 2, 5):
        assert {one.policy_version for one in told[device]} == {0}
    for device in (3, 4):
        by_policy = [one for one in told[device] if one.policy_version == 7]
        assert by_policy
        assert all(one.log_prob < 0.0 and not any(one.mask[:3]) for one in by_policy)
        seqs = [one.decision_seq for one in told[device]]
        assert seqs == sorted(seqs)
