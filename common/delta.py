"""From one published version of a block to the next: both ends take this step, bit for bit alike.

``published_v = round(published_{v-1} + delta)``, in float32 and rounded to the weights' dtype. Sums and products of
float32 are the same everywhere (IEEE 754, no fused operation between them), so the digest that the trainer names in its
manifest is that of what a device which follows the deltas holds. What quantising the delta rounds away is not lost:
the trainer's own weights keep it, and the next delta begins at what was published.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from common.errors import MessageError
from common.packed_change import ChangeCodec, pack_change, unpack_change
from common.state_blob import WeightsDtype, pack_state


def pack_delta(published: Mapping[str, Tensor], wanted: Mapping[str, Tensor], codec: ChangeCodec) -> bytes:
    """What leads from ``published`` near ``wanted``.

    Raises:
        ValueError: the difference is not finite.
    """
    return pack_change({key: wanted[key] - value for key, value in published.items()}, codec)


def advance(published: Mapping[str, Tensor], delta: bytes, dtype: WeightsDtype) -> bytes:
    """The bytes of the version that ``delta`` leads to, as `pack_state` makes them.

    Raises:
        MessageError: no delta of these shapes, or it leads beyond what ``dtype`` can hold.
    """
    change = unpack_change(delta, {key: value.shape for key, value in published.items()})
    try:
        return pack_state({key: value + change[key] for key, value in published.items()}, dtype)
    except ValueError as error:
        raise MessageError(f"delta: {error}") from error
