"""``streamsplit plan``: the plan is no dearer than anything it is compared with, and every wrong option is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.compute_profile import save
from common.encoder import build_encoder
from common.errors import ConfigError
from common.profiling import measure
from streamsplit import main as streamsplit
from trainer.plan_command import main


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that is filled once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _cached(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, dict[str, float]]:
    assert main([*arguments, "--json"]) == 0
    found: dict[str, dict[str, float]] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("uplink", ["100kbps", "2mbps", "1gbps"])
def test_the_plan_costs_no_more_than_any_placement_beside_it(uplink: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "--profile", "raspberry-pi-4", "--uplink", uplink, "--rtt", "5ms")
    assert list(found) == ["plan", "all-device", "all-server", *(f"cut {cut}" for cut in range(9))]
    assert all(found["plan"]["total"] <= one["total"] * (1 + 1e-9) for one in found.values())


def test_a_floor_keeps_sound_and_first_blocks_on_the_device(capsys: pytest.CaptureFixture[str]) -> None:
    free = planned(capsys, "--profile", "raspberry-pi-zero-2w", "--uplink", "1gbps", "--rtt", "1ms")
    floor = planned(capsys, "--profile", "raspberry-pi-zero-2w", "--uplink", "1gbps", "--rtt", "1ms", "--min-cut", "3")
    assert free["plan"]["device"] < floor["cut 3"]["device"] <= floor["plan"]["device"] * (1 + 1e-9)


def test_the_plan_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--png", str(tmp_path / "plan.png")]) == 0
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert "operations on the device" in capsys.readouterr().out


def test_memory_that_does_not_hold_the_floor_is_refused_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert streamsplit(["plan", "--min-cut", "8", "--memory-mb", "1"]) == 78
    assert "needs more than 1 MiB; allowed: more, or a smaller --min-cut" in capsys.readouterr().err


def test_a_profile_file_of_another_encoder_or_a_board_that_is_unknown_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "half.json"
    save(measure(build_encoder("mobile-half", seed=0), name="mobile-half", repeats=1), path)
    with pytest.raises(ConfigError, match="a profile of mobile-half, not of mobile"):
        main(["--profile", str(path)])
    assert streamsplit(["plan", "--profile", "abacus"]) == 78


@pytest.mark.parametrize("arguments", [["--uplink", "2s"], ["--rtt", "-1ms"], ["--local-iterations", "0"]])
def test_an_option_that_makes_no_sense_ends_with_the_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code == 2
