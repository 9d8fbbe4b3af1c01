from __future__ import annotations

from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
import yaml

from trainer.link_traces import KINDS, LINKS, LOADS, SPLIT_FILE, STEP_S, TraceKind, digest, generate, read_split

STEPS = 20_000


@pytest.mark.parametrize("kind", KINDS)
def test_kind_and_seed_decide_a_trace_and_a_shorter_one_is_its_beginning(kind: TraceKind) -> None:
    long, short, other = generate(kind, 3, steps=200), generate(kind, 3, steps=50), generate(kind, 4, steps=200)
    for values, beginning in zip(astuple(long), astuple(short), strict=True):
        assert np.array_equal(values[:50], beginning)
    assert digest([long]) == digest([generate(kind, 3, steps=200)]) != digest([other])


@pytest.mark.parametrize("kind", KINDS)
def test_every_value_is_one_a_device_could_measure(kind: TraceKind) -> None:
    trace = generate(kind, 1, steps=STEPS)
    assert all(np.isfinite(values).all() for values in astuple(trace))
    assert trace.load.min() >= 0.0
    assert trace.load.max() <= 0.95
    assert trace.uncertainty.min() >= 0.0
    assert trace.uncertainty.max() <= 1.0
    for rate in (trace.uplink_mbps, trace.downlink_mbps, trace.round_trip_ms):
        assert np.array_equal(rate > 0.0, trace.online)


@pytest.mark.parametrize("kind", KINDS)
def test_regimes_take_the_share_of_time_that_their_dwell_times_say(kind: TraceKind) -> None:
    trace = generate(kind, 2, steps=200_000)
    dwell_s = {regime.uplink_mbps: regime.dwell_s for regime in LINKS[kind]}
    outage_s = dwell_s.get(0.0, 0.0)
    # Every regime is entered equally often, since any other follows with equal chance.
    assert 1.0 - trace.online.mean() == pytest.approx(outage_s / sum(dwell_s.values()), rel=0.15, abs=0.002)
    busy = max(load for _, load in LOADS)
    expected = sum(seconds for seconds, load in LOADS if load == busy) / sum(seconds for seconds, _ in LOADS)
    assert (trace.load > 0.65).mean() == pytest.approx(expected, rel=0.15)


def test_a_regime_lasts_its_dwell_time_in_the_mean() -> None:
    online = generate("outage", 5, steps=200_000).online
    ends = np.flatnonzero(np.diff(online.astype(int)) == 1)
    outages = len(ends)
    assert (~online).sum() * STEP_S / outages == pytest.approx(LINKS["outage"][-1].dwell_s, rel=0.15)


def test_the_committed_split_is_what_the_code_generates_and_its_parts_are_disjoint() -> None:
    split = read_split()
    assert len(split.held_out) == 20
    assert len(split.fresh) == 20
    assert not set(split.held_out) & set(split.training)
    assert not set(split.fresh) & (set(split.training) | set(split.held_out))


def test_a_split_whose_traces_have_changed_is_refused(tmp_path: Path) -> None:
    listed = yaml.safe_load(SPLIT_FILE.read_text())
    listed["training"]["seeds"] = 1
    changed = tmp_path / "split.yaml"
    changed.write_text(yaml.safe_dump(listed))
    with pytest.raises(ValueError, match="training traces have digest"):
        read_split(changed)
