"""What somebody who reads the activations can make of them: a decoder back to the log-mel picture.

First the best linear map from the activations around a place to the patch of the picture there, in closed form; then a
small convolutional network that corrects it. Both are stopped or chosen by windows that neither was fitted on, so that
the network never makes the linear map worse there. Every cut gets the same network, up to its first layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.log_mel import FRAMES, MEL_BANDS

LEVELS = ((4, 6), (8, 12), (16, 24), (32, 48))
"""Resolutions of the network's way up; the last step, to 64 x 96, is a rearrangement of four channels."""
WIDTHS = (64, 48, 24, 16)
NORM_GROUPS = 8
PENALTIES = (1e-6, 1e-4, 1e-2, 1.0, 1e2)
"""Of the linear map, relative to features of unit variance; the last leaves next to nothing but the mean."""
FITTED_ROWS = 40_000
BATCH_WINDOWS = 32
CHUNK_WINDOWS = 128
LEARNING_RATE = 3e-3
CHECKS = 6


@dataclass(frozen=True, slots=True)
class Pairs:
    """Activations as they arrive ``[N, *activation_shape]``, and ``pictures`` ``[N, 1, 64, 96]`` they were made of."""

    activations: Tensor
    pictures: Tensor


@dataclass(frozen=True, slots=True)
class Decoder:
    """From the activations of one cut and codec to pictures. ``parameters``: the network's, without the linear map."""

    spectrum: Tensor  # [64, 1], the mean over what it was fitted on
    mean: Tensor  # [C, 1, 1]
    deviation: Tensor
    weights: Tensor  # [features, values of a patch]
    network: Corrector

    @property
    def parameters(self) -> int:
        """How many numbers the network learns."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def linear(self, activations: Tensor) -> Tensor:
        """The linear map's pictures ``[N, 1, 64, 96]``."""
        return self.spectrum + _apply(self.weights, self._maps(activations))

    def reconstruct(self, activations: Tensor) -> Tensor:
        """Pictures ``[N, 1, 64, 96]``."""
        maps = self._maps(activations)
        return self.spectrum + _corrected(self.network, maps, _apply(self.weights, maps))

    def _maps(self, activations: Tensor) -> Tensor:
        return (_as_maps(activations) - self.mean) / self.deviation


class Corrector(nn.Module):
    """A pyramid from coarse to fine; at every level it sees the activations and the linear map's picture again."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.entries = nn.ModuleList(nn.Conv2d(channels + 4, width, 1) for width in WIDTHS)
        inputs = (WIDTHS[0], *WIDTHS)
        self.levels = nn.ModuleList(_Level(*pair) for pair in zip(inputs, WIDTHS))
        self.exit = nn.Conv2d(WIDTHS[-1], 4, 3, padding=1)
        for parameter in self.exit.parameters():  # it starts as the linear map
            nn.init.zeros_(parameter)

    def forward(self, maps: Tensor, guess: Tensor) -> Tensor:
        """``[N, C, h, w]`` and pictures ``[N, 1, 64, 96]`` to better ones."""
        # Convolutions on small maps are twice as fast with channels last (measured).
        folded = functional.pixel_unshuffle(guess, 2).contiguous(memory_format=torch.channels_last)
        maps = maps.contiguous(memory_format=torch.channels_last)
        h: Tensor | None = None
        for size, entry, level in zip(LEVELS, self.entries, self.levels):
            seen: Tensor = entry(torch.cat([_resized(maps, size), _resized(folded, size)], dim=1))
            h = level(seen if h is None else functional.interpolate(h, size=size), seen)
        return guess + functional.pixel_shuffle(self.exit(h), 2)


class _Level(nn.Module):
    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.norm = nn.GroupNorm(NORM_GROUPS, channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        h: Tensor = self.first(x) + seen
        changed: Tensor = self.second(functional.relu(self.norm(h)))
        return h + changed


def fit(train: Pairs, valid: Pairs, *, steps: int, seed: int) -> Decoder:
    """The decoder that does best on ``valid`` among what ``steps`` batches of ``train`` lead through.

    Raises:
        ValueError: a map that does not divide a picture into equal patches.
    """
    maps = _as_maps(train.activations)
    mean = maps.mean(dim=(0, 2, 3))[:, None, None]
    deviation = maps.std(dim=(0, 2, 3)).clamp_min(1e-6)[:, None, None]
    spectrum = mean_spectrum(train.pictures)
    known = Pairs((maps - mean) / deviation, train.pictures - spectrum)
    checked = Pairs((_as_maps(valid.activations) - mean) / deviation, valid.pictures - spectrum)
    weights = _fit_linear(known, checked, torch.Generator().manual_seed(seed))
    network = _train(known, checked, weights, steps=steps, seed=seed)
    return Decoder(spectrum, mean, deviation, weights, network)


def mean_spectrum(pictures: Tensor) -> Tensor:
    """``[64, 1]``: the mean of each band over windows and frames."""
    return pictures.mean(dim=(0, 1, 3))[:, None]


# -- the linear map ---------------------------------------------------------------------------------------------------


def _fit_linear(train: Pairs, valid: Pairs, draws: torch.Generator) -> Tensor:
    grid = tuple(train.activations.shape[2:])
    places = min(math.prod(grid), math.ceil(FITTED_ROWS / len(train.pictures)))
    gram, cross, count = torch.zeros(()), torch.zeros(()), 0
    for maps, pictures in _chunks(train.activations, train.pictures):
        drawn = torch.rand(len(maps), math.prod(grid), generator=draws).argsort(dim=1)[:, :places]
        rows = torch.arange(len(maps))[:, None]
        seen = _features(maps)[rows, drawn].flatten(0, 1)
        wanted = _patches(pictures, grid)[rows, drawn].flatten(0, 1)
        gram, cross = gram + (seen.T @ seen).double(), cross + (seen.T @ wanted).double()
        count += len(seen)
    tried = [_solved(gram / count, cross / count, penalty) for penalty in PENALTIES]
    errors = [_squares(_apply(weights, valid.activations) - valid.pictures) for weights in tried]
    return tried[errors.index(min(errors))]


def _solved(gram: Tensor, cross: Tensor, penalty: float) -> Tensor:
    diagonal = torch.full((len(gram),), penalty, dtype=torch.double)
    diagonal[-1] = 1e-9  # the constant is not shrunk
    solved: Tensor = torch.linalg.solve(gram + torch.diag(diagonal), cross)
    return solved.float()


def _features(maps: Tensor) -> Tensor:
    """``[N, C, h, w]`` to ``[N, h * w, features]``: the neighbours of a place, the mean of all places, and 1."""
    size = 1 if maps.shape[2] == maps.shape[3] == 1 else 3
    around = functional.unfold(maps, size, padding=size // 2)
    whole = maps.mean(dim=(2, 3))[..., None].expand(-1, -1, around.shape[2])
    return torch.cat([around, whole, torch.ones_like(around[:, :1])], dim=1).transpose(1, 2)


def _patches(pictures: Tensor, grid: tuple[int, ...]) -> Tensor:
    """``[N, 1, 64, 96]`` to ``[N, h * w, values of a patch]``."""
    high, wide = grid
    if MEL_BANDS % high or FRAMES % wide:
        raise ValueError(f"a picture of {MEL_BANDS} x {FRAMES} cannot be cut into {high} x {wide} equal patches")
    cut = pictures.reshape(-1, high, MEL_BANDS // high, wide, FRAMES // wide)
    return cut.transpose(2, 3).reshape(len(pictures), high * wide, -1)


def _apply(weights: Tensor, maps: Tensor) -> Tensor:
    high, wide = maps.shape[2:]
    parts = []
    for (chunk,) in _chunks(maps):
        patches = (_features(chunk) @ weights).reshape(len(chunk), high, wide, MEL_BANDS // high, FRAMES // wide)
        parts.append(patches.transpose(2, 3).reshape(len(chunk), 1, MEL_BANDS, FRAMES))
    return torch.cat(parts)


# -- the network ------------------------------------------------------------------------------------------------------


def _train(train: Pairs, valid: Pairs, weights: Tensor, *, steps: int, seed: int) -> Corrector:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = Corrector(train.activations.shape[1])
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    guesses, checked = _apply(weights, train.activations), _apply(weights, valid.activations)
    order = _orders(len(guesses), torch.Generator().manual_seed(seed))
    best, kept = math.inf, _copied(network)
    for step in range(steps + 1):
        if step % math.ceil(steps / CHECKS) == 0 or step == steps:
            error = _squares(_corrected(network, valid.activations, checked) - valid.pictures)
            if error < best:
                best, kept = error, _copied(network)
        if step < steps:
            chosen = next(order)
            made = network(train.activations[chosen], guesses[chosen])
            optimizer.zero_grad()
            functional.mse_loss(made, train.pictures[chosen]).backward()
            optimizer.step()
            schedule.step()
    network.load_state_dict(kept)
    return network


@torch.no_grad()
def _corrected(network: Corrector, maps: Tensor, guesses: Tensor) -> Tensor:
    return torch.cat([network(seen, guess) for seen, guess in _chunks(maps, guesses)])


def _copied(network: Corrector) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _orders(count: int, draws: torch.Generator) -> Iterator[Tensor]:
    while True:
        yield from torch.randperm(count, generator=draws).split(BATCH_WINDOWS)


def _as_maps(activations: Tensor) -> Tensor:
    return activations if activations.dim() == 4 else activations[:, :, None, None]


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if maps.shape[2] < size[0]:
        return functional.interpolate(maps, size=size)
    return maps if tuple(maps.shape[2:]) == size else functional.adaptive_avg_pool2d(maps, size)


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.split(CHUNK_WINDOWS) for tensor in tensors))


def _squares(difference: Tensor) -> float:
    return float(difference.square().sum(dtype=torch.double))
