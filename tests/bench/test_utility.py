from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch

from common.encoder import Encoder, build_encoder
from common.mixture_memory import MixtureMemory
from tests.bench.utility import QUARTILES, Repeat, Start, batches, by_quartile, read, summary
from tests.bench.utility_arms import (
    Batch,
    Heard,
    contrast,
    contrast_of,
    embeddings,
    held_out_loss,
    learned_alone,
    sent,
)

STEPS = 2
RATE = 5e-4


def heard(device: str, windows: int, seed: int) -> list[Heard]:
    """Windows of one sound each, whose views differ by a little noise."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(windows):
        sound = torch.randn(1, 64, 1, generator=generator).expand(1, 64, 96)
        views = torch.stack([sound + 0.1 * torch.randn(1, 64, 96, generator=generator) for _ in range(2)])
        made.append(Heard(device, number, float(number), views))
    return made


def fleet() -> list[Batch]:
    return batches({device: heard(device, 8 * STEPS, seed) for seed, device in enumerate("ab")})


def moved(start: Encoder, end: Encoder) -> dict[str, bool]:
    before, after = start.state_dict(), end.state_dict()
    return {key: not torch.equal(before[key], after[key]) for key in before}


def test_steps_hold_every_devices_windows_in_the_order_they_were_heard() -> None:
    steps = fleet()
    assert [list(step) for step in steps] == [["a", "b"]] * STEPS
    assert [one.segment for step in steps for one in step["a"]] == list(range(8 * STEPS))


def test_quartiles_rise_in_the_signal_and_keep_the_order_within() -> None:
    encoder, own = build_encoder("mobile", seed=1), heard("a", 16, 3)
    start = Start(encoder, MixtureMemory(), [])
    quarters = by_quartile(start, {"a": own}, "loss")
    with torch.no_grad():
        loss = torch.cat([contrast(encoder, own[:8]), contrast(encoder, own[8:])])
    values = [[float(loss[one.segment]) for one in quarter["a"]] for quarter in quarters]
    assert [len(quarter) for quarter in values] == [4] * QUARTILES
    assert all(max(low) <= min(high) for low, high in pairwise(values))
    assert all(q["a"] == sorted(q["a"], key=lambda one: one.segment) for q in quarters)


def test_the_gradient_signal_is_that_of_the_loss_at_one_windows_embeddings() -> None:
    encoder, own = build_encoder("mobile", seed=1).eval(), heard("a", 16, 3)
    quarters = by_quartile(Start(encoder, MixtureMemory(), []), {"a": own}, "gradient")
    norms = []
    for at in (0, 8):
        both = embeddings(encoder, own[at : at + 8]).detach()
        for window in range(8):
            free = torch.stack([both[window], both[8 + window]]).requires_grad_()
            rows = [free[place // 8] if place % 8 == window else both[place] for place in range(16)]
            contrast_of(encoder, torch.stack(rows), own[at : at + 8]).sum().backward()
            assert free.grad is not None
            norms.append(float(free.grad.norm()))
    order = sorted(range(16), key=norms.__getitem__)
    expected = [sorted(order[4 * quarter : 4 * quarter + 4]) for quarter in range(QUARTILES)]
    assert [[one.segment for one in quarter["a"]] for quarter in quarters] == expected


def test_both_arms_learn_from_the_windows_and_leave_the_start_alone() -> None:
    start, steps = build_encoder("mobile", seed=1), fleet()
    before = held_out_loss(start, steps)
    known = {key: value.clone() for key, value in start.state_dict().items()}
    together = sent(start, steps, cut=5, learning_rate=RATE, seed=0)
    alone = learned_alone(start, steps, MixtureMemory(), learning_rate=RATE, seed=0)
    assert all(torch.equal(known[key], value) for key, value in start.state_dict().items())
    assert all(moved(start, together).values())
    assert all(moved(start, alone).values())
    assert held_out_loss(together, steps) < before
    assert held_out_loss(alone, steps) < before


def test_a_signal_is_summed_up_apart_for_the_folds_it_was_chosen_on(tmp_path: Path) -> None:
    chosen = [Repeat(fold, number, 4, {"loss": [0.0, 0.1, 0.2, 0.3 + number]}) for fold in (1, 2) for number in (0, 1)]
    held = [Repeat(4, 0, 4, {"loss": [0.5, 0.0, 0.0, 0.0], "novelty": [0.0] * 4})]
    result = summary([*chosen, *held])
    assert result["loss"]["folds_1_2"] == {
        "quartiles": [0.0, 0.1, 0.2, 0.8],
        "top_minus_bottom": 0.8,
        "ci95": [0.3, 1.3],
        "repeats": 4,
    }
    assert result["loss"]["folds_3_5"] == {
        "quartiles": [0.5, 0.0, 0.0, 0.0],
        "top_minus_bottom": -0.5,
        "ci95": [-0.5, -0.5],
        "repeats": 1,
    }
    assert "uncertainty" not in result
    assert read(tmp_path / "none.jsonl") == []
