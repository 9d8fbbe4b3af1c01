"""How quick a device says its board is, and by what its energy is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from common import config, profiling
from common.compute_profile import window_forward_ms
from common.config_device import DeviceConfig
from common.encoder import build_encoder
from device import board
from device.pmic import Pmic

MEASURED_MS = 7.0


def settings_of(tmp_path: Path, *, encoder: str = "mobile", **keys: Any) -> DeviceConfig:
    (tmp_path / "fleet.yaml").write_text(f"fleet: home\nencoder: {encoder}\nbroker: {{url: 'mqtt://127.0.0.1:1'}}\n")
    made = {"id": "pi", "fleet": "fleet.yaml", "state_directory": "state", "source": {"kind": "soundscape", "seed": 1}}
    (tmp_path / "device.yaml").write_text(yaml.safe_dump(made | keys))
    return config.load_device(tmp_path / "device.yaml")


def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **keys: Any) -> float | None:
    monkeypatch.setattr(board, "mobile_forward_ms", lambda: MEASURED_MS)
    return board.forward_ms(settings_of(tmp_path, **keys))


POLICY = {"kind": "policy"}


def test_a_board_that_is_played_says_what_its_profile_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(tmp_path, monkeypatch, splitter=POLICY, profile="raspberry-pi-4", emulate=True) == 20.0


@pytest.mark.parametrize("keys", [{}, {"profile": "raspberry-pi-4"}, {"encoder": "resnet18"}])
def test_a_board_that_is_there_says_what_it_measures_of_mobile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, str]
) -> None:
    assert told(tmp_path, monkeypatch, splitter=POLICY, **keys) == MEASURED_MS


def test_where_no_policy_asks_nothing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(tmp_path, monkeypatch, splitter={"kind": "heuristic"}, profile="raspberry-pi-4") is None


def test_what_is_measured_is_what_a_profile_of_this_machine_says() -> None:
    profile = profiling.measure(build_encoder("mobile", seed=0), name="mobile", nodes=False)
    assert 0.4 < board.mobile_forward_ms() / window_forward_ms(profile) < 2.5


@pytest.mark.parametrize("keys", [{}, {"profile": "raspberry-pi-5"}])
def test_energy_is_measured_by_the_boards_pmic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any]
) -> None:
    monkeypatch.setattr("device.energy.rapl_packages", lambda _powercap: ())
    pmic, started = Pmic(lambda: 4.0), list[Pmic]()
    monkeypatch.setattr(board, "find_pmic", lambda: pmic)
    monkeypatch.setattr(Pmic, "start", lambda self: started.append(self))
    meter = board.energy_of(settings_of(tmp_path, **keys))
    assert started == [pmic]
    assert meter.read(busy_s=0.0, bytes_up=0, bytes_down=0).source == "pmic"


def test_who_plays_a_board_does_not_ask_the_pmic_of_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "find_pmic", lambda: pytest.fail("asked"))
    meter = board.energy_of(settings_of(tmp_path, profile="raspberry-pi-4", emulate=True))
    assert meter.read(busy_s=0.0, bytes_up=0, bytes_down=0).source == "model"
