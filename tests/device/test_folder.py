from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile

from common.errors import ConfigError
from device.sources import folder as folder_module
from device.sources import open_source
from device.sources.folder import FolderSource
from device.windows import WINDOW_S, Window


def _recording(path: Path, *, seconds: float = 5.0, level: float = 0.1) -> Path:
    """A recording whose samples are all `level`, so that a window tells where it comes from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(round(seconds * 16_000), level, dtype=np.float32), 16_000)
    return path


def _ramp(path: Path, *, seconds: float) -> None:
    soundfile.write(path, np.linspace(-0.9, 0.9, round(seconds * 16_000), dtype=np.float32), 16_000)


def _take(source: FolderSource, count: int) -> list[Window]:
    windows = [source.next_window(0.0) for _ in range(count)]
    return [window for window in windows if window is not None]


def _levels(windows: list[Window]) -> list[float]:
    return [round(float(window.samples[0]), 2) for window in windows]


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    for number in range(1, 7):
        _recording(tmp_path / f"class-{number % 2}" / f"{number}.wav", level=number / 10)
    (tmp_path / "notes.txt").write_text("not audio")
    (tmp_path / ".hidden.wav").write_bytes(b"not audio either")
    return tmp_path


def test_in_stream_order_each_clip_is_played_from_start_to_end_as_a_segment(recordings: Path) -> None:
    windows = _take(FolderSource(recordings, repeat=False), 40)
    assert len(windows) == 30
    assert [window.index for window in windows] == list(range(30))
    assert [window.segment for window in windows] == [number // 5 for number in range(30)]
    assert all(len({level}) == 1 for level in zip(*[iter(_levels(windows))] * 5))
    assert sorted(set(_levels(windows))) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]


def test_windows_of_one_clip_are_contiguous(tmp_path: Path) -> None:
    _ramp(tmp_path / "ramp.wav", seconds=5.0)
    windows = _take(FolderSource(tmp_path, repeat=False), 9)
    stream = np.concatenate([window.samples for window in windows])
    assert stream.shape == (5 * 15_360,)
    assert float(np.abs(np.diff(stream)).max()) < 1e-4


def test_each_pass_shuffles_the_clips_anew_and_plays_all_of_them(recordings: Path) -> None:
    levels = _levels(_take(FolderSource(recordings, seed=4), 90))
    passes = [levels[start : start + 30 : 5] for start in (0, 30, 60)]
    assert all(sorted(order) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6] for order in passes)
    assert len({tuple(order) for order in passes}) == 3


def test_the_start_within_a_clip_differs_from_pass_to_pass(tmp_path: Path) -> None:
    _ramp(tmp_path / "ramp.wav", seconds=5.0)
    windows = _take(FolderSource(tmp_path), 50)
    assert len({float(window.samples[0]) for window in windows[::5]}) > 5


def test_in_shuffled_order_every_window_is_a_segment_and_every_clip_comes_once_a_pass(recordings: Path) -> None:
    windows = _take(FolderSource(recordings, order="shuffled", repeat=False), 20)
    assert len(windows) == 6
    assert [window.segment for window in windows] == list(range(6))
    assert sorted(_levels(windows)) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]


@pytest.mark.parametrize("order", ["stream", "shuffled"])
def test_the_same_seed_gives_the_same_windows_and_another_seed_others(tmp_path: Path, order: str) -> None:
    for number in range(4):
        soundfile.write(tmp_path / f"{number}.wav", np.random.default_rng(number).uniform(-0.5, 0.5, 50_000), 16_000)

    def played(seed: int, cache_bytes: int = 10**9) -> np.ndarray:
        source = FolderSource(tmp_path, order=order, seed=seed, cache_bytes=cache_bytes)  # type: ignore[arg-type]
        return np.stack([window.samples for window in _take(source, 40)])

    np.testing.assert_array_equal(played(3), played(3))
    np.testing.assert_array_equal(played(3), played(3, cache_bytes=0))
    assert not np.array_equal(played(3), played(4))


def test_a_clip_is_decoded_once_while_the_cache_holds_it(recordings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []

    def counting(path: Path, **part: float) -> np.ndarray:
        decoded.append(path.name)
        return np.full(round(part["length_s"] * 16_000), 0.1, dtype=np.float32)

    monkeypatch.setattr(folder_module, "read_audio", counting)
    _take(FolderSource(recordings), 90)
    assert len(decoded) == 6
    decoded.clear()
    small = FolderSource(recordings, cache_bytes=2 * 80_000 * 2)
    for _ in range(90):
        small.next_window(0.0)
        assert small._decoded._held_bytes <= 2 * 80_000 * 2
    assert len(decoded) > 6


def test_a_broken_recording_is_reported_once_and_left_out(recordings: Path, caplog: pytest.LogCaptureFixture) -> None:
    (recordings / "broken.wav").write_bytes(b"RIFF, but nothing else")
    with caplog.at_level(logging.WARNING):
        windows = _take(FolderSource(recordings), 90)
    assert len(windows) == 90
    assert [record.getMessage().count("broken.wav") for record in caplog.records] == [1]
    assert "cannot be decoded" in caplog.text


def test_a_recording_that_breaks_behind_its_header_is_reported_once_and_left_out(
    recordings: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = FolderSource(recordings)
    (recordings / "class-1" / "1.wav").write_bytes(b"overwritten since")
    with caplog.at_level(logging.WARNING):
        windows = _take(source, 90)
    assert 0.1 not in _levels(windows)
    assert len(windows) == 90
    assert len(caplog.records) == 1


def test_when_no_recording_can_be_decoded_any_more_the_operator_is_told(tmp_path: Path) -> None:
    path = _recording(tmp_path / "only.wav")
    source = FolderSource(tmp_path)
    path.write_bytes(b"overwritten since")
    with pytest.raises(ConfigError, match="not one of its recordings"):
        source.next_window(0.0)


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.wav").write_bytes(b"nonsense")
    (tmp_path / "file").write_text("")
    for name, why in [
        ("missing", "no such folder"),
        ("file", "not a folder"),
        ("empty", "no recordings"),
        ("broken", "not one of its 1 recordings"),
    ]:
        with pytest.raises(ConfigError, match=why) as caught:
            FolderSource(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_a_list_chooses_the_recordings(recordings: Path, tmp_path: Path) -> None:
    listed = tmp_path / "shard.txt"
    listed.write_text("class-1/3.wav\n\n  class-0/2.wav\n")
    windows = _take(FolderSource(recordings, list_file=listed, repeat=False), 20)
    assert sorted(set(_levels(windows))) == [0.2, 0.3]


def test_a_list_that_names_a_missing_recording_is_an_error_with_its_line(recordings: Path, tmp_path: Path) -> None:
    listed = tmp_path / "shard.txt"
    listed.write_text("class-1/3.wav\nclass-9/9.wav\n")
    with pytest.raises(ConfigError, match=r"shard\.txt:2: .*9\.wav: no such file"):
        FolderSource(recordings, list_file=listed)
    listed.write_text("\n")
    with pytest.raises(ConfigError, match="lists no recordings"):
        FolderSource(recordings, list_file=listed)
    with pytest.raises(ConfigError, match="cannot be read"):
        FolderSource(recordings, list_file=tmp_path / "no-list.txt")


def test_a_long_recording_is_played_in_pieces(tmp_path: Path) -> None:
    _ramp(tmp_path / "long.wav", seconds=70.0)
    windows = _take(FolderSource(tmp_path, repeat=False), 100)
    assert len(windows) == 3 * 24
    assert len({window.segment for window in windows}) == 3
    starts = sorted(float(window.samples[0]) for window in windows)
    assert starts[0] < -0.85
    assert starts[-1] > 0.85


def test_a_recording_shorter_than_a_window_is_one_window(tmp_path: Path) -> None:
    _recording(tmp_path / "short.flac", seconds=0.3)
    windows = _take(FolderSource(tmp_path, repeat=False), 5)
    assert len(windows) == 1
    np.testing.assert_allclose(windows[0].samples, 0.1, atol=1e-4)


def test_in_real_time_windows_come_every_0_96_s(recordings: Path) -> None:
    now_s = [0.0]

    def wait(seconds: float) -> None:
        now_s[0] += seconds

    source = FolderSource(recordings, speed="realtime", clock=lambda: now_s[0], wait=wait)
    for number in range(1, 12):
        window = source.next_window(2.0)
        assert window is not None
        assert window.closed_s == pytest.approx(number * WINDOW_S)
        assert now_s[0] == pytest.approx(number * WINDOW_S)
    assert source.dropped == 0


def test_a_source_is_opened_by_its_kind(recordings: Path) -> None:
    for source in (
        open_source("folder", path=recordings, seed=1),
        open_source("soundscape", classes=("siren", "rain"), order="shuffled", seed=1),
    ):
        window = source.next_window(0.0)
        assert window is not None
        assert window.samples.shape == (15_360,)
        assert source.state == "ok"
        source.close()
        source.close()


def test_a_soundscape_has_events_of_four_to_six_seconds_and_repeats_by_seed() -> None:
    first, again = (open_source("soundscape", seed=5) for _ in range(2))
    windows = [first.next_window(0.0) for _ in range(60)]
    for window in windows:
        same = again.next_window(0.0)
        assert window is not None
        assert same is not None
        np.testing.assert_array_equal(window.context, same.context)
    segments = np.bincount([window.segment for window in windows if window is not None])
    assert set(segments[:-1]) <= {4, 5, 6}


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"kind": "folder"}, "needs a path"),
        ({"kind": "soundscape", "classes": ("rain", "unicorn")}, "unicorn.*birdsong"),
        ({"kind": "radio"}, "folder, microphone, soundscape"),
    ],
)
def test_a_source_that_cannot_be_is_an_error_of_the_configuration(settings: dict[str, object], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        open_source(**settings)  # type: ignore[arg-type]
