"""What both ends' processes do alike: stop on a signal, log to standard error, tell apart who is to blame."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import os
import secrets
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

from common.config import EXIT_CONFIG, read_password
from common.config_fleet import FleetConfig
from common.errors import ConfigError
from common.link import Link, Tls
from common.topics import is_data

EXIT_UNAVAILABLE = 69  # EX_UNAVAILABLE of sysexits.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
MOST_MMAP_THRESHOLD_BYTES = 2**25  # the most that every glibc takes
KEPT_BYTES = 2**30


def software() -> str:
    """Name and version of this program, as status messages carry it."""
    try:
        return f"streamsplit {version('streamsplit')}"
    except PackageNotFoundError:
        return "streamsplit"


def prepare_folder(folder: Path, key: str) -> None:
    """Make a folder to write in, named by ``key`` of a file or command line, before anything is started in vain.

    Raises:
        ConfigError: it cannot be made, or nothing can be written in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{key} {folder}: {error.strerror}; allowed: a folder to write in") from error
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"{key} {folder}: {error.strerror}; allowed: a folder to write in") from error


@contextlib.contextmanager
def claimed_folder(folder: Path, key: str) -> Iterator[None]:
    """`prepare_folder`, and no other process has it for the duration of the ``with``, which ends with this one at last.

    Raises:
        ConfigError: as `prepare_folder`, and where another process has it.
    """
    prepare_folder(folder, key)
    claim = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"{key} {folder}: another process works there; allowed: a folder of its own") from error
        yield
    finally:
        os.close(claim)


def new_boot() -> str:
    """A fresh identity of this process, 16 hexadecimal digits: restarts must be told apart even without a clock."""
    return secrets.token_hex(8)


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def keep_freed_memory() -> None:
    """Let the C library keep what is freed for the next step, which needs the same again.

    It would give large tensors back to the system at once and pay a page fault for every 4 KiB of the next: 10,000
    faults and 10 to 20 % of the time of a training step (measured, 64 windows of `mobile` at cut 5). Only glibc has it.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, MOST_MMAP_THRESHOLD_BYTES)
            mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def open_link(
    fleet: FleetConfig,
    *,
    client_id: str,
    will: tuple[str, bytes] | None,
    data_capacity: int,
    outbound_capacity: int,
    url: str = "",
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
        max_message_bytes=fleet.max_message_bytes,
    )


class LinkOpener(Protocol):
    """How `open_link` is called: a fleet inside one process puts another way of connecting in its place."""

    def __call__(
        self,
        fleet: FleetConfig,
        *,
        client_id: str,
        will: tuple[str, bytes] | None,
        data_capacity: int,
        outbound_capacity: int,
        url: str = "",
    ) -> Link:
        """See `open_link`."""
        ...


def run_process(main: Callable[[], None]) -> int:
    """Run ``main`` and turn the operator's errors into one message and an exit status; our own bugs crash loudly."""
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
    )
    try:
        main()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_CONFIG
    return 0
