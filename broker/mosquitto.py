"""Mosquitto as a child of this process, with our configuration, on one port, dying with its parent."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import time
from typing import IO, TYPE_CHECKING

from broker.child import START_TIMEOUT_S, accepts, check_free, ended_at_exit, free_port
from broker.configuration import for_development
from common.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Start = Callable[[str, int], contextlib.AbstractContextManager[subprocess.Popen[bytes]]]

# Debian and Raspberry Pi OS keep it out of a user's PATH; the last two are Homebrew's.
PLACES = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin", "/usr/local/opt/mosquitto/sbin")
ATTEMPTS = 5  # another process may take the free port first
# The broker's own parent-death signal is bound to the thread that started it, so a shell holds a pipe to us instead:
# when we are gone, however we went, it reads the end of it and kills the broker.
WATCH = 'read broker || exit 0; cat > /dev/null; kill -9 "$broker"'


def find() -> str | None:
    """Where ``mosquitto`` is, or None."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *PLACES))
    return shutil.which("mosquitto", path=path)


@contextlib.contextmanager
def running(
    *, directory: Path, host: str, port: int | None, configuration: Callable[[str, int], str] = for_development
) -> Iterator[tuple[int, int]]:
    """A Mosquitto that accepts connections; yields (process id, port). Raises ConfigError where it cannot be had.

    ``configuration`` makes the text of its file from address and port.
    """
    program = find()
    if program is None:
        msg = f'no "mosquitto" on PATH or in {", ".join(PLACES)}: install it, or use the embedded broker'
        raise ConfigError(msg)
    if port is not None:
        check_free(host, port)
    with contextlib.ExitStack() as cleanup:
        start = functools.partial(_child, program, directory, configuration)
        process, port_used = _start(start, directory / "mosquitto.log", host, port, cleanup)
        yield process.pid, port_used


def _start(
    start: Start, log: Path, host: str, port: int | None, cleanup: contextlib.ExitStack
) -> tuple[subprocess.Popen[bytes], int]:
    for _ in range(ATTEMPTS):
        port_used = port or free_port(host)
        with contextlib.ExitStack() as attempt:
            process = attempt.enter_context(start(host, port_used))
            if _ready(process, log, host, port_used):
                cleanup.push(attempt.pop_all())
                return process, port_used
    said = log.read_text(encoding="utf-8", errors="replace").strip()
    msg = f"mosquitto does not start on {host}:{port_used}: {said or 'it says nothing'}"
    raise ConfigError(msg)


@contextlib.contextmanager
def _child(
    program: str, directory: Path, configuration: Callable[[str, int], str], host: str, port: int
) -> Iterator[subprocess.Popen[bytes]]:
    path = directory / "mosquitto.conf"
    path.write_text(configuration(host, port), encoding="utf-8")
    with _watcher() as pipe, (directory / "mosquitto.log").open("wb") as log:
        process = subprocess.Popen([program, "-c", str(path)], stdin=subprocess.DEVNULL, stderr=log)
        pipe.write(f"{process.pid}\n".encode())
        pipe.flush()
        with ended_at_exit(process):
            yield process


@contextlib.contextmanager
def _watcher() -> Iterator[IO[bytes]]:
    """Yields the pipe to a shell that kills the process whose id it is told, when this process is gone."""
    # A session of its own: a Ctrl-C in the terminal must not end the watcher before the watched.
    watcher = subprocess.Popen(
        ["/bin/sh", "-c", WATCH], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )
    pipe = watcher.stdin
    assert pipe is not None
    try:
        yield pipe
    finally:
        watcher.kill()  # before the pipe closes: by now the watched id may be another process's
        pipe.close()
        watcher.wait()


def _ready(process: subprocess.Popen[bytes], log: Path, host: str, port: int) -> bool:
    """Wait until the broker says that it runs and accepts a connection; False when it ended instead."""
    until_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until_s and process.poll() is None:
        if b" running" in log.read_bytes() and accepts(host, port):
            return True
        time.sleep(0.01)
    return False
