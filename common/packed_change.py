"""A change of one block's parameters as bytes: coarser than weights may be, since what is rounded away is not lost.

int4 and int8 take the codec of activations with a scale per output channel (`quantiser`, scale ``channel``), ternary
that of gradients with one scale a tensor, ecsq (entropy-coded scalar quantisation) steps of a tensor's deviation. The
codes of all tensors stand behind one another and are entropy-coded where that is shorter. Names do not travel: both
ends know the block and the order of its parameters. Whoever sends keeps the difference to `unpack_change`'s result for
the next change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgpack
import torch
from torch import Tensor

from common.codec import Codec, EncodedTensor, compress, decode, decompress, encode
from common.errors import MessageError
from common.state_blob import WeightsDtype, pack_state, unpack_state

ChangeCodec = Literal["fp32", "fp16", "int8", "int4", "ecsq", "ternary"]
QUANTISED: dict[str, Codec] = {
    "int8": Codec("int8", "channel"),
    "int4": Codec("int4", "channel"),
    "ecsq": Codec("int4", "deviation"),
    "ternary": Codec("ternary"),
}
WIRE_NAMES = {str(codec): codec for codec in QUANTISED.values()}
SHORTER = "-zlib"
LONGEST_CODEC = 24


def pack_change(change: Mapping[str, Tensor], codec: ChangeCodec) -> bytes:
    """Pack floating-point tensors; the order is kept, and ``unpack_change`` needs it.

    Raises:
        ValueError: a value that is not finite, or does not fit into fp16; a tensor that is not floating point.
    """
    if codec not in QUANTISED:
        return pack_state(change, _float_type(codec))
    used = QUANTISED[codec]
    encoded = [encode(tensor.reshape(_rows(tensor.shape)), used) for tensor in change.values()]
    data = b"".join(one.data for one in encoded)
    shorter = compress(data)
    fits = len(shorter) < len(data)
    scales = b"".join(one.scale for one in encoded)
    blob: bytes = msgpack.packb([f"{used}{SHORTER if fits else ''}", scales, shorter if fits else data])
    return blob


def unpack_change(blob: bytes, expected: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Unpack a change of exactly the expected shapes, as float32 tensors of their own memory.

    Raises:
        MessageError: not such a blob; a wrong size; NaN or infinity.
    """
    match _open(blob):
        case [str(name), bytes(scales), bytes(data)] if name.removesuffix(SHORTER) in WIRE_NAMES:
            codec = WIRE_NAMES[name.removesuffix(SHORTER)]
            shapes = {key: _rows(shape) for key, shape in expected.items()}
            size_bytes = sum(map(codec.data_bytes, shapes.values()))
            data = decompress(data, size_bytes) if name.endswith(SHORTER) else data
            pieces = _pieces(codec, shapes, scales, data)
            return {key: decode(piece).reshape(expected[key]) for key, piece in pieces}
        case [str(), dict()]:
            return unpack_state(blob, expected)
    raise MessageError("change: not a codec, scales and data")


def _float_type(codec: ChangeCodec) -> WeightsDtype:
    return "fp32" if codec == "fp32" else "fp16"


def _rows(shape: torch.Size) -> tuple[int, int, int]:
    """One sample, whose channels are the outputs of the layer: each has a range of its own."""
    channels = shape[0] if len(shape) else 1
    return (1, channels, shape.numel() // channels)


def _pieces(
    codec: Codec, shapes: Mapping[str, tuple[int, int, int]], scales: bytes, data: bytes
) -> Iterator[tuple[str, EncodedTensor]]:
    scale_bytes, data_bytes = sum(map(codec.scale_bytes, shapes.values())), sum(map(codec.data_bytes, shapes.values()))
    if (len(scales), len(data)) != (scale_bytes, data_bytes):
        raise MessageError(f"change: {len(scales)} + {len(data)} bytes, its shapes need {scale_bytes} + {data_bytes}")
    for key, shape in shapes.items():
        scale, values = codec.scale_bytes(shape), codec.data_bytes(shape)
        yield key, EncodedTensor(str(codec), shape, scales[:scale], data[:values])
        scales, data = scales[scale:], data[values:]


def _open(blob: bytes) -> Any:
    try:
        return msgpack.unpackb(
            blob,
            strict_map_key=True,
            max_array_len=3,
            max_map_len=len(blob),
            max_str_len=256,
            max_bin_len=len(blob),
            max_ext_len=0,
        )
    except (ValueError, TypeError, RecursionError, OverflowError, msgpack.exceptions.UnpackException) as error:
        raise MessageError(f"change: {error or 'no MessagePack'}") from error
