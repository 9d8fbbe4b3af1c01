"""Values as 256, 16 or 3 codes: ``low + step · code``, where ``low`` and ``step`` belong to a group of values.

- ``sample``: one group per sample; the scale holds ``low`` and ``step`` as float32. With 16 codes the ends of the range
  are cut off where that lowers the squared error (of `CLIPS` the best one per sample), because the few largest values
  would otherwise cost the precision of all others. Measured at cut 5: error about 0.15 instead of 0.18.
- ``deviation`` (16 codes only): one group per sample, the step being its root mean square; what lies beyond -7 and 8 of
  them is cut off. A normal distribution then needs 2.1 bits a value after entropy coding, for an error of 0.29: a third
  of a bit more than the best conceivable code (uniform steps behind an entropy coder: Gish and Pierce 1968).
- ``channel``: one group per channel, or per as many neighbouring channels as make `GROUP_VALUES` values. The scale
  holds per sample the lowest value and the 255th part of the range as float32, and then two bytes per group that place
  the group's own range inside it: half of what fp16 would need, and nothing underflows.
- three codes, -1, 0 and 1 times `TERNARY_CLIP` standard deviations: rounded stochastically that is TernGrad (Wen et al.
  2017), made for gradients, whose noise is averaged out over many windows. 1.6 bits a value before entropy coding.

A range that need not lie around zero (rather than -7..7) costs nothing and halves the error of values after a ReLU.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from common.errors import MessageError

Scale = Literal["sample", "channel", "deviation"]
Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]

GROUP_VALUES = 24
CLIP_STRIDE = 5  # every fifth value tells the ranges apart as well as all do, at a fifth of the cost
TERNARY_CLIP = 2.5  # standard deviations, as TernGrad, whose rounding is unbiased
# To the nearest: values as large as each other must not all be nothing, or error feedback could never send them.
TERNARY_NEAREST = 1.75
TRITS_PER_BYTE = 5  # 3^5 = 243
_POWERS = 3 ** np.arange(TRITS_PER_BYTE, dtype=np.int64)
LOWEST_CODE = -7  # of the 16 of ``deviation``; the highest is 8
CLIPS = (3.25, 4.5)  # standard deviations around the mean; the whole range is always tried as well


def group_count(scale: Scale, shape: tuple[int, ...]) -> int:
    """How many groups a sample has: whole channels, neighbours joined until a group has `GROUP_VALUES` values."""
    if scale != "channel" or len(shape) == 1:
        return 1
    channels, values = shape[1], math.prod(shape[2:])
    fewest = -(-GROUP_VALUES // values)
    joined = next((number for number in range(fewest, 2 * fewest + 1) if channels % number == 0), channels)
    return channels // joined


def scale_bytes(scale: Scale, shape: tuple[int, ...]) -> int:
    """The size of the scale of a tensor."""
    return shape[0] * (8 + (2 * group_count(scale, shape) if scale == "channel" else 0))


def measure_scale(groups: Floats, scale: Scale, last_code: int, *, nearest: bool = False) -> bytes:
    """The scale for values [N, groups, values]; ``nearest``: what they will be rounded to.

    Raises:
        ValueError: a value, or the range of a sample, is not finite.
    """
    low, high = groups.min(axis=2), groups.max(axis=2)
    with np.errstate(over="ignore", invalid="ignore"):
        if not np.isfinite(high.max(axis=1) - low.min(axis=1)).all():
            raise ValueError("a value, or the range of a sample, is not finite in float32")
        if scale == "channel":
            return _place_ranges(low, high)
        if scale == "deviation":
            step = _root_mean_square(groups)
            low = LOWEST_CODE * step
        elif last_code == 2:
            step = np.float32(TERNARY_NEAREST if nearest else TERNARY_CLIP) * _root_mean_square(groups)
            low = -step
        else:
            if last_code == 15:
                low, high = _clip(groups, low, high, last_code)
            step = (high - low) / np.float32(last_code)
        if not np.isfinite(last_code * step).all():
            raise ValueError("the range of a sample's codes is not finite in float32")
    return np.concatenate([low, step], axis=1).astype("<f4").tobytes()


def read_scale(scale: bytes, kind: Scale, samples: int, last_code: int) -> tuple[Floats, Floats]:
    """``low`` and ``step`` of every group, [N, groups, 1] each. Both ends use this, so both have the same grid.

    Raises:
        MessageError: not finite, or a negative step.
    """
    pairs = np.frombuffer(scale[: 8 * samples], "<f4").astype(np.float32).reshape(samples, 2, 1, 1)
    low, step = pairs[:, 0], pairs[:, 1]
    if not np.isfinite(pairs).all() or (step < 0).any():
        raise MessageError("scale: not finite, or a negative step")
    if kind != "channel":
        return low, step
    first, last = np.frombuffer(scale[8 * samples :], np.uint8).reshape(2, samples, -1, 1).astype(np.float32)
    if (last < first).any():
        raise MessageError("scale: a group that ends before it starts")
    with np.errstate(over="ignore", invalid="ignore"):
        return low + first * step, (last - first) * step / np.float32(last_code)


def quantise(
    groups: Floats, low: Floats, step: Floats, last_code: int, generator: torch.Generator | None = None
) -> Codes:
    """The codes of values [N, groups, values], flat; to the nearest, or with a generator up or down without bias."""
    with np.errstate(over="ignore"):
        exact = (groups - low) / np.where(step > 0, step, 1)
    if generator is None:
        codes = np.rint(exact)
    else:
        codes = np.floor(exact + torch.rand(groups.shape, generator=generator).numpy())
    return np.clip(codes, 0, last_code).astype(np.uint8).reshape(-1)


def dequantise(codes: Codes, low: Floats, step: Floats) -> Floats:
    """The values of flat codes, [N, groups, values]; infinite where a scale made to harm says so."""
    with np.errstate(over="ignore", invalid="ignore"):
        values: Floats = codes.reshape(*low.shape[:2], -1) * step + low
    return values


def pack_nibbles(codes: Codes) -> bytes:
    """Two codes a byte, the first in the lower half."""
    if codes.size % 2:
        codes = np.append(codes, np.uint8(0))
    return (codes[0::2] | (codes[1::2] << 4)).tobytes()


def unpack_nibbles(data: bytes, count: int) -> Codes:
    """The ``count`` codes of `pack_nibbles`.

    Raises:
        MessageError: the unused half of the last byte is not zero.
    """
    packed = np.frombuffer(data, np.uint8)
    if count % 2 and packed[-1] > 15:
        raise MessageError("data: the unused half of the last byte is not zero")
    return np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)[:count]


def pack_trits(codes: Codes) -> bytes:
    """Five codes of 0 to 2 a byte, the first counting least; the last byte is filled up with 0."""
    filled = np.concatenate([codes, np.zeros(-codes.size % TRITS_PER_BYTE, np.uint8)])
    return (filled.reshape(-1, TRITS_PER_BYTE) @ _POWERS).astype(np.uint8).tobytes()


def unpack_trits(data: bytes, count: int) -> Codes:
    """The ``count`` codes of `pack_trits`.

    Raises:
        MessageError: a byte that five codes cannot make, or filling that is not 0.
    """
    packed = np.frombuffer(data, np.uint8)
    if packed.size and packed.max() >= 3**TRITS_PER_BYTE:
        raise MessageError("data: a byte above 242 in ternary codes")
    codes = (packed[:, None] // _POWERS % 3).astype(np.uint8).reshape(-1)
    if codes[count:].any():
        raise MessageError("data: what fills up the last byte is not zero")
    return codes[:count]


def _root_mean_square(groups: Floats) -> Floats:
    """Of each group. Shape [N, 1]."""
    root: Floats = np.sqrt(np.square(groups, dtype=np.float64).mean(axis=2)).astype(np.float32)
    return root


def _place_ranges(low: Floats, high: Floats) -> bytes:
    base = low.min(axis=1, keepdims=True)
    unit = (high.max(axis=1, keepdims=True) - base) / np.float32(255)
    divisor = np.where(unit > 0, unit, 1)
    first = np.clip(np.floor((low - base) / divisor), 0, 255).astype(np.uint8)
    last = np.clip(np.ceil((high - base) / divisor), 0, 255).astype(np.uint8)
    return np.concatenate([base, unit], axis=1).astype("<f4").tobytes() + np.stack([first, last]).tobytes()


def _clip(groups: Floats, low: Floats, high: Floats, last_code: int) -> tuple[Floats, Floats]:
    """For each sample the range with the smallest squared error. Shapes [N, 1]."""
    some = groups[:, :, ::CLIP_STRIDE]
    mean, deviation = some.mean(axis=2), some.std(axis=2)
    best_low, best_high = low, high
    best_error = _squared_error(some, low, high, last_code)
    for clip in CLIPS:
        reach = deviation * np.float32(clip)
        start, end = np.maximum(low, mean - reach), np.minimum(high, mean + reach)
        error = _squared_error(some, start, end, last_code)
        better = error < best_error
        best_low, best_high = np.where(better, start, best_low), np.where(better, end, best_high)
        best_error = np.where(better, error, best_error)
    return best_low, best_high


def _squared_error(groups: Floats, low: Floats, high: Floats, last_code: int) -> Floats:
    start, step = low[..., None], (high - low)[..., None] / np.float32(last_code)
    codes = np.clip(np.rint((groups - start) / np.where(step > 0, step, 1)), 0, last_code)
    error: Floats = np.square(codes * step + start - groups).sum(axis=2)
    return error
