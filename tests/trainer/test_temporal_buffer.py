from __future__ import annotations

import math

import pytest
import torch

from trainer.temporal_buffer import Edges, TemporalBuffer

Row = tuple[str, int, float]


def _z(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))


def _columns(rows: list[Row]) -> tuple[list[str], list[int], list[float]]:
    return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]


def _edges(buffer: TemporalBuffer, rows: list[Row], z: torch.Tensor) -> Edges:
    return buffer.edges(*_columns(rows), z)


def _add(buffer: TemporalBuffer, rows: list[Row], z: torch.Tensor) -> None:
    buffer.add(*_columns(rows), z)


def _weights_of(edges: Edges, window: int) -> list[float]:
    return sorted(edges.weights[edges.sources == window].tolist())


def _slow_weights(kept: list[Row], batch: list[Row], window: int, k: int, scale_s: float) -> list[float]:
    device, segment, time_s = batch[window]
    others = [row for index, row in enumerate(batch) if index != window] + kept
    gaps = sorted(abs(row[2] - time_s) for row in others if row[:2] == (device, segment))
    return sorted(math.exp(-gap / scale_s) for gap in gaps[:k])


def test_neighbours_and_weights_equal_those_found_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    buffer = TemporalBuffer(neighbours=5, scale_s=2.0)
    kept: list[Row] = [(device, 3, i * 0.96) for device in ("a", "b") for i in range(7)]
    _add(buffer, kept, _z(len(kept)))
    batch: list[Row] = [("a", 3, 7 * 0.96), ("b", 4, 0.5), ("a", 3, 8.0), ("b", 4, 0.1), ("c", 3, 2.0), ("b", 3, 6.9)]
    batch += [("a", 3, float(torch.rand(1, generator=generator)) * 9) for _ in range(4)]
    edges = _edges(buffer, batch, _z(len(batch), 1))
    for window in range(len(batch)):
        expected = _slow_weights(kept, batch, window, 5, 2.0)
        assert _weights_of(edges, window) == pytest.approx(expected, rel=1e-5), batch[window]


def test_edges_point_at_the_projections_of_the_neighbours() -> None:
    buffer, old, new = TemporalBuffer(neighbours=2), _z(3), _z(2, 1)
    _add(buffer, [("a", 0, 0.0), ("b", 0, 1.0), ("a", 0, 1.0)], old)
    edges = _edges(buffer, [("a", 0, 2.0), ("a", 0, 4.0)], new)
    nodes = torch.cat([new, edges.constants])
    found = {
        (source, tuple(nodes[target].tolist()))
        for source, target in zip(edges.sources.tolist(), edges.targets.tolist(), strict=True)
    }
    assert found == {
        (0, tuple(old[2].tolist())),
        (1, tuple(new[0].tolist())),
        (1, tuple(old[2].tolist())),
        # at 2.0 s the neighbours are 1.0 s (1 s away), then 0.0 s and 4.0 s, equally far
        *[pair for pair in found if pair[0] == 0 and pair[1] in (tuple(old[0].tolist()), tuple(new[1].tolist()))],
    }
    assert len(edges.weights) == 4


def test_no_window_is_its_own_neighbour_and_strangers_are_never_joined() -> None:
    buffer = TemporalBuffer()
    batch: list[Row] = [("a", 0, 0.0), ("b", 0, 0.0), ("a", 1, 0.0)]
    assert len(_edges(buffer, batch, _z(3)).weights) == 0
    _add(buffer, batch, _z(3))
    edges = _edges(buffer, [("a", 0, 1.0), ("c", 0, 0.0)], _z(2))
    assert len(edges.weights) == 0, "segment 0 of device a ended when segment 1 began"


def test_what_is_kept_carries_no_gradient() -> None:
    buffer = TemporalBuffer()
    _add(buffer, [("a", 0, 0.0)], _z(1).requires_grad_())
    edges = _edges(buffer, [("a", 0, 1.0)], _z(1).requires_grad_())
    assert not edges.constants.requires_grad
    assert edges.weights.tolist() == pytest.approx([math.exp(-0.5)])


def test_a_newer_segment_replaces_the_older_also_within_a_batch() -> None:
    buffer = TemporalBuffer()
    _add(buffer, [("a", 0, float(i)) for i in range(10)], _z(10))
    assert len(buffer) == 10
    _add(buffer, [("a", 0, 10.0), ("a", 1, 0.0), ("a", 1, 1.0)], _z(3))
    assert len(buffer) == 2
    _add(buffer, [("a", 0, 0.0)], _z(1))
    assert len(buffer) == 1, "a device that starts again counts its segments from the beginning"


def test_it_keeps_the_latest_hundred_of_a_segment() -> None:
    buffer = TemporalBuffer()
    for start in range(0, 240, 8):
        _add(buffer, [("a", 0, float(start + i)) for i in range(8)], _z(8, start))
    assert len(buffer) == 100
    edges = _edges(buffer, [("a", 0, 240.0)], _z(1))
    assert sorted(edges.weights.tolist()) == pytest.approx([math.exp(-gap / 2) for gap in (5, 4, 3, 2, 1)])
    assert torch.equal(edges.constants[-8:], _z(8, 232))
    assert edges.constants.untyped_storage().nbytes() == 100 * 4 * 4


def test_the_devices_that_are_silent_longest_are_forgotten() -> None:
    buffer = TemporalBuffer(max_devices=3)
    for device in ("a", "b", "c", "a", "d"):
        _add(buffer, [(device, 0, 0.0)], _z(1))
    alive = [device for device in "abcd" if len(_edges(buffer, [(device, 0, 1.0)], _z(1)).weights)]
    assert alive == ["a", "c", "d"]


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="need N devices"):
        TemporalBuffer().edges(["a"], [0], [0.0, 1.0], _z(1))
