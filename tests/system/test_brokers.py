"""A short run of two devices to its end, on every broker there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.brokers import KINDS
from tests.fleet import Fleet

WINDOWS = 48
STEPS = WINDOWS // 8


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_devices_learn_to_the_end(tmp_path: Path, kind: str) -> None:
    with Fleet(tmp_path, broker=kind) as fleet:
        fleet.start_trainer(speed="fast", expected_devices=2, merge_every=2)
        for device in "ab":
            fleet.start_device(device, windows=WINDOWS, step_timeout_s=60.0)  # a busy machine is no lost step
        assert [fleet.exit_status(device) for device in "ab"] == [0, 0]
        fleet.settle()
        manifest = fleet.retained_weights()
        fleet.ask_to_stop("trainer")
        assert fleet.exit_status("trainer") == 0
        for device in "ab":
            assert [line["result"] for line in fleet.journal(device) if line["kind"] == "step"] == ["answered"] * STEPS
            assert fleet.local_steps(device) == 0
            assert fleet.seen.status[device].state == "stopped"
        assert [line["devices"] for line in fleet.metrics()] == [2] * STEPS
        assert manifest.weights_version == STEPS // 2
        assert set(manifest.merged) == {"a", "b"}
        assert fleet.seen.trainer[-1].state == "stopped"
