from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from common.errors import ConfigError
from trainer.dataset import Clip, find_clips, hold_out, shards


def _touch(folder: Path, names: Iterable[str]) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def _clips(count: int, labels: int = 4) -> list[Clip]:
    return [Clip(Path(f"{i}.wav"), f"c{i % labels}/{i:03}.wav", f"c{i % labels}", None, None) for i in range(count)]


def _esc(folds: int = 5) -> list[Clip]:
    names = [f"{1 + i % folds}-{1000 + i // 2 * folds + i % folds}-{'AB'[i % 2]}" for i in range(40)]
    return [Clip(Path(f"{n}.ogg"), f"x/{n}.ogg", "x", int(n[0]), n.split("-")[1]) for n in names]


def test_audio_is_found_at_any_depth_in_sorted_order_and_nothing_else_is(tmp_path: Path) -> None:
    _touch(tmp_path, ["rain/b.WAV", "rain/deep/er/a.flac", "dog/z.ogg", "notes.txt", ".git/x.wav", "dog/._z.ogg"])
    clips = find_clips(tmp_path)
    assert [clip.relative for clip in clips] == ["dog/z.ogg", "rain/b.WAV", "rain/deep/er/a.flac"]
    assert [clip.label for clip in clips] == ["dog", "rain", "rain"]
    assert all(clip.path == tmp_path / clip.relative for clip in clips)


@pytest.mark.parametrize("names", [["a.wav", "b.wav"], ["only/a.wav", "only/b.wav"], ["only/a.wav", "b.wav"]])
def test_fewer_than_two_class_folders_mean_no_labels(tmp_path: Path, names: list[str]) -> None:
    assert {clip.label for clip in find_clips(_touch(tmp_path, names))} == {None}


@pytest.mark.parametrize(
    ("name", "fold", "source"),
    [
        ("1-187207-A.ogg", 1, "187207"),
        ("5-100032-A-0.wav", 5, "100032"),
        ("2-37806-D-41.wav", 2, "37806"),
        ("recording-12.wav", None, None),
        ("2024-06-01.wav", None, None),
    ],
)
def test_fold_and_source_come_from_names_like_those_of_esc(
    tmp_path: Path, name: str, fold: int | None, source: str | None
) -> None:
    (clip,) = find_clips(_touch(tmp_path, [name]))
    assert (clip.fold, clip.source) == (fold, source)


def test_a_missing_folder_and_one_without_audio_are_the_operators_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a folder"):
        find_clips(tmp_path / "absent")
    with pytest.raises(ConfigError, match=r"no audio in it; looked for .*\.flac"):
        find_clips(_touch(tmp_path, ["readme.txt"]))


def test_with_folds_exactly_the_fold_is_held_out() -> None:
    clips = _esc()
    split = hold_out(clips, 3)
    assert {clip.fold for clip in split.held_out} == {3}
    assert {clip.fold for clip in split.training} == {1, 2, 4, 5}
    assert len(split.held_out) + len(split.training) == len(clips)
    assert split.how == "fold 3 of 1, 2, 3, 4, 5 held out: 8 of 40 files"


def test_a_fold_that_does_not_exist_is_refused_naming_those_that_do() -> None:
    with pytest.raises(ConfigError, match="fold 7: the recordings have the folds 1, 2, 3, 4, 5"):
        hold_out(_esc(), 7)
    with pytest.raises(ConfigError, match=r"fold 6: .* by fifths, 1 to 5"):
        hold_out(_clips(20), 6)


def test_without_folds_a_fifth_of_each_class_is_held_out() -> None:
    split = hold_out(_clips(40), 1)
    assert sorted(clip.label or "" for clip in split.held_out) == sorted(["c0", "c1", "c2", "c3"] * 2)
    assert "fifth 1 of 5" in split.how
    assert "8 of 40 files" in split.how


def test_the_fifths_are_disjoint_cover_everything_and_do_not_depend_on_order() -> None:
    clips = _clips(43)
    held = [{clip.relative for clip in hold_out(clips, fold).held_out} for fold in range(1, 6)]
    assert sum(map(len, held)) == 43
    assert set.union(*held) == {clip.relative for clip in clips}
    assert {clip.relative for clip in hold_out(clips[::-1], 2).held_out} == held[1]


def test_takes_of_one_source_are_never_on_both_sides() -> None:
    clips = [Clip(Path(f"{i}.wav"), f"{i}.wav", None, None if i == 0 else 1, str(i // 3)) for i in range(30)]
    split = hold_out(clips, 2)
    assert not {clip.source for clip in split.held_out} & {clip.source for clip in split.training}
    assert "only 29 of 30 names carry a fold" in split.how


def test_a_class_of_two_files_keeps_one_on_each_side_and_one_file_is_too_few() -> None:
    split = hold_out(_clips(8), 4)
    assert sorted(clip.label or "" for clip in split.held_out) == ["c0", "c1", "c2", "c3"]
    with pytest.raises(ConfigError, match="too few"):
        hold_out(_clips(1), 1)


@pytest.mark.parametrize("mode", ["iid", "by-class"])
@pytest.mark.parametrize(("clips", "count"), [(40, 4), (9, 8), (8, 8), (5, 1)])
def test_shards_hold_every_clip_once_and_none_is_empty(mode: str, clips: int, count: int) -> None:
    for seed in range(20):
        dealt = shards(_clips(clips), count, mode, seed)  # type: ignore[arg-type]
        assert len(dealt) == count
        assert all(dealt)
        assert sorted(clip.relative for shard in dealt for clip in shard) == sorted(
            clip.relative for clip in _clips(clips)
        )
        assert dealt == shards(_clips(clips), count, mode, seed)  # type: ignore[arg-type]


def test_iid_shards_have_equal_sizes_and_by_class_ones_hear_different_things() -> None:
    clips = _clips(400, labels=10)
    iid, by_class = shards(clips, 8, "iid", 0), shards(clips, 8, "by-class", 0)

    def commonest(dealt: list[list[Clip]]) -> float:
        shares = [max(sum(c.label == f"c{k}" for c in shard) for k in range(10)) / len(shard) for shard in dealt]
        return sum(shares) / len(shares)

    assert {len(shard) for shard in iid} == {50}
    assert commonest(by_class) > 2 * commonest(iid)
    assert iid != shards(clips, 8, "iid", 1)


def test_shards_that_cannot_be_made_are_the_operators_errors() -> None:
    with pytest.raises(ConfigError, match="3 recordings cannot be shared among 4 devices"):
        shards(_clips(3), 4, "iid", 0)
    unlabelled = [Clip(Path("a.wav"), "a.wav", None, None, None)]
    with pytest.raises(ConfigError, match="one folder per class"):
        shards(unlabelled, 1, "by-class", 0)
