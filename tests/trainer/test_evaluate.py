from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from common.encoder import build_encoder
from common.errors import ConfigError
from common.log_mel import WINDOW_SAMPLES, LogMel
from tests.published import same
from trainer.averaging import AveragedEncoder
from trainer.checkpoint import Checkpoint, save
from trainer.dataset import find_clips, hold_out
from trainer.evaluate import (
    evaluate_encoder,
    evaluate_untrained,
    features,
    main,
    restore_encoder,
    window_embeddings,
)
from trainer.probe_set import ProbeClip, ProbeSet, Unreadable, probe_set, read_probe_clips
from trainer.probes import mean_scores

RATE_HZ = 16_000


def _sound(label: str, rng: np.random.Generator, seconds: float = 2.0) -> NDArray[np.float32]:
    """Low tones, high tones or noise: easy to tell apart."""
    time = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    pitch_hz = {"low": rng.uniform(150, 400), "high": rng.uniform(2500, 5000)}.get(label, 0.0)
    sound = np.sin(2 * np.pi * pitch_hz * time) if pitch_hz else rng.standard_normal(len(time))
    return (0.1 * rng.uniform(0.5, 1.0) * sound + 0.002 * rng.standard_normal(len(time))).astype(np.float32)


def _clips(count: int = 30) -> Iterator[ProbeClip]:
    rng = np.random.default_rng(0)
    for i in range(count):
        label = ("low", "high", "noise")[i % 3]
        yield ProbeClip(_sound(label, rng), label, held_out=i % 5 == 0, name=f"{label}/{i:02}.wav")


@pytest.fixture(scope="module")
def clips() -> ProbeSet:
    return probe_set(_clips())


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    for label in ("low", "high"):
        folder = tmp_path / "recordings" / label
        folder.mkdir(parents=True)
        for i in range(8):
            name = f"{1 + i % 2}-{100 * len(label) + i}-A.wav"
            soundfile.write(folder / name, _sound(label, rng, seconds=1.5), RATE_HZ)
    return tmp_path / "recordings"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    state = build_encoder("mobile", seed=3).state_dict()
    return save(tmp_path / "checkpoints", Checkpoint("run-1", "f" * 64, "mobile", dict(state), {}, 7, 70, 560))


def test_windows_overlap_by_half_and_a_short_clip_is_repeated_to_one_window() -> None:
    rng = np.random.default_rng(0)
    long, short = _sound("low", rng, 5.0), _sound("high", rng, 0.3)
    prepared = probe_set(
        [ProbeClip(long, "a", True, "1"), ProbeClip(short, "a", False, "2"), ProbeClip(short, "b", False, "3")]
    )
    assert prepared.starts.tolist() == [0, 9, 10]
    log_mel = LogMel()
    for i in (0, 1, 8):
        window = torch.from_numpy(long[i * WINDOW_SAMPLES // 2 :][:WINDOW_SAMPLES])
        torch.testing.assert_close(prepared.log_mels[i], log_mel(window[None])[0].half())
    repeated = torch.from_numpy(np.tile(short, 4)[:WINDOW_SAMPLES])
    torch.testing.assert_close(prepared.log_mels[9], log_mel(repeated[None])[0].half())


def test_features_are_mean_and_maximum_over_the_windows_of_each_clip() -> None:
    embeddings = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    pooled = features(embeddings, np.array([0, 2, 6]))
    for row, part in zip(pooled, (embeddings[:2], embeddings[2:6], embeddings[6:]), strict=True):
        np.testing.assert_allclose(row, np.concatenate([part.mean(0), part.amax(0)]), rtol=1e-6)


def test_window_embeddings_do_not_depend_on_batches_and_leave_the_encoder_as_it_was(clips: ProbeSet) -> None:
    encoder = build_encoder("mobile", seed=0).train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    embeddings = window_embeddings(encoder, clips.log_mels)
    assert encoder.training
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())
    assert not embeddings.requires_grad
    with torch.no_grad():
        alone = encoder(clips.log_mels[17:18].float())
    torch.testing.assert_close(embeddings[17:18], alone, rtol=1e-4, atol=1e-5)


def test_sounds_that_are_easy_to_tell_apart_are(clips: ProbeSet) -> None:
    scores = evaluate_encoder(build_encoder("mobile", seed=0), clips)
    assert scores.linear == 1.0
    assert scores.knn >= 0.8
    assert (scores.clips, scores.held_out) == (30, 6)
    assert scores.effective_rank > 1.5


def test_shuffled_labels_cannot_be_told_apart(clips: ProbeSet) -> None:
    labels = np.random.default_rng(0).permutation(np.array(["x", "y"] * 15))
    shuffled = ProbeSet(clips.log_mels, clips.starts, labels, np.arange(30) >= 15, clips.names)
    scores = evaluate_encoder(build_encoder("mobile", seed=0), shuffled)
    assert scores.linear < 0.8


def test_held_out_clips_do_not_influence_what_is_fitted(clips: ProbeSet) -> None:
    encoder = build_encoder("mobile", seed=0)
    kept = clips.log_mels.clone()
    last_held = int(np.flatnonzero(clips.held_out)[-1])
    start = int(clips.starts[last_held])
    kept[start : start + 3] = 4.0
    changed = evaluate_encoder(encoder, ProbeSet(kept, clips.starts, clips.labels, clips.held_out, clips.names))
    scores = evaluate_encoder(encoder, clips)
    assert abs(changed.linear - scores.linear) <= 1 / 6 + 1e-9, "at most the changed clip itself"


def test_scores_repeat_and_every_held_out_clip_has_its_own_result(clips: ProbeSet) -> None:
    encoder = build_encoder("mobile", seed=0)
    scores = evaluate_encoder(encoder, clips)
    assert scores == evaluate_encoder(encoder, clips)
    assert scores.names == ("low/00.wav", "noise/05.wav", "high/10.wav", "low/15.wav", "noise/20.wav", "high/25.wav")
    assert len(scores.linear_hits) == len(scores.knn_hits) == 6
    assert np.mean(scores.linear_hits) == scores.linear
    assert np.mean(scores.knn_hits) == scores.knn


def test_the_untrained_figure_is_the_mean_over_initialisations(clips: ProbeSet) -> None:
    alone = [evaluate_encoder(build_encoder("mobile", seed), clips) for seed in (4, 5)]
    assert evaluate_untrained("mobile", clips, seed=4, count=2) == mean_scores(alone)


def test_without_labels_held_out_clips_or_two_classes_there_is_nothing_to_evaluate(tmp_path: Path) -> None:
    sound = _sound("low", np.random.default_rng(0))
    with pytest.raises(ConfigError, match="no labelled clip is held out"):
        probe_set([ProbeClip(sound, "a", False, "1"), ProbeClip(sound, "b", False, "2")])
    with pytest.raises(ConfigError, match="fewer than two labels"):
        probe_set([ProbeClip(sound, "a", False, "1"), ProbeClip(sound, "b", True, "2")])
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.wav", sound, RATE_HZ)
    with pytest.raises(ConfigError, match="no labels"):
        list(read_probe_clips(hold_out(find_clips(tmp_path), 1), lambda _: None))


def test_an_unreadable_recording_is_listed_and_left_out(recordings: Path) -> None:
    (recordings / "low" / "1-999-A.wav").write_bytes(b"not audio")
    listed: list[Unreadable] = []
    read = list(read_probe_clips(hold_out(find_clips(recordings), 1), listed.append))
    assert [file.path for file in listed] == ["low/1-999-A.wav"]
    assert listed[0].why
    assert len(read) == 16
    assert sum(clip.held_out for clip in read) == 8


def test_weights_that_do_not_fit_the_encoder_are_the_operators_error() -> None:
    for name in ("mobile", "no-such-encoder"):
        with pytest.raises(ConfigError, match="cannot be restored"):
            restore_encoder(Checkpoint("r", "f", name, {"stem": torch.ones(1)}, {}, 1, 1, 1))


def test_where_no_merge_has_been_accepted_yet_there_is_no_average_to_restore() -> None:
    encoder = build_encoder("mobile", seed=3)
    state: dict[str, object] = {"averaged": AveragedEncoder().state_dict()}
    restored = restore_encoder(Checkpoint("r", "f", "mobile", encoder.state_dict(), state, 1, 1, 1))
    assert same(restored.state_dict(), encoder.state_dict())


def test_the_command_ends_with_one_line_of_json(
    checkpoint: Path, recordings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (recordings / "high" / "2-998-A.wav").write_bytes(b"")
    assert main([str(checkpoint.parent), "--data", str(recordings), "--fold", "2", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert result["held_out"] == "2 class folders: fold 2 of 1, 2 held out: 9 of 17 files"
    assert result["checkpoint"] == str(checkpoint)
    assert (result["run"], result["weights_version"], result["windows"]) == ("run-1", 7, 560)
    assert (result["trained"]["clips"], result["trained"]["held_out"]) == (16, 8)
    assert 0.0 <= result["untrained"]["linear"] <= 1.0
    assert len(result["trained"]["names"]) == len(result["trained"]["knn_hits"]) == 8
    assert result["trained"]["names"] == sorted(result["trained"]["names"])
    assert result["unreadable"] == [{"path": "high/2-998-A.wav", "why": "is empty"}]
    assert "left out: high/2-998-A.wav: is empty" in lines


def test_the_commands_errors_are_one_line_and_status_78(
    tmp_path: Path, checkpoint: Path, recordings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        ([str(checkpoint), "--data", str(recordings), "--fold", "9"], "fold 9"),
        ([str(tmp_path / "absent.pt"), "--data", str(recordings)], "no such checkpoint file"),
        ([str(recordings), "--data", str(recordings)], "no checkpoint in this folder"),
        ([str(checkpoint), "--data", str(tmp_path / "absent")], "not a folder"),
    ):
        assert main(arguments) == 78
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert message in captured.err
