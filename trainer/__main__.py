"""``python -m trainer CONFIG.yaml``: builds the trainer from its configuration and runs it."""

from __future__ import annotations

import argparse
import logging
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import torch

from common import config
from common.config_trainer import TrainerConfig
from common.errors import ConfigError
from common.process import (
    LinkOpener,
    claimed_folder,
    keep_freed_memory,
    new_boot,
    open_link,
    run_process,
    software,
    stop_on_signals,
)
from common.topics import Topics
from trainer import checkpoint
from trainer.assembly import Surroundings, build_ledger, build_loop
from trainer.initial_state import build_state
from trainer.metrics import MetricsLog
from trainer.presence import TrainerPresence, retained_version
from trainer.resume import fresh_run, restore

LOG = logging.getLogger("trainer")
DATA_CAPACITY = 4096  # parts waiting while a step is computed: 64 devices x 8 windows x 8
DEVICES_AT_ONCE = 1024  # whose answers to one batch, a gradient and an embedding each, wait for the network


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trainer until it is told to stop; returns the exit status."""
    parser = argparse.ArgumentParser(prog="streamsplit trainer", description="Train with a fleet of devices.")
    parser.add_argument("config", type=Path, help="the trainer's YAML file")
    options = parser.parse_args(arguments)
    return run_process(lambda: _train_alone(config.load_trainer(options.config), stop_on_signals()))


def _train_alone(settings: TrainerConfig, stop: threading.Event) -> None:
    with claimed_folder(settings.state_directory, "state_directory"):
        train(settings, stop)


def train(settings: TrainerConfig, stop: threading.Event, *, connect: LinkOpener = open_link) -> None:
    """Build every part from the settings and run the loop; ``connect`` opens its link."""
    compute = _compute(settings.compute)
    torch.set_num_threads(settings.threads)
    keep_freed_memory()
    fleet = settings.fleet
    fingerprint = config.fingerprint(fleet)
    topics = Topics(fleet.fleet)
    boot = new_boot()
    saved = checkpoint.load_latest(settings.state_directory, fingerprint)
    state = build_state(settings, compute)
    progress = fresh_run() if saved is None else restore(saved, state)
    link = connect(
        fleet,
        client_id=topics.client_id("_trainer"),
        will=TrainerPresence.will(topics, boot=boot, fingerprint=fingerprint),
        data_capacity=DATA_CAPACITY,
        outbound_capacity=2 * fleet.parts_per_step * DEVICES_AT_ONCE,
    )
    link.start()
    presence = TrainerPresence(link, topics, boot=boot, run=progress.run, fingerprint=fingerprint)
    retained = retained_version(link, topics, boot=boot, presence=presence, stop=stop)
    if stop.is_set():  # while it waited for the broker: nothing was trained, nothing is saved
        link.stop()
        return
    ledger = build_ledger(settings, state, progress, version=max(progress.weights_version, retained) + 1)
    LOG.info("run %s, step %d, weights version %d, %s", progress.run, progress.steps, ledger.version, software())
    with MetricsLog(settings.state_directory, next_step=progress.steps + 1) as log:
        around = Surroundings(settings, compute, fingerprint, boot, link, topics, log)
        build_loop(around, state, progress, ledger, presence).run(stop)
    presence.show("stopped", ledger.version)
    # After a bug of ours this is not reached: the connection breaks without a good-bye, and the will tells the fleet.
    link.stop(timeout_s=5.0)


def _compute(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("compute: cuda is configured, but torch finds no usable GPU; allowed: cpu, auto")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


if __name__ == "__main__":
    sys.exit(main())
