"""A device's loop as a whole, where there is no fleet."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from common import config, weights_file
from common.config_device import DeviceConfig
from device import loop
from device.__main__ import listen

NOBODY = "fleet: home\nbroker: {url: 'mqtt://127.0.0.1:1'}\n"


def settings(folder: Path, *lines: str) -> DeviceConfig:
    (folder / "fleet.yaml").write_text(NOBODY)
    text = ("id: porch", "fleet: fleet.yaml", "source: {kind: soundscape}", "speed: fast", "measure_compute: false",
            f"state_directory: {folder / 'state'}", "connect_timeout_s: 0.2", *lines)  # fmt: skip
    (folder / "device.yaml").write_text("\n".join(text))
    return config.load_device(folder / "device.yaml")


def test_what_a_device_learns_during_an_outage_is_on_its_disk_before_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listen(settings(tmp_path, "splitter: {kind: local}", "windows: 8"), threading.Event())
    saved: list[Path] = []
    write = weights_file.write

    def noted(path: Path, *stored: object, **others: object) -> None:
        saved.append(path)
        write(path, *stored, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(weights_file, "write", noted)
    monkeypatch.setattr(loop, "SAVE_LOCAL_STEPS", 2)
    monkeypatch.setattr(loop.DeviceLoop, "_leave", lambda self: None)  # the power is cut
    listen(settings(tmp_path, "windows: 40"), threading.Event())
    assert len(saved) >= 2
