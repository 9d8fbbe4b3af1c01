from __future__ import annotations

import dataclasses
import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from common import messages
from common.codec import Codec, EncodedTensor, encode
from common.errors import MessageError
from common.limits import Limits
from common.messages import MixtureStatistics
from common.mixture_memory import MixtureMemory
from common.mixture_statistics import MEMORY, Heard, Tally, from_message, to_message

COMPONENTS, DIM = 4, 6
BOOT = "b" * 16


def draw(count: int, dim: int = DIM, seed: int = 0) -> Tensor:
    return normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def read(message: MixtureStatistics) -> Heard:
    return from_message(message, components=COMPONENTS, dim=DIM, limits=Limits())


def flat(*values: float) -> EncodedTensor:
    return encode(torch.tensor(values), Codec.parse("fp32"))


def message(**other: EncodedTensor) -> MixtureStatistics:
    good = MixtureStatistics(
        BOOT, 1, mass=flat(3.0, 4.0), means=encode(draw(2), Codec.parse("fp32")), variances=flat(0.01, 0.02)
    )
    return dataclasses.replace(good, **other)  # type: ignore[arg-type]


def test_a_tally_is_the_mass_mean_and_variance_written_as_loops() -> None:
    batches = [(draw(5, seed=1), torch.tensor([0, 0, 2, 2, 2])), (draw(3, seed=2), torch.tensor([0, 3, 3]))]
    tally = Tally(COMPONENTS, DIM)
    for z, nearest in batches:
        tally.add(z, nearest)
    heard = tally.take()
    assert heard is not None
    for place, component in enumerate((0, 2, 3)):
        weighted = [
            (z[i].double(), math.exp(-3 / MEMORY) if batch == 0 else 1.0)
            for batch, (z, nearest) in enumerate(batches)
            for i in range(len(z))
            if nearest[i] == component
        ]
        mass = sum(weight for _, weight in weighted)
        mean = torch.stack([weight * point for point, weight in weighted]).sum(dim=0) / mass
        variance = sum(weight * float((point - mean).square().mean()) for point, weight in weighted) / mass
        assert float(heard.mass[place]) == pytest.approx(mass, rel=1e-5)
        assert torch.allclose(heard.means[place].double(), mean, atol=1e-5)
        assert float(heard.variances[place]) == pytest.approx(variance, abs=1e-5)
    assert len(heard.mass) == 3, "what nothing lay near to does not travel"
    assert tally.take() is None


def test_a_device_alone_for_weeks_has_no_weeks_worth_to_say() -> None:
    tally = Tally(COMPONENTS, DIM)
    for _ in range(4 * MEMORY // 8):
        tally.add(draw(8), torch.zeros(8, dtype=torch.long))
    heard = tally.take()
    assert heard is not None
    assert float(heard.mass.sum()) < 1.01 * MEMORY


def test_what_was_heard_survives_the_wire_up_to_its_rounding() -> None:
    tally = Tally(64, 128)
    z = draw(500, 128)
    tally.add(z, torch.arange(500) % 64)
    heard = tally.take()
    assert heard is not None
    payload = messages.encode(to_message(heard, boot=BOOT, seq=1))
    assert len(payload) < 10_000
    read_back = from_message(messages.decode(MixtureStatistics, payload), components=64, dim=128, limits=Limits())
    assert torch.allclose(read_back.mass, heard.mass, rtol=1e-3)
    assert torch.allclose(read_back.means, heard.means, atol=2e-3)
    assert torch.allclose(read_back.variances, heard.variances, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"mass": flat(-1.0, 4.0)}, "negative mass"),
        ({"means": encode(2.0 * draw(2), Codec.parse("fp32"))}, "beyond the sphere"),
        ({"means": encode(torch.full((2, DIM), 3e38), Codec.parse("fp32"))}, "beyond the sphere"),
        ({"means": encode(draw(2, 7), Codec.parse("fp32"))}, "shape"),
        ({"means": encode(draw(3), Codec.parse("fp32"))}, "shape"),
        ({"variances": flat(0.01)}, "shape"),
        ({"variances": flat(-0.01, 0.01)}, "variance"),
        ({"variances": flat(0.01, 1.0)}, "variance"),
        ({"mass": flat(*[1.0] * 5)}, "5 components"),
        ({"mass": EncodedTensor("fp32", (2,), b"", struct.pack("<2f", math.nan, 1.0))}, "NaN"),
        ({"mass": EncodedTensor("fp32", (2,), b"", struct.pack("<2f", math.inf, 1.0))}, "infinite"),
    ],
)
def test_what_projections_of_unit_length_cannot_give_is_refused(wrong: dict[str, EncodedTensor], said: str) -> None:
    assert len(read(message()).mass) == 2
    with pytest.raises(MessageError, match=said):
        read(message(**wrong))


TENSORS = st.builds(
    EncodedTensor,
    codec=st.sampled_from(["fp32", "fp16", "int8", "int4", "int8-zlib", "nonsense"]),
    shape=st.lists(st.integers(1, 8), min_size=1, max_size=3).map(tuple),
    scale=st.binary(max_size=64),
    data=st.binary(max_size=256),
)


@given(TENSORS, TENSORS, TENSORS)
@settings(max_examples=200)
def test_whatever_arrives_is_refused_or_leaves_the_mixture_sane(
    mass: EncodedTensor, means: EncodedTensor, variances: EncodedTensor
) -> None:
    memory = MixtureMemory(components=COMPONENTS, dim=DIM)
    memory.update(draw(128))
    try:
        heard = read(MixtureStatistics(BOOT, 1, mass, means, variances))
    except MessageError:
        return
    memory.merge(heard.mass.clamp_max(100.0), heard.means, heard.variances)
    assert all(value.isfinite().all() for value in memory.state_dict().values())
