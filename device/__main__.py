"""``python -m device CONFIG.yaml``: builds one device from its configuration and runs it."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import torch

from common import config
from common.config_device import DeviceConfig
from common.errors import ConfigError
from common.process import (
    EXIT_UNAVAILABLE,
    LinkOpener,
    claimed_folder,
    new_boot,
    open_link,
    run_process,
    software,
    stop_on_signals,
)
from common.topics import Topics
from device.assembly import build_loop, build_source
from device.board import Board, conditions_player, play_link, play_speed
from device.contact import NeverReady
from device.correspondence import Surroundings
from device.journal import Journal
from device.presence import last_will

DATA_CAPACITY = 512
OUTBOUND_CAPACITY = 1024  # a whole change of the largest encoder, 350 chunks, and the activations beside it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one device until its windows are used up or it is told to stop; returns the exit status."""
    parser = argparse.ArgumentParser(prog="streamsplit device", description="Run one device of the fleet.")
    parser.add_argument("config", type=Path, help="the device's YAML file")
    options = parser.parse_args(arguments)
    try:
        return run_process(lambda: _listen_alone(config.load_device(options.config), stop_on_signals()))
    except NeverReady as error:
        print(error, file=sys.stderr)
        return EXIT_UNAVAILABLE


def _listen_alone(settings: DeviceConfig, stop: threading.Event) -> None:
    with claimed_folder(settings.state_directory, "state_directory"):
        listen(settings, stop)


def listen(settings: DeviceConfig, stop: threading.Event, *, connect: LinkOpener = open_link) -> None:
    """Build every part from the settings and run the loop; ``connect`` opens its link."""
    torch.set_num_threads(1)
    boot, fingerprint = new_boot(), config.fingerprint(settings.fleet)
    topics = Topics(settings.fleet.fleet)
    source = build_source(settings)  # first: a folder that cannot be used is said before anything is started
    shaped, stretch = play_link(settings), play_speed(settings)
    journal = Journal(settings.state_directory / "steps.jsonl")
    player = conditions_player(settings, shaped, stretch, journal)
    link = connect(
        settings.fleet,
        client_id=topics.client_id(settings.id),
        will=last_will(topics, settings.id, boot=boot, software=software(), fingerprint=fingerprint),
        data_capacity=DATA_CAPACITY,
        outbound_capacity=OUTBOUND_CAPACITY,
        url=f"mqtt://127.0.0.1:{shaped.port}" if shaped else "",
    )
    board = Board(shaped, stretch, player)
    around = Surroundings(settings.id, boot, fingerprint, link, topics, source, board, journal, stop)
    loop = build_loop(settings, around)
    link.start()
    try:
        if player:
            player.start()
        loop.run()
    except (ConfigError, NeverReady):
        loop.withdraw()
        link.stop()
        raise
    finally:
        if player:
            player.stop()
    # After a bug of ours this is not reached: the connection breaks without a good-bye, and the will tells the fleet.
    link.stop(timeout_s=10.0)
    if shaped:
        shaped.drain(timeout_s=5.0)  # the good-bye is on its way; without it the will would say lost
        shaped.stop()


if __name__ == "__main__":
    sys.exit(main())
