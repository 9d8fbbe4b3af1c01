"""What is measured of an encoder: what needs no clock exactly, times only as far as they must hold anywhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from common import profiling
from common.compute_profile import ComputeProfile, load, save, window_forward_ms
from common.encoder import build_encoder
from common.encoder_graph import operations, trace
from common.profile_command import main
from common.split import VIEWS, block_parameters, names

MOBILE = build_encoder("mobile", seed=0)


@pytest.fixture(scope="module")
def profile() -> ComputeProfile:
    return profiling.measure(MOBILE, name="mobile", repeats=1)


def test_every_block_and_every_node_has_a_line_in_the_order_they_run(profile: ComputeProfile) -> None:
    assert [cost.name for cost in profile.blocks] == list(names(MOBILE))
    assert [cost.name for cost in profile.nodes] == [node.name for node in operations(trace(MOBILE))]


def test_values_and_parameters_are_the_encoders(profile: ComputeProfile) -> None:
    for cut in range(MOBILE.depth + 1):
        assert profile.values_at(cut) == VIEWS * torch.Size(MOBILE.activation_shape(cut)).numel()
    for cost in profile.blocks:
        assert cost.parameters == sum(p.numel() for p in block_parameters(MOBILE, cost.name))
    assert sum(cost.parameters for cost in profile.nodes) == sum(cost.parameters for cost in profile.blocks)


def test_memory_kept_for_backward_is_counted_once_whoever_keeps_it(profile: ComputeProfile) -> None:
    assert sum(cost.saved_bytes for cost in profile.nodes) == sum(cost.saved_bytes for cost in profile.blocks)
    chain = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1))
    saved = {cost.name: cost.saved_bytes for cost in profiling.measure(chain, name="chain", repeats=1).nodes}
    plane = 4 * VIEWS * 64 * 96
    assert saved == {"input_1": 0, "_0": plane, "_1": plane, "_2": 0}  # ReLU's output is the last one's input


def test_all_that_computes_takes_time_and_the_input_none(profile: ComputeProfile) -> None:
    assert all(cost.forward_ms > 0 and cost.backward_ms > 0 for cost in profile.blocks)
    assert profile.nodes[0].train_ms == 0.0
    assert profile.client_ms(8) > profile.client_ms(2)


def test_measuring_leaves_gradients_random_state_and_threads_as_they_were() -> None:
    encoder = build_encoder("mobile-half", seed=0)
    before = torch.get_rng_state(), torch.get_num_threads()
    profiling.measure(encoder, name="mobile-half", repeats=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_a_profile_is_measured_once_and_then_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = profiling.cached_profile(MOBILE, tmp_path, nodes=False)
    assert profiling.cached_profile(MOBILE, tmp_path, nodes=False) == first
    assert profiling.cached_profile(MOBILE, tmp_path, nodes=False, fresh=True) != first
    monkeypatch.setattr(profiling, "hardware_fingerprint", lambda: "another machine")
    assert profiling.cached_profile(MOBILE, tmp_path, nodes=False).hardware == "another machine"
    assert len(list(tmp_path.iterdir())) == 2


def test_where_a_profile_cannot_be_kept_it_is_measured_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(profiling, "save", full)
    assert profiling.cached_profile(MOBILE, tmp_path, nodes=False).blocks
    assert "No space left on device" in caplog.text


def test_a_broken_file_in_the_cache_is_measured_anew(tmp_path: Path) -> None:
    profiling.cached_profile(MOBILE, tmp_path, nodes=False)
    (path,) = tmp_path.iterdir()
    path.write_text("{")
    assert profiling.cached_profile(MOBILE, tmp_path, nodes=False) == load(path)


def test_a_profile_without_nodes_does_not_stand_in_for_one_with_them(tmp_path: Path) -> None:
    assert not profiling.cached_profile(MOBILE, tmp_path, nodes=False).nodes
    assert profiling.cached_profile(MOBILE, tmp_path, nodes=True).nodes


def test_the_command_prints_a_table_or_the_file_it_also_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main(["--out", str(tmp_path / "profile.json")]) == 0
    assert "forward ms" in capsys.readouterr().out
    assert main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "profile.json").read_text())


def test_a_board_takes_as_long_for_mobile_as_its_file_says_and_in_proportion_for_any_encoder(tmp_path: Path) -> None:
    here = profiling.cached_profile(MOBILE, tmp_path, nodes=False)
    board = here.as_board(20.0)
    assert window_forward_ms(board) == pytest.approx(20.0)
    half = profiling.cached_profile(build_encoder("mobile-half", seed=0), tmp_path, nodes=False)
    assert half.as_board(20.0).scale == pytest.approx(board.scale)
    assert half.as_board(20.0).mobile_forward_ms == pytest.approx(20.0)
    with pytest.raises(ValueError, match="profile of mobile-half does not say what mobile takes"):
        replace(half, mobile_forward_ms=None).as_board(20.0)


def test_a_profile_of_before_boards_were_compared_by_mobile_is_measured_anew(tmp_path: Path) -> None:
    encoder = build_encoder("mobile-half", seed=0)
    profiling.cached_profile(encoder, tmp_path, nodes=False)
    (path,) = tmp_path.glob("profile-mobile-half-*")
    save(replace(load(path), mobile_forward_ms=None), path)
    assert profiling.cached_profile(encoder, tmp_path, nodes=False).mobile_forward_ms is not None


def test_no_name_of_the_machine_stands_in_its_fingerprint() -> None:
    import platform

    assert platform.node() not in profiling.hardware_fingerprint()
