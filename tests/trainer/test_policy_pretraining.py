from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common import messages
from common.compute_profile import load, save
from common.errors import ConfigError
from common.messages import PolicyUpdate
from common.policy import OBSERVATION_NAMES
from common.policy_network import unpack_network
from tests.bench import policy as bench
from tests.bench.policy_baselines import constant
from tests.policies import update, wanting
from tests.trainer.simulated import small_fleet
from trainer import policy_pretraining, train_policy
from trainer.policy_file import load_policy, network_of, save_policy, take_over, to_message
from trainer.policy_pretraining import Plan, Progress, before_updates, collect, greedy_reward, pretrain
from trainer.ppo import HIDDEN, ActorCritic, Settings
from trainer.reward import RewardWeights
from trainer.simulator import Simulator

INPUTS = len(OBSERVATION_NAMES)
SMALL = Plan(rounds=3, updates=3, unvalued=1, batch=16, steps=16)


def learned(seed: int) -> tuple[ActorCritic, list[Progress]]:
    seen: list[Progress] = []
    made = pretrain(
        small_fleet(),
        plan=SMALL,
        settings=Settings(minibatch=64),
        weights=RewardWeights(),
        seed=seed,
        report=seen.append,
    )
    return made.model, seen


def test_the_same_seed_learns_the_same_policy_and_tells_of_every_update() -> None:
    (one, seen), (same, _), (other, _) = learned(1), learned(1), learned(2)
    states = [torch.cat([value.flatten() for value in model.state_dict().values()]) for model in (one, same, other)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    assert [progress.update for progress in seen] == [0, 1, 2]
    assert all(np.isfinite(progress.reward) for progress in seen)


def test_what_imitated_takes_the_same_actions_softened_and_draws_others_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    soft, _ = learned(1)
    monkeypatch.setattr(policy_pretraining, "SOFTENED", 1.0)
    sharp, _ = learned(1)
    seen, mask = torch.rand(200, INPUTS), torch.ones(200, 10, dtype=torch.bool)
    with torch.inference_mode():
        one, other = soft.log_probs(seen, mask), sharp.log_probs(seen, mask)
    assert torch.equal(one.argmax(dim=1), other.argmax(dim=1))
    assert one.exp().amax(dim=1).mean() < other.exp().amax(dim=1).mean()


def test_a_policy_can_be_taught_further_from_where_it_stands() -> None:
    network = network_of(learned(1)[0])
    still = Settings(learning_rate=0.0)
    taught = pretrain(
        small_fleet(), plan=SMALL, settings=still, weights=RewardWeights(), seed=2, network=network
    )  # fmt: skip
    assert taught.began == taught.refined
    for (made, _), (began, _) in zip(network_of(taught.model).layers, network.layers, strict=True):
        assert np.array_equal(made, began)


def test_what_is_collected_was_allowed_and_has_the_probability_it_says() -> None:
    simulator = Simulator(small_fleet(), batch=8, min_cut=3, first_cut=5, weights=RewardWeights(), seed=0)
    model = ActorCritic(INPUTS, simulator.actions, seed=0)
    samples, reward = collect(model, simulator, steps=10, generator=torch.Generator().manual_seed(0))
    assert len(samples.action) == 80
    assert samples.mask.gather(1, samples.action[:, None]).all()
    again = model.log_probs(samples.observation, samples.mask).gather(1, samples.action[:, None])[:, 0]
    assert torch.allclose(again, samples.log_prob, atol=1e-6)
    assert np.isfinite(reward)


def test_a_device_computes_what_was_learned() -> None:
    model = ActorCritic(INPUTS, 10, seed=3)
    network = network_of(model)
    seen, mask = torch.rand(5, INPUTS), torch.ones(5, 10, dtype=torch.bool)
    expected = model.log_probs(seen, mask).exp().detach().numpy()
    found = [network.probabilities(row.tolist(), [True] * 10) for row in seen]
    assert np.allclose(found, expected, atol=1e-5)
    other = ActorCritic(INPUTS, 10, seed=4)
    take_over(other, network)
    assert torch.allclose(other.log_probs(seen, mask), model.log_probs(seen, mask), atol=1e-5)
    with pytest.raises(ValueError, match="does not fit"):
        take_over(other, unpack_network(wanting({}), inputs=INPUTS, actions=10))


def test_a_policy_file_is_the_message_and_a_damaged_one_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "mobile.bin"
    made = to_message(network_of(ActorCritic(INPUTS, 10, seed=0)), version=4, encoder="mobile")
    save_policy(path, made)
    assert messages.decode(PolicyUpdate, path.read_bytes()) == made
    read, network = load_policy(path, actions=10)
    assert (read, network.sizes) == (made, (INPUTS, HIDDEN, HIDDEN, 10))
    save_policy(path, PolicyUpdate(1, "mobile", "00" * 32, made.data))
    with pytest.raises(ConfigError, match="digest"):
        load_policy(path, actions=10)
    save_policy(path, update(1, b"nonsense"))
    with pytest.raises(ConfigError, match="not a policy"):
        load_policy(path, actions=10)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_policy(tmp_path / "nowhere.bin", actions=10)


def test_the_command_writes_policy_health_and_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_policy, "training_tables", lambda *_: list(small_fleet()))
    assert train_policy.main(["--rounds", "2", "--updates", "2", "--out", str(tmp_path), "--seed", "5"]) == 0
    assert "bytes, reward" in capsys.readouterr().out
    _, network = load_policy(tmp_path / "mobile.bin", actions=10)
    assert network.sizes[0] == INPUTS
    about = json.loads((tmp_path / "mobile.json").read_text())
    assert (about["seed"], about["plan"]["updates"]) == (5, 2)
    assert set(about["health"]) == {"approx_kl", "clip_fraction", "explained_variance", "entropy"}
    assert (tmp_path / "mobile.png").stat().st_size > 1000


def test_imitation_alone_is_a_policy_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_policy, "training_tables", lambda *_: list(small_fleet()))
    assert train_policy.main(["--rounds", "1", "--updates", "0", "--out", str(tmp_path)]) == 0
    about = json.loads((tmp_path / "mobile.json").read_text())
    assert about["reward_imitated"] == about["reward_refined"] == about["reward"]
    assert about["health"] == {}


def test_a_profile_that_is_none_is_the_operators_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_policy.main(["--compute", str(tmp_path / "none.json"), "--out", str(tmp_path)]) == 78
    assert "none.json" in capsys.readouterr().err


def test_an_encoder_of_which_no_times_are_shipped_is_told_how_to_measure_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_policy.main(["--encoder", "resnet18", "--out", str(tmp_path)]) == 78
    said = capsys.readouterr().err
    assert "streamsplit profile --encoder resnet18 --out FILE" in said
    assert "--compute FILE" in said


def test_a_profile_of_another_encoder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--encoder", "resnet18", "--compute", "configs/compute/mobile.json", "--out", str(tmp_path)]
    assert train_policy.main(given) == 78
    assert "a profile of mobile, not of resnet18" in capsys.readouterr().err


def test_a_profile_that_does_not_say_how_quick_its_machine_is_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = replace(load(Path("configs/compute/mobile.json")), encoder="resnet18")
    save(old, tmp_path / "old.json")
    assert train_policy.main(["--encoder", "resnet18", "--compute", str(tmp_path / "old.json")]) == 78
    assert "no mobile_forward_ms: `streamsplit profile --encoder resnet18 --out FILE`" in capsys.readouterr().err


def test_imitation_alone_earns_more_than_any_one_cut_and_is_kept_where_rewards_make_it_worse() -> None:
    tables, w = small_fleet(), RewardWeights()
    plan = Plan(rounds=40, updates=2, unvalued=0, batch=32, steps=16)
    wild = Settings(learning_rate=0.3, stop_kl=1e9)
    advanced: list[int] = []
    made = pretrain(tables, plan=plan, settings=wild, weights=w, seed=0, advance=lambda: advanced.append(1))
    assert len(advanced) == before_updates(tables, plan)
    assert made.refined < made.began
    assert greedy_reward(made.model, tables, min_cut=3, weights=w) == made.began
    assert made.began > max(bench.returns(tables, constant(cut), seed=0).mean() for cut in range(3, 9))
