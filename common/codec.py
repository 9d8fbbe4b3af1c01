"""Tensors as bytes: fp32, fp16, int8, int4 and ternary (`quantiser`), with optional entropy coding.

The defaults are chosen by measurement: ``python -m tests.bench.codec``.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor

from common.errors import MessageError
from common.limits import Limits
from common.message_fields import Most, blob, text, whole
from common.quantiser import (
    TRITS_PER_BYTE,
    Codes,
    Floats,
    Scale,
    dequantise,
    group_count,
    measure_scale,
    pack_nibbles,
    pack_trits,
    quantise,
    read_scale,
    scale_bytes,
    unpack_nibbles,
    unpack_trits,
)
from common.state_blob import digest, pack_state, unpack_state

__all__ = [
    "DEFAULT_ACTIVATIONS_CODEC", "DEFAULT_GRADIENT_CODEC", "Codec", "EncodedTensor", "decode", "decode_tensor",
    "digest", "encode", "pack_state", "quantisation_error", "rows", "unpack_state",
]  # fmt: skip

Dtype = Literal["fp32", "fp16", "int8", "int4", "ternary"]
Entropy = Literal["none", "zlib"]

FLOAT_TYPES: dict[str, np.dtype[Any]] = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2")}
LAST_CODE = {"int8": 255, "int4": 15, "ternary": 2}
VALUES_PER_BYTE = {"fp32": 1 / 4, "fp16": 1 / 2, "int8": 1, "int4": 2, "ternary": TRITS_PER_BYTE}
ALLOWED = (
    "fp32, fp16, int8, int4 or ternary; int8 and int4 then -sample (default) or -channel, int4 also -deviation; "
    "then -none (default) or -zlib"
)
# Three codes around zero need no scale per channel; 256 steps of a deviation would reach farther, but be no finer.
SCALES: dict[str, tuple[Scale, ...]] = {"int8": ("sample", "channel"), "int4": get_args(Scale)}
MAX_DIMENSIONS = 4
MAX_DIMENSION = 2**22
MAX_CODEC_CHARACTERS = 24
MAX_SCALE_BYTES = 2**20
MAX_DATA_BYTES = 2**24
# Of 4,608 values at cut 5 of `mobile`: 1,863 bytes at an error of 0.13. A gradient is a noisy mean already, and its
# optimizer averages over many: 500 bytes of unbiased noise train as well as 2,704 bytes of `int4-channel` (measured).
DEFAULT_ACTIVATIONS_CODEC = "int4-zlib"
DEFAULT_GRADIENT_CODEC = "ternary-zlib"


@dataclass(frozen=True, slots=True)
class Codec:
    """How a tensor becomes bytes. ``str(codec)`` leaves out what is the default: scale ``sample``, entropy ``none``."""

    dtype: Dtype
    scale: Scale = "sample"
    entropy: Entropy = "none"

    @classmethod
    def parse(cls, text: str) -> Codec:
        """Read ``int4``, ``int4-channel``, ``int8-sample-zlib``, ``fp16-zlib``.

        Raises:
            ValueError: anything else; the text lists what is allowed.
        """
        dtype, *rest = text.split("-")
        scale = rest.pop(0) if rest and rest[0] in SCALES.get(dtype, ()) else "sample"
        entropy = rest.pop(0) if rest and rest[0] in get_args(Entropy) else "none"
        if dtype not in VALUES_PER_BYTE or rest:
            raise ValueError(f"{text!r} is no codec; allowed are {ALLOWED}")
        return cls(cast("Dtype", dtype), cast("Scale", scale), cast("Entropy", entropy))

    def __str__(self) -> str:
        scale = f"-{self.scale}" if self.scale != "sample" else ""
        return self.dtype + scale + (f"-{self.entropy}" if self.entropy != "none" else "")

    def scale_bytes(self, shape: tuple[int, ...]) -> int:
        """The size of ``EncodedTensor.scale`` for a shape."""
        return scale_bytes(self.scale, shape) if self.dtype in LAST_CODE else 0

    def data_bytes(self, shape: tuple[int, ...]) -> int:
        """The size of ``EncodedTensor.data`` for a shape before entropy coding."""
        return math.ceil(math.prod(shape) / VALUES_PER_BYTE[self.dtype])


@dataclass(frozen=True, slots=True)
class EncodedTensor:
    """A tensor on its way: everything needed to decode it. The first dimension counts samples."""

    codec: Annotated[str, text(MAX_CODEC_CHARACTERS)]
    shape: Annotated[tuple[Annotated[int, whole(1, MAX_DIMENSION)], ...], Most(MAX_DIMENSIONS)]
    scale: Annotated[bytes, blob(MAX_SCALE_BYTES)]
    data: Annotated[bytes, blob(MAX_DATA_BYTES)]

    def __str__(self) -> str:
        return f"{self.codec}[{'x'.join(map(str, self.shape))}, {len(self.scale) + len(self.data)} B]"

    def check(self, limits: Limits) -> Codec:
        """The codec, after comparing every size with the shape and the limits; nothing is decoded or allocated.

        Raises:
            MessageError: what does not fit, by name.
        """
        try:
            codec = Codec.parse(self.codec[:MAX_CODEC_CHARACTERS])
        except ValueError as error:
            raise MessageError(f"codec: {error}") from error
        if not 1 <= len(self.shape) <= MAX_DIMENSIONS or min(self.shape) < 1:
            raise MessageError(f"shape: {list(self.shape)} is not 1 to {MAX_DIMENSIONS} positive numbers")
        values = math.prod(self.shape)
        if values > limits.max_tensor_values:
            raise MessageError(f"shape: {list(self.shape)} has {values} values, allowed are {limits.max_tensor_values}")
        if len(self.scale) != codec.scale_bytes(self.shape):
            raise MessageError(f"scale: {len(self.scale)} bytes instead of {codec.scale_bytes(self.shape)}")
        self._check_data(codec.data_bytes(self.shape), exact=codec.entropy == "none")
        return codec

    def _check_data(self, size_bytes: int, *, exact: bool) -> None:
        if exact and len(self.data) != size_bytes:
            raise MessageError(f"data: {len(self.data)} bytes instead of {size_bytes}")
        if len(self.data) > size_bytes + size_bytes // 100 + 64:  # more than DEFLATE can add
            raise MessageError(f"data: {len(self.data)} bytes, more than {size_bytes} can become")


def encode(tensor: Tensor, codec: Codec, generator: torch.Generator | None = None) -> EncodedTensor:
    """Encode ``[N, ...]`` (1 to 4 dimensions). With a (CPU) generator, integer codes round stochastically: without bias
    inside the range, which at int4-sample and ternary cuts off a few extreme values.

    Raises:
        ValueError: an empty tensor, too many dimensions, or a value that is not finite in the codec's type.
    """
    if not 1 <= tensor.dim() <= MAX_DIMENSIONS or tensor.numel() == 0:
        raise ValueError(f"cannot encode a tensor of shape {tuple(tensor.shape)}")
    values: Floats = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    shape = tuple(tensor.shape)
    if codec.dtype in FLOAT_TYPES:
        scale, data = b"", _float_bytes(values, codec.dtype)
    else:
        last_code = LAST_CODE[codec.dtype]
        groups = values.reshape(shape[0], group_count(codec.scale, shape), -1)
        scale = measure_scale(groups, codec.scale, last_code, nearest=generator is None)
        low, step = read_scale(scale, codec.scale, shape[0], last_code)
        codes = quantise(groups, low, step, last_code, generator)
        data = PACK[codec.dtype](codes)
    if codec.entropy == "zlib":
        data = compress(data)
    return EncodedTensor(str(codec), shape, scale, data)


def decode(encoded: EncodedTensor, limits: Limits = Limits()) -> Tensor:  # noqa: B008  a frozen value
    """The float32 tensor, in memory of its own.

    Raises:
        MessageError: whatever is off, before anything is allocated where the sizes show it.
    """
    codec, shape = encoded.check(limits), encoded.shape
    data = encoded.data
    if codec.entropy == "zlib":
        data = decompress(data, codec.data_bytes(shape))
    if codec.dtype in FLOAT_TYPES:
        values = np.frombuffer(data, FLOAT_TYPES[codec.dtype]).astype(np.float32)
    else:
        low, step = read_scale(encoded.scale, codec.scale, shape[0], LAST_CODE[codec.dtype])
        count = math.prod(shape)
        codes = UNPACK[codec.dtype](data, count)
        values = dequantise(codes, low, step)
    if not np.isfinite(values).all():
        raise MessageError("data: a value is NaN or infinite")
    return torch.from_numpy(values.reshape(shape))


def decode_tensor(encoded: EncodedTensor, expected_shape: tuple[int, ...], limits: Limits = Limits()) -> Tensor:  # noqa: B008
    """`decode`, refusing every other shape before decoding.

    Raises:
        MessageError: as `decode`, or another shape.
    """
    if encoded.shape != expected_shape:
        raise MessageError(f"shape: {list(encoded.shape)} instead of {list(expected_shape)}")
    return decode(encoded, limits)


def rows(encoded: EncodedTensor) -> list[EncodedTensor]:
    """The samples of ``[N, ...]``, each as if it had been encoded alone: many small ones in the time of a few.

    Raises:
        ValueError: a codec whose samples do not lie one behind the other in whole bytes.
    """
    codec, count = Codec.parse(encoded.codec), encoded.shape[0]
    shape = (1, *encoded.shape[1:])
    scale, data = codec.scale_bytes(shape), codec.data_bytes(shape)
    if codec.scale == "channel" or codec.entropy != "none" or data * count != len(encoded.data):
        raise ValueError(f"{encoded} cannot be taken apart")
    return [
        EncodedTensor(
            encoded.codec, shape, encoded.scale[i * scale : (i + 1) * scale], encoded.data[i * data : (i + 1) * data]
        )
        for i in range(count)
    ]


def quantisation_error(original: Tensor, decoded: Tensor) -> float:
    """Relative L2 error ``|decoded - original| / |original|``; 0 if both are zero."""
    reference = original.detach().to("cpu", torch.float32)
    difference = float(torch.linalg.vector_norm(decoded.detach().to("cpu", torch.float32) - reference))
    norm = float(torch.linalg.vector_norm(reference))
    if norm == 0:
        return 0.0 if difference == 0 else math.inf
    return difference / norm


PACK: dict[str, Callable[[Codes], bytes]] = {
    "int8": lambda codes: codes.tobytes(),
    "int4": pack_nibbles,
    "ternary": pack_trits,
}
UNPACK: dict[str, Callable[[bytes, int], Codes]] = {
    "int8": lambda data, _: np.frombuffer(data, np.uint8),
    "int4": unpack_nibbles,
    "ternary": unpack_trits,
}


def _float_bytes(values: Floats, dtype: str) -> bytes:
    with np.errstate(over="ignore"):
        converted = values.astype(FLOAT_TYPES[dtype])
    if not np.isfinite(converted).all():
        raise ValueError(f"a value is not finite in {dtype}")
    data: bytes = converted.tobytes()
    return data


def compress(data: bytes) -> bytes:
    """DEFLATE without its search for repetitions: quantised activations have skewed values but no repetitions."""
    stream = zlib.compressobj(1, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    return stream.compress(data) + stream.flush()


def decompress(data: bytes, size_bytes: int) -> bytes:
    """The ``size_bytes`` bytes that `compress` was given.

    Raises:
        MessageError: damaged, or of another size; a bomb is not unpacked.
    """
    stream = zlib.decompressobj(-15)
    try:
        plain = stream.decompress(data, size_bytes + 1)
    except zlib.error as error:
        raise MessageError(f"data: {error}") from error
    if len(plain) != size_bytes or not stream.eof or stream.unused_data:
        raise MessageError(f"data: does not decompress to {size_bytes} bytes")
    return plain
