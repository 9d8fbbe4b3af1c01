"""``python -m broker``: a broker in the foreground, until Ctrl-C."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from broker.start import CHOICES, LOOPBACK, open_broker
from common.arguments import between
from common.config import EXIT_CONFIG
from common.errors import ConfigError
from common.process import prepare_folder, stop_on_signals


def run(*, choice: str = "auto", host: str = LOOPBACK, port: int = 1883, directory: Path | None = None) -> int:
    """Run a broker until SIGINT or SIGTERM; the exit code: 0, 78 for what cannot be used, 1 when the broker died."""
    if choice not in CHOICES:  # a URL is somebody else's broker, which nobody has to run; it may hold a password
        print(f"--broker: allowed are {', '.join(CHOICES)}", file=sys.stderr)
        return EXIT_CONFIG
    ended = stop_on_signals()
    with tempfile.TemporaryDirectory(prefix="streamsplit-broker-") as scratch:
        try:
            if directory is not None:
                prepare_folder(directory, "--directory")
            with open_broker(choice, directory=directory or Path(scratch), port=port or None, host=host) as broker:
                print(f"{broker.kind} broker at {broker.url} (no passwords: for development)", flush=True)
                return _until(ended, broker.pid)
        except ConfigError as error:
            print(error, file=sys.stderr)
            return EXIT_CONFIG


def _until(ended: threading.Event, pid: int | None) -> int:
    while not ended.wait(0.5):
        if pid is not None and os.waitpid(pid, os.WNOHANG)[0]:
            print("the broker died", file=sys.stderr)
            return 1
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="streamsplit broker", description="An MQTT broker in the foreground, until Ctrl-C."
    )
    parser.add_argument("--broker", default="auto", help='"auto", "embedded" or "mosquitto"')
    parser.add_argument("--host", default=LOOPBACK, help="the embedded broker takes loopback addresses only")
    parser.add_argument("--port", type=between(int, 0, 65_535), default=1883, help="0 takes a free one")
    parser.add_argument("--directory", type=Path, default=None, help="where configuration and log go")
    arguments = parser.parse_args(argv)
    return run(choice=arguments.broker, host=arguments.host, port=arguments.port, directory=arguments.directory)


if __name__ == "__main__":
    sys.exit(main())
