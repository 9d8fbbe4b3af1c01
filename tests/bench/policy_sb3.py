"""The same environment for stable-baselines3: sb3-contrib's PPO with masked actions (the extra `bench`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from sb3_contrib import MaskablePPO
from stable_baselines3.common.vec_env import VecEnv

from common.policy import OBSERVATION_NAMES
from trainer.policy_pretraining import DECAY, DISCOUNT, Plan
from trainer.ppo import HIDDEN, Settings
from trainer.reward import RewardWeights
from trainer.simulated_costs import MERGE_BATCHES, Tables
from trainer.simulated_device import Counts
from trainer.simulator import Simulator

Floats = NDArray[np.float32]

UPDATES = 400
# From rewards alone nothing is found at the true pace of versions, by our own PPO as little: what a move has fetched is
# out of date before it has paid. So for the first part of the updates they come more seldom.
EASY, EASY_MERGES = 0.6, 48


class SimulatedFleet(VecEnv):  # type: ignore[misc, unused-ignore]  # Any where the extra is not installed
    """`trainer.simulator.Simulator` by stable-baselines3's interface of many environments at once."""

    def __init__(self, simulator: Simulator, plan: Plan) -> None:
        batch = plan.batch
        self._simulator = simulator
        self._plan = plan
        self._taken = 0
        self._actions: Counts = np.zeros(batch, dtype=np.intp)
        space = gymnasium.spaces.Box(0.0, 1.0, (len(OBSERVATION_NAMES),), np.float32)
        super().__init__(batch, space, gymnasium.spaces.Discrete(simulator.actions))

    def reset(self) -> Floats:
        return self._seen()

    def step_async(self, actions: Counts) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[Floats, Floats, NDArray[np.bool_], list[dict[str, Any]]]:
        easy = self._taken < EASY * UPDATES * self._plan.steps
        self._simulator.merge_every = EASY_MERGES if easy else MERGE_BATCHES
        stepped = self._simulator.step(self._actions)
        self._taken += 1
        seen = self._seen()
        # As ours does: what follows a trace that is cut off is worth about what its last state was.
        infos: list[dict[str, Any]] = [
            {"TimeLimit.truncated": True, "terminal_observation": seen[i]} if done else {}
            for i, done in enumerate(stepped.done)
        ]
        return seen, stepped.reward.astype(np.float32), stepped.done, infos

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **options: Any) -> list[Any]:
        if method_name != "action_masks":
            raise NotImplementedError(method_name)
        return list(self._simulator.mask())

    def has_attr(self, attr_name: str) -> bool:
        return attr_name == "action_masks"

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError(attr_name)

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs

    def close(self) -> None:
        pass

    def _seen(self) -> Floats:
        return self._simulator.observe().astype(np.float32)


def learn(tables: Sequence[Tables], plan: Plan, weights: RewardWeights, *, seed: int) -> Callable[[Simulator], Counts]:
    """What the library learns, and how it chooses: the likeliest action.

    Its own defaults where they are not about size: network, batch, minibatch, discount and learning rate are ours.
    """
    ours = Settings()
    simulator = Simulator(tables, batch=plan.batch, min_cut=plan.min_cut, first_cut=None, weights=weights, seed=seed)
    model = MaskablePPO(
        "MlpPolicy",
        SimulatedFleet(simulator, plan),
        learning_rate=lambda left: ours.learning_rate * left,
        n_steps=plan.steps,
        batch_size=ours.minibatch,
        n_epochs=ours.epochs,
        gamma=DISCOUNT,
        gae_lambda=DECAY,
        ent_coef=ours.entropy,
        policy_kwargs={"net_arch": [HIDDEN, HIDDEN]},
        seed=seed,
        device="cpu",
    )
    model.learn(total_timesteps=UPDATES * plan.steps * plan.batch)

    def choose(fleet: Simulator) -> Counts:
        seen = fleet.observe().astype(np.float32)
        chosen, _ = model.predict(seen, action_masks=fleet.mask(), deterministic=True)
        return np.asarray(chosen, dtype=np.intp)

    return choose
