from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from common import messages
from common.codec import DEFAULT_ACTIVATIONS_CODEC, Codec
from common.compute_profile import load, window_forward_ms
from common.config_fleet import FleetConfig
from common.config_trainer import TrainerConfig
from common.encoder import build_encoder
from common.messages import Telemetry
from common.split import VALUE_BITS, cut_table
from common.traffic import packet_bytes
from tests.common.cases import cases
from tests.trainer.simulated import costs
from trainer.link_traces import STEP_S, Trace, generate
from trainer.simulated_costs import (
    BATCH_S,
    MERGE_BATCHES,
    SERVER_S,
    TELEMETRY_BYTES,
    WINDOWS,
    Board,
    Tables,
    cut_costs,
    tables,
)
from trainer.simulated_fleet import COMPUTE, DEVICE, TOPICS, shipped_board

L = 8
LOCAL = L + 1


def one_by_one(trace: Trace, board: Board, decision: int, action: int) -> dict[str, float]:
    """The same, window by window, from the formulas of the module's words."""
    made = costs()
    sums = dict.fromkeys(("service_s", "delay_s", "answered", "local", "bytes_moved", "joules"), 0.0)
    windows = range(decision * WINDOWS, (decision + 1) * WINDOWS)
    interrupted = not all(trace.online[w] for w in windows)
    for w in windows:
        speed = 1.0 - float(trace.load[w])
        sends = action != LOCAL and bool(trace.online[w])
        cut = action if sends else L
        compute_s = made.train_ms[cut] * board.forward_ms / 1e3
        delay_s = (made.forward_ms if sends else made.train_ms)[cut] * board.forward_ms / 1e3 / speed
        service_s, up, down = compute_s / speed, 0.0, 0.0
        if sends:
            up_s = made.up_bytes[cut] * 8e-6 / float(trace.uplink_mbps[w])
            down_s = made.answer_bytes[cut] * 8e-6 / float(trace.downlink_mbps[w])
            answer_s = up_s + float(trace.round_trip_ms[w]) / 1e3 + SERVER_S + down_s
            service_s = max(service_s, up_s) + (answer_s + BATCH_S) / WINDOWS
            if cut < L:
                delay_s += answer_s
            up = made.up_bytes[cut] + made.exchange_bytes[cut] / 2
            down = made.down_bytes[cut] + made.exchange_bytes[cut] / 2
        power = board.power
        sums["service_s"] += service_s
        sums["delay_s"] += delay_s
        sums["answered"] += sends and not interrupted
        sums["local"] += not sends
        sums["bytes_moved"] += up + down
        sums["joules"] += power.compute_watts * compute_s
        sums["joules"] += (power.radio_joules_per_megabyte_up * up + power.radio_joules_per_megabyte_down * down) / 1e6
    seen_s = (made.forward_ms if sends else made.train_ms)[cut] * board.forward_ms / 1e3
    last_busy = min(seen_s / speed / STEP_S, 1.0) * speed / board.cores
    return {name: total / WINDOWS for name, total in sums.items()} | {"busy": last_busy}


@pytest.mark.parametrize("seed", [1, 2])
def test_the_tables_are_what_the_formulas_say_window_by_window(seed: int) -> None:
    trace, board = generate("outage", seed, steps=320), shipped_board("raspberry-pi-4")
    table = tables(trace, board, costs())
    for decision in range(0, 40, 3):
        for action in (0, 3, 5, L, LOCAL):
            expected = one_by_one(trace, board, decision, action)
            for name, value in expected.items():
                assert getattr(table, name)[decision, action] == pytest.approx(value), (name, decision, action)
            windows = slice(decision * WINDOWS, (decision + 1) * WINDOWS)
            assert table.replied[decision, action] == (action < L and bool(trace.online[windows].any()))
            if trace.online[windows].any():
                there_and_back_ms = trace.round_trip_ms[windows][trace.online[windows]].mean()
                assert table.round_trip_ms[decision] == pytest.approx(there_and_back_ms)


def test_a_device_that_follows_every_block_pays_for_those_beyond_its_cut_while_it_has_a_link() -> None:
    trace, board, made = generate("outage", 1, steps=320), shipped_board("raspberry-pi-4"), costs()
    plain, follows = tables(trace, board, made), tables(trace, board, made, follows=True)
    online = trace.online.reshape(-1, WINDOWS).mean(axis=1)
    assert online.min() == 0.0
    assert follows.replied.all(), "it judges its windows itself"
    assert not plain.replied[:, L].any()
    for action, cut in ((3, 3), (L, L), (LOCAL, 0)):
        beyond = made.exchange_bytes[L] - (made.exchange_bytes[cut] if cut else 0.0)
        more = follows.bytes_moved[:, action] - plain.bytes_moved[:, action]
        assert more == pytest.approx(beyond / 2 * online)
        assert follows.joules[:, action] - plain.joules[:, action] == pytest.approx(more * plain.fetch_joules)


def test_cuts_cost_what_the_profile_and_the_codecs_say() -> None:
    made, encoder = costs(), build_encoder("mobile", seed=0)
    profile = load(COMPUTE / "mobile.json")
    unit = window_forward_ms(profile)
    rows = cut_table(encoder, Codec.parse(DEFAULT_ACTIVATIONS_CODEC))
    for cut, row in enumerate(rows):
        embedded_ms, trained_ms = profile.client_forward_ms(cut) / unit, profile.client_ms(cut) / unit
        views_ms = made.forward_ms[cut] - embedded_ms
        assert 0.0 < views_ms < 1.0
        assert made.train_ms[cut] - views_ms == pytest.approx(trained_ms)
        # Headers, and of telemetry an eighth.
        assert row.up_bytes + 100 < made.up_bytes[cut] < row.up_bytes + 320
    assert made.answer_bytes[L] == 0.0
    assert made.whole_bytes.tolist() == [2 * row.device_parameters for row in rows]
    assert (np.diff(made.whole_bytes) > 0).all()


def test_the_exchange_of_weights_is_that_of_a_fleet_with_default_settings() -> None:
    made, encoder = costs(), build_encoder("mobile", seed=0)
    fleet, trainer = FleetConfig.model_fields, TrainerConfig.model_fields
    assert trainer["merge_every"].default == MERGE_BATCHES
    bits = VALUE_BITS[fleet["change_codec"].default] + VALUE_BITS[fleet["delta_codec"].default]
    for cut in range(L + 1):
        merged = sum(
            sum(value.numel() for value in encoder.get_submodule(name).parameters())
            / math.ceil(sum(value.numel() for value in encoder.get_submodule(name).parameters()) / 24_000)
            for name in ("stem", *(f"blocks.{block}" for block in range(cut)))
        )
        assert made.exchange_bytes[cut] == pytest.approx(merged * bits / 8 / (MERGE_BATCHES * WINDOWS))


def test_telemetry_weighs_what_is_counted_for_it() -> None:
    example = cases()[Telemetry]
    assert isinstance(example, Telemetry)
    full = replace(example, observation=(0.123,) * 14, mask=(True,) * (L + 2))
    weight = packet_bytes(TOPICS.telemetry(DEVICE), messages.encode(full), qos=0)
    assert weight == pytest.approx(TELEMETRY_BYTES, rel=0.1)


def test_a_slower_board_takes_longer_and_load_slows_it_further() -> None:
    trace = generate("wifi", 1, steps=80)
    slow, quick = (tables(trace, shipped_board(name), costs()) for name in ("raspberry-pi-zero-2w", "raspberry-pi-5"))
    assert (slow.service_s > quick.service_s).all()
    hogged: Tables = tables(
        replace(trace, load=np.full_like(trace.load, 0.9)), shipped_board("raspberry-pi-4"), costs()
    )
    assert hogged.service_s[0, L] > STEP_S > tables(trace, shipped_board("raspberry-pi-4"), costs()).service_s[0, L]


def test_an_encoder_twice_as_heavy_takes_twice_as_long_on_the_same_board_and_its_views_as_long_as_before() -> None:
    mobile, encoder = load(COMPUTE / "mobile.json"), build_encoder("mobile", seed=0)
    twice = replace(mobile.slower(2.0), encoder="heavy", mobile_forward_ms=window_forward_ms(mobile))
    made = [
        cut_costs(encoder, profile, values_per_merge=100_000, topics=TOPICS, device=DEVICE)
        for profile in (mobile, twice)
    ]
    views_ms = 1.5 / 4.8 * 2  # of two views through `mobile`
    for light, heavy in zip(made[0].train_ms, made[1].train_ms, strict=True):
        assert heavy - views_ms == pytest.approx(2.0 * (light - views_ms), rel=0.01)
