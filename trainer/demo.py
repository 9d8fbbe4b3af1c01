"""A whole fleet on one machine: one process per device, one for the trainer, a live table, and a report at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from common import config, soundscape
from common.errors import ConfigError
from common.link import Link
from common.topics import Topics, is_data
from trainer import checkpoint
from trainer.dataset import Split
from trainer.dataset_layouts import listed, split_recordings
from trainer.demo_files import FLEET, DemoFiles, DemoOptions, write_files
from trainer.deployed import deployed_encoders
from trainer.evaluate import evaluate_encoder, evaluate_untrained
from trainer.fleet_view import FleetView
from trainer.probe_set import ProbeClip, Unreadable, probe_set, read_probe_clips
from trainer.probes import mean_scores
from trainer.report import Probe, Report, Setting, plot, save_report, summary_text
from trainer.run_report import build_report, read_device
from trainer.zero_shot import ZeroShot, zero_shot

REFRESH_S = 0.5
TRAINER_STOP_S = 60.0
DEVICE_STOP_S = 20.0
PROBE_CLIPS = 30  # synthetic clips of each class for the probe, of which every third is held out
PROBE_CLIP_S = 4.0
PROBE_SEED = 10_000  # drawn together with the run's seed: a stream that no device's seed gives


class RunFailed(Exception):
    """A process of the run ended with an error; the text says which and shows the end of its log."""


def run(options: DemoOptions, *, broker_url: str, broker_kind: str) -> Report:
    """Run the demonstration against a broker that is there; writes ``report.json`` and ``report.png``.

    Raises:
        ConfigError: recordings or settings that cannot be used.
        RunFailed: a process of the run ended with an error.
    """
    torch.set_num_threads(1)  # small convolutions: threads that wait for each other cost more than they give
    console = Console()
    _forget_earlier_run(options.out)
    split = split_recordings(options.data, options.fold, esc10=options.esc10) if options.data else None
    if split is not None:
        console.print(f"{split.how}; none of it is trained on")
        for line in listed("not there", split.missing):
            console.print(line, highlight=False, markup=False)
    files = write_files(options, broker_url, split)
    first = next(iter(files.devices.values()))  # of what was asked for, the devices' files say the same
    problems = config.check([files.trainer, first])
    if problems:
        raise ConfigError("\n".join(map(str, problems)))
    started_s = time.monotonic()
    train(options, files, broker_url, console)
    wall_s = time.monotonic() - started_s
    runs = {device: read_device(state / "steps.jsonl") for device, state in files.device_states.items()}
    saved = _last_checkpoint(files)
    probe, prompted = _probe(saved, files, split, options, console)
    report, series = build_report(
        runs,
        files.trainer_state,
        broker=broker_kind,
        probe=probe,
        zero_shot=prompted,
        weights_version=saved.weights_version,
        wall_s=wall_s,
        settings=_settings(options, split),
    )
    save_report(report, options.out / "report.json")
    plot(series, options.out / "report.png")
    console.print(f"\n{summary_text(report)}", highlight=False, soft_wrap=True)
    console.print(f"\n{options.out / 'report.json'}, {options.out / 'report.png'}", highlight=False, soft_wrap=True)
    return report


def _forget_earlier_run(out: Path) -> None:
    """A run starts anew: what an earlier one left in its own files is removed, anything else in the folder stays."""
    for pattern in ("trainer/checkpoint-*", "trainer/metrics.jsonl", "device-*/steps.jsonl", "device-*/weights.bin"):
        for path in out.glob(pattern):
            path.unlink()


def train(options: DemoOptions, files: DemoFiles, broker_url: str, console: Console) -> None:
    """Run every process of the fleet to its end, with a live table.

    Raises:
        RunFailed: one of them ended with an error.
    """
    link = Link(url=broker_url, client_id=f"{FLEET}-view-{os.getpid()}", is_data=is_data, data_capacity=4096)
    view = FleetView(link, Topics(FLEET), devices=list(files.devices))
    progress = Progress(
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} windows"), BarColumn(), TimeRemainingColumn()
    )
    windows = progress.add_task("windows", total=options.windows)

    def show(live: Live, timeout_s: float) -> None:
        view.listen(timeout_s)
        progress.update(windows, completed=view.windows)
        live.update(Group(view.table(now_s=time.monotonic()), progress))

    link.start()
    try:
        with _process("trainer", files.trainer, options.out) as trainer:
            with _devices(files, options.out) as devices, Live(console=console, refresh_per_second=2) as live:
                while any(device.poll() is None for device in devices.values()):
                    show(live, REFRESH_S)
                    _check("trainer", trainer, options.out, running=True)
                    for name, device in devices.items():
                        _check(name, device, options.out, running=False)
                show(live, 0.0)
            trainer.send_signal(signal.SIGTERM)
            trainer.wait(TRAINER_STOP_S)
            _check("trainer", trainer, options.out, running=False)
    finally:
        link.stop()


def _check(name: str, process: subprocess.Popen[bytes], out: Path, *, running: bool) -> None:
    status = process.poll()
    if status is None or (status == 0 and not running):
        return
    log = (out / f"{name}.log").read_text(encoding="utf-8", errors="replace").splitlines()
    raise RunFailed(f"{name} ended with status {status}:\n" + "\n".join(log[-20:]))


@contextmanager
def _devices(files: DemoFiles, out: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    started: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, path in files.devices.items():
            started[name] = _start("device", name, path, out)
        yield started
    finally:
        _stop(list(started.values()))


@contextmanager
def _process(name: str, config: Path, out: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = _start(name, name, config, out)
    try:
        yield process
    finally:
        _stop([process])


def _start(module: str, name: str, config: Path, out: Path) -> subprocess.Popen[bytes]:
    with (out / f"{name}.log").open("wb") as log:
        return subprocess.Popen([sys.executable, "-m", module, str(config)], stdout=log, stderr=log)


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(DEVICE_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_checkpoint(files: DemoFiles) -> checkpoint.Checkpoint:
    path = checkpoint.latest(files.trainer_state)
    if path is None:
        raise RunFailed("the trainer left no checkpoint")
    return checkpoint.load(path)


def _probe(
    saved: checkpoint.Checkpoint, files: DemoFiles, split: Split | None, options: DemoOptions, console: Console
) -> tuple[Probe, ZeroShot | None]:
    """Accuracy of the untrained and the trained encoder on clips that no device heard; nothing without labels."""
    if split is not None and all(clip.label is None for clip in [*split.training, *split.held_out]):
        return Probe(), None
    with console.status("evaluating the untrained and the trained encoder"):
        clips = _synthetic_clips(options.seed) if split is None else read_probe_clips(split, _complain(console))
        probes = probe_set(clips)
        untrained = evaluate_untrained(saved.encoder_name, probes, seed=options.seed)
        encoders = deployed_encoders(files, options.mode)
        trained = mean_scores([evaluate_encoder(encoder, probes) for encoder in encoders])
        prompted = zero_shot(saved, encoders[0], probes)
    return Probe(untrained.linear, trained.linear, untrained.knn, trained.knn), prompted


def _complain(console: Console) -> Callable[[Unreadable], None]:
    def complain(unreadable: Unreadable) -> None:
        console.print(f"left out {unreadable.path}: {unreadable.why}")

    return complain


def _synthetic_clips(seed: int) -> Iterator[ProbeClip]:
    rng = np.random.default_rng([PROBE_SEED, seed])
    for number in range(PROBE_CLIPS):
        for label in soundscape.CLASSES:
            sound = soundscape.clip(label, PROBE_CLIP_S, rng)
            yield ProbeClip(sound, label, held_out=number % 3 == 0, name=f"{label}/{number:02}")


def _settings(options: DemoOptions, split: Split | None) -> dict[str, Setting]:
    plain = {
        key: value
        for key, value in asdict(options).items()
        if key not in ("data", "out", "profiles", "trainer_settings", "fleet_settings", "device_settings")
    }
    plain["profiles"] = ", ".join(options.profiles)
    plain |= {f"trainer.{key}": str(value) for key, value in options.trainer_settings}
    plain |= {f"fleet.{key}": str(value) for key, value in options.fleet_settings}
    plain |= {f"device.{key}": str(value) for key, value in options.device_settings}
    plain["data"] = options.data.name if options.data else "synthetic soundscape"
    plain["held_out"] = split.how if split else f"synthetic clips, {PROBE_CLIPS} of each class, every third held out"
    return plain
