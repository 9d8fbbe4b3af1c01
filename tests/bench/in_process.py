"""A fleet inside one process: the loops of device and trainer as they are, a thread each, over a broker in memory.

For experiments of many runs: no process has to start, no socket to be served. `tests/system/test_in_process.py` shows
that it learns bit for bit what processes learn over a real broker.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch

from common import config
from common.config_device import DeviceConfig
from common.link import Link
from common.link_queues import Incoming
from common.topics import Topics
from device import __main__ as device
from tests.bench.in_process_link import MemoryBroker
from trainer import __main__ as trainer
from trainer.demo_files import DemoFiles

READY_S = 120.0
LONGEST_S = 3 * 3600.0


class FleetFailed(Exception):
    """A device or the trainer ended with an error, which is the cause."""


def run_in_process(
    files: DemoFiles, *, broker: MemoryBroker | None = None, meddle: Mapping[str, Callable[[Link], Link]] | None = None
) -> None:
    """Run trainer and devices to the end of the devices' windows; ``meddle``: what is made of some devices' links.

    Raises:
        FleetFailed: one of them ended with an error.
    """
    torch.set_num_threads(1)
    hub = broker or MemoryBroker()
    failures: list[BaseException] = []
    turn = threading.Lock()
    stop_devices, stop_trainer = threading.Event(), threading.Event()
    trainer_settings = config.load_trainer(files.trainer)

    def guarded(work: Callable[[], None], client_id: str) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001  raised again below, in the thread that waits
                failures.append(error)
                stop_devices.set()
                stop_trainer.set()
                hub.break_off(client_id)

        thread = threading.Thread(target=run, name=client_id, daemon=True)
        thread.start()
        # One after the other: building an encoder draws from torch's one global generator.
        if not hub.wait_for(client_id, READY_S) and not failures:
            raise FleetFailed(f"{client_id} did not connect within {READY_S:g} s")
        return thread

    topics = Topics(trainer_settings.fleet.fleet)
    server = guarded(
        lambda: trainer.train(trainer_settings, stop_trainer, connect=hub.open_link), topics.client_id("_trainer")
    )
    threads = []
    for name, path in files.devices.items():
        settings = config.load_device(path)
        work = _device(settings, stop_devices, hub, turn, (meddle or {}).get(name, _as_it_is))
        threads.append(guarded(work, topics.client_id(name)))
    for thread in threads:
        thread.join(LONGEST_S)
    stop_trainer.set()
    server.join(LONGEST_S)
    if failures:
        raise FleetFailed(repr(failures[0])) from failures[0]


class InTurn:
    """A device's link that gives the turn up while it waits, so that of all devices one computes at a time.

    Eight threads that fight over the interpreter take a fifth more processor time for the same work (measured). Devices
    that go as it sounds wait for their windows, which holds nobody up and must hold no turn. Has the public face of the
    link it hides.
    """

    def __init__(self, link: Link, turn: threading.Lock) -> None:
        self._link = link
        self._turn = turn
        self._held = False

    def __getattr__(self, name: str) -> Any:
        """Everything but what takes the turn or gives it up stays as it is."""
        return getattr(self._link, name)

    def start(self) -> None:
        """Connect, then wait for the turn: who starts the devices waits for their connections."""
        self._link.start()
        self._take()

    def receive(self, timeout_s: float) -> Incoming | None:
        """What is there already, else what comes while others compute."""
        incoming = self._link.receive(0.0)
        if incoming is not None or timeout_s <= 0:
            return incoming
        self.give_up()
        try:
            return self._link.receive(timeout_s)
        finally:
            self._take()

    def give_up(self) -> None:
        """Let the others compute; where the turn is not held, nothing happens."""
        if self._held:
            self._held = False
            self._turn.release()

    def _take(self) -> None:
        self._turn.acquire()
        self._held = True


def _device(
    settings: DeviceConfig,
    stop: threading.Event,
    hub: MemoryBroker,
    turn: threading.Lock,
    change: Callable[[Link], Link],
) -> Callable[[], None]:
    links: list[InTurn] = []

    def connect(*given: Any, **options: Any) -> Link:
        link = change(hub.open_link(*given, **options))
        if settings.speed == "realtime":
            return link
        links.append(InTurn(link, turn))
        return cast("Link", links[-1])

    def work() -> None:
        try:
            device.listen(settings, stop, connect=connect)
        finally:
            for link in links:
                link.give_up()

    return work


def _as_it_is(link: Link) -> Link:
    return link
