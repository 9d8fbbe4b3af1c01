"""Where the broker is, how to reach it over TLS, and how long to wait before trying again. Knows nothing of MQTT."""

from __future__ import annotations

import random
import re
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from common.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS of one link: whom to trust instead of the system's authorities, and how to prove who we are."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """An SSL context; raises ConfigError naming the files when one cannot be used."""
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key)
        except OSError as error:
            files = ", ".join(str(path) for path in (self.ca, self.certificate, self.key) if path is not None)
            msg = f"TLS: cannot use {files}: {error}"
            raise ConfigError(msg) from error
        return context


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """What a broker URL says: ``mqtt://host:port`` or ``mqtts://user:password@host``."""

    host: str
    port: int
    secure: bool
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> BrokerAddress:
        """Raises ConfigError (without the password) for anything but mqtt:// or mqtts:// with a host."""
        shown = re.sub(r"^([\w+.-]+://)?.*@", r"\1…@", url, flags=re.DOTALL)
        msg = f'broker URL "{shown}": expected mqtt://HOST[:PORT] or mqtts://HOST[:PORT]'
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
            host.encode("idna")  # as the name lookup will: it refuses empty labels and those over 63 characters
        except ValueError:
            raise ConfigError(msg) from None
        named = bool(host) and host.isprintable() and " " not in host
        more = parts.path.strip("/") or parts.query or parts.fragment
        if parts.scheme not in DEFAULT_PORTS or not named or port == 0 or more:
            raise ConfigError(msg)
        return cls(
            host=host,
            port=port or DEFAULT_PORTS[parts.scheme],
            secure=parts.scheme == "mqtts",
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
        )


class Backoff:
    """Jittered exponential waiting times: the n-th lies in [c/2, c] with c = min(cap, first * 2**n)."""

    def __init__(self, *, first_s: float = 0.5, cap_s: float = 30.0, source: random.Random | None = None) -> None:
        self._first_s, self._cap_s = first_s, cap_s
        # Two devices that lose one broker must not come back in step: seeded by the operating system, not by the run.
        self._random = source or random.Random()
        self._failures = 0

    def next_s(self) -> float:
        """How long to wait after one more failure."""
        ceiling_s = min(self._cap_s, self._first_s * 2.0 ** min(self._failures, 32))
        self._failures += 1
        return self._random.uniform(ceiling_s / 2, ceiling_s)

    def reset(self) -> None:
        """A success: the next wait is a first one."""
        self._failures = 0
