"""How quick a device says its board is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from common import config, profiling
from common.compute_profile import window_forward_ms
from common.encoder import build_encoder
from device import board

MEASURED_MS = 7.0


def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, encoder: str = "mobile", **keys: Any) -> float | None:
    (tmp_path / "fleet.yaml").write_text(f"fleet: home\nencoder: {encoder}\nbroker: {{url: 'mqtt://127.0.0.1:1'}}\n")
    made = {"id": "pi", "fleet": "fleet.yaml", "state_directory": "state", "source": {"kind": "soundscape", "seed": 1}}
    (tmp_path / "device.yaml").write_text(yaml.safe_dump(made | keys))
    monkeypatch.setattr(board, "mobile_forward_ms", lambda: MEASURED_MS)
    return board.forward_ms(config.load_device(tmp_path / "device.yaml"))


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
