from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common import config, messages
from common.config_fleet import FleetConfig
from common.errors import ConfigError
from common.link import Incoming
from common.messages import DeviceStatus, PolicyUpdate
from common.policy import OBSERVATION_NAMES
from common.policy_network import PolicyNetwork
from common.state_blob import digest
from common.topics import Topics
from device.policy_splitter import shipped_policy
from tests.bench.in_process_link import MemoryBroker
from tests.fakes import FakeLink
from tests.trainer.simulated import costs, small_fleet
from tests.trainer.test_fleet_speeds import measured
from tests.trainer.test_policy_experience import told
from trainer import policy_learning
from trainer.fleet_speeds import ENOUGH, FleetSpeeds
from trainer.learn_policy import PolicyProcess, learn
from trainer.policy_experience import OLDEST, Experience, Reported
from trainer.policy_file import load_policy, network_of, save_policy, to_message
from trainer.policy_learning import ONLINE, FleetLearner
from trainer.policy_pretraining import Learned, Plan
from trainer.ppo import ActorCritic
from trainer.reward import RewardWeights
from trainer.simulated_costs import Tables
from trainer.simulated_fleet import BOARDS, Speed, shipped_fleet_tables, shipped_speeds

TOPICS = Topics("home")
W = RewardWeights()
QUICK = replace(ONLINE, learning_rate=5e-4)  # for networks that know nothing: few decisions have to be enough


def learner(tolerance: float = 10.0) -> FleetLearner:
    network = network_of(ActorCritic(len(OBSERVATION_NAMES), 10, seed=0))
    return FleetLearner(
        network, small_fleet(), min_cut=3, first_cut=5, weights=W, tolerance=tolerance, seed=0, settings=QUICK
    )


def trajectory(
    rng: np.random.Generator, network: PolicyNetwork, length: int = 64, *, always: float = 0.0
) -> list[Reported]:
    """Decisions drawn from the policy, of which cut 6 pays; `always`: what any of them pays besides."""
    mask = (False,) * 3 + (True,) * 7
    made = []
    for _ in range(length):
        seen = tuple(rng.random(len(OBSERVATION_NAMES)).tolist())
        chances = network.probabilities(seen, mask)
        action = int(rng.choice(10, p=chances))
        log_prob = float(np.log(chances[action]))
        made.append(Reported("pi", seen, mask, action, log_prob, 1, always + float(action == 6)))
    return made


def test_it_learns_from_a_fleet_what_pays_there() -> None:
    pupil, rng = learner(), np.random.default_rng(0)
    lessons = [pupil.learn([trajectory(rng, pupil.network) for _ in range(4)]) for _ in range(12)]
    assert lessons[0].reward < 0.35
    assert lessons[-1].reward > 0.6
    assert all(lesson.accepted and lesson.drawn == 4 * 63 for lesson in lessons)


def test_what_every_decision_pays_alike_does_not_hide_which_is_better() -> None:
    pupil, rng = learner(), np.random.default_rng(0)
    lessons = [pupil.learn([trajectory(rng, pupil.network, always=-5.0) for _ in range(4)]) for _ in range(20)]
    assert lessons[0].reward < -5.0 + 0.35
    assert lessons[-1].reward > -5.0 + 0.6


def test_what_the_simulator_finds_worse_is_given_up() -> None:
    pupil, rng = learner(tolerance=-10.0), np.random.default_rng(0)
    before, critic = pupil.network, [value.clone() for value in pupil._model.critic.parameters()]
    lesson = pupil.learn([trajectory(rng, pupil.network)])
    assert not lesson.accepted
    assert pupil.network is before
    again = network_of(pupil._model)
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(again.layers, before.layers, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(critic, pupil._model.critic.parameters(), strict=True))
    with pytest.raises(ValueError, match="nothing to learn"):
        pupil.learn([])


def test_a_simulator_with_slower_boards_teaches_and_judges_from_then_on() -> None:
    shipped = shipped_policy("mobile")
    assert shipped is not None
    network = load_policy(shipped, actions=10)[1]
    slow = shipped_fleet_tables(
        (("wifi", 1), ("lte", 2)), costs(), steps=320, speeds={name: Speed(20.0, 300.0) for name in BOARDS}
    )
    pupil = FleetLearner(
        network, small_fleet(), min_cut=3, first_cut=5, weights=W, tolerance=0.0, seed=0,
        teaching=Plan(rounds=0, updates=24, unvalued=4, batch=128, steps=32),
    )  # fmt: skip
    before = pupil.simulated(network)
    assert pupil.teach(slow, judged_by=slow)
    after = pupil.simulated(network)
    assert after < before - 0.1
    assert pupil.simulated(pupil.network) > after
    assert pupil._first == pupil.simulated(pupil.network)


@pytest.mark.parametrize(("gain", "taken"), [(-0.1, False), (0.001, False), (0.1, True)])
def test_what_teaching_makes_worse_or_hardly_better_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, *, gain: float, taken: bool
) -> None:
    pupil, other = learner(), ActorCritic(len(OBSERVATION_NAMES), 10, seed=5)
    monkeypatch.setattr(policy_learning, "pretrain", lambda *_, **__: Learned(other, began=0.5, refined=0.5 + gain))
    before, tables = pupil.network, small_fleet()
    assert pupil.teach(tables, judged_by=tables) == taken
    kept = network_of(other) if taken else before
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(pupil.network.layers, kept.layers, strict=True))


class Process:
    def __init__(self, path: Path) -> None:
        self.link = FakeLink()
        self.asked: list[dict[str, Speed]] = []
        self.process = PolicyProcess(
            self.link.as_link,
            TOPICS,
            encoder="mobile",
            learner=learner(),
            experience=Experience(parts_per_step=8, weights=W, actions=10),
            speeds=FleetSpeeds(costs(), shipped_speeds()),
            simulated=self.simulated,
            version=4,
            drawn_per_update=6,
            path=path,
        )

    def simulated(self, speeds: Mapping[str, Speed]) -> tuple[Sequence[Tables], Sequence[Tables]]:
        self.asked.append(dict(speeds))
        return small_fleet(), small_fleet()

    def hear(self, topic: str, payload: bytes) -> None:
        self.process.take(Incoming(topic, payload, False, 0.0))


def status(state: str) -> bytes:
    made = DeviceStatus("ready", "0" * 16, 1, "0", "f", "raspberry-pi-4", "", (3, 8))
    return messages.encode(replace(made, state=state))  # type: ignore[arg-type]


def test_a_device_that_comes_is_told_the_policy_and_later_every_better_one(tmp_path: Path) -> None:
    one = Process(tmp_path / "policy.bin")
    one.hear(TOPICS.status("pi"), status("ready"))
    for seq in range(1, 9):
        one.hear(TOPICS.telemetry("pi"), messages.encode(told(seq)))
    sent = [
        messages.decode(PolicyUpdate, payload) for topic, payload in one.link.retained if topic == TOPICS.policy("pi")
    ]
    assert [update.version for update in sent] == [4, 5]
    assert all(digest(update.data) == update.digest for update in sent)
    assert load_policy(tmp_path / "policy.bin", actions=10)[0] == sent[-1]


@pytest.mark.parametrize(("slower", "helps"), [(1.0, True), (3.0, True), (3.0, False)])
def test_a_board_that_is_slower_than_its_profile_corrects_the_simulator_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, slower: float, helps: bool
) -> None:
    caplog.set_level(logging.INFO)
    one = Process(tmp_path / "policy.bin")
    one.process._drawn_per_update = 10**6
    lessons: list[int] = []

    def teach(tables: Sequence[Tables], *, judged_by: Sequence[Tables]) -> bool:
        lessons.append(len(tables) + len(judged_by))
        return helps

    one.process._learner.teach = teach  # type: ignore[method-assign]
    one.hear(TOPICS.status("pi"), status("ready"))
    due = int(slower != 1.0)
    for seq in range(1, 100):
        said = measured("raspberry-pi-4", slower=slower)
        one.hear(TOPICS.telemetry("pi"), messages.encode(replace(said, decision_seq=seq)))
    assert one.process.corrected == len(lessons) == len(one.asked) == due
    boards = [record.getMessage() for record in caplog.records if " takes " in record.getMessage()]
    told_again = [payload for _, payload in one.link.retained][1:]
    assert len(boards) == due
    if not due:
        return
    assert boards[0] == "raspberry-pi-4: says 20.0 ms for mobile, takes 60.0"
    assert one.asked[0]["raspberry-pi-5"] == shipped_speeds()["raspberry-pi-5"]
    assert told_again == [messages.encode(one.process.current())] * helps
    assert one.process.version == 4 + helps * (OLDEST + 1)
    if helps:  # what was decided before is forgotten, and what is still to come of it will be
        assert one.process._experience.drawn < 99 - ENOUGH


def test_a_device_cannot_name_a_file_of_this_computer_as_its_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(config.PROFILES / "raspberry-pi-4.yaml", tmp_path / "own.yaml")
    one = Process(tmp_path / "policy.bin")
    for device, profile in {"pi": "raspberry-pi-4", "path": "./own.yaml", "file": "own.yaml", "none": ""}.items():
        made = replace(messages.decode(DeviceStatus, status("ready")), profile=profile)
        one.hear(TOPICS.status(device), messages.encode(made))
    watts = one.process._experience.idle_watts
    assert watts.pop("pi") > 0.0
    assert watts == {"path": 0.0, "file": 0.0, "none": 0.0}


def test_a_policy_that_cannot_be_kept_goes_out_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = Process(tmp_path / "gone" / "policy.bin")
    one.hear(TOPICS.status("pi"), status("ready"))
    for seq in range(1, 9):
        one.hear(TOPICS.telemetry("pi"), messages.encode(told(seq)))
    assert (one.process.version, len(one.link.retained)) == (5, 2)
    assert "policy 5 is not kept" in caplog.text


def test_what_is_withheld_is_counted_and_nobody_is_told(tmp_path: Path) -> None:
    one = Process(tmp_path / "policy.bin")
    one.process._learner = learner(tolerance=-10.0)
    one.hear(TOPICS.status("pi"), status("ready"))
    for seq in range(1, 9):
        one.hear(TOPICS.telemetry("pi"), messages.encode(told(seq)))
    assert (one.process.version, one.process.withheld, len(one.link.retained)) == (4, 1, 1)


def test_bad_messages_are_counted_and_a_device_that_left_is_told_nothing(tmp_path: Path) -> None:
    one = Process(tmp_path / "policy.bin")
    one.hear(TOPICS.status("pi"), status("ready"))
    one.hear(TOPICS.status("pi"), status("lost"))
    one.hear(TOPICS.telemetry("pi"), b"nonsense")
    one.hear("no/topic", b"")
    assert one.process.refused == 2
    for seq in range(1, 9):
        one.hear(TOPICS.telemetry("pi"), messages.encode(told(seq)))
    assert one.process.version == 5
    assert len(one.link.retained) == 1


def fleet(tmp_path: Path, encoder: str) -> FleetConfig:
    path = tmp_path / "fleet.yaml"
    path.write_text(f"fleet: home\nencoder: {encoder}\nbroker: {{url: 'mqtt://127.0.0.1:1'}}\n")
    return config.load_fleet(path)


def test_it_is_built_from_a_fleet_file_and_a_policy_and_hears_the_fleet(tmp_path: Path) -> None:
    policy, broker, stop = tmp_path / "policy.bin", MemoryBroker(), threading.Event()
    shipped = shipped_policy("mobile")
    assert shipped is not None
    shutil.copy(shipped, policy)
    home = fleet(tmp_path, "mobile")
    broker.publish(TOPICS.status("pi"), status("ready"), qos=1, retain=True, expires=False)
    thread = threading.Thread(
        target=lambda: learn(home, stop, path=policy, drawn_per_update=64, tolerance=0.0, connect=broker.open_link)
    )
    thread.start()
    try:
        until_s = time.monotonic() + 120.0
        while TOPICS.policy("pi") not in broker._retained and time.monotonic() < until_s:
            stop.wait(0.05)
    finally:
        stop.set()
        thread.join(60.0)
    assert broker._retained[TOPICS.policy("pi")] == policy.read_bytes()


def test_a_policy_for_another_encoder_is_the_operators_error(tmp_path: Path) -> None:
    policy = tmp_path / "policy.bin"
    network = network_of(ActorCritic(len(OBSERVATION_NAMES), 10, seed=0))
    save_policy(policy, to_message(network, version=1, encoder="resnet18"))
    with pytest.raises(ConfigError, match="for resnet18"):
        learn(fleet(tmp_path, "mobile"), threading.Event(), path=policy, drawn_per_update=64, tolerance=0.0)
