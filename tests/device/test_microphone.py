from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torchaudio.functional import resample
from torchaudio.transforms import Resample

from common.errors import ConfigError
from device.sources import microphone, resampler
from device.sources.card import BLOCK_S, input_cards, matching
from device.sources.microphone import MicrophoneSource, level_line
from device.sources.resampler import StreamResampler
from device.windows import Window

ALSA = """ 0 [Headphones     ]: bcm2835_headphonbcm2835 Headphones
                      bcm2835 Headphones
 2 [Porch          ]: USB-Audio - USB PnP Sound Device
                      C-Media USB PnP Sound Device at usb-3f980000.usb-1.2
 3 [Kitchen        ]: USB-Audio - USB PnP Sound Device
"""


def _device(name: str, channels: int = 1, rate_hz: float = 16_000.0) -> dict[str, Any]:
    return {"name": name, "max_input_channels": channels, "default_samplerate": rate_hz}


PORCH = _device("USB PnP Sound Device: Audio (hw:2,0)", rate_hz=48_000.0)
KITCHEN = _device("USB PnP Sound Device: Audio (hw:3,0)")
SPEAKER = _device("bcm2835 Headphones: - (hw:0,0)", channels=0)


class PortAudioError(Exception):
    pass


class FakeStream:
    def __init__(self, refused: Callable[[dict[str, Any]], bool], **settings: Any) -> None:
        if refused(settings):
            raise PortAudioError("Invalid number of channels")
        self.settings = settings
        self.active = False
        self.closed = False

    def start(self) -> None:
        self.active = True

    def close(self) -> None:
        self.active = False
        self.closed = True


class FakeSounddevice:
    """What we use of sounddevice, with time and blocks in the test's hands."""

    PortAudioError = PortAudioError

    def __init__(self, *devices: dict[str, Any]) -> None:
        self.devices = list(devices)
        self.default = SimpleNamespace(device=[0, 0])
        self.streams: list[FakeStream] = []
        self.refused: Callable[[dict[str, Any]], bool] = lambda settings: False
        self.now_s = 50.0
        self.scans = 0

    def clock(self) -> float:
        return self.now_s

    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    def _terminate(self) -> None:
        assert not any(stream.active for stream in self.streams), "a scan would end a stream in use"

    def _initialize(self) -> None:
        self.scans += 1

    def query_devices(self) -> list[dict[str, Any]]:
        return self.devices

    def InputStream(  # noqa: N802 - its name in sounddevice
        self, **settings: Any
    ) -> FakeStream:
        self.streams.append(FakeStream(self.refused, **settings))
        return self.streams[-1]

    def play(self, samples: np.ndarray, *, overflow: bool = False) -> None:
        """Calls back with the samples, block by block, while time passes."""
        settings = self.streams[-1].settings
        for start in range(0, samples.shape[0], settings["blocksize"]):
            block = samples[start : start + settings["blocksize"]]
            self.now_s += block.shape[0] / settings["samplerate"]
            indata = np.repeat(block[:, None], settings["channels"], axis=1).astype(np.float32)
            status = SimpleNamespace(input_overflow=True) if overflow and start == 0 else None
            settings["callback"](indata, block.shape[0], None, status)
            indata.fill(9.0)  # PortAudio uses its buffer again


def _noise(seconds: float, rate_hz: int = 16_000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.3, 0.3, round(seconds * rate_hz)).astype(np.float32)


def _source(sounddevice: FakeSounddevice, tmp_path: Path, **settings: Any) -> MicrophoneSource:
    cards = tmp_path / "cards"
    cards.write_text(ALSA)
    return MicrophoneSource(
        sounddevice=sounddevice, clock=sounddevice.clock, wait=sounddevice.wait, alsa_cards=cards, **settings
    )


def _state(source: MicrophoneSource) -> str:
    return source.state


def _drain(source: MicrophoneSource) -> list[Window]:
    windows = []
    while (window := source.next_window(0.0)) is not None:
        windows.append(window)
    return windows


def test_what_the_card_hears_comes_out_as_contiguous_windows(tmp_path: Path) -> None:
    sounddevice = FakeSounddevice(SPEAKER, KITCHEN)
    source = _source(sounddevice, tmp_path, card="kitchen")
    assert source.next_window(0.0) is None
    assert sounddevice.streams[0].settings["device"] == 1
    sound = _noise(3.0)
    sounddevice.play(sound)
    windows = _drain(source)
    np.testing.assert_array_equal(np.concatenate([window.samples for window in windows]), sound[: 3 * 15_360])
    assert [window.segment - windows[0].segment for window in windows] == [0, 0, 0]
    assert [window.closed_s for window in windows] == pytest.approx([50.96, 51.92, 52.88])
    assert source.state == "ok"
    assert (source.overruns, source.dropped) == (0, 0)


@pytest.mark.parametrize("wanted", ["porch", "Porch", "USB PnP Sound Device: Audio (hw:2,0)", "(hw:2"])
def test_a_card_is_found_by_part_of_its_name_or_its_alsa_id(tmp_path: Path, wanted: str) -> None:
    (tmp_path / "cards").write_text(ALSA)
    cards = input_cards(FakeSounddevice(SPEAKER, PORCH, KITCHEN), alsa_cards=tmp_path / "cards")
    assert [card.alsa_id for card in cards] == ["Porch", "Kitchen"]
    assert [card.number for card in matching(cards, wanted)] == [1]


def test_cards_are_listed_where_there_is_no_alsa(tmp_path: Path) -> None:
    cards = input_cards(FakeSounddevice(_device("MacBook Microphone")), alsa_cards=tmp_path / "none")
    assert [(card.name, card.alsa_id) for card in cards] == [("MacBook Microphone", "")]


def test_a_name_of_several_cards_is_refused_with_their_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Porch.*Kitchen"):
        _source(FakeSounddevice(PORCH, KITCHEN), tmp_path, card="usb")


def test_without_a_name_the_default_card_is_used(tmp_path: Path) -> None:
    sounddevice = FakeSounddevice(SPEAKER, PORCH, KITCHEN)
    sounddevice.default.device = [2, 0]
    _source(sounddevice, tmp_path).next_window(0.0)
    assert sounddevice.streams[0].settings["device"] == 2


def test_without_sounddevice_the_operator_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigError, match="make setup EXTRAS=microphone"):
        MicrophoneSource()


def test_without_portaudio_the_operator_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise OSError("PortAudio library not found")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigError, match="libportaudio2"):
        MicrophoneSource()


def test_any_rate_is_brought_to_16_khz(tmp_path: Path) -> None:
    sounddevice = FakeSounddevice(PORCH)
    source = _source(sounddevice, tmp_path, card="porch")
    source.next_window(0.0)
    time_s = np.arange(3 * 48_000) / 48_000
    sounddevice.play((0.3 * np.sin(2.0 * np.pi * 1_000.0 * time_s)).astype(np.float32))
    heard = np.concatenate([window.samples for window in _drain(source)])
    assert heard.shape == (3 * 15_360,)
    expected = 0.3 * np.sin(2.0 * np.pi * 1_000.0 * np.arange(3 * 15_360) / 16_000)
    np.testing.assert_allclose(heard[500:-500], expected[500:-500], atol=5e-3)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 32_000, 44_100, 48_000, 96_000])
def test_a_stream_resampled_in_blocks_equals_all_of_it_at_once(rate_hz: int) -> None:
    import torch

    sound = _noise(0.5, rate_hz)
    stream = StreamResampler(rate_hz, 16_000)
    rng = np.random.default_rng(1)
    parts, place = [], 0
    while place < sound.shape[0]:
        size = int(rng.integers(1, rate_hz // 20))
        parts.append(stream.push(sound[place : place + size]))
        place += size
        assert stream._held.shape[0] < rate_hz // 4
    heard = np.concatenate(parts)
    whole = resample(torch.from_numpy(sound), rate_hz, 16_000).numpy()
    assert heard.shape[0] > whole.shape[0] - 16_000 // 10
    np.testing.assert_allclose(heard, whole[: heard.shape[0]], atol=1e-5)


def test_a_card_that_refuses_one_channel_is_opened_with_all_and_the_first_is_used(tmp_path: Path) -> None:
    sounddevice = FakeSounddevice(_device("Stereo (hw:5,0)", channels=2))
    sounddevice.refused = lambda settings: bool(settings["channels"] == 1)
    source = _source(sounddevice, tmp_path, card="stereo")
    source.next_window(0.0)
    sound = _noise(1.0)
    sounddevice.play(sound)
    np.testing.assert_array_equal(_drain(source)[0].samples, sound[:15_360])


def test_a_full_queue_loses_the_newest_counts_them_and_starts_a_segment(tmp_path: Path) -> None:
    sounddevice = FakeSounddevice(KITCHEN)
    source = _source(sounddevice, tmp_path, capacity_s=2.0)
    source.next_window(0.0)
    sounddevice.play(_noise(5.0))
    before = _drain(source)
    assert source.overruns == round(3.0 / BLOCK_S)
    assert source.dropped == 3
    sounddevice.play(_noise(1.0, seed=1))
    after = _drain(source)
    assert [window.segment - before[0].segment for window in before + after] == [0, 0, 1]
    np.testing.assert_array_equal(after[0].samples, _noise(1.0, seed=1)[:15_360])
    source.close()
    assert (source.overruns, source.dropped) == (round(3.0 / BLOCK_S), 3)


def test_samples_that_the_driver_lost_start_a_segment(tmp_path: Path) -> None:
    sounddevice = FakeSounddevice(KITCHEN)
    source = _source(sounddevice, tmp_path)
    source.next_window(0.0)
    sounddevice.play(_noise(1.5))
    sounddevice.play(_noise(1.0, seed=1), overflow=True)
    first, second = _drain(source)
    assert second.segment == first.segment + 1
    np.testing.assert_array_equal(second.samples, _noise(1.0, seed=1)[:15_360])
    assert source.overruns == 1


@pytest.mark.parametrize("silence", [0.0, 0.25])
def test_digital_silence_is_no_audio_and_sound_ends_it_with_a_new_segment(tmp_path: Path, silence: float) -> None:
    sounddevice = FakeSounddevice(KITCHEN)
    source = _source(sounddevice, tmp_path, no_audio_s=3.0)
    source.next_window(0.0)
    sounddevice.play(_noise(1.0))
    first = _drain(source)[0]
    sounddevice.play(np.full(16_000 * 6, silence, dtype=np.float32))
    assert len(_drain(source)) <= 3
    assert _state(source) == "no-audio"
    sounddevice.play(np.full(16_000 * 3, silence, dtype=np.float32))
    assert _drain(source) == []
    sounddevice.play(_noise(1.0, seed=1))
    again = _drain(source)
    assert source.state == "ok"
    assert again[0].segment > first.segment
    np.testing.assert_array_equal(again[0].samples, _noise(1.0, seed=1)[:15_360])


def test_a_quiet_room_is_audio(tmp_path: Path) -> None:
    sounddevice = FakeSounddevice(KITCHEN)
    source = _source(sounddevice, tmp_path)
    source.next_window(0.0)
    sounddevice.play(np.round(_noise(6.0) * 10.0) / 32_768)
    assert len(_drain(source)) == 6
    assert source.state == "ok"


def test_a_busy_main_thread_is_not_mistaken_for_silence_or_a_dead_card(tmp_path: Path) -> None:
    sounddevice = FakeSounddevice(KITCHEN)
    source = _source(sounddevice, tmp_path, capacity_s=20.0)
    source.next_window(0.0)
    sounddevice.play(_noise(10.0))
    assert source.state == "ok"
    assert len(_drain(source)) == 10
    assert source.state == "ok"
    assert len(sounddevice.streams) == 1


def test_a_card_that_was_pulled_out_is_reopened_by_name_under_its_new_number(tmp_path: Path) -> None:
    sounddevice = FakeSounddevice(SPEAKER, KITCHEN)
    source = _source(sounddevice, tmp_path, card="kitchen")
    source.next_window(0.0)
    sounddevice.play(_noise(1.5))
    first = _drain(source)[0]
    sounddevice.streams[0].active = False
    assert source.next_window(0.0) is None
    assert sounddevice.streams[0].closed
    sounddevice.devices = [KITCHEN, SPEAKER]
    sounddevice.now_s += 1.0
    source.next_window(0.0)
    assert sounddevice.streams[1].settings["device"] == 0
    sounddevice.play(_noise(1.0, seed=1))
    second = _drain(source)[0]
    assert second.segment == first.segment + 1
    np.testing.assert_array_equal(second.samples, _noise(1.0, seed=1)[:15_360])


def test_a_card_that_sends_nothing_is_reopened(tmp_path: Path) -> None:
    sounddevice = FakeSounddevice(KITCHEN)
    source = _source(sounddevice, tmp_path, stalled_s=2.0)
    source.next_window(0.0)
    sounddevice.now_s += 2.0
    source.next_window(0.0)
    assert sounddevice.streams[0].closed
    sounddevice.now_s += 1.0
    source.next_window(0.0)
    assert len(sounddevice.streams) == 2
    assert source.state == "no-audio"


def test_a_missing_card_is_tried_again_ever_more_seldom_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sounddevice = FakeSounddevice(SPEAKER)
    with caplog.at_level(logging.WARNING):
        source = _source(sounddevice, tmp_path, card="kitchen")
        scans_at_s = []
        scans = sounddevice.scans
        start_s = sounddevice.now_s
        while sounddevice.now_s < start_s + 200.0:
            source.next_window(0.0)
            if sounddevice.scans > scans:
                scans = sounddevice.scans
                scans_at_s.append(sounddevice.now_s - start_s)
            sounddevice.now_s += 0.5
    assert scans_at_s == [0.0, 1.0, 3.0, 7.0, 15.0, 31.0, 63.0, 123.0, 183.0]
    assert _state(source) == "no-audio"
    assert caplog.text.count('no card "kitchen"') == 1
    sounddevice.devices.append(KITCHEN)
    sounddevice.now_s += 60.0
    source.next_window(0.0)
    sounddevice.play(_noise(1.0))
    assert len(_drain(source)) == 1
    assert source.state == "ok"


def test_a_card_that_does_not_open_is_tried_again(tmp_path: Path) -> None:
    sounddevice = FakeSounddevice(KITCHEN)
    sounddevice.refused = lambda settings: True
    source = _source(sounddevice, tmp_path)
    assert source.next_window(0.0) is None
    sounddevice.refused = lambda settings: False
    sounddevice.now_s += 1.0
    source.next_window(0.0)
    sounddevice.play(_noise(1.0))
    assert len(_drain(source)) == 1


def test_a_second_card_of_that_name_that_comes_later_is_never_listened_to_by_mistake(tmp_path: Path) -> None:
    sounddevice = FakeSounddevice(KITCHEN)
    source = _source(sounddevice, tmp_path, card="usb")
    source.next_window(0.0)
    sounddevice.streams[0].active = False
    sounddevice.devices = [PORCH, KITCHEN]
    source.next_window(0.0)
    sounddevice.now_s += 1.0
    source.next_window(0.0)
    assert len(sounddevice.streams) == 1


def test_waiting_for_a_missing_card_ends_in_time(tmp_path: Path) -> None:
    sounddevice = FakeSounddevice(SPEAKER)
    source = _source(sounddevice, tmp_path, card="kitchen")
    assert source.next_window(0.6) is None
    assert sounddevice.now_s == pytest.approx(50.6)


def test_the_level_says_silence_and_clipping_in_words() -> None:
    assert "silence" in level_line(np.zeros(1_000, dtype=np.float32))
    assert "clips" in level_line(np.array([1.0, -1.0] * 500, dtype=np.float32))
    quiet, loud = (level_line(np.array([level, -level] * 500, dtype=np.float32)) for level in (0.01, 0.3))
    assert quiet.strip().startswith("-40.0 dB")
    assert 0 < quiet.count("#") < loud.count("#") < 50


def test_the_cards_are_listed_from_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(microphone, "import_sounddevice", lambda: FakeSounddevice(SPEAKER, _device("Desk microphone")))
    assert microphone.main([]) == 0
    assert "Desk microphone" in capsys.readouterr().out
    assert microphone.main(["garden"]) == 78
    assert "garden" in capsys.readouterr().err


def test_a_muted_card_costs_one_resampler_and_not_one_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def counted(rate_hz: int, wanted_hz: int) -> StreamResampler:
        made.append(rate_hz)
        return StreamResampler(rate_hz, wanted_hz)

    monkeypatch.setattr(microphone, "StreamResampler", counted)
    sounddevice = FakeSounddevice(_device("USB", rate_hz=44_100.0))
    source = _source(sounddevice, tmp_path, no_audio_s=1.0)
    source.next_window(0.0)
    made.clear()
    for _ in range(4):
        sounddevice.play(np.zeros(44_100, dtype=np.float32))
        assert _drain(source) == [] or source.state == "no-audio"
    assert source.state == "no-audio"
    assert len(made) == 1


def test_a_start_of_the_sound_library_that_failed_is_tried_again(tmp_path: Path) -> None:
    class Fails(FakeSounddevice):
        started = True
        failures = 1

        def _terminate(self) -> None:
            if not self.started:
                raise PortAudioError("not initialized")
            self.started = False

        def _initialize(self) -> None:
            if self.failures:
                self.failures -= 1
                raise PortAudioError("host error")
            self.started = True

    sounddevice = Fails(KITCHEN)
    source = _source(sounddevice, tmp_path, retry_s=1.0)
    assert source.next_window(0.0) is None
    assert not sounddevice.streams
    sounddevice.wait(1.0)
    source.next_window(0.0)
    assert len(sounddevice.streams) == 1


def test_no_more_than_a_few_windows_are_gone_through_once_the_time_is_up(tmp_path: Path) -> None:
    sounddevice = FakeSounddevice(KITCHEN)
    source = _source(sounddevice, tmp_path, no_audio_s=1.0)
    source.next_window(0.0)
    sounddevice.play(np.zeros(2 * 16_000, dtype=np.float32))
    _drain(source)
    sounddevice.play(np.zeros(6 * 16_000, dtype=np.float32))
    calls = 0
    while source.waiting:
        assert source.next_window(0.0) is None
        calls += 1
    assert calls > 1


def test_a_gap_does_not_make_the_resamplers_filter_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, int]] = []

    def counted(from_hz: int, to_hz: int) -> Resample:
        made.append((from_hz, to_hz))
        return Resample(from_hz, to_hz)

    monkeypatch.setattr(resampler, "Resample", counted)
    for _ in range(3):
        StreamResampler(12_000, 16_000)
    assert made == [(12_000, 16_000)]
