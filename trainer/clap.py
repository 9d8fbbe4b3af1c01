"""The objective `clap`: audio and captions in one space (Elizalde et al. 2023), the text tower on the trainer."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from common.captions import class_named, identity
from common.contrastive import ContrastiveLoss
from common.errors import ConfigError
from trainer.batcher import Part
from trainer.hybrid_loss import HybridLossResult
from trainer.objective import Joined, excluded
from trainer.text_tower import TextEncoder, build_text_tower

LOG = logging.getLogger(__name__)
FIRST_SCALE = 1 / 0.07
LARGEST_SCALE = 100.0
COUNTS = ("written", "from_class_names", "without")
"""Where the trained windows' captions came from: people, class names (a supervised run), or there was none."""


class ClapModule(nn.Module):
    """What `clap` trains on the trainer beside the encoder: text tower and logit scale. ``counts``: as `COUNTS`."""

    counts: Tensor

    def __init__(self, text_encoder: TextEncoder, dim: int, seed: int) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.tower = build_text_tower(text_encoder, dim, seed)
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))
        self.register_buffer("counts", torch.zeros(len(COUNTS), dtype=torch.long))

    def scale(self) -> Tensor:
        """The factor of the cosines, at most 100: beyond it one pair decides a whole batch (Radford et al. 2021)."""
        with torch.no_grad():
            # The parameter itself, since beyond a clamp in the graph it would get no gradient to come back by.
            self.log_scale.clamp_(max=math.log(LARGEST_SCALE))
        return self.log_scale.exp()

    def get_extra_state(self) -> dict[str, str]:
        """Which tower these weights are of."""
        return {"text_encoder": self.text_encoder}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Refuse the weights of another tower."""
        if state["text_encoder"] != self.text_encoder:
            raise ConfigError(
                f"text_encoder: {self.text_encoder} is configured, the checkpoint has {state['text_encoder']}; "
                "restore the old setting, or use another state directory to start anew"
            )


class Clap:
    """Symmetric cross-entropy between windows and their captions; a window without a caption has a loss of 0."""

    def __init__(self, dim: int, *, text_encoder: TextEncoder, false_negative_s: float, seed: int) -> None:
        self.module = ClapModule(text_encoder, dim, seed)
        self._false_negative_s = false_negative_s
        self._warned = False

    def __call__(self, joined: Joined) -> HybridLossResult:
        """The mean of both views' losses."""
        parts = joined.parts
        meanings = [identity(part.caption) for part in parts]
        self._count(parts, meanings)
        captioned = [index for index, meaning in enumerate(meanings) if meaning]
        apart = excluded(parts, within_s=self._false_negative_s) | _same(meanings)
        texts = [parts[index].caption or "" for index in captioned]
        text = self.module.tower(texts) if texts else joined.projections.new_zeros(0, joined.projections.shape[2])
        a, b = (
            clap_loss(view, text, captioned, excluded=apart.to(view.device), scale=self.module.scale())
            for view in joined.projections
        )
        zero = a.mean.new_zeros(())
        return HybridLossResult(
            total=(a.mean + b.mean) / 2,
            task=(a.mean + b.mean) / 2,
            sliced_wasserstein=zero,
            laplacian=zero,
            per_window=(a.per_window + b.per_window).detach() / 2,
            candidates=a.candidates,
        )

    def _count(self, parts: Sequence[Part], meanings: Sequence[str]) -> None:
        without = sum(not meaning for meaning in meanings)
        named = sum(class_named(part.caption) is not None for part in parts if part.caption)
        seen = torch.tensor([len(parts) - named - without, named, without])
        self.module.counts += seen.to(self.module.counts.device)
        if without and not self._warned:
            self._warned = True
            LOG.warning("%d of %d windows came without a caption: nothing is learned from them", without, len(parts))


def clap_loss(
    audio: Tensor, text: Tensor, captioned: Sequence[int], *, excluded: Tensor, scale: Tensor
) -> ContrastiveLoss:
    """Mean of the cross-entropies audio to text and text to audio, over the windows that have a caption.

    Args:
        audio: ``[N, d]`` unit length, of all windows.
        text: ``[M, d]`` unit length, the captions of the windows ``captioned``, in their order.
        captioned: the M windows with a caption; the others are no candidates, and their loss is 0.
        excluded: bool ``[N, N]``, windows that are not negatives of each other.
        scale: what cosines are multiplied by.

    Returns:
        The loss of each window, its mean over all N, and the mean number of candidates.
    """
    rows = torch.tensor(captioned, dtype=torch.long, device=audio.device)
    per_window = audio.sum(dim=1) * 0.0  # depends on every window, so that each gets a gradient
    if not len(rows):
        return ContrastiveLoss(per_window, per_window.mean(), 0.0)
    left_out = excluded[rows][:, rows] & ~torch.eye(len(rows), dtype=torch.bool, device=audio.device)
    logits = (scale * audio[rows] @ text.T).masked_fill(left_out, -math.inf)
    right = logits.diagonal()
    losses = (logits.logsumexp(dim=1) + logits.logsumexp(dim=0)) / 2 - right
    per_window = per_window.index_add(0, rows, losses)
    return ContrastiveLoss(per_window, per_window.mean(), float((~left_out).sum()) / len(rows))


def _same(meanings: Sequence[str]) -> Tensor:
    numbers: dict[str, int] = {}
    which = torch.tensor([numbers.setdefault(meaning, len(numbers)) for meaning in meanings])
    return which[:, None] == which[None, :]
