"""Zero-shot classification by prompts: which class's words does a clip's sound lie nearest to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.captions import class_words
from common.encoder import Encoder
from trainer.checkpoint import Checkpoint
from trainer.clap import COUNTS, ClapModule
from trainer.probe_set import ProbeSet

PROMPTS = ("this is audio of {}", "an audio clip with {} in it", "we hear {} nearby")
"""Sentences that no caption is made of (`common.captions.TEMPLATES`): the class's words are all they share."""

BATCH_WINDOWS = 16


@dataclass(frozen=True, slots=True)
class ZeroShot:
    """Accuracy on the held-out clips as a fraction, without any of their labels or any probe.

    Attributes:
        accuracy: share of the held-out clips whose nearest class is theirs.
        chance: 1 / ``classes``.
        supervised: captions made from class names were trained on.
        windows: trained windows by where their captions came from, as `trainer.clap.COUNTS`.
        hits: which of the held-out clips it got right, in the order of `Scores.names`; their mean is ``accuracy``.
    """

    accuracy: float
    chance: float
    classes: int
    held_out: int
    supervised: bool
    windows: dict[str, int]
    hits: tuple[bool, ...]


def zero_shot(checkpoint: Checkpoint, encoder: Encoder, clips: ProbeSet) -> ZeroShot | None:
    """Classify the held-out clips by prompts; None for a checkpoint without a text tower.

    A clip's embedding is the mean of its windows' audio projections, a class's the mean of its prompts' text
    projections.

    Raises:
        ConfigError: the checkpoint's text encoder is not installed.
    """
    module = restore_clap(checkpoint, encoder.projection_dim)
    if module is None:
        return None
    classes = sorted(set(clips.labels.tolist()))
    with torch.inference_mode():
        asked = class_projections(module.tower, classes)
        heard = clip_projections(encoder, clips)
    hits = np.array(classes)[(heard @ asked.T).argmax(dim=1).numpy()] == clips.labels[clips.held_out]
    counts = dict(zip(COUNTS, module.counts.tolist()))
    return ZeroShot(
        accuracy=float(np.mean(hits)),
        chance=1 / len(classes),
        classes=len(classes),
        held_out=len(heard),
        supervised=counts["from_class_names"] > 0,
        windows=counts,
        hits=tuple(hits.tolist()),
    )


def restore_clap(checkpoint: Checkpoint, dim: int) -> ClapModule | None:
    """Text tower and logit scale of a checkpoint, or None where there are none."""
    state: dict[str, object] = checkpoint.state.get("objective", {})  # type: ignore[assignment]
    extra = state.get("_extra_state")
    if not isinstance(extra, dict) or "text_encoder" not in extra:
        return None
    module = ClapModule(extra["text_encoder"], dim, seed=0)
    module.load_state_dict(state)
    return module.eval()


def class_projections(tower: nn.Module, classes: list[str]) -> Tensor:
    """``[classes, d]`` unit length: each class's mean over `PROMPTS`."""
    prompts = [prompt.format(class_words(name)) for name in classes for prompt in PROMPTS]
    means: Tensor = tower(prompts).view(len(classes), len(PROMPTS), -1).mean(dim=1)
    return nn.functional.normalize(means, dim=1)


def clip_projections(encoder: Encoder, clips: ProbeSet) -> Tensor:
    """``[held-out clips, d]``: each one's mean over its windows' projections."""
    counts = np.diff([*clips.starts, len(clips.log_mels)])
    held = torch.from_numpy(np.repeat(clips.held_out, counts))
    batches = clips.log_mels[held].split(BATCH_WINDOWS)
    windows = torch.cat([encoder.project(encoder(batch.float())) for batch in batches])
    return torch.stack([clip.mean(dim=0) for clip in windows.split(counts[clips.held_out].tolist())])


def zero_shot_text(result: Mapping[str, Any]) -> str:
    """A `ZeroShot` as plain data in one line."""
    how = "supervised: captions made from class names" if result["supervised"] else "captions from a sidecar file"
    return (
        f"{result['accuracy']:.1%} of {result['held_out']} clips by prompts (chance {result['chance']:.0%}; {how}; "
        f"{result['windows']['without']:,} windows without a caption)"
    )
