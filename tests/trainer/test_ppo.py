from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from trainer.ppo import ActorCritic, Learner, Samples, Settings, advantages

INPUTS, ACTIONS = 3, 4


def test_advantages_are_the_sums_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    reward, value, after = (rng.normal(size=(6, 2)) for _ in range(3))
    done = np.zeros((6, 2), dtype=bool)
    done[2, 0] = done[5] = True
    found = advantages(reward, value, after, done, discount=0.9, decay=0.8)
    errors = reward + 0.9 * after - value
    for device in range(2):
        for step in range(6):
            total, weight = 0.0, 1.0
            for later in range(step, 6):
                total += weight * errors[later, device]
                if done[later, device]:
                    break
                weight *= 0.9 * 0.8
            assert found[step, device] == pytest.approx(total)


def test_what_is_not_allowed_has_no_probability_and_no_part_in_the_gradient() -> None:
    model = ActorCritic(INPUTS, ACTIONS, seed=0)
    mask = torch.tensor([[True, False, True, False]])
    log_probs = model.log_probs(torch.rand(1, INPUTS), mask)
    assert float(log_probs.detach().exp().sum()) == pytest.approx(1.0)
    assert torch.isinf(log_probs[0, [1, 3]]).all()


def bandit(model: ActorCritic, count: int, seed: int) -> Samples:
    """Action 2 is worth 1, the others 0; action 0 is never allowed."""
    generator = torch.Generator().manual_seed(seed)
    observation = torch.rand(count, INPUTS, generator=generator)
    mask = torch.ones(count, ACTIONS, dtype=torch.bool)
    mask[:, 0] = False
    with torch.no_grad():
        log_probs, value = model.log_probs(observation, mask), model.value(observation)
    action = torch.multinomial(log_probs.exp(), 1, generator=generator)[:, 0]
    reward = (action == 2).float()
    return Samples(
        observation=observation,
        mask=mask,
        action=action,
        log_prob=log_probs.gather(1, action[:, None])[:, 0],
        advantage=reward - value,
        returns=reward,
        value=value,
        learn=torch.ones(count, dtype=torch.bool),
    )


def test_it_learns_what_pays() -> None:
    model = ActorCritic(INPUTS, ACTIONS, seed=0)
    learner = Learner(model, Settings(learning_rate=1.5e-3, minibatch=128, entropy=0.0), seed=0)
    healths = [learner.update(bandit(model, 512, seed)) for seed in range(30)]
    samples = bandit(model, 512, 99)
    assert (samples.action == 2).float().mean() > 0.95
    assert np.log(3) - 0.3 < healths[0].entropy < np.log(3)
    assert healths[-1].entropy < 0.3
    assert max(health.approx_kl for health in healths) < 0.2
    assert all(0.0 <= health.clip_fraction <= 1.0 for health in healths)


def test_health_is_what_its_words_say() -> None:
    model = ActorCritic(INPUTS, ACTIONS, seed=1)
    samples = bandit(model, 64, 0)
    learner = Learner(model, Settings(learning_rate=1e-9, epochs=1), seed=0)
    same = learner.update(samples)
    assert same.approx_kl == pytest.approx(0.0, abs=1e-5)
    assert same.clip_fraction == 0.0
    shifted = replace(samples, log_prob=samples.log_prob - 0.5, value=samples.returns)
    health = learner.update(shifted)
    assert health.approx_kl == pytest.approx(np.exp(0.5) - 1 - 0.5, abs=1e-3)
    assert health.clip_fraction == 1.0
    assert health.explained_variance == pytest.approx(1.0)


def test_a_sample_said_to_have_been_all_but_impossible_leaves_every_weight_finite() -> None:
    model = ActorCritic(INPUTS, ACTIONS, seed=1)
    samples = bandit(model, 64, 0)
    samples.log_prob[:8] = -200.0
    health = Learner(model, Settings(), seed=0).update(samples)
    assert all(bool(value.isfinite().all()) for value in model.parameters())
    assert np.isfinite(health.approx_kl)


def test_what_was_learned_can_be_taken_back_with_the_optimizers_momentum() -> None:
    model = ActorCritic(INPUTS, ACTIONS, seed=0)
    learner = Learner(model, Settings(), seed=0)
    learner.update(bandit(model, 64, 0))
    before = learner.state()
    learner.fit_value(bandit(model, 64, 1))
    learner.update(bandit(model, 64, 1))
    learner.restore(before)
    again = learner.state()
    torch.testing.assert_close(again, before, rtol=0.0, atol=0.0)


def test_decisions_that_were_not_drawn_teach_the_value_and_not_the_policy() -> None:
    model = ActorCritic(INPUTS, ACTIONS, seed=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    samples = replace(bandit(model, 256, 0), learn=torch.zeros(256, dtype=torch.bool))
    Learner(model, Settings(entropy=0.0), seed=0).update(samples)
    moved = {name: not torch.equal(value, before[name]) for name, value in model.state_dict().items()}
    assert not any(there for name, there in moved.items() if name.startswith("actor"))
    assert any(there for name, there in moved.items() if name.startswith("critic"))


def test_the_value_can_learn_alone_and_leaves_the_policy_as_it_is() -> None:
    model, samples = ActorCritic(INPUTS, ACTIONS, seed=0), bandit(ActorCritic(INPUTS, ACTIONS, seed=0), 256, seed=1)
    samples = replace(samples, returns=samples.observation.sum(dim=1))
    learner = Learner(model, Settings(minibatch=32), seed=0)
    actor = [value.clone() for value in model.actor.parameters()]
    errors = []
    for _ in range(20):
        with torch.no_grad():
            errors.append(float((model.value(samples.observation) - samples.returns).square().mean()))
        learner.fit_value(samples)
    assert errors[-1] < 0.1 * errors[0]
    assert all(torch.equal(a, b) for a, b in zip(actor, model.actor.parameters(), strict=True))
