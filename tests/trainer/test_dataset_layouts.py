from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from common.errors import ConfigError
from device.sources.folder import FolderSource
from trainer.dataset import Split
from trainer.dataset_layouts import listed, split_recordings
from trainer.demo_files import DemoOptions, write_files
from trainer.probe_set import probe_set, read_probe_clips

RATES_HZ = (8_000, 44_100)


def _sound(path: Path, number: int) -> None:
    """Half a second at one of two rates, every third in stereo."""
    rate_hz = RATES_HZ[number % len(RATES_HZ)]
    samples = 0.1 * np.random.default_rng(number).standard_normal((rate_hz // 2, 2 if number % 3 == 0 else 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate_hz)


def _table(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


ESC50_COLUMNS = "filename,fold,target,category,esc10,src_file,take"


@pytest.fixture
def esc50(tmp_path: Path) -> Path:
    """Five folds of four classes, two of them in ESC-10."""
    lines = [ESC50_COLUMNS]
    for fold in range(1, 6):
        for target, category in enumerate(("dog", "rain", "keyboard", "owl")):
            name = f"{fold}-{100 * fold + target}-A-{target}.wav"
            lines.append(f"{name},{fold},{target},{category},{target < 2},{100 * fold + target},A")
            _sound(tmp_path / "audio" / name, target + fold)
    _table(tmp_path / "meta" / "esc50.csv", lines)
    return tmp_path


@pytest.fixture
def urbansound8k(tmp_path: Path) -> Path:
    """Ten folds; two slices of one source in each, of two classes in turn."""
    lines = ["slice_file_name,fsID,start,end,salience,fold,classID,class"]
    for fold in range(1, 11):
        label = ("siren", "drilling")[fold % 2]
        for slice_ in range(2):
            name = f"{fold}000-{fold % 2}-0-{slice_}.wav"
            lines.append(f"{name},{fold}000,0.0,0.5,1,{fold},{fold % 2},{label}")
            _sound(tmp_path / "audio" / f"fold{fold}" / name, fold + slice_)
    _table(tmp_path / "metadata" / "UrbanSound8K.csv", lines)
    return tmp_path


@pytest.fixture
def fsd50k(tmp_path: Path) -> Path:
    """Six clips to train on, three to evaluate on, with the labels of FSD50K: the most specific one first."""
    labels = ('"Bark,Dog,Animal"', '"Rain,Water"', "Music")
    for part, numbers in (("dev", range(10, 16)), ("eval", range(20, 23))):
        lines = ["fname,labels,mids,split" if part == "dev" else "fname,labels,mids"]
        for number in numbers:
            lines.append(f"{number},{labels[number % 3]},/m/0" + (",train" if part == "dev" else ""))
            _sound(tmp_path / f"FSD50K.{part}_audio" / f"{number}.wav", number)
        _table(tmp_path / "FSD50K.ground_truth" / f"{part}.csv", lines)
    return tmp_path


def _labels(split: Split) -> list[str]:
    return sorted({str(clip.label) for clip in split.training + split.held_out})


def test_esc50_is_known_by_its_table_and_its_folds_come_from_there(esc50: Path) -> None:
    split = split_recordings(esc50, 2)
    assert split.how == "ESC-50 as published: fold 2 of 1, 2, 3, 4, 5 held out: 4 of 20 files"
    assert {clip.fold for clip in split.held_out} == {2}
    assert _labels(split) == ["dog", "keyboard", "owl", "rain"]
    first = split.held_out[0]
    assert (first.relative, first.label, first.source) == ("audio/2-200-A-0.wav", "dog", "200")
    assert first.path.is_file()
    assert not split.missing


def test_of_esc50_the_classes_of_esc10_alone_can_be_taken(esc50: Path) -> None:
    split = split_recordings(esc50, 1, esc10=True)
    assert split.how == "ESC-10, of ESC-50 as published: fold 1 of 1, 2, 3, 4, 5 held out: 2 of 10 files"
    assert _labels(split) == ["dog", "rain"]


def test_esc10_of_other_recordings_is_the_operators_error(urbansound8k: Path) -> None:
    with pytest.raises(ConfigError, match="from ESC-50 only"):
        split_recordings(urbansound8k, 1, esc10=True)


def test_urbansound8k_has_ten_folds_and_the_slices_of_a_source_stay_together(urbansound8k: Path) -> None:
    split = split_recordings(urbansound8k, 10)
    assert split.how == "UrbanSound8K as published: fold 10 of 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 held out: 2 of 20 files"
    assert [clip.relative for clip in split.held_out] == [f"audio/fold10/10000-0-0-{i}.wav" for i in range(2)]
    assert {clip.source for clip in split.held_out} == {"10000"}
    assert _labels(split) == ["drilling", "siren"]


def test_a_source_that_a_table_puts_into_two_folds_is_not_on_both_sides(urbansound8k: Path) -> None:
    table = urbansound8k / "metadata" / "UrbanSound8K.csv"
    table.write_text(table.read_text().replace("3000-1-0-1.wav,3000", "3000-1-0-1.wav,7000"))
    split = split_recordings(urbansound8k, 7)
    assert not {clip.source for clip in split.training} & {clip.source for clip in split.held_out}
    assert len(split.training) == 17
    assert split.how.endswith("2 of 20 files, 1 of the same source recordings in other folds left out")


def test_fsd50k_is_scored_on_its_evaluation_set_by_the_most_specific_label(fsd50k: Path) -> None:
    split = split_recordings(fsd50k, 1)
    assert split.how == "FSD50K as published: its evaluation set held out: 3 of 9 files"
    assert [clip.relative for clip in split.held_out] == [f"FSD50K.eval_audio/{i}.wav" for i in (20, 21, 22)]
    assert all(clip.relative.startswith("FSD50K.dev_audio/") for clip in split.training)
    assert [clip.label for clip in split.held_out] == ["Music", "Bark", "Rain"]


def test_fsd50k_has_no_second_fold_and_needs_its_tables(fsd50k: Path) -> None:
    with pytest.raises(ConfigError, match="no folds; allowed is 1"):
        split_recordings(fsd50k, 2)
    (fsd50k / "FSD50K.ground_truth" / "eval.csv").unlink()
    with pytest.raises(ConfigError, match=r"eval\.csv: no such file"):
        split_recordings(fsd50k, 1)


def test_class_folders_are_named_as_such_and_so_are_recordings_without_classes(tmp_path: Path) -> None:
    for number in range(10):
        _sound(tmp_path / ("dog" if number % 2 else "rain") / f"{number}.wav", number)
    assert split_recordings(tmp_path, 1).how.startswith("2 class folders: fifth 1 of 5")
    assert split_recordings(tmp_path / "dog", 1).how.startswith("recordings without classes: fifth 1 of 5")


@pytest.mark.parametrize("layout", ["esc50", "urbansound8k", "fsd50k"])
def test_every_layout_at_any_sample_rate_is_trained_on_and_evaluated(
    layout: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(layout)
    split = split_recordings(folder, 1)
    clips = probe_set(read_probe_clips(split, lambda left_out: pytest.fail(str(left_out))))
    assert list(clips.names[clips.held_out]) == [clip.relative for clip in split.held_out]
    assert clips.log_mels.shape[1:] == (1, 64, 96)
    out = tmp_path / "run"
    options = DemoOptions(2, 8, folder, 1, "stream", "iid", (), "5", None, "mobile", "fast", 0, out, device_settings=())
    write_files(options, "mqtt://127.0.0.1", split)
    lists = sorted((out / "recordings").glob("*.txt"))
    heard = [name for path in lists for name in path.read_text().splitlines()]
    assert sorted(heard) == sorted(clip.relative for clip in split.training)
    source = FolderSource(folder, list_file=lists[0])
    assert source.next_window(0.0) is not None


def test_recordings_that_are_not_there_are_listed_with_their_line_and_the_rest_is_used(esc50: Path) -> None:
    (esc50 / "audio" / "1-101-A-1.wav").unlink()
    (esc50 / "audio" / "5-500-A-0.wav").unlink()
    split = split_recordings(esc50, 1)
    assert split.missing == [
        "audio/1-101-A-1.wav (meta/esc50.csv:3)",
        "audio/5-500-A-0.wav (meta/esc50.csv:18)",
    ]
    assert len(split.held_out) + len(split.training) == 18
    assert split.how.endswith("3 of 18 files; 2 more are named in meta/esc50.csv and not there")


def test_a_table_none_of_whose_recordings_is_there_is_the_operators_error(esc50: Path) -> None:
    for path in (esc50 / "audio").iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match=r"esc50\.csv: names 20 recordings, and none of them is there"):
        split_recordings(esc50, 1)


def test_of_many_names_the_first_are_listed_and_the_others_counted() -> None:
    assert listed("not there", ["a", "b"]) == ["not there: a", "not there: b"]
    lines = listed("not there", [str(i) for i in range(1_500)])
    assert lines[-1] == "not there: 1,490 more"
    assert len(lines) == 11


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["filename,fold,category"], r"esc50\.csv:1: no column src_file, esc10; its columns are: filename, fold, cat"),
        ([], r"esc50\.csv:1: no column filename, .*its columns are: none"),
        ([ESC50_COLUMNS, "a.wav,one,0,dog,True,1,A"], r"esc50\.csv:2: fold 'one': allowed are whole numbers from 1"),
        ([ESC50_COLUMNS, "a.wav,0,0,dog,True,1,A"], r"esc50\.csv:2: fold '0'"),
        ([ESC50_COLUMNS, "a.wav,1,0,,True,1,A"], r"esc50\.csv:2: no label"),
        ([ESC50_COLUMNS, "../a.wav,1,0,dog,True,1,A"], r"esc50\.csv:2: '\.\./a\.wav' is not the name of a file"),
        ([ESC50_COLUMNS, "..,1,0,dog,True,1,A"], r"esc50\.csv:2: '\.\.' is not the name of a file"),
        ([ESC50_COLUMNS, "a.wav"], r"esc50\.csv:2: fold ''"),
        ([ESC50_COLUMNS, 'a.wav,1,0,"dog" x,True,1,A'], r"esc50\.csv:2: not a line of a CSV file"),
    ],
)
def test_a_table_that_cannot_be_used_is_an_error_with_file_and_line(
    tmp_path: Path, lines: Sequence[str], message: str
) -> None:
    _table(tmp_path / "meta" / "esc50.csv", lines)
    with pytest.raises(ConfigError, match=message):
        split_recordings(tmp_path, 1)


def test_all_wrong_lines_are_said_at_once_up_to_a_limit(esc50: Path) -> None:
    table = esc50 / "meta" / "esc50.csv"
    good = table.read_text().splitlines()
    _table(table, [*good, good[1], "b.wav,x,0,dog,True,1,A", "c.wav,1,0,dog,perhaps,1,A"])
    with pytest.raises(ConfigError) as caught:
        split_recordings(esc50, 1, esc10=True)
    assert [line.split("esc50.csv:")[1] for line in str(caught.value).splitlines()] == [
        "22: audio/1-100-A-0.wav stands in an earlier line too",
        "23: fold 'x': allowed are whole numbers from 1",
        "24: esc10 'perhaps': allowed are True and False",
    ]
    _table(table, [ESC50_COLUMNS, *["a.wav,x,0,dog,True,1,A"] * 50])
    with pytest.raises(ConfigError, match="30 more such lines") as caught:
        split_recordings(esc50, 1)
    assert str(caught.value).count("\n") == 20


def test_a_table_with_a_mark_of_utf8_and_other_columns_first_is_read(esc50: Path) -> None:
    table = esc50 / "meta" / "esc50.csv"
    rows = [f"x,{line}" for line in table.read_text().splitlines()]
    table.write_text("\ufeff" + "\r\n".join(rows), encoding="utf-8")
    assert len(split_recordings(esc50, 1).held_out) == 4


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda t: f"{ESC50_COLUMNS}\n{t}".encode()))
)
@example(content=f"{ESC50_COLUMNS}\n{'a' * 5000},1,0,dog,True,1,A\n".encode())
@example(content=f"{ESC50_COLUMNS}\na\0.wav,1,0,dog,True,1,A\n".encode())
@example(content=f"{ESC50_COLUMNS}\na.wav,{'9' * 5000},0,dog,True,1,A\n".encode())
def test_no_bytes_in_a_table_are_anything_but_the_operators_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "meta").mkdir(exist_ok=True)
    (tmp_path / "meta" / "esc50.csv").write_bytes(content)
    with pytest.raises(ConfigError):
        split_recordings(tmp_path, 1)
