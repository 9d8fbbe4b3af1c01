"""What cannot work says so: one message in words, no traceback, an exit status that a service manager understands."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from broker.child import free_port
from broker.start import Broker, open_broker
from common import messages
from common.config import EXIT_CONFIG, fingerprint, load_fleet
from common.process import EXIT_UNAVAILABLE
from common.topics import is_data
from tests.brokers import Links, eventually
from tests.fleet import ROOT, Fleet
from trainer import checkpoint

AWAY = "mqtt://127.0.0.1:1"  # a port that only root could listen on, and nobody does


@dataclass(frozen=True)
class Ended:
    status: int
    said: str  # everything but the log lines that every process begins with

    @property
    def last(self) -> str:
        return self.said.strip().splitlines()[-1]


def run(module: str, config: Path) -> Ended:
    done = subprocess.run(
        [sys.executable, "-m", module, str(config)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout == ""
    return Ended(done.returncode, done.stderr)


@pytest.fixture
def files(tmp_path: Path) -> Fleet:
    """Writes configurations; nothing of it is started."""
    fleet = Fleet(tmp_path)
    fleet.broker = Broker(AWAY, "external")
    return fleet


def assert_nothing_is_left(state: Path) -> None:
    assert {path.name for path in state.rglob("*")} <= {"steps.jsonl"}
    if (state / "steps.jsonl").exists():
        assert '"step"' not in (state / "steps.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize("module", ["device", "trainer"])
def test_wrong_yaml_is_named_line_by_line(files: Fleet, module: str) -> None:
    path = files.device_file("device") if module == "device" else files.trainer_file()
    path.write_text(path.read_text(encoding="utf-8")[:-1] + ',\n"spede": "fast",\n"seed": "7"}', encoding="utf-8")
    ended = run(module, path)
    assert ended.status == EXIT_CONFIG
    lines = ended.said.strip().splitlines()
    assert len(lines) == 2, ended.said
    assert lines[0].startswith(f"{path}:2: spede:")
    assert 'did you mean "speed"' in lines[0]
    assert lines[1].startswith(f"{path}:3: seed:")
    assert_nothing_is_left(files.directory / module)


def missing(folder: Path) -> None:
    """Nothing is there."""


def a_file(folder: Path) -> None:
    folder.write_text("no folder", encoding="utf-8")


def unreadable(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0)
    if os.access(folder, os.R_OK):
        pytest.skip("this user may read everything")


def without_audio(folder: Path) -> None:
    folder.mkdir()
    (folder / "notes.txt").write_text("no sound", encoding="utf-8")


def broken_audio(folder: Path) -> None:
    folder.mkdir()
    (folder / "clip.wav").write_bytes(b"RIFF of nothing")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (missing, "there is no such folder"),
        (a_file, "is not a folder"),
        (unreadable, "cannot be read"),
        (without_audio, "holds no recordings"),
        (broken_audio, "not one of its 1 recordings can be read"),
    ],
)
def test_a_folder_without_recordings_is_named(files: Fleet, make: object, words: str) -> None:
    folder = files.directory / "recordings"
    assert callable(make)
    make(folder)
    ended = run("device", files.device_file("a", source={"kind": "folder", "path": str(folder)}))
    assert ended.status == EXIT_CONFIG
    assert f"{folder}: " in ended.last.removeprefix("source.path ")
    assert words in ended.last
    assert_nothing_is_left(files.directory / "a")


def test_an_unreachable_broker_is_named_with_its_address(files: Fleet) -> None:
    url = f"mqtt://127.0.0.1:{free_port('127.0.0.1')}"
    ended = run("device", files.device_file("a", url=url, connect_timeout_s=1.0))
    assert ended.status == EXIT_UNAVAILABLE
    assert ended.last.startswith(f"no fleet at {url.removeprefix('mqtt://')}: ")
    assert "refused" in ended.last.lower()
    assert_nothing_is_left(files.directory / "a")


def test_a_broker_without_a_trainer_is_told_apart_from_no_broker(files: Fleet) -> None:
    with open_broker("auto", directory=files.directory / "broker") as broker:
        ended = run("device", files.device_file("a", url=broker.url, connect_timeout_s=1.0))
    assert ended.status == EXIT_UNAVAILABLE
    assert "there is no trainer" in ended.last
    assert_nothing_is_left(files.directory / "a")


def test_a_trainer_of_another_configuration_is_refused_in_words(files: Fleet) -> None:
    other = fingerprint(load_fleet(files.fleet_file("other", parts_per_step=4)))
    status = messages.TrainerStatus("ready", "0123456789abcdef", 1, "a-run", other, 3)
    with open_broker("auto", directory=files.directory / "broker") as broker:
        links = Links(broker)
        try:
            trainer = links.make("trainer", files.topics.trainer_status(), is_data=is_data)
            trainer.retain(files.topics.trainer_status(), messages.encode(status))
            assert trainer.receive(20.0) is not None
            ended = run("device", files.device_file("a", url=broker.url))
        finally:
            links.stop()
    assert ended.status == EXIT_CONFIG
    assert ended.last.startswith("the trainer is configured otherwise")
    assert other[:12] in ended.last
    assert "parts_per_step" in ended.last
    assert_nothing_is_left(files.directory / "a")


def test_a_trainer_does_not_touch_a_checkpoint_of_another_configuration(files: Fleet) -> None:
    state = files.directory / "trainer"
    saved = checkpoint.Checkpoint("a-run", "f" * 64, "mobile", {"x": torch.zeros(1)}, {}, 3, 12, 96)
    path = checkpoint.save(state, saved)
    before = path.read_bytes()
    ended = run("trainer", files.trainer_file())
    assert ended.status == EXIT_CONFIG
    assert ended.last.startswith(f"{path}: written under other settings")
    assert [file.name for file in state.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_a_trainer_without_a_broker_says_so_waits_and_leaves_nothing_when_stopped(files: Fleet) -> None:
    address = f"127.0.0.1:{free_port('127.0.0.1')}"
    files.broker = Broker(f"mqtt://{address}", "external")
    files.start("trainer", "trainer", files.trainer_file())
    try:
        eventually(lambda: f"no broker at {address}" in files.log("trainer"), "the trainer says that it waits")
        files.processes["trainer"].terminate()
        assert files.processes["trainer"].wait(60) == 0
    finally:
        files.processes["trainer"].kill()
        files.processes["trainer"].wait()
    assert "Traceback" not in files.log("trainer")
    assert not list((files.directory / "trainer").glob("checkpoint-*"))


def test_a_device_whose_recordings_turn_out_to_be_broken_says_that_it_is_gone(tmp_path: Path) -> None:
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    for name in ("a.flac", "b.flac"):
        soundfile.write(recordings / name, np.random.default_rng(0).normal(0, 0.1, 80_000), 16_000)
        whole = (recordings / name).read_bytes()
        (recordings / name).write_bytes(whole[:200] + bytes(len(whole) - 200))  # the header is whole, the sound is gone
    with Fleet(tmp_path / "fleet") as fleet:
        fleet.start_trainer()
        fleet.start_device("a", source={"kind": "folder", "path": str(recordings)})
        assert fleet.exit_status("a") == EXIT_CONFIG
        assert fleet.log("a").splitlines()[-1].startswith(f"{recordings}: not one of its recordings can be decoded")
        fleet.until(lambda: fleet.seen.status["a"].state == "stopped", "it says so")
