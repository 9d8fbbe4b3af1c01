from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from common.codec import Codec, encode
from common.link import LinkCounters
from common.messages import Embedding, Gradient, Telemetry
from device.conditions import Condition
from device.exchange import Exchange
from device.journal import MOST_TAKEN, Journal
from tests.common.cases import cases

BOOT = "a" * 16
COUNTERS = LinkCounters(bytes_up=10, bytes_down=20, dropped_in=1, dropped_out=2, kinds={"activations": 7})


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def step() -> Exchange:
    """Two parts of which the first is answered: window 20, closed at 100 s, sent at 100.1 s, applied at 101 s."""
    made = Exchange(4, timeout_s=10.0, grace_s=2.0)
    for part in range(2):
        made.offer_sent(part, 5, 900, window=20 + part, closed_s=100.0 + part, sent_s=100.1 + part)
    made.offer_embedding(
        Embedding(BOOT, 4, 0, 1, 0.5, encode(torch.ones(1, 4), Codec.parse("fp32"))), received_s=100.25
    )
    made.offer_gradient(Gradient(BOOT, 4, 0, "ok", "", 1.0, 0.1, False, None), torch.ones(1), received_s=100.5)
    made.applied_s = 101.0
    return made


def test_a_step_tells_of_each_part_from_the_end_of_its_window(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "steps.jsonl")
    journal.step(step(), counters=COUNTERS, weights_version=3)
    line = lines(tmp_path / "steps.jsonl")[-1]
    first, second = line["parts"]
    assert first == {
        "window": 20,
        "cut": 5,
        "bytes": 900,
        "sent_ms": pytest.approx(100.0),
        "embedding_ms": pytest.approx(250.0),
        "applied_ms": pytest.approx(1000.0),
    }
    assert (second["window"], second["embedding_ms"], second["applied_ms"]) == (21, None, None)
    assert (line["bytes_up"], line["bytes_down"], line["messages_dropped"]) == (10, 20, 3)
    assert line["cpu_s"] > 0
    assert line["memory_mb"] > 1


def test_the_log_has_a_sign_of_life_after_a_while_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    journal = Journal(tmp_path / "steps.jsonl")
    journal.step(step(), counters=COUNTERS, weights_version=3)
    journal.tell(lambda: COUNTERS)
    assert not caplog.messages
    monkeypatch.setattr("device.journal.TOLD_EVERY_S", 0.0)
    journal.tell(lambda: COUNTERS)
    assert caplog.messages == ["0 windows, 1 of 1 steps answered, 0 local steps, 0.0 MiB up, 0.0 MiB down"]


def test_a_file_that_has_grown_large_is_put_aside_and_the_one_before_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, aside = tmp_path / "steps.jsonl", tmp_path / "steps.jsonl.1"
    journal = Journal(path)
    monkeypatch.setattr("device.journal.LARGEST_BYTES", 200)
    found = []
    for cut in range(12):
        journal.moved(cut, before=None, reason="")
        found += [line["cut"] for line in lines(path)[-1:]]
    journal.end(counters=COUNTERS)
    assert found == list(range(12)), "the latest line is always in the file"
    kept = [line["cut"] for file in (aside, path) for line in lines(file) if line["kind"] == "cut"]
    assert kept == list(range(kept[0], 12))
    assert 200 < aside.stat().st_size < 400
    assert sorted(tmp_path.iterdir()) == [path, aside]


def test_what_became_of_the_windows_stands_in_the_next_line_and_there_only(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "steps.jsonl")
    journal.window(7, 5, own_s=0.0125, waiting=3)
    journal.window(8, "local", own_s=None, waiting=1)
    journal.totals.busy_s = 2.5
    journal.local_step(windows=8, loss=0.5, counters=COUNTERS)
    journal.window(9, "kept", own_s=0.02, waiting=4)
    journal.end(counters=COUNTERS)
    _, local, end = lines(tmp_path / "steps.jsonl")
    assert local["taken"] == [[7, 5, 12.5], [8, "local", None]]
    assert (local["least_waiting"], local["busy_s"], local["windows"]) == (1, 2.5, 8)
    assert end["taken"] == [[9, "kept", 20.0]]
    assert end["least_waiting"] == 4


def test_a_condition_is_a_line_of_its_own_and_none_after_the_end(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "steps.jsonl")
    journal.condition(Condition(30.0, 0.5, 1.0, 200.0, up=False))
    journal.end(counters=COUNTERS)
    journal.condition(Condition(60.0, 8.0, 8.0, 50.0))
    start, condition, end = lines(tmp_path / "steps.jsonl")
    assert (condition["kind"], condition["at_s"], condition["up"]) == ("condition", 30.0, False)
    assert start["monotonic_s"] <= condition["monotonic_s"] <= end["monotonic_s"]
    assert end["kind"] == "end"


def test_telemetry_stands_there_with_all_that_was_counted_when_it_was_told(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "steps.jsonl")
    journal.totals.windows = 9
    journal.window(8, "kept", own_s=0.01, waiting=0)
    told_now = cases()[Telemetry]
    assert isinstance(told_now, Telemetry)
    journal.telemetry(told_now, energy_source="rapl", counters=COUNTERS)
    journal.end(counters=COUNTERS)
    _, told, end = lines(tmp_path / "steps.jsonl")
    assert (told["kind"], told["window"], told["bytes_up"]) == ("telemetry", 9, 10)
    assert (told["energy_joules"], told["energy_source"]) == (4.5, "rapl")
    assert (told["taken"], end["taken"]) == ([[8, "kept", 10.0]], [])


def test_a_full_disk_ends_the_record_and_not_the_device(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "steps.jsonl").symlink_to("/dev/full")
    journal = Journal(tmp_path / "steps.jsonl")
    for _ in range(3):
        journal.local_step(windows=8, loss=1.0, counters=COUNTERS)
    assert len(caplog.records) == 1
    assert "nothing is recorded" in caplog.text


def test_a_record_that_could_not_be_begun_is_begun_when_there_is_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(Path, "open", full)
        journal = Journal(tmp_path / "steps.jsonl")
    journal.local_step(windows=8, loss=1.0, counters=COUNTERS)
    assert [line["kind"] for line in lines(tmp_path / "steps.jsonl")] == ["local"]


def test_without_any_other_line_the_windows_are_written_after_some_hundred(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "steps.jsonl")
    full = []
    for index in range(MOST_TAKEN):
        journal.window(index, "kept", own_s=None, waiting=0)
        full.append(journal.full)
    assert full == [False] * (MOST_TAKEN - 1) + [True]
    journal.windows(counters=COUNTERS)
    assert not journal.full
    line = lines(tmp_path / "steps.jsonl")[-1]
    assert (line["kind"], len(line["taken"])) == ("windows", MOST_TAKEN)
