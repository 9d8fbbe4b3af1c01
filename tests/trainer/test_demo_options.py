"""The demonstration's command line says everything that is wrong with it at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from common import config
from common.errors import ConfigError
from trainer.dataset import find_clips, hold_out
from trainer.demo_files import AVERAGED_EVERY, windows_of, write_files
from trainer.demo_options import parse


def test_every_wrong_option_is_named() -> None:
    with pytest.raises(ConfigError) as error:
        parse(["--devices", "9", "--windows", "3", "--cut", "left", "--codec", "mp3", "--profile", "raspberry-pi-5x"])
    for word in ("--devices 9", "--cut left", "--codec", "--profile", "raspberry-pi-5"):
        assert word in str(error.value)


def test_a_setting_without_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        parse(["--set", "merge_every"])


def test_a_dotted_setting_leads_into_a_block_of_a_device_s_file(tmp_path: Path) -> None:
    given = ["--out", str(tmp_path), "--set-device", "splitter.cut=6", "--set-device", "local_learning=false"]
    options, _ = parse([*given, "--set-fleet", "parts_per_step=4"])
    device = config.load_device(write_files(options, "mqtt://127.0.0.1:1883", None).devices["device-1"])
    assert (device.splitter.cut, device.splitter.kind) == (6, "fixed")
    assert not device.local_learning
    assert device.fleet.parts_per_step == 4


def test_windows_add_up_to_what_was_asked_for() -> None:
    options, _ = parse(["--devices", "3", "--windows", "100"])
    assert windows_of(options) == [34, 33, 33]


@pytest.mark.parametrize("cut", ["0", "5", "8", "heuristic"])
def test_the_files_written_are_valid_configuration(tmp_path: Path, cut: str) -> None:
    given = ["--cut", cut, "--profile", "raspberry-pi-4", "--out", str(tmp_path), "--set", "merge_every=7"]
    options, _ = parse(given)
    files = write_files(options, "mqtt://127.0.0.1:1883", None)
    assert config.load_trainer(files.trainer).merge_every == 7
    device = config.load_device(files.devices["device-1"])
    assert device.profile is not None
    assert device.min_cut <= device.splitter.cut
    assert len(files.devices) == 4


QUARTER = ["sending.share=0.25", "sending.by=random"]


@pytest.mark.parametrize(
    ("settings", "budget"), [([], 6000), (QUARTER, 1500), ([*QUARTER, "sending.unsent=skip"], 1500)]
)
def test_the_schedule_s_budget_is_what_the_devices_send(tmp_path: Path, settings: list[str], budget: int) -> None:
    given = [word for setting in settings for word in ("--set-device", setting)]
    options, _ = parse([*given, "--out", str(tmp_path)])
    files = write_files(options, "mqtt://127.0.0.1:1883", None)
    trainer = config.load_trainer(files.trainer)
    assert trainer.budget_windows == budget
    default = type(trainer).model_fields["merge_every"].default
    averaged = trainer.fleet.client_updates == "averaged"
    learns_alone = budget < 6000 and "sending.unsent=skip" not in settings
    assert averaged == learns_alone, "what is learned alone are steps of the devices' own"
    assert trainer.merge_every == (round(AVERAGED_EVERY * budget / 6000) if averaged else default)
    device = config.load_device(files.devices["device-1"])
    assert device.windows == 1500
    assert device.sending.share == budget / 6000


def test_no_held_out_recording_is_on_a_device_s_list(tmp_path: Path) -> None:
    for fold in (1, 2):
        for take in range(4):
            path = tmp_path / "data" / "rain" / f"{fold}-{fold}{take}-A.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    options, _ = parse(["--devices", "2", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")])
    split = hold_out(find_clips(tmp_path / "data"), 1)
    files = write_files(options, "mqtt://127.0.0.1:1883", split)
    listed = [
        line
        for path in files.devices.values()
        for line in (tmp_path / yaml.safe_load(path.read_text())["source"]["list"]).read_text().splitlines()
    ]
    assert sorted(listed) == sorted(clip.relative for clip in split.training)
    assert all(line.startswith("rain/2-") for line in listed)
