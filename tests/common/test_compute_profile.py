"""A measured profile: its sums per cut, and its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.compute_profile import ComputeProfile, Cost, load, save, window_forward_ms
from common.errors import ConfigError


def cost(name: str, *, at: int) -> Cost:
    return Cost(name, forward_ms=float(at), backward_ms=2.0 * at, output_values=10 * at, parameters=at, saved_bytes=at)


BLOCKS = tuple(cost(name, at=at) for at, name in enumerate(("stem", "0", "1", "head"), start=1))
PROFILE = ComputeProfile("mobile", "x86_64 somewhere", "2.13.0", 1.0, 1_000, BLOCKS, (cost("stem_0", at=1),))


def test_at_every_cut_device_and_server_together_cost_the_whole() -> None:
    assert [PROFILE.client_ms(cut) for cut in range(3)] == [3.0, 9.0, 18.0]
    assert {PROFILE.client_ms(cut) + PROFILE.server_ms(cut) for cut in range(3)} == {30.0}
    assert [PROFILE.values_at(cut) for cut in range(3)] == [10, 20, 30]
    assert PROFILE.client_forward_ms(2) == 6.0
    assert PROFILE.client_memory_bytes(1) == 17 * 3


@pytest.mark.parametrize("cut", [-1, 3])
def test_a_cut_that_does_not_exist_is_refused_in_words(cut: int) -> None:
    with pytest.raises(ValueError, match=f"cut {cut} does not exist: mobile has the cuts 0..2"):
        PROFILE.client_ms(cut)


def test_a_slower_machine_takes_longer_and_changes_nothing_else() -> None:
    slower = PROFILE.slower(4.0)
    assert slower.client_ms(2) == 4 * PROFILE.client_ms(2)
    assert slower.nodes[0].train_ms == 4 * PROFILE.nodes[0].train_ms
    assert slower.scale == 4.0
    assert slower.values_at(2) == PROFILE.values_at(2)
    assert window_forward_ms(slower) == 4 * window_forward_ms(PROFILE) == 4 * (1 + 2 + 3) / 2


def test_a_saved_profile_is_read_back_the_same(tmp_path: Path) -> None:
    save(PROFILE, tmp_path / "profile.json")
    assert load(tmp_path / "profile.json") == PROFILE


def written(tmp_path: Path, change: dict[str, Any]) -> Path:
    save(PROFILE, tmp_path / "profile.json")
    raw = json.loads((tmp_path / "profile.json").read_text())
    (tmp_path / "profile.json").write_text(json.dumps(raw | change))
    return tmp_path / "profile.json"


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"scale": 0}, "scale"),
        ({"scale": float("nan")}, "scale"),
        ({"encoder": 5}, "encoder"),
        ({"colour": "red"}, "colour"),
        ({"blocks": [{"name": "stem"}]}, r"blocks\.0\.forward_ms"),
        ({"nodes": None}, "nodes"),
    ],
)
def test_what_is_wrong_with_a_file_is_named_with_its_key(tmp_path: Path, change: dict[str, Any], key: str) -> None:
    path = written(tmp_path, change)
    with pytest.raises(ConfigError, match=rf"{path}: {key}: "):
        load(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.json: cannot be read"):
        load(tmp_path / "nowhere.json")


@given(st.binary(max_size=200))
def test_bytes_that_are_no_profile_are_refused_and_never_crash(tmp_path_factory: Any, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"noise\.json"):
        load(path)
