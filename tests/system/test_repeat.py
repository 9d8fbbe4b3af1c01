"""In fast mode a run repeats bit for bit: two at once, so that nothing of the machine's timing is the same for both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.state_blob import digest, pack_state
from tests.fleet import Fleet
from trainer import checkpoint

MEASURED = {"seconds", "embedding_ms_p95"}  # time: the only thing in the metrics that may differ
WINDOWS = 56


def begin(fleet: Fleet) -> None:
    fleet.start_trainer(speed="fast", expected_devices=1, seed=5)
    fleet.start_device("a", windows=WINDOWS, seed=7)


def end(fleet: Fleet) -> None:
    assert fleet.exit_status("a") == 0
    fleet.settle()
    fleet.ask_to_stop("trainer")
    assert fleet.exit_status("trainer") == 0


def learned(fleet: Fleet) -> dict[str, Any]:
    path = checkpoint.latest(fleet.directory / "trainer")
    assert path is not None
    saved = checkpoint.load(path)
    return {
        "metrics": [{key: value for key, value in line.items() if key not in MEASURED} for line in fleet.metrics()],
        "device": [(line["result"], line["loss"]) for line in fleet.journal("a") if line["kind"] == "step"],
        "weights": {name: digest(pack_state({name: value}, "fp32")) for name, value in saved.encoder.items()},
        "progress": (saved.weights_version, saved.steps, saved.windows),
    }


@pytest.mark.slow
def test_a_run_with_one_device_repeats_bit_for_bit(tmp_path: Path) -> None:
    with Fleet(tmp_path / "first", broker="embedded") as first, Fleet(tmp_path / "second", broker="embedded") as second:
        for fleet in (first, second):
            begin(fleet)
        for fleet in (first, second):
            end(fleet)
        once, again = learned(first), learned(second)
    assert [result for result, _ in once["device"]] == ["answered"] * (WINDOWS // 8)
    assert len(once["metrics"]) == WINDOWS // 8
    for what in ("metrics", "device", "progress", "weights"):
        assert once[what] == again[what], f"{what} differ"
