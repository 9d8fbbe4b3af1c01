"""``streamsplit policy FLEET.yaml``: goes on learning the splitter's policy from a fleet's telemetry, and publishes it.

A process of its own: the trainer does not wait for it, and without it devices keep the policy they have.
"""

from __future__ import annotations

import argparse
import logging
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from common import config, messages
from common.arguments import between
from common.config_device import SplitterConfig
from common.config_fleet import FleetConfig
from common.errors import ConfigError, MessageError
from common.link import Incoming, Link
from common.messages import DeviceStatus, PolicyUpdate, Telemetry
from common.process import LinkOpener, new_boot, open_link, prepare_folder, run_process, stop_on_signals
from common.topics import Kind, Topics
from trainer.fleet_speeds import FleetSpeeds
from trainer.link_traces import Split, read_split
from trainer.policy_experience import OLDEST, Experience
from trainer.policy_file import load_policy, save_policy, to_message
from trainer.policy_learning import FleetLearner
from trainer.policy_pretraining import Plan
from trainer.reward import RewardWeights
from trainer.simulated_costs import CutCosts, Tables
from trainer.simulated_fleet import Speed, encoder_costs, shipped_fleet_tables, shipped_speeds

LOG = logging.getLogger("policy")
WAIT_S = 0.5
JUDGED_BY = 24  # training traces that a new policy is judged by: a few seconds
QUEUE = 4096


class PolicyProcess:
    """Listens to telemetry, learns when enough decisions were drawn, and tells every device that is there.

    Where boards turn out to be quicker or slower than the simulator has them, it is corrected, and the policy is taught
    there before it goes on: half a minute in which nothing else is done, and a stop waits.

    Args:
        simulated: the tables to be taught on and those to be judged by, by the speeds of the boards.

    Attributes:
        version: of the policy that devices have.
        refused, withheld: messages that could not be used; new policies that the simulator found worse.
        corrected: how often the simulator was.
    """

    def __init__(
        self,
        link: Link,
        topics: Topics,
        *,
        encoder: str,
        learner: FleetLearner,
        experience: Experience,
        speeds: FleetSpeeds,
        simulated: Callable[[Mapping[str, Speed]], tuple[Sequence[Tables], Sequence[Tables]]],
        version: int,
        drawn_per_update: int,
        path: Path,
    ) -> None:
        self._link = link
        self._topics = topics
        self._encoder = encoder
        self._learner = learner
        self._experience = experience
        self._speeds = speeds
        self._simulated = simulated
        self._drawn_per_update = drawn_per_update
        self._path = path
        self._devices: set[str] = set()
        self.version = version
        self.refused = 0
        self.withheld = 0
        self.corrected = 0

    def run(self, stop: threading.Event) -> None:
        """Until ``stop``: take what comes, learn, publish."""
        for kind in (Kind.STATUS, Kind.TELEMETRY):
            self._link.subscribe(self._topics.every_device(kind), qos=1 if kind is Kind.STATUS else 0)
        while not stop.is_set():
            incoming = self._link.receive(WAIT_S)
            if incoming is not None:
                self.take(incoming)

    def take(self, incoming: Incoming) -> None:
        """One message; what cannot be used is dropped and counted."""
        try:
            address = self._topics.parse(incoming.topic)
            if address.device is None:
                raise MessageError(f"{address.kind} is not for the policy process")
            if address.kind is Kind.STATUS:
                self._follow(address.device, messages.decode(DeviceStatus, incoming.payload))
            elif address.kind is Kind.TELEMETRY:
                told = messages.decode(Telemetry, incoming.payload)
                self._experience.offer(address.device, told, at_s=incoming.received_s)
                if self._speeds.hear(address.device, told, at_s=incoming.received_s):
                    self._correct(incoming.received_s)
        except MessageError as error:
            self.refused += 1
            LOG.warning("dropped a message of %d bytes on %s: %s", len(incoming.payload), incoming.topic, error)
        if self._experience.drawn >= self._drawn_per_update:
            self._learn()

    def _follow(self, device: str, status: DeviceStatus) -> None:
        if status.state == "ready" and device not in self._devices:
            self._devices.add(device)
            self._experience.idle_watts[device] = _idle_watts(status.profile)
            self._speeds.join(device, status.profile)
            self._tell(device)
        elif status.state in {"lost", "stopped"}:
            self._devices.discard(device)
            self._speeds.leave(device)

    def _correct(self, at_s: float) -> None:
        self.corrected += 1
        before, speeds = self._speeds.assumed, self._speeds.correct(at_s)
        for board, now in speeds.items():
            if now != before[board]:
                LOG.info("%s: says %.1f ms for mobile, takes %.1f", board, now.said_ms, now.taken_ms)
        LOG.info("the policy is taught in a simulator with these boards")
        tables, judged_by = self._simulated(speeds)
        if self._learner.teach(tables, judged_by=judged_by):
            self._experience.take(version=self.version)  # what waits was decided and paid in another world
            self.version += OLDEST  # and so was what is still to come of it
            self._publish()
        else:
            LOG.info("it was as good there before: nothing is published")

    def _learn(self) -> None:
        trajectories = self._experience.take(version=self.version)
        if not trajectories:
            return
        lesson = self._learner.learn(trajectories)
        LOG.info("%s", lesson)
        if not lesson.accepted:
            self.withheld += 1
            LOG.warning("the simulator finds the new policy worse by %.3f: not published", -lesson.simulated_change)
            return
        self._publish()

    def _publish(self) -> None:
        self.version += 1
        LOG.info("policy %d goes out", self.version)
        try:
            save_policy(self._path, self.current())
        except OSError as error:  # what it learned is the fleet's all the same; the next one may be kept
            LOG.warning("%s: cannot be written (%s): policy %d is not kept", self._path, error.strerror, self.version)
        for device in sorted(self._devices):
            self._tell(device)

    def current(self) -> PolicyUpdate:
        """What devices are told now."""
        return to_message(self._learner.network, version=self.version, encoder=self._encoder)

    def _tell(self, device: str) -> None:
        self._link.retain(self._topics.policy(device), messages.encode(self.current()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until told to stop; returns the exit status."""
    parser = argparse.ArgumentParser(prog="streamsplit policy", description=__doc__)
    parser.add_argument("fleet", type=Path, help="the fleet's YAML file")
    parser.add_argument(
        "--policy", type=Path, required=True, help="file to begin with, and to keep what was learned in"
    )
    parser.add_argument(
        "--compute", type=Path, help="the encoder's profile by streamsplit profile; default: the shipped one"
    )
    parser.add_argument(
        "--drawn", type=between(int, 1), default=256, help="drawn decisions between two updates (default 256)"
    )
    parser.add_argument(
        "--tolerance",
        type=between(float, 0.0),
        default=0.02,
        help="reward a decision that a published policy may lose in the simulator (default 0.02)",
    )
    given = parser.parse_args(arguments)
    return run_process(
        lambda: learn(
            config.load_fleet(given.fleet),
            stop_on_signals(),
            path=given.policy,
            compute=given.compute,
            drawn_per_update=given.drawn,
            tolerance=given.tolerance,
        )
    )


def judging_tables(costs: CutCosts, split: Split, speeds: Mapping[str, Speed] | None = None) -> list[Tables]:
    """The training traces that a new policy is judged by; `speeds`: of boards that are not as their profiles state."""
    return shipped_fleet_tables(split.training[:JUDGED_BY], costs, steps=split.steps, speeds=speeds)


def simulated_tables(costs: CutCosts, split: Split, speeds: Mapping[str, Speed]) -> tuple[list[Tables], list[Tables]]:
    """What a policy is taught on, and what it is judged by, with boards of these speeds."""
    taught = shipped_fleet_tables(split.training, costs, steps=split.steps, speeds=speeds)
    return taught, judging_tables(costs, split, speeds)


def learn(
    fleet: FleetConfig,
    stop: threading.Event,
    *,
    path: Path,
    drawn_per_update: int,
    tolerance: float,
    compute: Path | None = None,
    connect: LinkOpener = open_link,
) -> None:
    """Build the process from the settings and run it; ``connect`` opens its link, ``compute`` as in `encoder_costs`.

    Raises:
        ConfigError: no policy in ``path``, or one for another encoder; no measured times of the encoder.
    """
    torch.set_num_threads(1)
    costs = encoder_costs(fleet.encoder, compute=compute)
    update, network = load_policy(path, actions=costs.depth + 2)
    if update.encoder != fleet.encoder:
        raise ConfigError(f"{path}: a policy for {update.encoder}, the fleet's encoder is {fleet.encoder}")
    prepare_folder(path.parent, "--policy")
    weights = RewardWeights()
    topics = Topics(fleet.fleet)
    split = read_split()
    learner = FleetLearner(
        network,
        judging_tables(costs, split),
        min_cut=Plan().min_cut,
        first_cut=SplitterConfig.model_fields["cut"].default,
        weights=weights,
        tolerance=tolerance,
        seed=0,
    )
    boot = new_boot()
    link = connect(
        fleet,
        client_id=topics.client_id(f"_policy-{boot[:8]}"),
        will=None,
        data_capacity=QUEUE,
        outbound_capacity=QUEUE,
    )
    link.start()
    process = PolicyProcess(
        link,
        topics,
        encoder=fleet.encoder,
        learner=learner,
        experience=Experience(parts_per_step=fleet.parts_per_step, weights=weights, actions=network.sizes[-1]),
        speeds=FleetSpeeds(costs, shipped_speeds()),
        simulated=partial(simulated_tables, costs, split),
        version=update.version,
        drawn_per_update=drawn_per_update,
        path=path,
    )
    process.run(stop)
    link.stop(timeout_s=5.0)


def _idle_watts(profile: str) -> float:
    """Watts of a board that only listens, by its profile's name; 0 for one that is not shipped.

    A device says the name: it must not choose a file of this computer to be read.
    """
    if profile not in {path.stem for path in config.PROFILES.glob("*.yaml")}:
        return 0.0
    power = config.load_profile(profile).power
    return power.idle_watts + power.capture_watts


if __name__ == "__main__":
    sys.exit(main())
