"""Starting a broker as a child process: a port, a readiness test, an end."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from typing import TYPE_CHECKING

from common.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    Child = subprocess.Popen[bytes]

START_TIMEOUT_S = 30.0  # a Raspberry Pi Zero needs several seconds to import amqtt
STOP_TIMEOUT_S = 5.0


def free_port(host: str) -> int:
    """A port that was free a moment ago. Raises ConfigError for an address that is not this machine's."""
    with socket.socket(_family(host)) as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            raise ConfigError(f"{host}: {error.strerror or error}") from error
        port: int = probe.getsockname()[1]
        return port


def check_free(host: str, port: int) -> None:
    """Raises ConfigError when somebody listens there. A port left by a killed broker is free."""
    with socket.socket(_family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            msg = f"port {port} on {host}: {error.strerror}"
            raise ConfigError(msg) from error


@contextlib.contextmanager
def ended_at_exit(process: Child) -> Iterator[Child]:
    """Terminate the child at the end, and insist where it does not listen."""
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def accepts(host: str, port: int) -> bool:
    """True when something takes connections there."""
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
