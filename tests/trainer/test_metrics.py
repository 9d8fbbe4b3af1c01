from __future__ import annotations

import io
import json
import math
import tracemalloc
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from trainer import metrics as metrics_module
from trainer.metrics import METRICS, MetricsLog, StepMetrics, normalised_task_loss, read_metrics

SAMPLE = StepMetrics(
    step=1,
    windows=64,
    weights_version=3,
    loss_total=4.2,
    loss_task=4.0,
    loss_task_normalised=0.8,
    loss_sw=0.1,
    loss_laplacian=0.01,
    effective_rank=30.0,
    alignment=None,
    uniformity=-2.0,
    mixture_spread=1.2,
    mixture_components=50.0,
    mixture_entropy=0.2,
    uncertainty_median=0.5,
    learning_rate=0.002,
    clipped_share=0.0,
    devices=8,
    quantisation_error=0.05,
    seconds=0.12,
    embedding_ms_p95=31.0,
)


def _write(folder: Path, steps: range, *, next_step: int = 1) -> None:
    with MetricsLog(folder, next_step=next_step, tensorboard=False) as log:
        for step in steps:
            log.write(replace(SAMPLE, step=step, windows=64 * step))


def test_every_metric_is_documented_and_nothing_else_is() -> None:
    assert list(METRICS) == [field.name for field in fields(StepMetrics)]
    assert all(METRICS.values())


def test_steps_are_read_back_as_written(tmp_path: Path) -> None:
    _write(tmp_path, range(1, 4))
    assert read_metrics(tmp_path / "metrics.jsonl") == [replace(SAMPLE, step=s, windows=64 * s) for s in (1, 2, 3)]
    assert read_metrics(tmp_path / "absent.jsonl") == []


def test_a_line_is_in_the_file_before_the_log_is_closed(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, tensorboard=False)
    log.write(SAMPLE)
    assert read_metrics(log.path) == [SAMPLE]
    log.close()


def test_a_line_torn_by_a_kill_is_ignored_when_read_and_removed_on_resume(tmp_path: Path) -> None:
    _write(tmp_path, range(1, 4))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    assert [metrics.step for metrics in read_metrics(path)] == [1, 2]
    _write(tmp_path, range(3, 5), next_step=3)
    assert [metrics.step for metrics in read_metrics(path)] == [1, 2, 3, 4]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_line_without_its_end_is_torn_even_if_it_parses(tmp_path: Path) -> None:
    _write(tmp_path, range(1, 3))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert [metrics.step for metrics in read_metrics(path)] == [1]


def test_steps_after_the_checkpoint_are_dropped_on_resume_because_they_are_done_again(tmp_path: Path) -> None:
    _write(tmp_path, range(1, 8))
    _write(tmp_path, range(5, 7), next_step=5)
    assert [metrics.step for metrics in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_a_log_of_months_is_cut_without_being_held_in_memory(tmp_path: Path) -> None:
    _write(tmp_path, range(1, 4001))
    size = (tmp_path / "metrics.jsonl").stat().st_size
    tracemalloc.start()
    try:
        MetricsLog(tmp_path, next_step=4000, tensorboard=False).close()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < size / 8
    assert [metrics.step for metrics in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, 4000))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_ends_no_training_and_what_fits_later_is_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.write(SAMPLE)
        file, log._file = log._file, io.FileIO("/dev/full", "ab")
        log.write(replace(SAMPLE, step=2))
        log.write(replace(SAMPLE, step=3))
        log._file.close()
        log._file = file
        log.write(replace(SAMPLE, step=4))
    assert log.lost == 2
    assert len(caplog.records) == 1
    assert "step 2 is not written down: [Errno 28]" in caplog.text
    assert [metrics.step for metrics in read_metrics(log.path)] == [1, 4]


class Nearly(io.FileIO):
    """A disk with room for a few bytes more."""

    def write(self, data: Any) -> int:
        return super().write(bytes(data)[:10])


def test_of_a_line_that_does_not_fit_nothing_is_left_behind(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.write(SAMPLE)
        file, log._file = log._file, Nearly(log.path, "ab")
        log.write(replace(SAMPLE, step=2))
        log._file.close()
        log._file = file
        log.write(replace(SAMPLE, step=3))
    assert [metrics.step for metrics in read_metrics(log.path)] == [1, 3]


def test_tensorboard_s_thread_that_met_a_full_disk_ends_no_training(tmp_path: Path) -> None:
    class Full:
        def add_scalar(self, *_: object) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            raise OSError(28, "No space left on device")

    with MetricsLog(tmp_path, tensorboard=False) as log:
        log._events = Full()
        log.write(SAMPLE)
        log.write(replace(SAMPLE, step=2))
    with MetricsLog(tmp_path, next_step=3, tensorboard=False) as log:
        log._events = Full()
    assert [metrics.step for metrics in read_metrics(log.path)] == [1, 2]


def test_a_loss_that_is_not_finite_is_null_in_the_file_and_nan_when_read(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.write(replace(SAMPLE, loss_total=math.nan, effective_rank=math.inf))
    assert json.loads(log.path.read_text())["loss_total"] is None
    (metrics,) = read_metrics(log.path)
    assert math.isnan(metrics.loss_total)
    assert metrics.effective_rank is None


def test_guessing_has_a_normalised_task_loss_of_one() -> None:
    assert normalised_task_loss(math.log(127), 127.0) == pytest.approx(1.0)
    assert math.isnan(normalised_task_loss(0.0, 1.0))


def test_tensorboard_shows_the_same_figures_and_a_resumed_run_replaces_what_it_does_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLog(tmp_path) as log:
        for step in (1, 2, 3):
            log.write(replace(SAMPLE, step=step, loss_task=float(step)))
    with MetricsLog(tmp_path, next_step=3) as log:
        log.write(replace(SAMPLE, step=3, loss_task=33.0))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss_task")] == [(1, 1.0), (2, 2.0), (3, 33.0)]
    assert set(events.Tags()["scalars"]) == set(METRICS) - {"step", "alignment"}


def test_tensorboard_shows_a_long_run_thinned_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(metrics_module, "SHOWN_WHOLE", 3)
    with MetricsLog(tmp_path) as log:
        for step in range(1, 31):
            log.write(replace(SAMPLE, step=step))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss_task")] == [1, 2, 3, 10, 20, 30]
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 30


def test_what_another_version_wrote_and_a_damaged_line_stay_on_resume_and_are_no_end(tmp_path: Path) -> None:
    _write(tmp_path, range(1, 4))
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines()
    older = json.loads(lines[1]) | {"gone": 1}
    del older["seconds"]
    path.write_text("\n".join([lines[0], json.dumps(older), "?{", lines[2]]) + "\n")
    _write(tmp_path, range(3, 5), next_step=3)
    assert [metrics.step for metrics in read_metrics(path)] == [1, 2, 3, 4]
    assert math.isnan(read_metrics(path)[1].seconds)
    assert path.read_text().splitlines()[1:3] == [json.dumps(older), "?{"]


def test_a_log_that_is_too_long_is_put_aside_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, range(1, 2))
    monkeypatch.setattr(metrics_module, "LARGEST_BYTES", 3 * (tmp_path / "metrics.jsonl").stat().st_size - 1)
    _write(tmp_path, range(2, 9), next_step=2)
    assert [metrics.step for metrics in read_metrics(tmp_path / "metrics.jsonl.1")] == [4, 5, 6]
    assert [metrics.step for metrics in read_metrics(tmp_path / "metrics.jsonl")] == [7, 8]
