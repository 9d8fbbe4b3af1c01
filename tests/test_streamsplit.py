"""The command line: every verb answers, and a demonstration ends with a report."""

from __future__ import annotations

import json
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

import streamsplit
from common.config import EXIT_CONFIG

KEYS = {
    "broker", "devices", "windows", "steps", "bytes", "latency_ms", "loss", "probe", "effective_rank", "cuts",
    "weights_version", "wall_s",
}  # fmt: skip


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """One call of the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "streamsplit", *arguments], capture_output=True, text=True, timeout=240, check=False
    )


@pytest.mark.parametrize("verb", streamsplit.VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        streamsplit.main([verb, "--help"])
    assert done.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_an_unknown_verb_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        streamsplit.main(["train"])
    assert done.value.code == 2
    assert "plan-cuts" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["70000", "-1"])
def test_a_port_that_does_not_exist_is_a_usage_error(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        streamsplit.main(["broker", f"--port={port}"])
    assert done.value.code == 2
    assert f"{port}: allowed are 0 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize("verb", streamsplit.VERBS)
def test_every_verb_ends_at_ctrl_c_without_a_traceback(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(argv: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(streamsplit.VERBS, verb, (interrupted, ""))
    assert streamsplit.main([verb]) == 130


def test_plan_cuts_prints_a_line_for_every_cut(capsys: pytest.CaptureFixture[str]) -> None:
    assert streamsplit.main(["plan-cuts"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["cut", *map(str, range(9))]


def test_a_demonstration_on_unlabelled_recordings_reports_without_a_probe(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(6):
        samples = (3000 * rng.standard_normal(48_000)).astype(np.int16)
        (tmp_path / "sounds").mkdir(exist_ok=True)
        with wave.open(str(tmp_path / "sounds" / f"{number}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16_000)
            file.writeframes(samples.tobytes())
    (tmp_path / "sounds" / "broken.wav").write_bytes(b"not audio")
    out = tmp_path / "out"
    given = ["--devices", "2", "--windows", "50", "--data", str(tmp_path / "sounds"), "--out", str(out)]
    done = run("demo", *given, "--broker", "embedded", "--set", "merge_each_until=2")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((out / "report.json").read_text())
    assert set(report) >= KEYS
    assert report["broker"] == "embedded"
    assert report["windows"] == 50
    assert report["steps"]["answered"] == report["steps"]["sent"] == 8
    assert report["probe"]["trained"] is None
    assert report["bytes"]["pcm16"] == 50 * 30_720
    assert report["weights_version"] > 0
    assert (out / "report.png").stat().st_size > 10_000


def test_a_demonstration_that_cannot_start_says_why(tmp_path: Path) -> None:
    done = run("demo", "--data", str(tmp_path), "--out", str(tmp_path / "out"))
    assert done.returncode == 78
    assert "no audio" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_demonstration_with_a_setting_that_does_not_exist_ends_before_it_begins(tmp_path: Path) -> None:
    done = run("demo", "--out", str(tmp_path / "out"), "--set", "learning_rat=1", "--set-device", "splitter.cut=2")
    assert done.returncode == 78
    assert "learning_rat: unknown key (did you mean" in done.stderr
    assert "device-1.yaml" in done.stderr
    assert not (tmp_path / "out" / "trainer").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo", "--out"],
        ["broker", "--port=0", "--directory"],
        ["broker-config", "configs/fleet.yaml", "--out"],
        ["train-policy", "--out"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_file_where_a_folder_is_to_be_is_refused_in_words(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert streamsplit.main([*arguments, str(tmp_path / "file")]) == 78
    assert f"{arguments[-1]} {tmp_path / 'file'}: File exists; allowed: a folder" in capsys.readouterr().err


@pytest.mark.parametrize("verb", streamsplit.VERBS)
def test_usage_names_the_command_that_was_called(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        streamsplit.main([verb, "--no-such-option"])
    assert f"usage: streamsplit {verb}" in capsys.readouterr().err


def test_the_service_runs_a_verb_by_its_name_and_stays_down_where_the_configuration_is_wrong() -> None:
    text = Path("configs/systemd/streamsplit@.service").read_text(encoding="utf-8")
    settings = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    assert settings["ExecStart"].split()[0].endswith("/streamsplit")
    assert settings["ExecStart"].split()[1:] == ["%i", "/etc/streamsplit/%i.yaml"]
    assert {"trainer", "device"} <= set(streamsplit.VERBS)
    assert int(settings["RestartPreventExitStatus"]) == EXIT_CONFIG


@pytest.mark.parametrize(
    "arguments",
    [
        ["train-policy", "--rounds", "0"],
        ["train-policy", "--updates", "-1"],
        ["train-policy", "--min-cut", "12"],
        ["train-policy", "--uncertainty-weight", "3"],
        ["policy", "fleet.yaml", "--policy", "p", "--drawn", "0"],
        ["policy", "fleet.yaml", "--policy", "p", "--tolerance", "-1"],
    ],
)
def test_numbers_that_make_no_sense_are_refused_with_what_is_allowed(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        streamsplit.main(arguments)
    assert done.value.code == 2
    assert "allowed are" in capsys.readouterr().err


def test_a_picture_that_cannot_be_written_and_a_host_that_is_not_ours_are_refused_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert streamsplit.main(["plan", "--png", str(tmp_path / "file" / "x.png")]) == 78
    assert streamsplit.main(["plan", "--png", str(tmp_path / "x.nothing")]) == 78
    assert "x.nothing" in (said := capsys.readouterr().err)
    assert "x.png" in said
    assert streamsplit.main(["broker", "--broker", "embedded", "--host", "127.0.0.300", "--port", "0"]) == 78
