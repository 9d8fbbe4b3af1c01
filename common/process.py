"""What both ends' processes do alike: stop on a signal, log to standard error, tell apart who is to blame."""

from __future__ import annotations

import logging
import secrets
import signal
import sys
import threading
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from common.config import EXIT_CONFIG, read_password
from common.config_models import FleetConfig
from common.errors import ConfigError
from common.link import Link, Tls
from common.topics import is_data

EXIT_UNAVAILABLE = 69  # EX_UNAVAILABLE of sysexits.h


def software() -> str:
    """Name and version of this program, as status messages carry it."""
    try:
        return f"streamsplit {version('streamsplit')}"
    except PackageNotFoundError:
        return "streamsplit"


def new_boot() -> str:
    """A fresh identity of this process, 16 hexadecimal digits: restarts must be told apart even without a clock."""
    return secrets.token_hex(8)


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def open_link(
    fleet: FleetConfig, *, client_id: str, will: tuple[str, bytes], data_capacity: int, outbound_capacity: int, url: str = ""
) -> Link:
    """A link as the fleet file says; ``url`` in place of its address for an emulated link.

    Raises:
        ConfigError: a password or TLS file that cannot be used.
    """
    broker = fleet.broker
    return Link(
        url=url or broker.url,
        client_id=client_id,
        is_data=is_data,
        will=will,
        tls=Tls(broker.ca, broker.certificate, broker.key),
        username=broker.username,
        password=read_password(broker),
        keepalive_s=broker.keepalive_s,
        data_capacity=data_capacity,
        outbound_capacity=outbound_capacity,
    )


def run_process(main: Callable[[], None]) -> int:
    """Run ``main`` and turn the operator's errors into one message and an exit status; our own bugs crash loudly."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S"
    )
    try:
        main()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_CONFIG
    return 0
