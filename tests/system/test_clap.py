"""Sound and captions in one space, end to end: configuration alone makes a fleet train it, and evaluate asks it."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile

from common import messages, soundscape
from common.captions import class_captions
from tests.fleet import Fleet
from trainer import checkpoint
from trainer.evaluate import main as evaluate

WINDOWS = 24
WRITTEN = ("drops patter on a tin roof", "it pours outside")


def recordings(folder: Path) -> Path:
    """Two classes, four recordings each, the first with two captions that a person wrote, the last without any."""
    rng = np.random.default_rng(0)
    for label in ("rain", "siren"):
        (folder / label).mkdir(parents=True)
        for number in range(4):
            soundfile.write(folder / label / f"{number}.wav", soundscape.clip(label, 4.0, rng), 16_000)
    lines = ["file,caption", *(f"rain/{number}.wav,{text}" for number in range(4) for text in WRITTEN)]
    (folder / "captions.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.mark.slow
def test_a_fleet_learns_from_captions_and_its_checkpoint_classifies_by_prompts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = recordings(tmp_path / "recordings")
    heard: defaultdict[str, set[str | None]] = defaultdict(set)

    def note(device: str, part: messages.Activations) -> None:
        heard[device].add(part.caption)

    with Fleet(tmp_path / "fleet", broker="embedded", objective="clap") as fleet:
        fleet.seen.on_part = note
        fleet.start_trainer(speed="fast", expected_devices=2, seed=5)
        fleet.start_device("named", windows=WINDOWS, source={"kind": "soundscape", "classes": ["rain", "engine"]})
        fleet.start_device("written", windows=WINDOWS, source={"kind": "folder", "path": str(folder)})
        for device in ("named", "written"):
            assert fleet.exit_status(device) == 0
        fleet.settle()
        fleet.ask_to_stop("trainer")
        assert fleet.exit_status("trainer") == 0
        assert [fleet.answered(device) for device in ("named", "written")] == [WINDOWS // 8] * 2
        assert "came without a caption" in fleet.log("trainer")

    assert heard["named"] <= {*class_captions("rain"), *class_captions("engine")}
    assert len(heard["named"]) > 2
    assert heard["written"] == {*WRITTEN, None}
    path = checkpoint.latest(tmp_path / "fleet" / "trainer")
    assert path is not None

    assert evaluate([str(path), "--data", str(folder), "--json"]) == 0
    table, _, last = capsys.readouterr().out.rstrip().rpartition("\n")
    result = json.loads(last)["zero_shot"]
    assert 0 <= result["accuracy"] <= 1
    assert (result["classes"], result["chance"]) == (2, 0.5)
    assert result["windows"]["from_class_names"] == WINDOWS
    assert result["windows"]["written"] + result["windows"]["without"] == WINDOWS
    assert result["windows"]["written"] > 0
    assert result["supervised"] is True
    assert "zero-shot" in table
    assert "supervised" in table


def test_a_device_without_captions_to_send_says_so_before_anything_is_started(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(32_000), 16_000)
    with Fleet(tmp_path / "fleet", broker="embedded", objective="clap") as fleet:
        fleet.start_device("a", windows=8, source={"kind": "folder", "path": str(tmp_path)})
        assert fleet.exit_status("a") == 78
        assert "the objective clap needs captions" in fleet.log("a")


def test_a_fleet_of_another_objective_sends_no_captions(tmp_path: Path) -> None:
    folder = recordings(tmp_path / "recordings")
    heard: set[str | None] = set()
    with Fleet(tmp_path / "fleet", broker="embedded") as fleet:
        fleet.seen.on_part = lambda _, part: heard.add(part.caption)
        fleet.start_trainer(speed="fast", expected_devices=1)
        fleet.start_device("a", windows=8, source={"kind": "folder", "path": str(folder)})
        assert fleet.exit_status("a") == 0
        fleet.settle()
    assert heard == {None}
