"""The privacy bench: what its decoders can and cannot find, and its figures against slow references."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor
from torch.nn import functional

from common.codec import Codec
from common.encoder import build_encoder
from common.log_mel import SAMPLE_RATE_HZ
from tests.bench import privacy
from tests.bench.privacy import FLOOR, Case, Material, attack, cases, main, material, travelled
from tests.bench.privacy_decoder import Corrector, Pairs, fit, mean_spectrum
from tests.bench.privacy_figures import measure, own_spectrum_error
from tests.bench.privacy_report import NOT_RUN, by_cut, markdown
from trainer.probe_set import ProbeSet

WINDOWS = 60


def sounds(count: int, seed: int) -> Tensor:
    """Pictures of blobs: neighbouring bands and frames are alike, windows are not."""
    draws = torch.Generator().manual_seed(seed)
    return functional.interpolate(torch.randn(count, 1, 8, 12, generator=draws), size=(64, 96), mode="bilinear")


def known() -> Material:
    clip_of = torch.arange(WINDOWS) // 3
    return Material(sounds(WINDOWS, 0), clip_of, torch.arange(36), torch.arange(36, 45), torch.arange(45, 60))


def test_what_holds_the_whole_picture_gives_it_away_and_other_windows_give_nothing() -> None:
    whole = functional.pixel_unshuffle(known().pictures, 4)
    _, told = attack(known(), whole, steps=2, shuffled=False)
    assert told["error"] < 0.005
    assert told["found"] == 1.0
    assert told["band_correlation"] > 0.999
    _, nothing = attack(known(), whole, steps=2, shuffled=True)
    assert 0.95 < nothing["error"] < 1.1
    assert nothing["found"] < 0.4


def test_the_network_finds_what_no_linear_map_can() -> None:
    pictures = sounds(200, 1)
    hidden = functional.pixel_unshuffle(pictures.square(), 2)  # the sign is lost: only what neighbours tell is left
    target = pictures.abs()
    train, valid = (Pairs(hidden[part], target[part]) for part in (slice(0, 160), slice(160, None)))
    decoder = fit(train, valid, steps=40, seed=0)
    linear = (decoder.linear(valid.activations) - valid.pictures).square().sum()
    made = (decoder.reconstruct(valid.activations) - valid.pictures).square().sum()
    assert made < 0.8 * linear


def test_training_never_makes_the_checked_windows_worse_than_the_linear_map() -> None:
    draws = torch.Generator().manual_seed(3)
    train, valid = (Pairs(torch.randn(24, 5, 4, 6, generator=draws), sounds(24, seed)) for seed in (4, 5))
    decoder = fit(train, valid, steps=12, seed=0)
    linear = (decoder.linear(valid.activations) - valid.pictures).square().sum()
    made = (decoder.reconstruct(valid.activations) - valid.pictures).square().sum()
    assert made <= linear * (1 + 1e-5)


def test_an_embedding_is_decoded_as_a_map_of_one_place() -> None:
    pictures = sounds(40, 6).mean(dim=(2, 3), keepdim=True).expand(-1, -1, 64, 96)
    embeddings = torch.cat([pictures[:, 0, 0, :1], torch.ones(40, 2)], dim=1)
    half = Pairs(embeddings[:30], pictures[:30]), Pairs(embeddings[30:], pictures[30:])
    made = fit(*half, steps=1, seed=0).reconstruct(embeddings[30:])
    assert float((made - pictures[30:]).abs().max()) < 1e-2


def test_a_map_that_does_not_divide_the_picture_is_refused() -> None:
    pairs = Pairs(torch.randn(8, 2, 5, 6), sounds(8, 0))
    with pytest.raises(ValueError, match="5 x 6 equal patches"):
        fit(pairs, pairs, steps=1, seed=0)


def test_networks_of_all_cuts_are_about_as_large() -> None:
    encoder = build_encoder("mobile", seed=0)
    sizes = [
        sum(parameter.numel() for parameter in Corrector(encoder.activation_shape(cut)[0]).parameters())
        for cut in range(encoder.depth + 1)
    ]
    assert max(sizes) < 1.5 * min(sizes)


def test_figures_are_those_of_slow_loops() -> None:
    pictures, made, linear = sounds(12, 7), sounds(12, 8), sounds(12, 9)
    made = 0.5 * made + 0.5 * pictures
    spectrum = mean_spectrum(sounds(5, 10))
    found = measure(made, linear, pictures, clip_of=torch.arange(12) // 2, spectrum=spectrum)
    a, b, s = (one.double().numpy() for one in (made, pictures, spectrum))
    assert found.error == pytest.approx(((a - b) ** 2).sum() / ((b - s) ** 2).sum(), rel=1e-4)
    assert found.low < found.error < found.high
    assert found.linear_error == pytest.approx(((linear.numpy() - b) ** 2).sum() / ((b - s) ** 2).sum(), rel=1e-4)
    rows = [(a[n, 0, band], b[n, 0, band]) for n in range(12) for band in range(64)]
    course = sum(((x - x.mean() - y + y.mean()) ** 2).sum() for x, y in rows) / sum(
        ((y - y.mean()) ** 2).sum() for _, y in rows
    )
    assert found.course_error == pytest.approx(course, rel=1e-4)
    flat = sum(((y - y.mean()) ** 2).sum() for _, y in rows) / ((b - s) ** 2).sum()
    assert own_spectrum_error(pictures, spectrum) == pytest.approx(flat, rel=1e-4)
    bands = [np.corrcoef(a[:, 0, band].ravel(), b[:, 0, band].ravel())[0, 1] for band in range(64)]
    assert found.band_correlation == pytest.approx(np.mean(bands), rel=1e-4)
    nearest = [min(range(12), key=lambda m: float(((a[n] - b[m]) ** 2).sum())) for n in range(12)]
    assert found.found == sum(n == m for n, m in enumerate(nearest)) / 12


def test_knowing_the_average_is_an_error_of_one() -> None:
    pictures, spectrum = sounds(8, 11), mean_spectrum(sounds(40, 12))
    average = spectrum.expand(8, 1, 64, 96)
    found = measure(average, pictures, pictures, clip_of=torch.arange(8), spectrum=spectrum)
    assert found.error == pytest.approx(1.0)
    assert found.course_error == pytest.approx(1.0)
    assert found.linear_error == 0.0


@pytest.mark.parametrize("codec", ["fp32", "int8", "int4-zlib"])
def test_a_window_travels_the_same_alone_and_among_others(codec: str) -> None:
    encoder, pictures = build_encoder("mobile", seed=0), sounds(20, 13)
    together = travelled(encoder, pictures, 5, Codec.parse(codec))
    alone = travelled(encoder, pictures[18:19], 5, Codec.parse(codec))
    assert together.shape == (20, *encoder.activation_shape(5))
    error = float((together[18:19] - alone).norm() / alone.norm())
    assert error < (1e-5 if codec == "fp32" else 0.02)  # a value on an edge may round to its other side


def test_nobody_sees_what_is_held_out_and_silence_is_left_out() -> None:
    log_mels = sounds(9 * 12, 14).half()
    log_mels[40] = -20.0  # below everything else: the floor
    clips = ProbeSet(
        log_mels, np.arange(12) * 9, np.array(["a", "b"] * 6), np.arange(12) >= 9, np.array([str(n) for n in range(12)])
    )
    found = material(clips)
    parts = [set(part.tolist()) for part in (found.fitted, found.checked, found.held_out)]
    assert 40 not in set.union(*parts)
    assert [len(part) for part in parts] == [9 * 7 - 1, 18, 15]
    assert {int(found.clip_of[n]) for n in parts[0]} == {1, 2, 3, 4, 5, 6, 7}
    assert {int(found.clip_of[n]) for n in parts[2]} == {9, 10, 11}


def test_every_cut_is_measured_with_the_default_codec_and_the_floor_with_all() -> None:
    wanted = cases(8, ["trained", "untrained"], quick=False)
    assert [case.cut for case in wanted[:9]] == list(range(9))
    assert {case.codec for case in wanted if case.cut == FLOOR} == {"fp32", "int8", "int4-zlib"}
    assert sum(case.shuffled for case in wanted) == 1
    assert len(set(wanted)) == len(wanted)


def test_what_was_measured_is_what_the_readme_says(tmp_path: Path) -> None:
    figures = dict.fromkeys(("low", "high", "linear_error", "course_error", "band_correlation", "found"), 0.25)
    rows = [
        {"weights": weights, "cut": cut, "codec": codec, "shuffled": shuffled, "error": error, "parameters": 9}
        | figures
        for weights, cut, codec, shuffled, error in (
            ("trained", 0, "int4-zlib", False, 0.125),
            ("trained", 3, "int4-zlib", False, 0.5),
            ("trained", 3, "int4-zlib", True, 1.0),
            ("trained", 3, "fp32", False, 0.375),
            ("untrained", 3, "int4-zlib", False, 0.625),
        )
    ]
    windows = {"fitted": 1000, "checked": 100, "held_out": 200, "held_out_clips": 50}
    settings = {"fold": 1, "steps": 7, "trained": None}
    result = {"min_cut": 3, "codec": "int4-zlib", "settings": settings, "windows": windows, "rows": rows}
    result |= {"own_spectrum_error": 0.25, "missing": ["untrained at cut 8 with int8"]}
    path = tmp_path / "privacy.json"
    assert markdown(path) == NOT_RUN
    path.write_text(json.dumps(result), encoding="utf-8")
    told = markdown(path)
    assert by_cut(result) == {"0": 0.125, "3": 0.5}
    assert "| trained | 0 | int4-zlib | 0.125 |" in told
    assert "| **trained** | **3, the default floor** | **int4-zlib** | **0.500** |" in told
    assert "Not run yet: untrained at cut 8 with int8." in told
    assert "200 windows of 50 other recordings" in told


def recordings(into: Path) -> str:
    rng = np.random.default_rng(0)
    for number in range(15):
        folder = into / "data" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        loud = np.repeat(rng.uniform(0, 0.5, 40), 2 * SAMPLE_RATE_HZ // 40)
        soundfile.write(folder / f"{number}.wav", loud * rng.uniform(-1, 1, len(loud)), SAMPLE_RATE_HZ)
    return str(into / "data")


def test_a_run_that_was_broken_off_goes_on_with_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, measured = [Case("untrained", 8, "fp32"), Case("untrained", 8, "int8")], []

    def counted(*given: Any, **named: Any) -> Any:
        measured.append(named)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return attack(*given, **named)

    monkeypatch.setattr(privacy, "cases", lambda *_, **__: wanted)
    monkeypatch.setattr(privacy, "attack", counted)
    kept = tmp_path / "kept.json"
    given = ["--data", recordings(tmp_path), "--json", "--steps", "1", "--results", str(kept)]
    with pytest.raises(KeyboardInterrupt):
        main(given)
    assert json.loads(kept.read_text(encoding="utf-8"))["missing"] == ["untrained at cut 8 with int8"]
    assert main(given) == 0
    assert main(given) == 0
    assert len(measured) == 3
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["codec"] for row in result["rows"]] == ["fp32", "int8"]
    assert result["missing"] == []


@pytest.mark.slow
def test_a_quick_run_says_how_much_each_cut_gives_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, kept = tmp_path / "privacy.png", tmp_path / "none.json"
    given = ["--data", recordings(tmp_path), "--quick", "--json", "--png", str(picture), "--results", str(kept)]
    assert main(given) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(result["privacy"]) == {"0", "3", "5", "8"}
    assert result["privacy"]["0"] < result["privacy"]["8"]
    assert result["min_cut"] == FLOOR
    assert picture.stat().st_size > 10_000
    assert not kept.exists()
