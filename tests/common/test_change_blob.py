from __future__ import annotations

import msgpack
import pytest
import torch

from common.change_blob import State, pack_blocks, unpack_blocks
from common.errors import MessageError

EXPECTED: dict[str, State] = {
    "stem": {"weight": torch.zeros(2, 3), "bias": torch.zeros(3)},
    "0": {"weight": torch.zeros(4)},
    "head": {"weight": torch.zeros(1, 1)},
}


def blocks() -> dict[str, State]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: {key: torch.randn(value.shape, generator=generator) for key, value in state.items()}
        for name, state in EXPECTED.items()
    }


def test_what_was_packed_in_fp32_is_unpacked_bit_for_bit() -> None:
    packed = blocks()
    unpacked = unpack_blocks(pack_blocks(packed, "fp32"), EXPECTED)
    assert list(unpacked) == ["stem", "0", "head"]
    assert all(
        torch.equal(unpacked[name][key], value) for name, state in packed.items() for key, value in state.items()
    )


def test_fp16_halves_the_bytes_and_gives_back_its_own_rounding_exactly() -> None:
    packed = {"0": {"weight": torch.tensor([1.0, 1 / 3, -2e-4, 3e-8])}}
    once = unpack_blocks(pack_blocks(packed, "fp16"), EXPECTED)
    assert torch.equal(once["0"]["weight"], packed["0"]["weight"].half().float())
    assert pack_blocks(once, "fp16") == pack_blocks(packed, "fp16")


def test_any_of_the_expected_blocks_may_be_missing_and_so_may_all() -> None:
    one = {"0": blocks()["0"]}
    assert list(unpack_blocks(pack_blocks(one, "fp32"), EXPECTED)) == ["0"]
    assert unpack_blocks(pack_blocks({}, "fp32"), EXPECTED) == {}


def test_an_unknown_block_is_named_and_so_are_the_known_ones() -> None:
    with pytest.raises(MessageError, match="unknown block '9', known are stem, 0, head"):
        unpack_blocks(pack_blocks({"9": blocks()["0"]}, "fp32"), EXPECTED)


def test_a_block_must_be_complete_and_of_its_shapes() -> None:
    whole = blocks()
    with pytest.raises(MessageError, match="bias"):
        unpack_blocks(pack_blocks({"stem": {"weight": whole["stem"]["weight"]}}, "fp32"), EXPECTED)
    with pytest.raises(MessageError, match="weight"):
        unpack_blocks(pack_blocks({"0": {"weight": torch.zeros(5)}}, "fp32"), EXPECTED)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_is_refused(value: float) -> None:
    good = pack_blocks({"0": {"weight": torch.full((4,), 1.5)}}, "fp32")
    one, bad = (torch.tensor(each).numpy().tobytes() for each in (1.5, value))
    with pytest.raises(MessageError, match="NaN or infinite"):
        unpack_blocks(good.replace(one, bad, 1), EXPECTED)


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"\xc1",
        b"\xdf\xff\xff\xff\xff",
        b"\x91" * 5_000,
        msgpack.packb([1, 2]),
        msgpack.packb({"0": "text"}),
        msgpack.packb({0: b""}),
        msgpack.packb({b"0": b""}),
        msgpack.packb({"0": msgpack.Timestamp(1)}),
        msgpack.packb({str(number): b"" for number in range(4)}),
        pack_blocks({}, "fp32") + b"\x00",
        pack_blocks(blocks(), "fp32")[:-1],
    ],
)
def test_what_is_no_such_blob_is_a_message_error_and_nothing_else(blob: bytes) -> None:
    with pytest.raises(MessageError):
        unpack_blocks(blob, EXPECTED)
