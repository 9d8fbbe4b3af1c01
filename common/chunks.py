"""Large blobs travel as chunks that each fit a small MQTT packet, so that they can be paced behind the live traffic."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field

from common.errors import MessageError

CHUNK_BYTES = 64 * 1024  # of one message, its header included
HEADER_BYTES = 512  # more than any header of a chunk needs
CHUNK_DATA_BYTES = CHUNK_BYTES - HEADER_BYTES
MAX_BLOB_BYTES = 64 * 1024 * 1024
AT_ONCE = 2


def split(blob: bytes) -> list[bytes]:
    """Cut a blob into pieces of at most `CHUNK_DATA_BYTES`; an empty blob is one empty piece."""
    starts = range(0, max(len(blob), 1), CHUNK_DATA_BYTES)
    return [blob[start : start + CHUNK_DATA_BYTES] for start in starts]


@dataclass(slots=True)
class _Partial:
    """What is there of one blob."""

    count: int
    chunks: dict[int, bytes] = field(default_factory=dict)
    held_bytes: int = 0


class Assembler:
    """Puts the chunks of a blob together again, in whatever order they come.

    It works on `AT_ONCE` blobs at a time, so that a chunk that an earlier, longer version left retained at a broker
    costs nothing between those of the version that is wanted; of more, the one longest unheard of is dropped. It never
    holds more than ``max_bytes`` of each.
    """

    def __init__(self, *, max_bytes: int = MAX_BLOB_BYTES) -> None:
        self._max_bytes = max_bytes
        self._partials: OrderedDict[Hashable, _Partial] = OrderedDict()

    @property
    def held_bytes(self) -> int:
        """The bytes of the chunks that wait for the others."""
        return sum(partial.held_bytes for partial in self._partials.values())

    def add(self, key: Hashable, index: int, count: int, data: bytes) -> bytes | None:
        """Take one chunk; the whole blob when it was the last one missing, else None.

        Raises:
            MessageError: an index outside the count, another count than before, more bytes than allowed. What was
                collected under this key is dropped, since it can no longer be trusted to become whole.
        """
        partial = self._partials.pop(key, None) or _Partial(count)
        problem = self._problem(partial, index, count, data)
        if problem:
            raise MessageError(f"chunk {index} of {count}: {problem}")
        partial.held_bytes += len(data) - len(partial.chunks.get(index, b""))
        partial.chunks[index] = data
        if len(partial.chunks) == count:
            return b"".join(partial.chunks[number] for number in range(count))
        self._partials[key] = partial
        if len(self._partials) > AT_ONCE:
            self._partials.popitem(last=False)
        return None

    def _problem(self, partial: _Partial, index: int, count: int, data: bytes) -> str:
        if not 0 <= index < count:
            return "the index lies outside the count"
        if count != partial.count:
            return f"earlier chunks said {partial.count} in all"
        if len(data) > CHUNK_DATA_BYTES:
            return f"{len(data)} bytes, allowed are {CHUNK_DATA_BYTES}"
        if partial.held_bytes + len(data) - len(partial.chunks.get(index, b"")) > self._max_bytes:
            return f"more than {self._max_bytes} bytes together"
        return ""
