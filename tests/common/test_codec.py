from __future__ import annotations

import math
import zlib
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from common.codec import Codec, EncodedTensor, decode, decode_tensor, encode, quantisation_error, rows
from common.errors import MessageError
from common.limits import Limits
from common.quantiser import group_count, pack_trits, unpack_trits
from common.state_blob import digest, pack_state, unpack_state

ALL = (
    [f"{dtype}{entropy}" for dtype, entropy in product(("fp32", "fp16"), ("", "-zlib"))]
    + [
        f"{dtype}{scale}{entropy}"
        for dtype, scale, entropy in product(("int8", "int4"), ("", "-channel"), ("", "-zlib"))
    ]
    + ["int4-deviation", "int4-deviation-zlib"]
)
SHAPES = [(1,), (3,), (1, 1), (1, 7), (2, 192), (2, 3, 5, 7), (2, 96, 4, 6), (2, 192, 2, 3), (2, 7, 1, 1)]


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    """Values like a group-normalised layer's: channels of their own mean and deviation."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator)
    if len(shape) == 4:
        values = values * torch.rand(1, shape[1], 1, 1, generator=generator) + torch.randn(
            1, shape[1], 1, 1, generator=generator
        )
    return values


@pytest.mark.parametrize("text", ALL)
def test_a_codec_reads_its_own_name(text: str) -> None:
    assert str(Codec.parse(text)) == text


def test_defaults_may_be_spelt_out() -> None:
    assert Codec.parse("int4-sample-none") == Codec.parse("int4") == Codec("int4", "sample", "none")
    assert Codec.parse("int8-sample-zlib") == Codec.parse("int8-zlib") == Codec("int8", "sample", "zlib")


@pytest.mark.parametrize(
    "text",
    ["", "int2", "int4-", "ternary-channel", "int8-deviation", "int4-zlib-channel", "int4-channel-channel", "INT4"],
)
def test_another_codec_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match="allowed are fp32, fp16, int8, int4 or ternary"):
        Codec.parse(text)


@pytest.mark.parametrize(("text", "shape"), list(product(ALL, SHAPES)))
def test_a_tensor_comes_back_within_the_error_of_its_codec(text: str, shape: tuple[int, ...]) -> None:
    original = features(*shape)
    encoded = encode(original, Codec.parse(text))
    decoded = decode(encoded, Limits())
    bound = {"fp32": 0.0, "fp16": 1e-3, "int8": 0.02, "int4": 0.35 if "deviation" in text else 0.25}[text[:4]]
    assert decoded.shape == original.shape
    assert decoded.dtype == torch.float32
    assert quantisation_error(original, decoded) <= bound


def slow_int8(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> list[float]:
    """Each sample on 256 even levels between its extremes, one value at a time."""
    decoded = []
    for sample in values.reshape(len(values), -1):
        low, high = min(sample), max(sample)
        step = (high - low) / np.float32(255)
        decoded += [low + step * np.rint((value - low) / step) for value in sample]
    return decoded


def test_int8_equals_a_slow_reference() -> None:
    original = features(2, 3, 4, 5)
    decoded = decode(encode(original, Codec("int8")), Limits())
    expected = torch.tensor(slow_int8(original.numpy())).reshape(original.shape)
    torch.testing.assert_close(decoded, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("last_code", "dtype"), [(255, "int8"), (15, "int4")])
def test_no_value_of_a_channel_is_off_by_more_than_half_a_step(last_code: int, dtype: str) -> None:
    original = features(2, 96, 4, 6)
    decoded = decode(encode(original, Codec.parse(f"{dtype}-channel")), Limits())
    group, sample = original.reshape(2, 96, -1), original.reshape(2, 1, -1)
    # A channel's range is widened to whole 255th parts of the sample's range: by less than two of them.
    widened = group.amax(2) - group.amin(2) + 2 * (sample.amax(2) - sample.amin(2)) / 255
    assert ((decoded - original).reshape(2, 96, -1).abs().amax(2) <= widened / last_code / 2 * 1.001).all()


def test_the_scale_per_channel_is_worth_its_bytes_where_channels_differ() -> None:
    original = features(2, 96, 4, 6)
    errors = {
        name: quantisation_error(original, decode(encode(original, Codec.parse(name))))
        for name in ("int4", "int4-channel")
    }
    assert errors["int4-channel"] < errors["int4"] / 2


def test_clipping_spends_the_codes_on_the_many_values_and_not_on_the_few() -> None:
    original = torch.randn(1, 20_000, generator=torch.Generator().manual_seed(3))
    original[0, :4] = torch.tensor([6.0, -6.0, 6.0, -6.0])
    unclipped = (original.max() - original.min()) / 15
    error = quantisation_error(original, decode(encode(original, Codec("int4"))))
    assert error < 0.7 * (unclipped / math.sqrt(12) * math.sqrt(20_000) / original.norm()).item()


def test_values_after_a_relu_use_every_code() -> None:
    original = features(2, 8, 8, 8).relu()
    decoded = decode(encode(original, Codec.parse("int4-channel")))
    assert (decoded[original == 0] >= 0).all()
    assert quantisation_error(original, decoded) < 0.06


@pytest.mark.parametrize("text", ["int8", "int4-channel"])
def test_stochastic_rounding_has_no_bias_and_repeats_with_its_seed(text: str) -> None:
    original, codec = features(1, 8, 4, 6), Codec.parse(text)
    generator = torch.Generator().manual_seed(5)
    mean = torch.stack([decode(encode(original, codec, generator)) for _ in range(2_000)]).mean(0)
    nearest = decode(encode(original, codec))
    assert quantisation_error(original, mean) < 0.1 * quantisation_error(original, nearest)
    twice = [encode(original, codec, torch.Generator().manual_seed(9)) for _ in range(2)]
    assert twice[0] == twice[1]


@pytest.mark.parametrize("text", ALL)
def test_zeros_and_constants_survive(text: str) -> None:
    for value in (0.0, 2.5, -1e-3):
        original = torch.full((2, 4, 2, 2), value)
        torch.testing.assert_close(decode(encode(original, Codec.parse(text))), original, rtol=1e-3, atol=0)


@pytest.mark.parametrize("text", ALL)
@given(arrays(np.float32, array_shapes(max_dims=4, max_side=5), elements=st.floats(-60_000, 60_000, width=32)))
@settings(max_examples=40)
def test_whatever_can_be_encoded_can_be_decoded(
    text: str, values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> None:
    original = torch.from_numpy(values)
    decoded = decode(encode(original, Codec.parse(text)), Limits())
    span = float(values.max() - values.min())
    tolerance = {"fp32": 0.0, "fp16": 32.0, "int8": span / 255, "int4": span}[text.partition("-")[0]]
    assert float((decoded - original).abs().max()) <= tolerance * 1.01 + abs(float(values.max())) * 1e-6 + 1e-30


@pytest.mark.parametrize("text", ALL)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_never_encoded(text: str, bad: float) -> None:
    original = features(2, 8)
    original[1, 3] = bad
    with pytest.raises(ValueError, match="finite"):
        encode(original, Codec.parse(text))


def test_too_large_for_fp16_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite in fp16"):
        encode(torch.tensor([[1e6]]), Codec("fp16"))


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (1, 1, 1, 1, 1)])
def test_a_tensor_without_values_or_with_too_many_dimensions_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shape"):
        encode(torch.zeros(shape), Codec("fp32"))


def test_the_decoded_tensor_is_writable_and_its_own() -> None:
    encoded = encode(features(2, 8), Codec("fp32"))
    first = decode(encoded)
    first.zero_()
    assert decode(encoded).abs().sum() > 0


GOOD = encode(features(2, 3, 4, 6), Codec.parse("int4"))
ZIPPED = encode(features(2, 3, 4, 6), Codec.parse("int4-zlib"))
FLOATS = encode(features(2, 3), Codec("fp32"))
HUGE = np.array([[3e38, 3e38], [0, 1]], "<f4").tobytes()


@pytest.mark.parametrize(
    ("encoded", "field"),
    [
        (replace(GOOD, codec="int5"), "codec"),
        (replace(GOOD, codec="int4-channel"), "scale"),
        (replace(GOOD, codec="int8"), "data"),
        (replace(GOOD, shape=(2, 3, 4, 7)), "data"),
        (replace(GOOD, shape=()), "shape"),
        (replace(GOOD, shape=(2, 0, 4, 6)), "shape"),
        (replace(GOOD, shape=(2, -3, -4, 6)), "shape"),
        (replace(GOOD, shape=(2, 3, 4, 6, 1)), "shape"),
        (replace(GOOD, shape=(2, 2**21, 2**21, 2**21)), "shape"),
        (replace(GOOD, scale=GOOD.scale[:-1]), "scale"),
        (replace(GOOD, scale=GOOD.scale + b"\0"), "scale"),
        (replace(GOOD, scale=np.array([0, math.nan, 0, 1], "<f4").tobytes()), "scale"),
        (replace(GOOD, scale=np.array([math.inf, 1, 0, 1], "<f4").tobytes()), "scale"),
        (replace(GOOD, scale=np.array([0, -1, 0, 1], "<f4").tobytes()), "scale"),
        (replace(GOOD, scale=HUGE), "data"),
        (replace(GOOD, data=GOOD.data[:-1]), "data"),
        (replace(GOOD, data=GOOD.data + b"\0"), "data"),
        (replace(ZIPPED, data=ZIPPED.data[:-1]), "data"),
        (replace(ZIPPED, data=ZIPPED.data + b"\0"), "data"),
        (replace(ZIPPED, data=b"\xff" * 20), "data"),
        (replace(ZIPPED, data=bytes(1_000)), "data"),
        (replace(FLOATS, data=np.full(6, math.nan, "<f4").tobytes()), "data"),
        (replace(FLOATS, data=np.full(6, -math.inf, "<f4").tobytes()), "data"),
        (replace(FLOATS, scale=b"\0"), "scale"),
        (EncodedTensor("int4", (1, 3), np.array([0, 1], "<f4").tobytes(), b"\x00\xf0"), "data"),
        (EncodedTensor("ternary", (1, 3), np.array([-1, 1], "<f4").tobytes(), b"\xf3"), "data"),
        (EncodedTensor("ternary", (1, 3), np.array([-1, 1], "<f4").tobytes(), bytes([27])), "data"),
        (EncodedTensor("int4-channel", (1, 1), np.array([0, 1], "<f4").tobytes() + b"\x02\x01", b"\0"), "scale"),
    ],
)
def test_whatever_is_off_is_refused_by_name(encoded: EncodedTensor, field: str) -> None:
    with pytest.raises(MessageError, match=rf"^{field}: "):
        decode(encoded, Limits())


def test_more_values_than_allowed_are_refused_before_anything_is_decoded() -> None:
    with pytest.raises(MessageError, match="allowed are 100"):
        decode(GOOD, Limits(max_tensor_values=100))


def test_a_bomb_is_not_unpacked_further_than_the_shape_says() -> None:
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = stream.compress(bytes(100_000_000)) + stream.flush()
    shape = (1, 2 * len(bomb))
    with pytest.raises(MessageError, match="does not decompress"):
        decode(EncodedTensor("int4-zlib", shape, bytes(8), bomb), Limits())


def test_another_shape_than_expected_is_refused() -> None:
    assert decode_tensor(GOOD, (2, 3, 4, 6)).shape == (2, 3, 4, 6)
    with pytest.raises(MessageError, match=r"^shape: \[2, 3, 4, 6\] instead of \[2, 3, 24\]"):
        decode_tensor(GOOD, (2, 3, 24))


@pytest.mark.parametrize(
    ("shape", "groups"),
    [((2, 96, 4, 6), 96), ((2, 192, 2, 3), 48), ((2, 192), 8), ((2, 7, 1, 1), 1), ((5,), 1), ((2, 65_521), 1)],
)
def test_channels_are_joined_until_a_group_has_enough_values(shape: tuple[int, ...], groups: int) -> None:
    assert group_count("channel", shape) == groups


def test_the_error_is_relative_and_defined_for_zeros() -> None:
    assert quantisation_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0])) == pytest.approx(0.2)
    assert quantisation_error(torch.zeros(2), torch.zeros(2)) == 0
    assert quantisation_error(torch.zeros(2), torch.ones(2)) == math.inf


STATE = {"weight": features(3, 4), "bias": features(3), "scalar": torch.tensor(2.0)}
EXPECTED = {name: tensor.shape for name, tensor in STATE.items()}


def test_a_state_comes_back_by_name_and_equal_states_have_equal_digests() -> None:
    unpacked = unpack_state(pack_state(STATE, "fp32"), EXPECTED)
    assert list(unpacked) == list(STATE)
    assert all(torch.equal(unpacked[name], STATE[name]) for name in STATE)
    assert digest(pack_state(STATE, "fp16")) == digest(pack_state(dict(STATE), "fp16"))
    assert len(digest(b"")) == 64


def test_a_state_in_fp16_is_half_as_large_and_close() -> None:
    blob = pack_state(STATE, "fp16")
    unpacked = unpack_state(blob, EXPECTED)
    assert len(blob) < len(pack_state(STATE, "fp32"))
    assert all(torch.allclose(unpacked[name], STATE[name], rtol=1e-3) for name in STATE)


@pytest.mark.parametrize(
    ("blob", "problem"),
    [
        (b"", "weights"),
        (b"\x01", "not a dtype"),
        (pack_state(STATE, "fp32")[:-1], "weights"),
        (pack_state(STATE, "fp32") + b"\0", "weights"),
        (bytes(10_000), "allowed are"),
        (pack_state({"weight": STATE["weight"], "bias": STATE["bias"]}, "fp32"), "'scalar' is missing or unknown"),
        (pack_state({**STATE, "bias": features(4)}, "fp32"), "bias: not 12 bytes"),
        (pack_state(STATE, "fp32").replace(np.float32(2).tobytes(), np.float32(math.nan).tobytes()), "NaN"),
        (pack_state(STATE, "fp32").replace(b"fp32", b"fp99"), "not a dtype"),
    ],
)
def test_a_state_that_is_off_is_refused(blob: bytes, problem: str) -> None:
    with pytest.raises(MessageError, match=problem):
        unpack_state(blob, EXPECTED)


def test_a_state_that_cannot_travel_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="not finite"):
        pack_state({"a": torch.tensor([math.nan])}, "fp32")
    with pytest.raises(ValueError, match=r"not finite in torch\.float16"):
        pack_state({"a": torch.tensor([1e6])}, "fp16")
    with pytest.raises(ValueError, match="not floating point"):
        pack_state({"a": torch.tensor([1])}, "fp32")


def test_int4_deviation_rounds_to_whole_deviations_within_five_percent_of_their_entropy() -> None:
    original = torch.randn(1, 20_000, generator=torch.Generator().manual_seed(3))
    encoded = encode(original, Codec.parse("int4-deviation-zlib"))
    steps = decode(encoded) / original.square().mean().sqrt()
    torch.testing.assert_close(steps, (original / original.square().mean().sqrt()).round(), rtol=1e-5, atol=1e-5)
    normal = [math.erf((code + 0.5) / math.sqrt(2)) - math.erf((code - 0.5) / math.sqrt(2)) for code in range(-5, 6)]
    least_bits = -sum(share / 2 * math.log2(share / 2) for share in normal)
    assert least_bits < 8 * len(encoded.data) / 20_000 < 1.05 * least_bits


@pytest.mark.parametrize(("name", "size"), [("int4-deviation", 6e37), ("ternary", 1.6e38)])
def test_values_whose_codes_would_not_be_finite_are_refused_by_the_sender(name: str, size: float) -> None:
    with pytest.raises(ValueError, match="codes is not finite"):
        encode(size * torch.ones(1, 9), Codec.parse(name))


@pytest.mark.parametrize("name", ["fp32", "fp16", "int8", "int4", "int4-deviation"])
def test_the_rows_of_a_batch_are_what_each_would_be_if_encoded_alone(name: str) -> None:
    batch = torch.randn(5, 192, generator=torch.Generator().manual_seed(3))
    codec = Codec.parse(name)
    assert rows(encode(batch, codec)) == [encode(row[None], codec) for row in batch]


@pytest.mark.parametrize("name", ["ternary", "ternary-zlib"])
def test_ternary_codes_are_right_on_average_where_nothing_is_cut_off(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    original = torch.rand(1, 4_000, generator=generator) * 2.0 - 1.0  # 2.5 standard deviations are 1.44: nothing beyond
    codec = Codec.parse(name)
    decoded = torch.stack([decode(encode(original, codec, generator)) for _ in range(400)])
    largest = float(decoded.abs().max())
    assert largest == pytest.approx(2.5 * float(original.square().mean().sqrt()), rel=1e-5)
    assert set((decoded / largest).round(decimals=4).unique().tolist()) == {-1.0, 0.0, 1.0}
    bound = 4.5 * largest / 2 / math.sqrt(400)  # a code is one of two neighbours: its deviation is at most half a step
    assert float((decoded.mean(dim=0) - original[0]).abs().max()) < bound


def test_ternary_codes_take_a_fifth_of_a_byte_each() -> None:
    encoded = encode(torch.randn(2, 96, 4, 6), Codec.parse("ternary"))
    assert len(encoded.data) == math.ceil(2 * 96 * 4 * 6 / 5)
    assert len(encoded.scale) == 2 * 8


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40))
def test_trits_come_back(codes: list[int]) -> None:
    packed = pack_trits(np.array(codes, np.uint8))
    assert packed == bytes(
        sum(code * 3**place for place, code in enumerate(codes[start : start + 5])) for start in range(0, len(codes), 5)
    )
    assert unpack_trits(packed, len(codes)).tolist() == codes


@pytest.mark.parametrize("name", ["int8-channel", "int8-sample-zlib"])
def test_what_does_not_lie_in_rows_is_not_taken_apart(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be taken apart"):
        rows(encode(torch.ones(2, 4, 8), Codec.parse(name)))
