"""The change of several blocks as one blob: what a device publishes on ``up/update`` and what it keeps on its disk."""

from __future__ import annotations

from collections.abc import Mapping

import msgpack
from torch import Tensor

from common.errors import MessageError
from common.packed_change import ChangeCodec, pack_change, unpack_change

State = dict[str, Tensor]
LONGEST_NAME_BYTES = 64


def most_bytes(expected: Mapping[str, State]) -> int:
    """The size of the largest change of these blocks: every value as fp32, and room for names and lengths."""
    return sum(1024 + sum(512 + 4 * tensor.numel() for tensor in state.values()) for state in expected.values())


def pack_blocks(blocks: Mapping[str, State], codec: ChangeCodec) -> bytes:
    """Pack ``{block name: {parameter: tensor}}``; the order of the names is kept."""
    packed: bytes = msgpack.packb({name: pack_change(state, codec) for name, state in blocks.items()})
    return packed


def unpack_blocks(blob: bytes, expected: Mapping[str, State]) -> dict[str, State]:
    """Unpack what `pack_blocks` packed: any of the ``expected`` blocks, each complete and of its shape.

    Raises:
        MessageError: not such a blob, an unknown block, a wrong shape, NaN or infinity.
    """
    try:
        raw = msgpack.unpackb(
            blob,
            strict_map_key=True,
            max_map_len=len(expected),
            max_bin_len=len(blob),
            max_str_len=LONGEST_NAME_BYTES,
            max_array_len=0,
            max_ext_len=0,
        )
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise MessageError(f"change of blocks: {error}") from error
    if not isinstance(raw, dict) or not all(isinstance(value, bytes) for value in raw.values()):
        raise MessageError("change of blocks: not a map of names to bytes")
    unknown = sorted(str(name) for name in raw if name not in expected)
    if unknown:
        raise MessageError(f"change of blocks: unknown block {unknown[0]!r}, known are {', '.join(expected)}")
    return {
        name: unpack_change(state, {key: tensor.shape for key, tensor in expected[name].items()})
        for name, state in raw.items()
    }
