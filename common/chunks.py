"""Large blobs travel as chunks that each fit a small MQTT packet, so that they can be paced behind the live traffic."""

from __future__ import annotations

from collections.abc import Hashable

from common.errors import MessageError

CHUNK_BYTES = 64 * 1024  # of one message, its header included
HEADER_BYTES = 512  # more than any header of a chunk needs
CHUNK_DATA_BYTES = CHUNK_BYTES - HEADER_BYTES
MAX_BLOB_BYTES = 64 * 1024 * 1024


def split(blob: bytes) -> list[bytes]:
    """Cut a blob into pieces of at most `CHUNK_DATA_BYTES`; an empty blob is one empty piece."""
    starts = range(0, max(len(blob), 1), CHUNK_DATA_BYTES)
    return [blob[start : start + CHUNK_DATA_BYTES] for start in starts]


class Assembler:
    """Puts the chunks of one blob together again, in whatever order they come.

    It works on one blob at a time: a chunk with another key drops what it had. It never holds more than ``max_bytes``.
    """

    def __init__(self, *, max_bytes: int = MAX_BLOB_BYTES) -> None:
        self._max_bytes = max_bytes
        self._key: Hashable = None
        self._count = 0
        self._chunks: dict[int, bytes] = {}
        self._held_bytes = 0

    @property
    def held_bytes(self) -> int:
        """The bytes of the chunks that wait for the others."""
        return self._held_bytes

    def add(self, key: Hashable, index: int, count: int, data: bytes) -> bytes | None:
        """Take one chunk; the whole blob when it was the last one missing, else None.

        Raises:
            MessageError: an index outside the count, another count than before, more bytes than allowed. What was
                collected under this key is dropped, since it can no longer be trusted to become whole.
        """
        if key != self._key:
            self.clear()
            self._key, self._count = key, count
        problem = self._problem(index, count, data)
        if problem:
            self.clear()
            raise MessageError(f"chunk {index} of {count}: {problem}")
        self._held_bytes += len(data) - len(self._chunks.get(index, b""))
        self._chunks[index] = data
        if len(self._chunks) < count:
            return None
        blob = b"".join(self._chunks[number] for number in range(count))
        self.clear()
        return blob

    def clear(self) -> None:
        """Forget everything collected."""
        self._key, self._count, self._held_bytes = None, 0, 0
        self._chunks = {}

    def _problem(self, index: int, count: int, data: bytes) -> str:
        if not 0 <= index < count:
            return "the index lies outside the count"
        if count != self._count:
            return f"earlier chunks said {self._count} in all"
        if len(data) > CHUNK_DATA_BYTES:
            return f"{len(data)} bytes, allowed are {CHUNK_DATA_BYTES}"
        if self._held_bytes + len(data) - len(self._chunks.get(index, b"")) > self._max_bytes:
            return f"more than {self._max_bytes} bytes together"
        return ""
