"""A small fleet of real processes for tests: a broker on a free loopback port, a trainer, devices, and an observer.

Nothing here sleeps: `Fleet.until` takes what the broker says to its own link and looks at the files that the processes
write, and fails with their logs when something takes too long or a process ends that should not.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from broker.start import Broker, open_broker
from common import messages
from common.chunks import Assembler
from common.config import fingerprint, load_fleet
from common.encoder import build_encoder
from common.errors import MessageError
from common.link import Incoming, Link
from common.link_address import BrokerAddress
from common.mixture_memory import MIXTURE
from common.split import block_state, client_names, names
from common.state_blob import digest, pack_state
from common.topics import Kind, Topics, parse
from common.weights_file import StoredWeights
from common.weights_file import read as read_weights

ROOT = Path(__file__).parent.parent
LONG_S = 150.0  # generous: the machines that run this may be busy; nothing waits that long when all is well
POLL_S = 0.05
LOG_TAIL = 60
NAME = "test"


@dataclass(slots=True)
class Seen:
    """What the watching link saw on the broker."""

    manifests: list[messages.Manifest] = field(default_factory=list)
    trainer: list[messages.TrainerStatus] = field(default_factory=list)
    status: dict[str, messages.DeviceStatus] = field(default_factory=dict)
    cuts: Counter[tuple[str, int]] = field(default_factory=Counter)
    activations: Counter[str] = field(default_factory=Counter)
    directed: set[str] = field(default_factory=set)
    on_part: Callable[[str, messages.Activations], None] | None = None
    hostile: bool = False  # messages that nobody can read are expected
    unreadable: int = 0

    def take(self, incoming: Incoming) -> None:
        try:
            self._take(incoming)
        except MessageError:
            if not self.hostile:
                raise
            self.unreadable += 1

    def _take(self, incoming: Incoming) -> None:
        address = parse(incoming.topic)
        if address.kind is Kind.MANIFEST:
            self._manifest(messages.decode(messages.Manifest, incoming.payload))
        elif address.kind is Kind.TRAINER_STATUS:
            self.trainer.append(messages.decode(messages.TrainerStatus, incoming.payload))
        elif address.kind is Kind.STATUS:
            assert address.device is not None
            self.status[address.device] = messages.decode(messages.DeviceStatus, incoming.payload)
        elif address.kind is Kind.ACTIVATIONS:
            assert address.device is not None
            part = messages.decode(messages.Activations, incoming.payload)
            self.cuts[address.device, part.cut] += 1
            self.activations[address.device] += 1
            if self.on_part is not None:
                self.on_part(address.device, part)
        elif address.kind is Kind.SPLITTER:
            assert address.device is not None
            self.directed.add(address.device)

    def _manifest(self, manifest: messages.Manifest) -> None:
        if not self.manifests or manifest != self.manifests[-1]:  # the same again: a reconnect
            self.manifests.append(manifest)

    @property
    def version(self) -> int:
        return self.manifests[-1].weights_version if self.manifests else -1


class Fleet:
    """Broker, trainer and devices under one directory. As a context manager it kills whatever it started."""

    def __init__(self, directory: Path, *, broker: str = "auto", **fleet_settings: object) -> None:
        self.directory = directory
        self.topics = Topics(NAME)
        self.seen = Seen()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._choice = broker
        self._settings = fleet_settings
        self._brokers = contextlib.ExitStack()
        self._links = contextlib.ExitStack()
        self._expected_end: set[str] = set()
        self._may_finish: set[str] = set()
        self.broker: Broker
        self.observer: Link

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._start_broker(None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        self._links.close()
        self._brokers.close()
        if error is not None:
            print(self.logs())

    # -- the processes ------------------------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        return int(self.broker.url.rpartition(":")[2])

    def _start_broker(self, port: int | None) -> None:
        self.broker = self._brokers.enter_context(
            open_broker(self._choice, directory=self.directory / "broker", port=port)
        )
        # A link of its own for each broker: one that backs off would miss what the others do first.
        self.observer = self.link(
            "observer",
            self.topics.manifest(),
            self.topics.trainer_status(),
            self.topics.every_device(Kind.STATUS),
            self.topics.every_device(Kind.ACTIVATIONS),
            self.topics.every_device(Kind.SPLITTER),
            data_capacity=100_000,
        )

    def kill_broker(self) -> None:
        """``kill -9``; everything it retained is gone with it."""
        assert self.broker.pid is not None
        os.kill(self.broker.pid, signal.SIGKILL)
        self.watch(0.0)
        self.observer.stop()
        self._brokers.close()

    def restart_broker(self) -> None:
        """On the port that it had."""
        self._start_broker(self.port)

    def fleet_file(self, name: str = "fleet", *, url: str = "", **settings: object) -> Path:
        broker = self._broker_settings(name, url or self.broker.url)
        return self._write(name, {"fleet": NAME, "broker": broker} | self._settings | settings)

    def _broker_settings(self, name: str, url: str) -> dict[str, str]:
        """A user and password in the URL go where the configuration wants them."""
        address = BrokerAddress.parse(url)
        if address.username is None:
            return {"url": url}
        password_file = self.directory / f"{name}.password"
        password_file.write_text(address.password or "", encoding="utf-8")
        bare = f"mqtt://{address.host}:{address.port}"
        return {"url": bare, "username": address.username, "password_file": str(password_file)}

    def trainer_file(self, **settings: object) -> Path:
        defaults: dict[str, object] = {
            "fleet": str(self.fleet_file()),
            "state_directory": "trainer",
            "compute": "cpu",
            "merge_every": 3,
            "merge_each_until": 0,
            "merge_deadline_s": 5.0,
            "max_lag": 4,
            "plan_cuts": False,
        }
        return self._write("trainer", defaults | settings)

    def device_file(self, device: str, *, url: str = "", **settings: object) -> Path:
        fleet = self.fleet_file(f"fleet-of-{device}", url=url)
        defaults: dict[str, object] = {
            "id": device,
            "fleet": str(fleet),
            "source": {"kind": "soundscape", "seed": len(device) + sum(device.encode())},
            "speed": "fast",
            "state_directory": device,
            "step_timeout_s": 10.0,
            "connect_timeout_s": 60.0,
            "measure_compute": False,
        }
        return self._write(device, defaults | settings)

    def _write(self, name: str, content: dict[str, object]) -> Path:
        path = self.directory / f"{name}.yaml"
        path.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
        return path

    def start_trainer(self, **settings: object) -> None:
        self.start("trainer", "trainer", self.trainer_file(**settings))

    def start_device(self, device: str, *, url: str = "", **settings: object) -> None:
        self.start(device, "device", self.device_file(device, url=url, **settings))
        if settings.get("windows") is not None:
            self._may_finish.add(device)

    def start(self, name: str, module: str, config: Path) -> None:
        """Start (again) a process under ``name``; its log is appended to."""
        with (self.directory / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", module, str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        self._expected_end.discard(name)
        self._may_finish.discard(name)

    def kill(self, name: str) -> None:
        """``kill -9``."""
        self._expected_end.add(name)
        self.processes[name].kill()
        self.processes[name].wait()

    def ask_to_stop(self, *names: str) -> None:
        """SIGTERM, as systemd would."""
        for name in names:
            self._expected_end.add(name)
            self.processes[name].send_signal(signal.SIGTERM)

    def exit_status(self, name: str, timeout_s: float = LONG_S) -> int:
        """Wait for the end of a process."""
        self._expected_end.add(name)
        self.until(lambda: self.processes[name].poll() is not None, f"{name} ends", timeout_s)
        return self.processes[name].returncode

    def log(self, name: str) -> str:
        path = self.directory / f"{name}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def logs(self) -> str:
        tails = (f"----- {name}\n" + "\n".join(self.log(name).splitlines()[-LOG_TAIL:]) for name in self.processes)
        return "\n".join(tails)

    # -- watching -----------------------------------------------------------------------------------------------------

    def link(self, client_id: str, *filters: str, data_capacity: int = 4096) -> Link:
        """A link of the test's own, subscribed and confirmed."""
        link = Link(
            url=self.broker.url,
            client_id=f"{NAME}-{client_id}",
            is_data=_is_counted,
            data_capacity=data_capacity,
            outbound_capacity=4096,
        )
        for topic_filter in filters:
            link.subscribe(topic_filter, qos=1)
        self._links.enter_context(link)
        assert link.wait_connected(LONG_S), link.counters().last_error
        assert link.wait_subscribed(LONG_S)
        return link

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = LONG_S) -> None:
        """Watch the fleet until ``condition`` holds; fails when it takes too long or a process ends by surprise."""
        until_s = time.monotonic() + timeout_s
        while not condition():
            self._check_alive()
            if time.monotonic() > until_s:
                pytest.fail(f"not within {timeout_s:g} s: {what}")
            self.watch(POLL_S)
        self.watch(0.0)

    def watch(self, timeout_s: float) -> None:
        """Take what the broker says, after waiting at most ``timeout_s`` for the first message."""
        incoming = self.observer.receive(timeout_s)
        while incoming is not None:
            self.seen.take(incoming)
            incoming = self.observer.receive(0.0)

    def settle(self) -> None:
        """Wait until the trainer has taken everything that was sent to it before: it answers who joins, in order."""
        sender = self.link("settle")
        status = messages.DeviceStatus(
            "ready", "5e77" * 4, 1, "", fingerprint(load_fleet(self.fleet_file())), "", "", ()
        )
        self.seen.directed.discard("settle")
        sender.publish(self.topics.status("settle"), messages.encode(status), qos=1)
        self.until(lambda: "settle" in self.seen.directed, "the trainer answers a device that joins")
        gone = messages.DeviceStatus("stopped", "5e77" * 4, 2, "", status.fingerprint, "", "", ())
        sender.publish(self.topics.status("settle"), messages.encode(gone), qos=1)
        sender.stop()

    def retained_weights(self, timeout_s: float = LONG_S) -> messages.Manifest:
        """Fetch the weights as a newcomer does; the manifest whose every digest matches what the broker retains."""
        everything = (*block_names(), MIXTURE)
        newcomer = self.link("newcomer", self.topics.manifest(), *map(self.topics.weights_filter, everything))
        arriving: dict[str, Assembler] = {name: Assembler() for name in everything}
        held: dict[str, set[str]] = {name: set() for name in everything}
        manifest: messages.Manifest | None = None

        def take(incoming: Incoming) -> None:
            nonlocal manifest
            if parse(incoming.topic).kind is Kind.MANIFEST:
                manifest = messages.decode(messages.Manifest, incoming.payload)
                return
            chunk = messages.decode(messages.WeightsChunk, incoming.payload)
            blob = arriving[chunk.name].add((chunk.run, chunk.weights_version), chunk.index, chunk.count, chunk.data)
            if blob is not None:
                held[chunk.name].add(digest(blob))

        def matches() -> bool:
            while (incoming := newcomer.receive(0.0)) is not None:
                with contextlib.suppress(MessageError) if self.seen.hostile else contextlib.nullcontext():
                    take(incoming)
            # A well-formed chunk that somebody else left retained is a blob, too: the manifest says which one counts.
            return manifest is not None and all(entry.digest in held[name] for name, entry in manifest.entries.items())

        self.until(matches, "the retained weights match the retained manifest", timeout_s)
        newcomer.stop()
        assert manifest is not None
        return manifest

    def _check_alive(self) -> None:
        for name, process in self.processes.items():
            status = process.poll()
            finished = status == 0 and name in self._may_finish
            if status is not None and not finished and name not in self._expected_end:
                pytest.fail(f"{name} ended by itself with status {status}")

    # -- what the processes wrote -------------------------------------------------------------------------------------

    def journal(self, device: str) -> list[dict[str, Any]]:
        """The lines of a device's journal, of all its lives; one torn by a kill is left out."""
        return list(_json_lines(self.directory / device / "steps.jsonl"))

    def answered(self, device: str) -> int:
        return sum(line.get("result") == "answered" for line in self.journal(device))

    def local_steps(self, device: str) -> int:
        return sum(line["kind"] == "local" for line in self.journal(device))

    def metrics(self) -> list[dict[str, Any]]:
        """The trainer's steps."""
        return list(_json_lines(self.directory / "trainer" / "metrics.jsonl"))

    @property
    def trainer_step(self) -> int:
        steps = self.metrics()
        return int(steps[-1]["step"]) if steps else 0

    def stored_weights(self, device: str) -> StoredWeights | None:
        """What the device keeps on its disk, checked as the device itself checks it."""
        fleet = load_fleet(self.fleet_file())
        encoder = build_encoder(fleet.encoder, seed=0, head=fleet.head)
        shapes = {name: block_state(encoder, name) for name in names(encoder)}
        return read_weights(self.directory / device / "weights.bin", shapes, fingerprint=fingerprint(fleet))


def block_names(encoder: str = "mobile") -> tuple[str, ...]:
    return names(build_encoder(encoder, seed=0))


def digests(stored: StoredWeights, cut: int) -> dict[str, str]:
    """Digest of every block that a device at ``cut`` must hold at one version, as the manifest names it."""
    return {name: digest(pack_state(stored.base[name], "fp16")) for name in client_names(cut)}


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                yield json.loads(line)


def _is_counted(topic: str) -> bool:
    # Everything in order and nothing merged: a queue of the latest per topic would hide a version that went back.
    return bool(topic)
