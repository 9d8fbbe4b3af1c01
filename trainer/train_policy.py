"""``streamsplit train-policy``: learns a policy in the simulator and writes it with its health numbers and a plot."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress as ProgressBar

from common.arguments import between
from common.atomic_file import write_atomically
from common.config import EXIT_CONFIG
from common.config_types import ENCODER_DEPTH
from common.errors import ConfigError
from common.process import prepare_folder
from trainer.link_traces import Split, read_split
from trainer.policy_file import network_of, save_policy, to_message
from trainer.policy_pretraining import Learned, Plan, Progress, before_updates, pretrain
from trainer.reward import RewardWeights
from trainer.simulated_costs import Tables
from trainer.simulated_fleet import encoder_costs, shipped_fleet_tables


def main(argv: Sequence[str] | None = None) -> int:
    """Learn, write ``ENCODER.bin``, ``.json`` and ``.png``; returns the exit status."""
    parser = argparse.ArgumentParser(prog="streamsplit train-policy", description=__doc__)
    parser.add_argument("--encoder", default="mobile", help="whose cuts are chosen (default mobile)")
    parser.add_argument("--compute", type=Path, help="its profile by streamsplit profile; default: the shipped one")
    parser.add_argument("--out", type=Path, default=Path("policy"), help="folder for what is written (default policy)")
    parser.add_argument("--seed", type=between(int, 0, 2**32 - 1), default=0)
    parser.add_argument("--rounds", type=between(int, 1), default=Plan().rounds, help="of imitating the oracle")
    parser.add_argument(
        "--updates", type=between(int, 0), default=Plan().updates, help="from rewards, of 8,192 decisions each"
    )
    parser.add_argument(
        "--min-cut",
        type=between(int, 0, ENCODER_DEPTH),
        default=Plan().min_cut,
        help="the floor of the simulated devices",
    )
    parser.add_argument(
        "--uncertainty-weight",
        type=between(float, 0.0, 1.0),
        default=RewardWeights().uncertainty_weight,
        help="0 to 1 (default 0)",
    )
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    plan = replace(Plan(), rounds=given.rounds, updates=given.updates, min_cut=given.min_cut)
    weights = replace(RewardWeights(), uncertainty_weight=given.uncertainty_weight)
    try:
        prepare_folder(given.out, "--out")
        tables = training_tables(given.encoder, given.compute, read_split())
    except (ConfigError, ValueError) as error:
        print(error, file=sys.stderr)
        return EXIT_CONFIG
    curve: list[Progress] = []
    with ProgressBar(disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("learning", total=before_updates(tables, plan) + plan.updates)

        def report(progress: Progress) -> None:
            curve.append(progress)
            bar.advance(task)

        learned = pretrain(
            tables,
            plan=plan,
            weights=weights,
            seed=given.seed,
            report=report,
            advance=lambda: bar.advance(task),
        )
    update = to_message(network_of(learned.model), version=1, encoder=given.encoder)
    save_policy(given.out / f"{given.encoder}.bin", update)
    about = summary(learned, curve, plan, weights, seed=given.seed, size_bytes=len(update.data))
    write_atomically(given.out / f"{given.encoder}.json", (json.dumps(about, indent=1) + "\n").encode())
    draw(curve, given.out / f"{given.encoder}.png")
    print(f"{given.out / given.encoder}.bin: {len(update.data):,} bytes, reward {about['reward']:.3f}")
    return 0


def training_tables(encoder: str, compute: Path | None, split: Split) -> list[Tables]:
    """The committed training traces, with the shipped boards."""
    return shipped_fleet_tables(split.training, encoder_costs(encoder, compute=compute), steps=split.steps)


def summary(
    learned: Learned, curve: Sequence[Progress], plan: Plan, weights: RewardWeights, *, seed: int, size_bytes: int
) -> dict[str, Any]:
    """What is written beside a policy: how it was learned, what it earns along the training traces, before and after
    it learned from rewards (the better is kept), and the health of the last tenth of those updates.
    """
    last = curve[-max(1, len(curve) // 10) :]
    health = [asdict(one.health) for one in last]
    return {
        "seed": seed,
        "plan": asdict(plan),
        "reward_weights": asdict(weights),
        "size_bytes": size_bytes,
        "reward": max(learned.began, learned.refined),
        "reward_imitated": learned.began,
        "reward_refined": learned.refined,
        "health": {name: sum(one[name] for one in health) / len(health) for name in (health[0] if health else ())},
    }


def draw(curve: Sequence[Progress], path: Path) -> None:
    """Reward and the four health numbers over the updates, as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6), layout="constrained")
    axes = figure.subplots(2, 3).flatten()
    names = ("approx_kl", "clip_fraction", "explained_variance", "entropy")
    series = {"reward of a decision": [one.reward for one in curve]}
    series |= {name: [float(getattr(one.health, name)) for one in curve] for name in names}
    for axis, (name, values) in zip(axes, series.items(), strict=False):
        axis.plot(values)
        axis.set_title(name)
        axis.set_xlabel("update")
    axes[-1].axis("off")
    figure.savefig(path, dpi=80)
