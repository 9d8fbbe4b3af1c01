"""A fleet on a Mosquitto with users, as `streamsplit broker-config` sets it up: it works, and nobody may do more."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker import mosquitto
from broker.configuration import access_list, for_deployment
from broker.start import Broker
from common.config import load_fleet
from common.config_fleet import FleetConfig
from common.link import Link
from common.topics import ROOT, Topics
from tests.brokers import SOON_S, Links, eventually, needs_mosquitto
from tests.fleet import NAME, Fleet

USERS = ("_trainer", "_policy", "_watch", "a", "b")
TOPICS = Topics(NAME)
EVERYTHING = f"{ROOT}/{NAME}/#"
WINDOWS = 48


def url(port: int, user: str) -> str:
    return f"mqtt://{user}:secret-of-{user}@127.0.0.1:{port}"


@contextlib.contextmanager
def guarded(directory: Path) -> Iterator[int]:
    """A Mosquitto with the deployed configuration and a user each; yields its port."""
    program = shutil.which("mosquitto_passwd")
    assert program is not None
    passwords, acl = directory / "streamsplit.passwords", directory / "streamsplit.acl"
    passwords.touch(mode=0o600)
    for user in USERS:
        subprocess.run([program, "-b", str(passwords), user, f"secret-of-{user}"], check=True, capture_output=True)
    acl.write_text(access_list(fleet_at(directory, 1883)), encoding="utf-8")
    acl.chmod(0o600)

    def configuration(host: str, port: int) -> str:
        text = for_deployment(fleet_at(directory, port), etc=str(directory))
        # The broker drops root for its own user, who may not read a test's folder; and it says what it does.
        return text.replace(f"listener {port}", f"listener {port} {host}\nuser root\nlog_dest stderr\nlog_type all")

    with mosquitto.running(directory=directory, host="127.0.0.1", port=None, configuration=configuration) as (_, port):
        yield port


def fleet_at(directory: Path, port: int) -> FleetConfig:
    path = directory / "deployed.yaml"
    path.write_text(f"fleet: {NAME}\nbroker: {{url: 'mqtt://127.0.0.1:{port}'}}\n", encoding="utf-8")
    return load_fleet(path)


@pytest.mark.slow
@needs_mosquitto
def test_a_fleet_with_users_learns_to_the_end_and_nothing_it_does_is_denied(tmp_path: Path) -> None:
    with guarded(tmp_path) as port, Fleet(tmp_path, broker=url(port, "_trainer")) as fleet:
        fleet.start_trainer(speed="fast", expected_devices=2, merge_every=2)
        for device in "ab":
            fleet.start_device(device, url=url(port, device), windows=WINDOWS, step_timeout_s=60.0)
        assert [fleet.exit_status(device) for device in "ab"] == [0, 0]
        for device in "ab":
            results = [line["result"] for line in fleet.journal(device) if line["kind"] == "step"]
            assert results == ["answered"] * (WINDOWS // 8)
        fleet.ask_to_stop("trainer")
        assert fleet.exit_status("trainer") == 0
    assert "denied" not in (tmp_path / "mosquitto.log").read_text(encoding="utf-8").lower()


@pytest.fixture
def links(tmp_path: Path) -> Iterator[Links]:
    with guarded(tmp_path) as port:
        made = Links(Broker(f"mqtt://127.0.0.1:{port}", "mosquitto"))
        yield made
        made.stop()


def as_user(links: Links, user: str, *filters: str) -> Link:
    return links.make(f"{NAME}/{user}", *filters, username=user, password=f"secret-of-{user}", is_data=lambda _: True)


def read_until(link: Link, last: str) -> list[str]:
    """The topics that come, up to and with ``last``."""
    topics: list[str] = []
    while last not in topics:
        message = link.receive(SOON_S)
        assert message is not None, f"{last} did not come, but {topics}"
        topics.append(message.topic)
    return topics


FORBIDDEN = {
    "a": [
        TOPICS.manifest(), TOPICS.weights("block0", 0), TOPICS.delta("block0", 0), TOPICS.trainer_status(),
        TOPICS.status("b"), TOPICS.activations("b"), TOPICS.update("b", 0), TOPICS.gradient("a"), TOPICS.splitter("b"),
        TOPICS.policy("a"), TOPICS.config("b"),
    ],
    "_policy": [
        TOPICS.manifest(), TOPICS.trainer_status(), TOPICS.status("a"), TOPICS.splitter("a"), TOPICS.gradient("a"),
    ],
    "_watch": [
        TOPICS.manifest(), TOPICS.trainer_status(), TOPICS.telemetry("a"), TOPICS.config("a"), TOPICS.policy("a"),
    ],
}  # fmt: skip


@needs_mosquitto
@pytest.mark.parametrize(
    ("user", "writer", "allowed", "reader"),
    [
        ("a", "a", TOPICS.telemetry("a"), "_trainer"),
        ("_policy", "_policy", TOPICS.policy("a"), "a"),
        ("_watch", "_trainer", TOPICS.gradient("a"), "a"),
    ],
    ids=["device", "policy", "watch"],
)
def test_what_others_write_is_refused_and_reaches_nobody(
    links: Links, user: str, writer: str, allowed: str, reader: str
) -> None:
    witness, intruder = as_user(links, reader, EVERYTHING), as_user(links, user)
    rightful = intruder if writer == user else as_user(links, writer)
    for topic in FORBIDDEN[user]:
        assert intruder.publish(topic, b"payload", qos=1)
    eventually(lambda: intruder.counters().refused == len(FORBIDDEN[user]), "every refusal is told")
    assert all("Not authorized" in reason for reason in intruder.counters().refusals)
    assert rightful.publish(allowed, b"payload", qos=1)
    assert read_until(witness, allowed) == [allowed]


@needs_mosquitto
@pytest.mark.parametrize(
    ("reader", "allowed"),
    [
        ("a", {TOPICS.gradient("a"), TOPICS.policy("a")}),
        ("_policy", {TOPICS.status("b"), TOPICS.telemetry("b")}),
        ("_watch", {TOPICS.status("b"), TOPICS.telemetry("b")}),
    ],
    ids=["device", "policy", "watch"],
)
def test_nobody_hears_more_than_it_needs(links: Links, reader: str, allowed: set[str]) -> None:
    curious = as_user(links, reader, EVERYTHING, TOPICS.gradient("b"), TOPICS.activations("b"))
    neighbour, trainer = as_user(links, "b"), as_user(links, "_trainer", EVERYTHING)
    for topic in (TOPICS.activations("b"), TOPICS.audio("b"), TOPICS.status("b"), TOPICS.telemetry("b")):
        neighbour.publish(topic, b"payload", qos=1)
    read_until(trainer, TOPICS.telemetry("b"))
    for topic in (TOPICS.gradient("b"), TOPICS.gradient("a"), TOPICS.policy("a"), TOPICS.manifest()):
        trainer.publish(topic, b"payload", qos=1)
    trainer.publish(TOPICS.trainer_status(), b"payload", qos=1)
    assert set(read_until(curious, TOPICS.trainer_status())) == allowed | {TOPICS.manifest(), TOPICS.trainer_status()}


@needs_mosquitto
@pytest.mark.parametrize(("user", "password"), [(None, None), ("a", "guessed"), ("nobody", "secret-of-nobody")])
def test_who_has_no_user_or_not_its_password_stays_outside(
    links: Links, user: str | None, password: str | None
) -> None:
    link = links.unconnected("stranger", username=user, password=password)
    eventually(lambda: "Not authorized" in (link.counters().last_error or ""), "the broker refuses it")
    assert not link.connected
