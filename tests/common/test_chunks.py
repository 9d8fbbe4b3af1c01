from __future__ import annotations

import random

import pytest

from common.chunks import CHUNK_BYTES, CHUNK_DATA_BYTES, Assembler, split
from common.errors import MessageError
from common.messages import UpdateChunk, WeightsChunk, encode


@pytest.mark.parametrize("size", [0, 1, CHUNK_DATA_BYTES, CHUNK_DATA_BYTES + 1, 3 * CHUNK_DATA_BYTES + 7])
def test_chunks_put_together_in_any_order_are_the_blob(size: int) -> None:
    blob = random.Random(size).randbytes(size)
    chunks = split(blob)
    order = list(range(len(chunks)))
    random.Random(1).shuffle(order)
    assembler = Assembler()
    answers = [assembler.add("key", index, len(chunks), chunks[index]) for index in order]
    assert answers == [None] * (len(chunks) - 1) + [blob]
    assert assembler.held_bytes == 0


def test_the_largest_chunk_makes_no_message_above_the_budget() -> None:
    data = bytes(CHUNK_DATA_BYTES)
    largest = 2**53
    weights = WeightsChunk("ü" * 64, largest, "a" * 32, 65_534, 65_535, data)
    update = UpdateChunk("ü" * 64, "f" * 16, largest, largest, largest, "f" * 64, 65_534, 65_535, data)
    assert max(len(encode(weights)), len(encode(update))) <= CHUNK_BYTES


def test_a_chunk_that_comes_twice_counts_once() -> None:
    assembler = Assembler(max_bytes=4)
    assert assembler.add(1, 0, 2, b"ab") is None
    assert assembler.add(1, 0, 2, b"cd") is None
    assert assembler.held_bytes == 2
    assert assembler.add(1, 1, 2, b"ef") == b"cdef"


def test_a_chunk_left_over_from_another_version_between_the_others_does_no_harm() -> None:
    assembler = Assembler()
    assert assembler.add(("run", 2), 0, 2, b"ne") is None
    assert assembler.add(("run", 1), 7, 9, b"left over") is None
    assert assembler.add(("run", 2), 1, 2, b"w") == b"new"


def test_of_three_blobs_at_once_the_one_longest_unheard_of_is_dropped() -> None:
    assembler = Assembler()
    for run in ("a", "b", "a", "c"):
        assert assembler.add(run, 0, 2, run.encode()) is None
    assert assembler.held_bytes == 2
    assert assembler.add("a", 1, 2, b"!") == b"a!"
    assert assembler.add("b", 1, 2, b"!") is None


def test_the_same_key_starts_anew_after_it_was_complete() -> None:
    assembler = Assembler()
    assert assembler.add(1, 0, 1, b"a") == b"a"
    assert assembler.add(1, 0, 1, b"a") == b"a"


@pytest.mark.parametrize(
    ("index", "count", "data", "problem"),
    [
        (-1, 2, b"", "outside the count"),
        (2, 2, b"", "outside the count"),
        (0, 0, b"", "outside the count"),
        (1, 3, b"", "said 2 in all"),
        (1, 2, bytes(9), "more than 10 bytes"),
        (1, 2, bytes(CHUNK_DATA_BYTES + 1), "allowed are"),
    ],
)
def test_a_chunk_that_contradicts_the_others_is_refused_and_they_are_dropped(
    index: int, count: int, data: bytes, problem: str
) -> None:
    assembler = Assembler(max_bytes=10)
    assembler.add("key", 0, 2, b"ab")
    with pytest.raises(MessageError, match=problem):
        assembler.add("key", index, count, data)
    assert assembler.held_bytes == 0
    assert assembler.add("key", 1, 2, b"cd") is None
