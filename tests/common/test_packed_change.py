from __future__ import annotations

import msgpack
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.codec import compress
from common.errors import MessageError
from common.packed_change import ChangeCodec, pack_change, unpack_change

SHAPES = {
    "weight": torch.Size([24, 8, 3, 3]),
    "depthwise": torch.Size([7, 1, 3, 3]),
    "bias": torch.Size([24]),
    "scale": torch.Size([]),
}
CODECS: tuple[ChangeCodec, ...] = ("fp32", "fp16", "int8", "int4", "ecsq", "ternary")


def change(size: float = 1.0, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: size * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def error(measured: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((measured - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(
    ("codec", "most"), [("fp32", 0.0), ("fp16", 4e-4), ("int8", 0.01), ("int4", 0.13), ("ecsq", 0.36), ("ternary", 0.8)]
)
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_a_change_comes_back_as_near_as_its_codec_can(codec: ChangeCodec, most: float, size: float) -> None:
    sent = change(size)
    arrived = unpack_change(pack_change(sent, codec), SHAPES)
    assert list(arrived) == list(SHAPES)
    assert all(error(arrived[name], sent[name]) <= most for name in sent)


@pytest.mark.parametrize("codec", CODECS)
def test_what_does_not_change_arrives_as_no_change(codec: ChangeCodec) -> None:
    still = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    arrived = unpack_change(pack_change(still, codec), SHAPES)
    assert all(torch.equal(arrived[name], still[name]) for name in still)


def test_a_channel_that_moves_much_costs_the_others_nothing() -> None:
    sent = change()
    sent["weight"][0] *= 30
    arrived = unpack_change(pack_change(sent, "int8"), SHAPES)
    assert error(arrived["weight"][1:], sent["weight"][1:]) < 0.05


@pytest.mark.parametrize("codec", CODECS)
def test_with_error_feedback_a_steady_change_arrives_in_full(codec: ChangeCodec) -> None:
    """Also one whose values are all alike, of which rounding to the nearest might otherwise send nothing for ever."""
    steady = change() | {"bias": torch.ones(24), "scale": torch.tensor(-1.0)}
    unsent = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    total = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    for _ in range(40):
        unsent = {name: unsent[name] + steady[name] for name in steady}
        arrived = unpack_change(pack_change(unsent, codec), SHAPES)
        unsent = {name: unsent[name] - arrived[name] for name in steady}
        total = {name: total[name] + arrived[name] for name in steady}
    assert all(error(total[name], 40 * steady[name]) < 0.1 for name in steady)


def test_a_value_weighs_half_a_byte_or_one_and_names_do_not_travel() -> None:
    values = sum(shape.numel() for shape in SHAPES.values())
    assert len(pack_change(change(), "int4")) < 0.5 * values + 140
    assert len(pack_change(change(), "int8")) < values + 140


def test_codes_of_which_few_occur_are_entropy_coded() -> None:
    rare = {name: torch.where(value > 2.0, value, torch.zeros(())) for name, value in change().items()}
    assert len(pack_change(rare, "int8")) < 0.5 * len(pack_change(change(), "int8"))
    arrived = unpack_change(pack_change(rare, "int8"), SHAPES)
    assert error(arrived["weight"], rare["weight"]) < 0.01


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_is_never_sent(codec: ChangeCodec, value: float) -> None:
    broken = change()
    broken["bias"][3] = value
    with pytest.raises(ValueError, match="finite"):
        pack_change(broken, codec)


@pytest.mark.parametrize("codec", CODECS)
def test_a_change_of_other_shapes_is_refused(codec: ChangeCodec) -> None:
    blob = pack_change(change(), codec)
    with pytest.raises(MessageError):
        unpack_change(blob, {**SHAPES, "bias": torch.Size([26])})
    with pytest.raises(MessageError):
        unpack_change(blob, {name: shape for name, shape in SHAPES.items() if name != "bias"})


def test_a_scale_that_is_no_number_is_refused() -> None:
    name, scales, data = msgpack.unpackb(pack_change(change(), "int8"))
    poisoned = torch.tensor(torch.nan).numpy().tobytes() + scales[4:]
    with pytest.raises(MessageError, match="not finite"):
        unpack_change(msgpack.packb([name, poisoned, data]), SHAPES)


def test_a_bomb_is_not_unpacked() -> None:
    name, scales, _ = msgpack.unpackb(pack_change(change(), "int8"))
    bomb = compress(bytes(10_000_000))
    with pytest.raises(MessageError, match="does not decompress"):
        unpack_change(msgpack.packb([name.removesuffix("-zlib") + "-zlib", scales, bomb]), SHAPES)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_change_are_a_message_error_and_nothing_else(blob: bytes) -> None:
    with pytest.raises(MessageError):
        unpack_change(blob, SHAPES)


@given(position=st.integers(0, 10_000), value=st.integers(0, 255), codec=st.sampled_from(CODECS))
def test_a_spoilt_byte_gives_numbers_or_a_message_error(position: int, value: int, codec: ChangeCodec) -> None:
    blob = bytearray(pack_change(change(), codec))
    blob[position % len(blob)] = value
    try:
        arrived = unpack_change(bytes(blob), SHAPES)
    except MessageError:
        return
    assert all(bool(torch.isfinite(tensor).all()) for tensor in arrived.values())
    assert {name: tensor.shape for name, tensor in arrived.items()} == SHAPES
