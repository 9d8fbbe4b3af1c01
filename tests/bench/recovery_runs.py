"""A simulated fleet with and without ``streamsplit policy``, before and after its boards have become slow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from common.config_fleet import FleetConfig
from common.link import Link
from common.messages import PolicyUpdate
from common.policy_network import PolicyNetwork
from common.topics import Kind, Topics
from tests.bench.in_process_link import MemoryBroker
from tests.bench.policy import FIRST_CUT, MIN_CUT, WEIGHTS, by_network, returns
from tests.bench.recovery_fleet import Fleet
from trainer.fleet_speeds import FleetSpeeds
from trainer.learn_policy import PolicyProcess, judging_tables, simulated_tables
from trainer.link_traces import STEP_S, Split, TraceKind
from trainer.policy_experience import Experience
from trainer.policy_file import to_message
from trainer.policy_learning import TEACHING, FleetLearner
from trainer.policy_pretraining import Plan
from trainer.simulated_costs import WINDOWS, Board, CutCosts, Tables
from trainer.simulated_fleet import BOARDS, fleet_tables, shipped_board, shipped_speeds

FLEET = FleetConfig.model_validate({"fleet": "fleet", "broker": {"url": "mqtt://127.0.0.1:1"}})
QUEUE = 4096
ENCODER = "mobile"
DECISION_S = WINDOWS * STEP_S


@dataclass(frozen=True, slots=True)
class World:
    """The boards of a fleet as they are. `groups`: each board, and every trace on it; `judged`: one board a trace."""

    groups: tuple[tuple[Board, tuple[Tables, ...]], ...]
    judged: tuple[Tables, ...]


def world(
    traces: Sequence[tuple[TraceKind, int]], costs: CutCosts, *, steps: int, slower: float = 1.0, told: bool = True
) -> World:
    """The shipped boards, `slower` times as slow; `told`: their devices say so, else they say what was shipped."""
    shipped = [shipped_board(name) for name in BOARDS]
    boards = [
        replace(one, forward_ms=slower * one.forward_ms, said_ms=None if told else one.forward_ms) for one in shipped
    ]

    def made(chosen: Sequence[Board]) -> tuple[Tables, ...]:
        return tuple(fleet_tables(traces, costs, steps=steps, boards=chosen))

    return World(tuple((board, made([board])) for board in boards), made(boards))


@dataclass(frozen=True, slots=True)
class Pace:
    """How long: decisions of each device in the `known` world and in the `changed` one, a point of the curve every
    `every`; `devices`, of which each draws a share `exploration` of its decisions."""

    known: int = 1000
    changed: int = 3000
    every: int = 200
    devices: int = 20
    exploration: float = 0.05


@dataclass(frozen=True, slots=True)
class Learning:
    """As ``streamsplit policy`` is told; `teaching`: how much is learned in a simulator that was corrected."""

    drawn: int = 256
    tolerance: float = 0.02
    teaching: Plan = TEACHING


@dataclass(frozen=True, slots=True)
class Curve:
    """A point every so many decisions, those of the known world first.

    Attributes:
        paid: mean reward of a decision since the last point, drawn ones and all.
        greedy: of the version in use along every trace in order, without drawing.
        published, withheld: versions, in the end; corrected: how often the simulator was.
    """

    paid: tuple[float, ...]
    greedy: tuple[float, ...]
    published: int = 0
    withheld: int = 0
    corrected: int = 0


class Trainer:
    """``streamsplit policy`` without its thread: it takes what has come when it is asked to."""

    def __init__(
        self, link: Link, topics: Topics, *, learning: Learning, begin: PolicyUpdate, network: PolicyNetwork,
        split: Split, costs: CutCosts, path: Path, seed: int,
    ) -> None:  # fmt: skip
        self._link = link
        self._learner = FleetLearner(
            network,
            judging_tables(costs, split),
            min_cut=MIN_CUT,
            first_cut=FIRST_CUT,
            weights=WEIGHTS,
            tolerance=learning.tolerance,
            teaching=learning.teaching,
            seed=seed,
        )
        self.process = PolicyProcess(
            link,
            topics,
            encoder=ENCODER,
            learner=self._learner,
            experience=Experience(parts_per_step=WINDOWS, weights=WEIGHTS, actions=network.sizes[-1]),
            speeds=FleetSpeeds(costs, shipped_speeds()),
            simulated=partial(simulated_tables, costs, split),
            version=begin.version,
            drawn_per_update=learning.drawn,
            path=path,
        )
        link.start()
        for kind in (Kind.STATUS, Kind.TELEMETRY):
            link.subscribe(topics.every_device(kind))

    @property
    def network(self) -> PolicyNetwork:
        """The newest that was published."""
        return self._learner.network

    def take(self, at_s: float) -> None:
        """Everything that has come, at this time of the simulation."""
        while (incoming := self._link.receive(0.0)) is not None:
            self.process.take(replace(incoming, received_s=at_s))


def learning_run(
    worlds: Sequence[World],
    network: PolicyNetwork,
    *,
    pace: Pace,
    learning: Learning | None,
    split: Split,
    costs: CutCosts,
    seed: int,
    advance: Callable[[], None],
) -> Curve:
    """A fleet that begins with `network` in the first world and goes on in the second; `learning` None: frozen."""
    topics, broker = Topics(FLEET.fleet), MemoryBroker()
    begin = to_message(network, version=1, encoder=ENCODER)
    with TemporaryDirectory() as folder:
        trainer = None
        if learning is not None:
            trainer = Trainer(
                _link(broker, "policy"), topics, learning=learning, begin=begin, network=network, split=split,
                costs=costs, path=Path(folder) / "policy.bin", seed=seed,
            )  # fmt: skip
        fleet = Fleet(
            worlds[0].groups,
            costs,
            devices=pace.devices,
            first_cut=FIRST_CUT,
            min_cut=MIN_CUT,
            weights=WEIGHTS,
            exploration=pace.exploration,
            link=None if trainer is None else _link(broker, "fleet"),
            topics=topics,
            seed=seed,
        )
        fleet.take(begin)
        curve = _live(worlds, fleet, trainer, network, pace=pace, advance=advance)
    if trainer is None:
        return curve
    process = trainer.process
    published = process.version - begin.version
    return replace(curve, published=published, withheld=process.withheld, corrected=process.corrected)


def _live(
    worlds: Sequence[World],
    fleet: Fleet,
    trainer: Trainer | None,
    network: PolicyNetwork,
    *,
    pace: Pace,
    advance: Callable[[], None],
) -> Curve:
    paid, greedy = [], []
    for number, (here, decisions) in enumerate(zip(worlds, (pace.known, pace.changed), strict=True)):
        if number:
            fleet.move_to(here.groups)
        for _ in range(decisions // pace.every):
            paid.append(_earn(fleet, trainer, pace.every))
            greedy.append(greedy_reward(here, network if trainer is None else trainer.network))
            advance()
    return Curve(tuple(paid), tuple(greedy))


def greedy_reward(here: World, network: PolicyNetwork) -> float:
    """Mean reward of a decision along every trace of a world, without drawing."""
    return float(returns(here.judged, by_network(network), seed=0).mean())


def _earn(fleet: Fleet, trainer: Trainer | None, decisions: int) -> float:
    total = 0.0
    for _ in range(decisions):
        total += float(fleet.step().mean())
        if trainer is not None:
            trainer.take(fleet.decisions * DECISION_S)
            fleet.obey()
    return total / decisions


def _link(broker: MemoryBroker, name: str) -> Link:
    return broker.open_link(FLEET, client_id=name, will=None, data_capacity=QUEUE, outbound_capacity=QUEUE)
