"""What `streamsplit broker-config` writes for a Mosquitto, and that a file it cannot use is named."""

from __future__ import annotations

from pathlib import Path

import pytest

import streamsplit
from broker.configuration import access_list, for_deployment
from common.config import load_fleet
from common.topics import FLEET_KINDS, Kind, Topics


def fleet_file(directory: Path, url: str, **broker: str) -> Path:
    path = directory / "fleet.yaml"
    more = "".join(f"  {key}: {value}\n" for key, value in broker.items())
    path.write_text(f"fleet: barn\nbroker:\n  url: {url}\n{more}max_message_bytes: 1000000\n", encoding="utf-8")
    return path


def test_port_and_largest_message_are_the_fleets_and_mqtts_asks_for_certificates(tmp_path: Path) -> None:
    text = for_deployment(load_fleet(fleet_file(tmp_path, "mqtts://broker.lan:8899")), etc="/srv")
    lines = text.splitlines()
    assert {"listener 8899", "certfile /srv/certs/server.crt", "max_packet_size 1000000"} <= set(lines)
    assert "allow_anonymous false" in lines
    assert "require_certificate true" not in lines


def test_devices_with_certificates_are_asked_for_them(tmp_path: Path) -> None:
    for name in ("own.pem", "own.key"):
        (tmp_path / name).touch()
    path = fleet_file(tmp_path, "mqtts://broker.lan", certificate="own.pem", key="own.key")
    assert "require_certificate true" in for_deployment(load_fleet(path)).splitlines()


def test_without_tls_no_certificate_is_named(tmp_path: Path) -> None:
    lines = for_deployment(load_fleet(fleet_file(tmp_path, "mqtt://broker.lan"))).splitlines()
    assert "listener 1883" in lines
    assert not any(line.startswith(("certfile", "keyfile", "cafile")) for line in lines)


@pytest.mark.parametrize("kind", Kind)
def test_every_topic_of_the_protocol_is_somebodys_to_write(tmp_path: Path, kind: Kind) -> None:
    fleet = load_fleet(fleet_file(tmp_path, "mqtt://broker.lan"))
    rules = [line.split() for line in access_list(fleet).splitlines() if line.startswith(("topic", "pattern"))]
    manifest = Topics("barn").manifest()
    topic = manifest.replace("_weights/manifest", kind if kind in FLEET_KINDS else f"attic/{kind}")
    writers = [rule for what, access, rule in rules if access != "read" and _covers(rule.replace("%u", "attic"), topic)]
    assert writers


def _covers(rule: str, topic: str) -> bool:
    """Whether an MQTT filter takes a topic in, level by level."""
    wanted, levels = rule.split("/"), topic.split("/")
    if wanted[-1] == "#":
        wanted, levels = wanted[:-1], levels[: len(wanted) - 1]
    return len(wanted) == len(levels) and all(w in {"+", level} for w, level in zip(wanted, levels, strict=True))


def test_the_command_writes_both_files(tmp_path: Path) -> None:
    path = fleet_file(tmp_path, "mqtt://broker.lan")
    assert streamsplit.main(["broker-config", str(path), "--out", str(tmp_path / "new" / "out")]) == 0
    assert sorted(file.name for file in (tmp_path / "new" / "out").iterdir()) == ["streamsplit.acl", "streamsplit.conf"]


def test_a_fleet_file_that_is_not_there_and_a_folder_that_is_a_file_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert streamsplit.main(["broker-config", str(tmp_path / "none.yaml")]) == 78
    path = fleet_file(tmp_path, "mqtt://broker.lan")
    assert streamsplit.main(["broker-config", str(path), "--out", str(path)]) == 78
    assert "none.yaml" in (said := capsys.readouterr().err)
    assert "fleet.yaml" in said


@pytest.mark.parametrize("role", ["--trainer", "--policy", "--watch"])
def test_a_user_that_a_device_may_be_called_is_refused(
    tmp_path: Path, role: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fleet_file(tmp_path, "mqtt://broker.lan")
    with pytest.raises(SystemExit):
        streamsplit.main(["broker-config", str(path), role, "kitchen"])
    assert "a device may be called like that" in capsys.readouterr().err
    users = [line.split()[1] for line in access_list(load_fleet(path)).splitlines() if line.startswith("user ")]
    assert users == ["_trainer", "_policy", "_watch"]


def test_a_user_that_would_break_a_line_of_the_list_is_refused(tmp_path: Path) -> None:
    path = fleet_file(tmp_path, "mqtt://broker.lan")
    with pytest.raises(SystemExit):
        streamsplit.main(["broker-config", str(path), "--trainer", "a\ntopic #"])
