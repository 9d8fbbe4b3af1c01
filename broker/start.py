"""A broker for this run: somebody else's by URL, a Mosquitto, or the embedded one. Ours die with their parent."""

from __future__ import annotations

import contextlib
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from broker import embedded, mosquitto
from common.errors import ConfigError
from common.link_address import BrokerAddress

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Kind = Literal["mosquitto", "embedded", "external"]
CHOICES = ("auto", "embedded", "mosquitto")
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker that accepts connections. ``pid`` is the broker's own process, None for somebody else's."""

    url: str
    kind: Kind
    pid: int | None = None


@contextlib.contextmanager
def open_broker(choice: str, *, directory: Path, port: int | None = None, host: str = LOOPBACK) -> Iterator[Broker]:
    """A running broker for the duration of the ``with``.

    ``choice``: "auto" (a Mosquitto if there is one, else embedded), "embedded", "mosquitto", or a URL, which starts
    nothing. ``directory`` receives configuration and log. ``port`` None takes a free one; a port just left by a killed
    broker can be taken again. Raises ConfigError for an unknown choice, a missing Mosquitto, a port in use, or an
    embedded broker on anything but loopback.
    """
    if "://" in choice:
        BrokerAddress.parse(choice)
        yield Broker(choice, "external")
        return
    kind = _kind(choice)
    if kind == "embedded" and not _is_loopback(host):
        msg = f"the embedded broker has no passwords and listens on loopback only, not on {host}: use Mosquitto"
        raise ConfigError(msg)
    directory.mkdir(parents=True, exist_ok=True)
    running = mosquitto.running if kind == "mosquitto" else embedded.running
    with running(directory=directory, host=host, port=port) as (pid, port_used):
        yield Broker(f"mqtt://{_reachable(host)}:{port_used}", kind, pid)


def _kind(choice: str) -> Kind:
    if choice == "auto":
        return "embedded" if mosquitto.find() is None else "mosquitto"
    if choice == "embedded":
        return "embedded"
    if choice == "mosquitto":
        return "mosquitto"
    msg = f'broker "{choice}": allowed are {", ".join(CHOICES)}, mqtt://HOST[:PORT] and mqtts://HOST[:PORT]'
    raise ConfigError(msg)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _reachable(host: str) -> str:
    """What this machine connects to when the broker listens on ``host``."""
    name = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)  # noqa: S104
    return f"[{name}]" if ":" in name else name
