from __future__ import annotations

import torch

from trainer.batcher import Part
from trainer.captured import SILENT, WINDOW_S, Captured


def part(device: str, index: int, boot: str = "a" * 16) -> Part:
    return Part(device, boot, 0, 0, True, 5, 0, 1.0, 0, index, 0.0, "", torch.zeros(1))


def test_in_real_time_the_clock_counts_whatever_devices_say() -> None:
    captured = Captured(lambda: 10 * WINDOW_S)
    captured.count([part("a", 2**40)])
    assert captured.windows() == 10


def test_in_fast_mode_the_streams_count_from_where_each_was_first_heard() -> None:
    captured = Captured(None)
    captured.count([part("a", 1_000), part("b", 5)])
    assert captured.windows() == 0
    captured.count([part("a", 1_040), part("b", 45)])
    assert captured.windows() == 40


def test_no_single_stream_moves_the_fleets_time() -> None:
    captured = Captured(None)
    captured.count([part(device, 0) for device in "abc"])
    captured.count([part("a", 20), part("b", 20), part("c", 2**40)])
    assert captured.windows() == 20


def test_time_never_goes_back_when_devices_restart_or_join() -> None:
    captured = Captured(None)
    captured.count([part("a", 0), part("b", 0)])
    captured.count([part("a", 100), part("b", 100)])
    captured.count([part("a", 0, "b" * 16), part("c", 7), part("d", 8)])
    assert captured.windows() == 100
    captured.count([part("a", 30, "b" * 16), part("b", 130), part("c", 37), part("d", 38)])
    assert captured.windows() == 130


def test_devices_that_have_finished_do_not_hold_the_fleets_time_for_ever() -> None:
    captured = Captured(None)
    captured.count([part(device, 0) for device in "abc"])
    for index in range(1, SILENT + 1):
        captured.count([part("a", index)])
        assert captured.windows() == 0
    captured.count([part("a", SILENT + 1)])
    assert captured.windows() == SILENT + 1


def test_a_device_that_comes_back_goes_on_from_where_the_fleet_is() -> None:
    captured = Captured(None)
    captured.count([part(device, 0) for device in "abc"])
    for index in range(1, 2 * SILENT):
        captured.count([part("a", index)])
    came = captured.windows()
    captured.count([part("a", 2 * SILENT), part("b", 0, "b" * 16), part("c", 0)])
    captured.count([part("a", 2 * SILENT + 10), part("b", 10, "b" * 16), part("c", 10)])
    assert captured.windows() >= came + 10
