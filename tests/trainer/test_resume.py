from __future__ import annotations

import time
from pathlib import Path
from typing import cast

import pytest
import torch

from common.block_optimizer import BlockOptimizers
from common.encoder import build_encoder
from common.errors import ConfigError
from common.mixture_memory import MixtureMemory
from common.split import block_state, load_block, names
from tests.published import FINGERPRINT, same
from trainer import checkpoint, text_tower
from trainer.averaging import AveragedEncoder
from trainer.clap import Clap
from trainer.cola import Cola
from trainer.evaluate import restore_encoder
from trainer.merge_optimizer import MergeOptimizer
from trainer.objective import OBJECTIVE, own_parameters
from trainer.resume import State, fresh_run, restore, to_checkpoint
from trainer.text_tower import TextEncoder

MERGED = {"pi-1": ("a" * 16, 7), "pi-2": ("b" * 16, 0)}


def state(seed: int) -> State:
    encoder = build_encoder("mobile", seed=seed, head="tanh")
    objective = Cola(encoder.projection_dim, false_negative_s=0.0)
    optimizers = BlockOptimizers(
        encoder, kind="adamw", weight_decay=0.01, warmup_steps=4, own=own_parameters(objective)
    )
    generators = [torch.Generator().manual_seed(seed + offset) for offset in (1, 2, 3)]
    mixture = MixtureMemory(dim=encoder.projection_dim, seed=seed)
    merging = MergeOptimizer(encoder, kind="adamw", weight_decay=0.01, warmup_steps=2)
    return State(encoder, optimizers, mixture, objective, AveragedEncoder(), merging, *generators)


def train(one: State, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        z = one.encoder.project(one.encoder(torch.randn(4, 1, 64, 96, generator=generator)))
        target = torch.randn(z.shape, generator=one.directions) + torch.rand(z.shape, generator=one.negatives)
        moved = [*names(one.encoder), OBJECTIVE]
        one.optimizers.zero(moved)
        ((z * target).sum() + one.objective.module(z, target).sum()).backward()
        one.optimizers.step(moved, 1e-3)
        one.mixture.update(z.detach())
        assert one.averaged is not None
        assert one.merging is not None
        master = block_state(one.encoder, "stem")
        change = {key: torch.randn(value.shape, generator=generator) for key, value in master.items()}
        step = one.merging.propose("stem", master, change, 1e-3, batches=1)
        one.merging.settle()
        load_block(one.encoder, "stem", {key: value + step[key] for key, value in master.items()})
        one.averaged.update(one.encoder)


def test_a_resumed_trainer_goes_on_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    straight = state(1)
    train(straight, 3)
    saved = to_checkpoint(straight, "run-1", FINGERPRINT, 12, 3, 24, (17.5, 18.0), MERGED)
    checkpoint.save(tmp_path, saved)
    train(straight, 2)

    loaded = checkpoint.load_latest(tmp_path, FINGERPRINT)
    assert loaded is not None
    resumed = state(2)
    progress = restore(loaded, resumed)
    train(resumed, 2)
    assert (progress.run, progress.weights_version, progress.steps, progress.windows) == ("run-1", 12, 3, 24)
    assert progress.ranks == (17.5, 18.0)
    assert progress.merged == MERGED, "so that a change is not merged twice"
    for name in names(straight.encoder):
        assert same(block_state(resumed.encoder, name), block_state(straight.encoder, name))
    assert same(dict(resumed.mixture.state_dict()), dict(straight.mixture.state_dict()))
    assert straight.averaged is not None
    assert resumed.averaged is not None
    once, again = straight.averaged.state_dict(), resumed.averaged.state_dict()
    assert once["merges"] == again["merges"] == 5
    assert same(cast("dict[str, torch.Tensor]", once["weights"]), cast("dict[str, torch.Tensor]", again["weights"]))
    assert same(dict(resumed.objective.module.state_dict()), dict(straight.objective.module.state_dict()))
    assert restore_encoder(loaded).head_name == "tanh", "the checkpoint says which head its encoder has"
    assert torch.equal(resumed.directions.get_state(), straight.directions.get_state())
    assert torch.equal(resumed.negatives.get_state(), straight.negatives.get_state())


def captioned(text_encoder: TextEncoder) -> State:
    encoder = build_encoder("mobile", seed=0)
    objective = Clap(encoder.projection_dim, text_encoder=text_encoder, false_negative_s=0.0, seed=0)
    optimizers = BlockOptimizers(encoder, kind="adamw", weight_decay=0.0, warmup_steps=0, own=own_parameters(objective))
    generators = [torch.Generator() for _ in range(3)]
    return State(encoder, optimizers, MixtureMemory(dim=encoder.projection_dim), objective, None, None, *generators)


def test_a_changed_text_encoder_on_the_weights_of_another_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_tower, "_minilm", lambda: lambda _: torch.ones(text_tower.SENTENCE_DIM))
    one = captioned("hashed")
    for parameter in one.objective.module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    one.optimizers.step([OBJECTIVE], 1e-3)
    saved = to_checkpoint(one, "run-1", FINGERPRINT, 1, 1, 8, (), {})
    with pytest.raises(ConfigError, match="text_encoder: minilm is configured, the checkpoint has hashed"):
        restore(saved, captioned("minilm"))


def test_two_fresh_runs_have_different_names_and_nothing_behind_them() -> None:
    one, other = fresh_run(), fresh_run()
    assert one.run != other.run
    assert (one.weights_version, one.steps, one.windows, one.ranks, one.merged) == (-1, 0, 0, (), {})


def test_how_long_there_was_no_trainer_is_known_at_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    one = state(1)
    saved = to_checkpoint(one, "run-1", FINGERPRINT, 1, 1, 8, (), {})
    written_s = cast("float", saved.state["saved_s"])
    monkeypatch.setattr(time, "time", lambda: written_s + 300.0)
    assert restore(saved, state(2)).away_s == 300.0
    monkeypatch.setattr(time, "time", lambda: written_s - 300.0)  # a clock that was set back
    assert restore(saved, state(2)).away_s == 0.0
