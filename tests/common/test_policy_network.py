from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from common.errors import MessageError
from common.messages import PolicyUpdate, encode
from common.policy_network import MOST_BYTES, PolicyNetwork, pack_network, unpack_network
from common.state_blob import digest

INPUTS, ACTIONS = 12, 10
ALL = (True,) * ACTIONS


def network(seed: int = 0, *, hidden: int = 32) -> PolicyNetwork:
    rng = np.random.default_rng(seed)
    sizes = (INPUTS, hidden, hidden, ACTIONS)
    return PolicyNetwork(
        [
            (rng.normal(size=(after, before)).astype(np.float32), rng.normal(size=after).astype(np.float32))
            for before, after in pairwise(sizes)
        ]
    )


def test_it_computes_what_torch_computes() -> None:
    made, rng = network(), np.random.default_rng(1)
    parts: list[nn.Module] = []
    for weights, biases in made.layers:
        layer = nn.Linear(weights.shape[1], len(biases))
        layer.weight.data, layer.bias.data = torch.from_numpy(weights), torch.from_numpy(biases)
        parts += [layer, nn.Tanh()]
    reference = nn.Sequential(*parts[:-1])
    for _ in range(20):
        seen, mask = rng.random(INPUTS), rng.random(ACTIONS) < 0.5
        mask[3] = True
        logits = reference(torch.from_numpy(seen).float()).masked_fill(~torch.from_numpy(mask), -torch.inf)
        expected = torch.softmax(logits, dim=0).detach().numpy()
        assert made.probabilities(seen.tolist(), mask.tolist()) == pytest.approx(expected, abs=1e-5)


def test_what_the_mask_does_not_allow_has_no_chance_and_the_rest_all_of_it() -> None:
    mask = (False, True, False, True) + (False,) * 6
    chances = network().probabilities([0.5] * INPUTS, mask)
    assert chances[[0, 2, 4, 5, 6, 7, 8, 9]].tolist() == [0.0] * 8
    assert chances.sum() == pytest.approx(1.0)


def test_an_answer_is_the_callers_to_keep() -> None:
    made = network()
    first = made.probabilities([0.1] * INPUTS, ALL)
    kept = first.copy()
    made.probabilities([0.9] * INPUTS, ALL)
    assert np.array_equal(first, kept)


def test_a_network_comes_back_from_its_bytes_in_half_precision() -> None:
    made = network()
    packed = pack_network(made)
    again = unpack_network(packed, inputs=INPUTS, actions=ACTIONS)
    assert again.sizes == made.sizes
    for (weights, biases), (read_weights, read_biases) in zip(made.layers, again.layers, strict=True):
        assert np.array_equal(read_weights, weights.astype(np.float16).astype(np.float32))
        assert np.array_equal(read_biases, biases.astype(np.float16).astype(np.float32))
    assert pack_network(again) == packed


def test_the_largest_network_that_is_packed_fits_its_message() -> None:
    packed = pack_network(network(hidden=150))
    assert len(packed) <= MOST_BYTES
    assert len(encode(PolicyUpdate(1, "mobile", digest(packed), packed))) < 60_000


def test_what_does_not_fit_the_wire_is_refused_where_it_is_made() -> None:
    with pytest.raises(ValueError, match="travel"):
        pack_network(network(hidden=250))
    with pytest.raises(ValueError, match="half precision"):
        pack_network(PolicyNetwork([(np.full((2, 2), 1e6, np.float32), np.zeros(2, np.float32))]))
    with pytest.raises(ValueError, match="without layers"):
        PolicyNetwork([])
    with pytest.raises(ValueError, match="biases"):
        PolicyNetwork([(np.zeros((2, 3), np.float32), np.zeros(3, np.float32))])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a policy"),
        (b"SSP2" + pack_network(network())[4:], "not a policy"),
        (pack_network(network())[:-1], "bytes for sizes"),
        (pack_network(network()) + b"\0", "bytes for sizes"),
        (pack_network(network())[:-2] + np.array([np.nan], "<f2").tobytes(), "NaN"),
        (pack_network(network())[:-2] + np.array([np.inf], "<f2").tobytes(), "infinity"),
        (b"SSP1\x00", "layers"),
        (b"SSP1\x05" + bytes(20), "layers"),
        (b"SSP1\x01\xff\xff\xff\xff", "sizes"),
    ],
)
def test_bytes_that_are_no_such_network_are_refused_in_words(data: bytes, reason: str) -> None:
    with pytest.raises(MessageError, match=reason):
        unpack_network(data, inputs=INPUTS, actions=ACTIONS)


def test_a_network_of_other_sizes_is_refused() -> None:
    with pytest.raises(MessageError, match="wanted 11 values"):
        unpack_network(pack_network(network()), inputs=11, actions=ACTIONS)


@given(st.data())
def test_no_bytes_whatever_raise_anything_else(data: st.DataObject) -> None:
    good = bytearray(pack_network(network(hidden=2)))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    changed = bytes(good[: data.draw(st.integers(0, len(good)))])
    try:
        made = unpack_network(changed, inputs=INPUTS, actions=ACTIONS)
    except MessageError:
        return
    chances = made.probabilities([0.5] * INPUTS, ALL)
    assert np.isfinite(chances).all()
