"""``streamsplit watch FLEET.yaml``: the devices of a deployed fleet in a live table. It only reads."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live

from common.arguments import between
from common.config import EXIT_CONFIG, load_fleet
from common.config_fleet import FleetConfig
from common.errors import ConfigError
from common.link import Link
from common.process import EXIT_UNAVAILABLE, new_boot, open_link
from common.topics import Topics
from trainer.fleet_view import FleetView

REFRESH_S = 0.5
QUEUE = 4096


def main(arguments: Sequence[str] | None = None) -> int:
    """Show the table until Ctrl-C; returns the exit status."""
    parser = argparse.ArgumentParser(prog="streamsplit watch", description=__doc__)
    parser.add_argument("fleet", type=Path, help="the fleet's YAML file, with a user who may read (broker-config)")
    parser.add_argument(
        "--seconds", type=between(float, 0.0), help="listen for so long, print the table once and end: for scripts"
    )
    given = parser.parse_args(arguments)
    try:
        return watch(load_fleet(given.fleet), threading.Event(), seconds=given.seconds, console=Console())
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_CONFIG


def watch(fleet: FleetConfig, stop: threading.Event, *, seconds: float | None, console: Console) -> int:
    """Draw what is heard until ``stop``; with ``seconds`` once, after so many. Returns the exit status.

    Raises:
        ConfigError: a password or TLS file that cannot be used.
    """
    topics = Topics(fleet.fleet)
    client_id = topics.client_id(f"_watch-{new_boot()[:8]}")
    link = open_link(fleet, client_id=client_id, will=None, data_capacity=QUEUE, outbound_capacity=1)
    view = FleetView(link, topics)
    with link:
        if seconds is None:
            _live(link, view, stop, console)
        else:
            until_s = time.monotonic() + seconds
            while not stop.is_set() and (left_s := until_s - time.monotonic()) > 0:
                view.listen(min(left_s, REFRESH_S))
            console.print(_picture(link, view))
        return 0 if link.connects else EXIT_UNAVAILABLE


def _live(link: Link, view: FleetView, stop: threading.Event, console: Console) -> None:
    with Live(console=console, refresh_per_second=1 / REFRESH_S) as live:
        while not stop.is_set():
            view.listen(REFRESH_S)
            live.update(_picture(link, view))


def _picture(link: Link, view: FleetView) -> Group:
    where = f"{link.address.host}:{link.address.port}"
    broker = "" if link.connected else f"no connection to {where} ({link.counters().last_error}); "
    return Group(f"{broker}{view.trainer()}", view.table(now_s=time.monotonic()))
