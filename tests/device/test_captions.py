from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from common.captions import class_captions
from common.errors import ConfigError
from device.captions import CaptionDraw, captions_of_folder, read_sidecar
from device.sources import open_source
from device.windows import Window


def recordings(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(len(name)).uniform(-0.1, 0.1, 3 * 16_000)
        soundfile.write(folder / name, noise, 16_000)
    return folder


def window(*captions: str) -> Window:
    silence = np.zeros(15_360, np.float32)
    return Window(silence, silence, offset=0, segment=0, index=0, closed_s=0.0, captions=captions)


def test_class_folders_give_each_recording_the_captions_of_its_class(tmp_path: Path) -> None:
    folder = recordings(tmp_path, "sea_waves/a.wav", "rain/deep/b.wav")
    captions = captions_of_folder(folder, None)
    assert captions(folder / "sea_waves" / "a.wav") == class_captions("sea_waves")
    assert captions(folder / "rain" / "deep" / "b.wav") == class_captions("rain")
    assert captions(folder / "loose.wav") == ()


def test_a_sidecar_in_the_folder_is_preferred_to_class_names_and_not_mixed_with_them(tmp_path: Path) -> None:
    folder = recordings(tmp_path, "sea/a.wav", "rain/b.wav", "rain/c.wav")
    (folder / "captions.csv").write_text(
        'file,caption\nsea/a.wav,"waves, rolling in"\nsea/a.wav,surf on a beach\nb.wav,drizzle\n', encoding="utf-8"
    )
    captions = captions_of_folder(folder, None)
    assert captions(folder / "sea" / "a.wav") == ("waves, rolling in", "surf on a beach")
    assert captions(folder / "rain" / "b.wav") == ("drizzle",)
    assert captions(folder / "rain" / "c.wav") == ()


def test_a_configured_sidecar_is_preferred_to_the_one_in_the_folder(tmp_path: Path) -> None:
    folder = recordings(tmp_path / "data", "a.wav")
    (folder / "captions.csv").write_text("file,caption\na.wav,one\n", encoding="utf-8")
    (tmp_path / "mine.csv").write_text("fold,Caption,File\n1,two,a.wav\n", encoding="utf-8")
    assert captions_of_folder(folder, tmp_path / "mine.csv")(folder / "a.wav") == ("two",)


def test_recordings_without_captions_or_classes_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"clap needs captions; allowed: a file captions\.csv"):
        captions_of_folder(recordings(tmp_path, "audio/a.wav"), None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r":1: columns none; needed: file, caption"),
        ("name,text\na,b\n", r":1: columns name, text; needed"),
        ("file,caption\n", r"holds no captions"),
        ("file,caption\na.wav,\n,rain\nb.wav\n", r"(?s):2: no caption.*:3: no file.*:4: no caption"),
        ('file,caption\na.wav,"rain\n', r"cannot be read as CSV"),
    ],
)
def test_a_sidecar_that_cannot_be_used_is_refused_with_its_lines(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "c.csv").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_sidecar(tmp_path / "c.csv")


def test_a_sidecar_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_bytes(b"file,caption\na.wav,\xff\xfe\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_sidecar(tmp_path / "c.csv")


def test_a_caption_that_may_not_travel_as_it_is_is_made_so(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text(f'file,caption\na.wav,"rain\non\ta roof"\nb.wav,{"far " * 80}\n', encoding="utf-8")
    captions = read_sidecar(tmp_path / "c.csv")
    assert captions["a.wav"] == ("rain on a roof",)
    assert len(captions["b.wav"][0]) <= 200


def test_each_of_several_captions_is_drawn_and_the_seed_repeats_them() -> None:
    several = window("one", "two", "three")
    drawn = [CaptionDraw(7)(several) for _ in range(1)]
    again, other = CaptionDraw(7), CaptionDraw(8)
    series = [again(several) for _ in range(60)]
    assert series[:1] == drawn
    assert set(Counter(series)) == {"one", "two", "three"}
    assert series != [other(several) for _ in range(60)]
    assert CaptionDraw(7)(window()) is None


def test_a_folder_source_hands_its_windows_their_captions_and_plays_the_same_windows_without(tmp_path: Path) -> None:
    folder = recordings(tmp_path, "dog/a.wav", "sea/b.wav")
    plain = open_source("folder", path=folder, seed=3)
    told = open_source("folder", path=folder, seed=3, captioned=True)
    for _ in range(12):
        one, two = plain.next_window(1.0), told.next_window(1.0)
        assert one is not None
        assert two is not None
        assert np.array_equal(one.samples, two.samples)
        assert one.captions == ()
        assert two.captions in {class_captions("dog"), class_captions("sea")}


def test_a_soundscape_names_its_sounds_when_it_is_asked_to() -> None:
    plain = open_source("soundscape", classes=("rain", "siren"), seed=3)
    told = open_source("soundscape", classes=("rain", "siren"), seed=3, captioned=True)
    for _ in range(12):
        one, two = plain.next_window(1.0), told.next_window(1.0)
        assert one is not None
        assert two is not None
        assert np.array_equal(one.samples, two.samples)
        assert two.captions in {class_captions("rain"), class_captions("siren")}


def test_a_listed_recording_from_elsewhere_is_known_by_its_bare_name(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("file,caption\nbark.wav,a dog\n")
    captions = captions_of_folder(tmp_path, None)
    assert captions(tmp_path.parent / "elsewhere" / "bark.wav") == ("a dog",)
    assert captions(tmp_path.parent / "elsewhere" / "rain.wav") == ()


def test_recordings_without_a_caption_are_told_and_none_with_one_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = recordings(tmp_path / "data", "sea/a.wav", "rain/b.wav")
    elsewhere = recordings(tmp_path, "elsewhere.wav") / "elsewhere.wav"
    listed = tmp_path / "list.txt"
    listed.write_text(f"sea/a.wav\n{elsewhere}\n", encoding="utf-8")
    open_source("folder", path=folder, list_file=listed, captioned=True)
    assert f"1 of 2 recordings have no caption, {elsewhere} for instance" in caplog.text
    listed.write_text(f"{elsewhere}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"not one of its 1 recordings has a caption"):
        open_source("folder", path=folder, list_file=listed, captioned=True)
