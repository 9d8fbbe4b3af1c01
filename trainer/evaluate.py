"""How good a frozen encoder is on labelled clips: linear probe, neighbours, and what its uncertainty is worth.

Features of a clip are mean and maximum of its embeddings over half-overlapping windows, standardised on the training
clips. ``python -m trainer.evaluate`` compares a checkpoint with untrained encoders.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.config import EXIT_CONFIG
from common.encoder import Encoder, build_encoder
from common.errors import ConfigError
from common.mixture_memory import MixtureMemory
from trainer.calibration import calibration, restore_mixture
from trainer.checkpoint import Checkpoint, load_given
from trainer.dataset_layouts import DATA_HELP, ESC10_HELP, listed, split_recordings
from trainer.probe_set import ProbeSet, Unreadable, probe_set, read_probe_clips
from trainer.probes import Scores, mean_scores, score
from trainer.quality import effective_rank
from trainer.zero_shot import zero_shot, zero_shot_text

UNTRAINED_SEEDS = 5
"""Untrained encoders differ by several points among initialisations; their mean is the baseline."""

BATCH_WINDOWS = 16
"""Windows per forward pass. `mobile` on one core, ms a window (measured): 1.1 at 8 and 16, 1.7 at 64, 2.5 at 256."""


def window_embeddings(encoder: Encoder, log_mels: Tensor) -> Tensor:
    """Embeddings [W, D] float32 of ``log_mels`` [W, 1, 64, 96] by the frozen ``encoder``, on its own device.

    The encoder's training mode is as before afterwards.
    """
    device = next(encoder.parameters()).device
    was_training = encoder.training
    encoder.eval()
    try:
        with torch.inference_mode():
            parts = [encoder(batch.to(device, torch.float32)).cpu() for batch in log_mels.split(BATCH_WINDOWS)]
    finally:
        encoder.train(was_training)
    return torch.cat(parts)


def features(embeddings: Tensor, starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Pool window embeddings [W, D] to features [clips, 2 D]: mean and maximum over each clip's windows."""
    windows = embeddings.numpy().astype(np.float64)
    counts = np.diff([*starts, len(windows)])[:, None]
    mean = np.add.reduceat(windows, starts, axis=0) / counts
    return np.concatenate([mean, np.maximum.reduceat(windows, starts, axis=0)], axis=1)


def evaluate_encoder(encoder: Encoder, clips: ProbeSet) -> Scores:
    """Fit the probes on the training clips' features, score them on the held-out ones; the encoder is not changed."""
    embeddings = window_embeddings(encoder, clips.log_mels)
    counts = np.diff([*clips.starts, len(embeddings)])
    rank = effective_rank(embeddings[torch.from_numpy(np.repeat(clips.held_out, counts))])
    pooled = features(embeddings, clips.starts)
    return score(pooled, clips.labels, clips.held_out, clips.names, effective_rank=rank)


def evaluate_untrained(encoder_name: str, clips: ProbeSet, *, seed: int, count: int = UNTRAINED_SEEDS) -> Scores:
    """Mean scores of ``count`` untrained encoders, initialised with ``seed``, ``seed + 1``, …"""
    return mean_scores([evaluate_encoder(build_encoder(encoder_name, seed + i), clips) for i in range(count)])


def clip_uncertainty(encoder: Encoder, mixture: MixtureMemory, clips: ProbeSet) -> tuple[float, ...]:
    """Uncertainty in 0..1 of each held-out clip: the mean of ``mixture.uncertainty`` over its windows' projections.

    In the order of `Scores.names`. ``mixture`` lies on the CPU.
    """
    counts = np.diff([*clips.starts, len(clips.log_mels)])
    embeddings = window_embeddings(encoder, clips.log_mels[torch.from_numpy(np.repeat(clips.held_out, counts))])
    with torch.inference_mode():
        projections = encoder.project(embeddings.to(next(encoder.parameters()).device)).cpu()
        uncertainty = mixture.uncertainty(projections).numpy().astype(np.float64)
    windows = counts[clips.held_out]
    return tuple((np.add.reduceat(uncertainty, np.cumsum(windows) - windows) / windows).tolist())


def restore_encoder(checkpoint: Checkpoint) -> Encoder:
    """Build the checkpoint's encoder with its weights, averaged ones where it has them (`trainer.averaging`).

    Raises:
        ConfigError: an encoder this version does not know, or weights that do not fit it.
    """
    try:
        encoder = build_encoder(checkpoint.encoder_name, seed=0, head=checkpoint.head)
        averaged: Any = checkpoint.state.get("averaged")
        started = averaged and averaged["weights"]  # there are none before the first merge that was not refused
        encoder.load_state_dict(started or checkpoint.encoder)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"the checkpoint's encoder {checkpoint.encoder_name!r} cannot be restored: {error}"
        ) from error
    return encoder


# The command line


def main(argv: Sequence[str] | None = None) -> int:
    """``evaluate CHECKPOINT --data DIR [--fold N] [--seed S] [--json]``; returns the exit status."""
    arguments = _parser().parse_args(argv)
    torch.set_num_threads(1)  # small convolutions: threads that wait for each other cost more than they give
    try:
        result = evaluate_checkpoint(
            arguments.checkpoint, arguments.data, fold=arguments.fold, seed=arguments.seed, esc10=arguments.esc10
        )
    except ConfigError as error:
        sys.stderr.write(f"evaluate: {error}\n")
        return EXIT_CONFIG
    sys.stdout.write(_table(result))
    if arguments.json:
        sys.stdout.write(json.dumps(result) + "\n")
    return 0


def evaluate_checkpoint(path: Path, data: Path, *, fold: int, seed: int, esc10: bool = False) -> dict[str, Any]:
    """Score a checkpoint (a file, or a folder's newest) and untrained encoders on a folder's held-out clips.

    Returns plain data, ready for JSON; missing and unreadable recordings are listed in it. ``esc10``: of ESC-50, only
    the classes of ESC-10.

    Raises:
        ConfigError: no usable checkpoint, no labelled recordings, or no such fold.
    """
    file, checkpoint = load_given(path)
    encoder = restore_encoder(checkpoint)
    mixture = restore_mixture(checkpoint)
    split = split_recordings(data, fold, esc10=esc10)
    unreadable: list[Unreadable] = []
    clips = probe_set(read_probe_clips(split, unreadable.append))
    trained = evaluate_encoder(encoder, clips)
    untrained = evaluate_untrained(checkpoint.encoder_name, clips, seed=seed)
    checked = None if mixture is None else calibration(clip_uncertainty(encoder, mixture, clips), trained.knn_hits)
    prompted = zero_shot(checkpoint, encoder, clips)
    return {
        "checkpoint": str(file),
        "run": checkpoint.run,
        "encoder": checkpoint.encoder_name,
        "weights_version": checkpoint.weights_version,
        "windows": checkpoint.windows,
        "held_out": split.how,
        "untrained": asdict(untrained),
        "trained": asdict(trained),
        "uncertainty": None if checked is None else asdict(checked),
        "missing": split.missing,
        "zero_shot": None if prompted is None else asdict(prompted),
        "unreadable": [asdict(file) for file in unreadable],
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="streamsplit evaluate",
        description="Linear probe, 5-NN, precision@10 and more of a checkpoint on labelled recordings.",
    )
    parser.add_argument("checkpoint", type=Path, help="a checkpoint file, or a folder of them (its newest)")
    parser.add_argument("--data", type=Path, required=True, help=DATA_HELP)
    parser.add_argument("--esc10", action="store_true", help=ESC10_HELP)
    parser.add_argument(
        "--fold", type=int, default=1, help="what to score on: the fold that training left out (default 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="first of the untrained encoders' five seeds (default 0)")
    parser.add_argument("--json", action="store_true", help="end with one line holding one JSON object")
    return parser


def _table(result: Mapping[str, Any]) -> str:
    lines = [
        result["checkpoint"],
        f"{result['encoder']}, weights version {result['weights_version']}, {result['windows']:,} windows trained",
        result["held_out"],
        f"{'':<28}{'linear':>8}{'5-NN':>8}{'P@10':>8}{'silhouette':>12}{'effective rank':>16}",
    ]
    for name, title in (("untrained", f"untrained (mean of {UNTRAINED_SEEDS})"), ("trained", "checkpoint")):
        scores = result[name]
        silhouette = "-" if scores["silhouette"] is None else f"{scores['silhouette']:.2f}"
        lines.append(
            f"{title:<28}{scores['linear']:>8.1%}{scores['knn']:>8.1%}{scores['precision_at_10']:>8.1%}"
            f"{silhouette:>12}{scores['effective_rank']:>16.1f}"
        )
    lines += _uncertainty_lines(result["uncertainty"])
    lines += listed("not there", result["missing"])
    if result["zero_shot"] is not None:
        lines.append(f"{'zero-shot':<28}{zero_shot_text(result['zero_shot'])}")
    lines += [f"left out: {file['path']}: {file['why']}" for file in result["unreadable"]]
    return "\n".join(lines) + "\n"


def _uncertainty_lines(checked: Mapping[str, Any] | None) -> list[str]:
    if checked is None:
        return ["uncertainty: the checkpoint has no mixture that has started"]
    auroc = "not defined" if checked["auroc"] is None else f"{checked['auroc']:.2f}"
    quarters = ", ".join(f"{share:.0%}" for share in checked["error_by_quartile"])
    return [f"uncertainty of a clip against errors of 5-NN: AUROC {auroc}; errors by quartile: {quarters or '-'}"]


if __name__ == "__main__":
    raise SystemExit(main())
