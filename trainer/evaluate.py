"""How good a frozen encoder is on labelled clips: linear probe and 5-nearest-neighbours on held-out ones.

Features of a clip are mean and maximum of its embeddings over half-overlapping windows, standardised on the training
clips. ``python -m trainer.evaluate`` compares a checkpoint with untrained encoders.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.config import EXIT_CONFIG
from common.encoder import Encoder, build_encoder
from common.errors import ConfigError
from trainer.checkpoint import Checkpoint, latest, load
from trainer.dataset import find_clips, hold_out
from trainer.probe_set import ProbeSet, Unreadable, probe_set, read_probe_clips
from trainer.quality import effective_rank

NEIGHBOURS = 5
PROBE_C = 0.1
UNTRAINED_SEEDS = 5
"""Untrained encoders differ by several points among initialisations; their mean is the baseline."""

BATCH_WINDOWS = 16
"""Windows per forward pass. `mobile` on one core, ms a window (measured): 1.1 at 8 and 16, 1.7 at 64, 2.5 at 256."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Accuracies as fractions on the held-out clips.

    Attributes:
        linear: logistic regression, C = 0.1.
        knn: 5 nearest neighbours, cosine distance of the standardised features.
        clips: clips in all; ``held_out``: those scored.
        effective_rank: of the embeddings of the held-out clips' windows.
    """

    linear: float
    knn: float
    clips: int
    held_out: int
    effective_rank: float


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
    linear, knn = _probe(features(embeddings, clips.starts), clips)
    counts = np.diff([*clips.starts, len(embeddings)])
    held_windows = torch.from_numpy(np.repeat(clips.held_out, counts))
    rank = effective_rank(embeddings[held_windows])
    return Scores(linear, knn, len(clips.labels), int(clips.held_out.sum()), rank)


def evaluate_encoders(encoders: Mapping[str, Encoder], clips: ProbeSet) -> dict[str, Scores]:
    """`evaluate_encoder` for several encoders on the same log-mels, by name."""
    return {name: evaluate_encoder(encoder, clips) for name, encoder in encoders.items()}


def evaluate_untrained(encoder_name: str, clips: ProbeSet, *, seed: int, count: int = UNTRAINED_SEEDS) -> Scores:
    """Mean scores of ``count`` untrained encoders, initialised with ``seed``, ``seed + 1``, …"""
    return mean_scores([evaluate_encoder(build_encoder(encoder_name, seed + i), clips) for i in range(count)])


def mean_scores(scores: Sequence[Scores]) -> Scores:
    """Mean of each figure over scores on the same clips."""
    first = scores[0]
    return Scores(
        linear=float(np.mean([score.linear for score in scores])),
        knn=float(np.mean([score.knn for score in scores])),
        clips=first.clips,
        held_out=first.held_out,
        effective_rank=float(np.mean([score.effective_rank for score in scores])),
    )


def restore_encoder(checkpoint: Checkpoint) -> Encoder:
    """Build the checkpoint's encoder with its weights.

    Raises:
        ConfigError: an encoder this version does not know, or weights that do not fit it.
    """
    try:
        encoder = build_encoder(checkpoint.encoder_name, seed=0)
        encoder.load_state_dict(checkpoint.encoder)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"the checkpoint's encoder {checkpoint.encoder_name!r} cannot be restored: {error}"
        ) from error
    return encoder


def _probe(clip_features: NDArray[np.float64], clips: ProbeSet) -> tuple[float, float]:
    from sklearn.linear_model import LogisticRegression  # a second to import: only who evaluates pays
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler

    held, labels = clips.held_out, clips.labels
    scaler = StandardScaler().fit(clip_features[~held])
    training, scored = scaler.transform(clip_features[~held]), scaler.transform(clip_features[held])
    linear = LogisticRegression(C=PROBE_C, max_iter=5000).fit(training, labels[~held])
    knn = KNeighborsClassifier(min(NEIGHBOURS, len(training)), metric="cosine").fit(training, labels[~held])
    return float(linear.score(scored, labels[held])), float(knn.score(scored, labels[held]))


# The command line


def main(argv: Sequence[str] | None = None) -> int:
    """``evaluate CHECKPOINT --data DIR [--fold N] [--seed S] [--json]``; returns the exit status."""
    arguments = _parser().parse_args(argv)
    torch.set_num_threads(1)  # small convolutions: threads that wait for each other cost more than they give
    try:
        result = evaluate_checkpoint(arguments.checkpoint, arguments.data, fold=arguments.fold, seed=arguments.seed)
    except ConfigError as error:
        sys.stderr.write(f"evaluate: {error}\n")
        return EXIT_CONFIG
    sys.stdout.write(_table(result))
    if arguments.json:
        sys.stdout.write(json.dumps(result) + "\n")
    return 0


def evaluate_checkpoint(path: Path, data: Path, *, fold: int, seed: int) -> dict[str, Any]:
    """Score a checkpoint (a file, or a folder's newest) and untrained encoders on a folder's held-out clips.

    Returns plain data, ready for JSON; unreadable recordings are listed in it.

    Raises:
        ConfigError: no usable checkpoint, no labelled recordings, or no such fold.
    """
    file = latest(path) if path.is_dir() else path
    if file is None:
        raise ConfigError(f"{path}: no checkpoint in this folder")
    checkpoint = load(file)
    encoder = restore_encoder(checkpoint)
    split = hold_out(find_clips(data), fold)
    unreadable: list[Unreadable] = []
    clips = probe_set(read_probe_clips(split, unreadable.append))
    trained = evaluate_encoder(encoder, clips)
    untrained = evaluate_untrained(checkpoint.encoder_name, clips, seed=seed)
    return {
        "checkpoint": str(file),
        "run": checkpoint.run,
        "encoder": checkpoint.encoder_name,
        "weights_version": checkpoint.weights_version,
        "windows": checkpoint.windows,
        "held_out": split.how,
        "untrained": asdict(untrained),
        "trained": asdict(trained),
        "unreadable": [asdict(file) for file in unreadable],
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="evaluate", description="Linear probe and 5-NN accuracy of a checkpoint on labelled recordings."
    )
    parser.add_argument("checkpoint", type=Path, help="a checkpoint file, or a folder of them (its newest)")
    parser.add_argument("--data", type=Path, required=True, help="a folder with one folder of recordings per class")
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
        f"{'':<28}{'linear':>8}{'5-NN':>8}{'effective rank':>16}",
    ]
    for name, title in (("untrained", f"untrained (mean of {UNTRAINED_SEEDS})"), ("trained", "checkpoint")):
        scores = result[name]
        lines.append(f"{title:<28}{scores['linear']:>8.1%}{scores['knn']:>8.1%}{scores['effective_rank']:>16.1f}")
    lines += [f"left out: {file['path']}: {file['why']}" for file in result["unreadable"]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
