from __future__ import annotations

import pytest
import torch

from common import split
from common.codec import Codec
from common.encoder import Encoder, build_encoder


@pytest.fixture
def mobile() -> Encoder:
    return build_encoder("mobile", seed=0)


def test_client_and_server_names_are_all_names_once(mobile: Encoder) -> None:
    assert split.names(mobile) == ("stem", "0", "1", "2", "3", "4", "5", "6", "7", "head")
    for cut in range(mobile.depth + 1):
        assert split.client_names(cut) + split.server_names(mobile, cut) == split.names(mobile)


def test_the_blocks_hold_every_parameter_once(mobile: Encoder) -> None:
    by_block = [id(p) for name in split.names(mobile) for p in split.block_parameters(mobile, name)]
    assert sorted(by_block) == sorted(id(p) for p in mobile.parameters())


def test_a_block_is_merged_the_more_seldom_the_larger_it_is(mobile: Encoder) -> None:
    periods = split.merge_periods(mobile, 6_500)
    assert [periods[name] for name in split.client_names(5)] == [1, 1, 1, 1, 3, 4]
    assert set(split.merge_periods(mobile, 10**9).values()) == {1}
    for name, period in periods.items():
        values = sum(value.numel() for value in split.block_parameters(mobile, name))
        assert (period - 1) * 6_500 < values <= period * 6_500


def test_a_block_taken_out_and_put_into_another_encoder_is_the_same(mobile: Encoder) -> None:
    other = build_encoder("mobile", seed=1)
    for name in split.names(mobile):
        split.load_block(other, name, split.block_state(mobile, name))
    x = torch.randn(2, 1, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(other.project(other(x)), mobile.project(mobile(x)))


def test_a_blocks_state_is_a_copy(mobile: Encoder) -> None:
    state = split.block_state(mobile, "3")
    next(iter(state.values())).zero_()
    assert split.block_parameters(mobile, "3")[0].abs().sum() > 0
    assert not any(value.requires_grad for value in state.values())


def test_loading_keeps_the_parameter_objects(mobile: Encoder) -> None:
    before = [id(p) for p in split.block_parameters(mobile, "2")]
    split.load_block(mobile, "2", split.block_state(build_encoder("mobile", seed=1), "2"))
    assert [id(p) for p in split.block_parameters(mobile, "2")] == before


def test_weights_that_do_not_fit_change_nothing(mobile: Encoder) -> None:
    before = split.block_state(mobile, "0")
    wrong = split.block_state(mobile, "0")
    first, *_, last = wrong
    wrong[first] = wrong[first] + 1.0
    wrong[last] = torch.zeros(7)
    with pytest.raises(ValueError, match="other names or shapes"):
        split.load_block(mobile, "0", wrong)
    with pytest.raises(ValueError, match="other names or shapes"):
        split.load_block(mobile, "0", {first: wrong[first]})
    assert all(torch.equal(before[key], value) for key, value in split.block_state(mobile, "0").items())


def test_an_unknown_block_is_named(mobile: Encoder) -> None:
    with pytest.raises(KeyError, match="no block '8'"):
        split.block_state(mobile, "8")


def test_the_cut_table_counts_what_travels(mobile: Encoder) -> None:
    rows = split.cut_table(mobile, Codec.parse("fp32"), gradient_codec=Codec.parse("fp16"))
    assert [row.cut for row in rows] == list(range(9))
    row = rows[5]
    assert row.shape == (2, 96, 4, 6)
    assert row.up_bytes == 2 * 2_304 * 4
    assert row.down_bytes == 2 * 2_304 * 2
    assert row.device_parameters == 52_016
    assert row.exchange_bytes == 2 * 52_016 * 4
    assert (
        split.cut_table(mobile, Codec.parse("fp16"), change_codec="int4", delta_codec="int8")[5].exchange_bytes
        == 52_016 * 3 // 2
    )


def test_one_byte_a_value_at_cut_5_is_about_30_percent_of_a_window(mobile: Encoder) -> None:
    row = split.cut_table(mobile, Codec.parse("int8-sample"))[5]
    assert (row.up_bytes + row.down_bytes) / split.WINDOW_BYTES == pytest.approx(0.30, abs=0.01)


def test_the_cut_table_prints_a_line_for_every_cut(mobile: Encoder) -> None:
    text = split.format_cut_table(split.cut_table(mobile, Codec.parse("int8-sample")))
    lines = text.splitlines()
    assert len(lines) == 10
    assert len({len(line) for line in lines}) == 1
    assert "2 x 96 x 4 x 6" in lines[6]
    assert "52,016" in lines[6]
