"""The parameters of a block as one blob, and the digest by which both ends name it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any, Literal

import msgpack
import torch
from torch import Tensor

from common.errors import MessageError

WeightsDtype = Literal["fp32", "fp16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16}
NAME_BYTES = 256  # a parameter's name with what MessagePack adds to it


def digest(blob: bytes) -> str:
    """SHA-256 as 64 hexadecimal digits."""
    return hashlib.sha256(blob).hexdigest()


def pack_state(state: Mapping[str, Tensor], dtype: WeightsDtype) -> bytes:
    """Pack floating-point tensors under their names; the order is kept, so equal states give equal bytes.

    Raises:
        ValueError: a value that is not finite, or does not fit into fp16; a tensor that is not floating point.
    """
    packed = {name: _to_bytes(name, tensor, DTYPES[dtype]) for name, tensor in state.items()}
    blob: bytes = msgpack.packb([dtype, packed])
    return blob


def unpack_state(blob: bytes, expected: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Unpack a state of exactly the expected names and shapes, as float32 tensors of their own memory.

    Raises:
        MessageError: not such a blob; a name too many or missing; a wrong size; NaN or infinity.
    """
    allowed = 64 + sum(NAME_BYTES + 4 * math.prod(shape) for shape in expected.values())
    if len(blob) > allowed:
        raise MessageError(f"weights: {len(blob)} bytes, allowed are {allowed}")
    dtype, packed = _unpack(blob, len(expected))
    if packed.keys() != expected.keys():
        difference = sorted(set(packed) ^ set(expected))
        raise MessageError(f"weights: {difference[0]!r} is missing or unknown ({len(difference)} such names)")
    return {name: _from_bytes(name, packed[name], shape, dtype) for name, shape in expected.items()}


def _unpack(blob: bytes, names: int) -> tuple[torch.dtype, dict[str, Any]]:
    try:
        raw = msgpack.unpackb(
            blob,
            strict_map_key=True,
            max_array_len=2,
            max_map_len=names,
            max_str_len=NAME_BYTES,
            max_bin_len=len(blob),
            max_ext_len=0,
        )
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise MessageError(f"weights: {error or 'no MessagePack'}") from error
    match raw:
        case [str(dtype), dict(packed)] if dtype in DTYPES and all(isinstance(name, str) for name in packed):
            return DTYPES[dtype], packed
    raise MessageError("weights: not a dtype and a map of names to bytes")


def _to_bytes(name: str, tensor: Tensor, dtype: torch.dtype) -> bytes:
    if not tensor.is_floating_point():
        raise ValueError(f"{name}: {tensor.dtype} is not floating point")
    values = tensor.detach().to("cpu", dtype).contiguous()
    if not values.isfinite().all():
        raise ValueError(f"{name}: a value is not finite in {dtype}")
    return values.numpy().tobytes()


def _from_bytes(name: str, data: object, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    size_bytes = math.prod(shape) * dtype.itemsize
    if not isinstance(data, bytes) or len(data) != size_bytes:
        raise MessageError(f"weights: {name}: not {size_bytes} bytes, as the shape {list(shape)} needs")
    if not data:
        return torch.zeros(shape)
    values = torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape).float()
    if not values.isfinite().all():
        raise MessageError(f"weights: {name}: a value is NaN or infinite")
    return values
