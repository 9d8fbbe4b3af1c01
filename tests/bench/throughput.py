"""How much of the server's own speed the pipeline keeps: codec, messages, broker and threads against none of them.

    python -m tests.bench.throughput [--quick] [--json] [--encoder mobile|resnet18] [--broker mosquitto|embedded]

Pipeline: the trainer of a real fleet (``python -m trainer``, one torch thread, int8 both ways) behind a broker, and one
process that plays 8 devices x 8 windows with prerecorded activations at cut 5 (`fleet_player`). Bare: the same work in
this process without link, messages and codec: for each batch the embeddings and uncertainties of view A, as the
answering thread computes them (in groups of 8, 24 or all 64, whichever is fastest here), and the trainer's own server
step with loss and optimizer, and the mixture's update. The two take turns, because a machine that does other things
besides changes its speed; the figures are medians over the turns, ``ratio`` of each pipeline turn against the mean of
its two bare neighbours. ``*_cpu_ms`` are milliseconds of processor time for a window, which other programs disturb less
than the clock; ``others_cores`` is how many cores those kept busy meanwhile. A turn with more than 0.2 of them is
repeated, until there are three times as many turns as wanted; disturbed ones count only where none was quiet.
``merge_every`` lies beyond the run: a merge is no part of either side.

The last line is one JSON object; without ``--quick`` it holds the other encoder and the other broker as well.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from broker.start import open_broker
from common.config import load_trainer
from common.config_trainer import TrainerConfig
from common.encoder import Encoder, build_encoder
from common.process import keep_freed_memory
from tests.bench.fleet_player import BOOT, CODEC, SEGMENT_STEPS, WINDOW_MS, recorded
from trainer.answering import GROUP
from trainer.batcher import Part
from trainer.initial_state import build_state
from trainer.loop import snapshot
from trainer.metrics import StepMetrics, read_metrics
from trainer.server_step import ServerStep

CUT, DEVICES, PARTS = 5, 8, 8
WINDOWS = DEVICES * PARTS
FLEET = "bench"
PATIENCE_S = 60.0
QUIET_CORES = 0.2
MOST_ROUNDS = 3  # times as many as were asked for


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of the pipeline."""

    wall_s: float
    windows: int
    trainer_cpu_s: float
    broker_cpu_s: float
    player_cpu_s: float
    embedding_ms_p95: float
    others_cores: float


@dataclass(frozen=True, slots=True)
class Round:
    """One turn of the pipeline between two of the bare work: (wall, processor) seconds of a window."""

    before: tuple[float, float]
    turn: Turn
    after: tuple[float, float]

    @property
    def quiet(self) -> bool:
        return self.turn.others_cores <= QUIET_CORES

    @property
    def ratio(self) -> float:
        return (self.before[0] + self.after[0]) / 2 / (self.turn.wall_s / self.turn.windows)


@dataclass(frozen=True, slots=True)
class Result:
    """What came out; every ``_spread`` is the smallest and the largest of the turns."""

    encoder: str
    broker: str
    ratio: float
    ratio_spread: tuple[float, float]
    windows_per_s_pipeline: float
    windows_per_s_bare: float
    embedding_ms_p95: float
    embedding_ms_p95_spread: tuple[float, float]
    bare_cpu_ms: float
    trainer_cpu_ms: float
    broker_cpu_ms: float
    player_cpu_ms: float
    others_cores: float
    step_ms: float
    turns: int
    turns_disturbed: int
    windows: int


def main() -> int:
    """Measure and print; one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter turns, one encoder and one broker")
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    parser.add_argument("--encoder", choices=("mobile", "resnet18"), default="mobile")
    parser.add_argument("--broker", choices=("mosquitto", "embedded"), default="mosquitto")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as the trainer does

    def measured(encoder: str, broker: str) -> dict[str, Any]:
        turns = 3 if arguments.quick else 7
        steps = (8 if arguments.quick else 16) if encoder == "mobile" else 2
        result = measure(encoder, broker, turns=turns, steps=steps)
        if not arguments.json:
            _print(result)
        return asdict(result)

    report = {"bench": "throughput", **measured(arguments.encoder, arguments.broker)}
    if not arguments.quick:
        encoder = "resnet18" if arguments.encoder == "mobile" else "mobile"
        broker = "embedded" if arguments.broker == "mosquitto" else "mosquitto"
        report[encoder] = measured(encoder, arguments.broker)
        report[broker] = measured(arguments.encoder, broker)
    sys.stdout.write(json.dumps(report) + "\n")
    return 0


def measure(encoder_name: str, broker_choice: str, *, turns: int, steps: int) -> Result:
    """Bare and pipeline in turn: bare, pipeline, bare, ..., bare."""
    with tempfile.TemporaryDirectory() as folder, _pipeline(Path(folder), encoder_name, broker_choice) as pipeline:
        settings = load_trainer(Path(folder) / "trainer.yaml")
        bare = _bare(settings)
        bare(2)  # the mixture starts, memory is allocated, threads are there
        pipeline(3)
        rounds: list[Round] = []
        before = bare(steps)
        while sum(one.quiet for one in rounds) < turns and len(rounds) < MOST_ROUNDS * turns:
            turn, after = pipeline(steps), bare(steps)
            rounds.append(Round(before, turn, after))
            before = after
        lines = read_metrics(Path(folder) / "state" / "metrics.jsonl")
    return _result(encoder_name, broker_choice, rounds, statistics.median(line.seconds for line in lines[3:]))


def _result(encoder: str, broker: str, rounds: Sequence[Round], step_s: float) -> Result:
    counted = [one for one in rounds if one.quiet] or rounds
    turns = [one.turn for one in counted]
    bares = [bare for one in counted for bare in (one.before, one.after)]
    ratios = [one.ratio for one in counted]
    latencies = [turn.embedding_ms_p95 for turn in turns]

    def cpu_ms(seconds: Callable[[Turn], float]) -> float:
        return 1000 * statistics.median(seconds(turn) / turn.windows for turn in turns)

    return Result(
        encoder=encoder,
        broker=broker,
        ratio=statistics.median(ratios),
        ratio_spread=(min(ratios), max(ratios)),
        windows_per_s_pipeline=statistics.median(turn.windows / turn.wall_s for turn in turns),
        windows_per_s_bare=statistics.median(1 / wall_s for wall_s, _ in bares),
        embedding_ms_p95=statistics.median(latencies),
        embedding_ms_p95_spread=(min(latencies), max(latencies)),
        bare_cpu_ms=1000 * statistics.median(cpu_s for _, cpu_s in bares),
        trainer_cpu_ms=cpu_ms(lambda turn: turn.trainer_cpu_s),
        broker_cpu_ms=cpu_ms(lambda turn: turn.broker_cpu_s),
        player_cpu_ms=cpu_ms(lambda turn: turn.player_cpu_s),
        others_cores=statistics.median(turn.others_cores for turn in turns),
        step_ms=1000 * step_s,
        turns=len(turns),
        turns_disturbed=sum(not one.quiet for one in rounds),
        windows=sum(turn.windows for turn in turns),
    )


@contextlib.contextmanager
def _pipeline(folder: Path, encoder: str, broker_choice: str) -> Iterator[Callable[[int], Turn]]:
    """Broker, trainer and player; the function makes the player play so many steps."""
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(open_broker(broker_choice, directory=folder / "broker"))
        _write_configuration(folder, broker.url, encoder)
        log = stack.enter_context((folder / "trainer.log").open("wb"))
        command = [sys.executable, "-m", "trainer", str(folder / "trainer.yaml")]
        trainer = stack.enter_context(_child(command, stderr=log))
        command = [sys.executable, "-m", "tests.bench.fleet_player", broker.url, FLEET, encoder]
        command += [str(number) for number in (CUT, DEVICES, PARTS)]
        player = stack.enter_context(_child(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        metrics = folder / "state" / "metrics.jsonl"
        done = 0

        def play(steps: int) -> Turn:
            nonlocal done
            before, started_s = (_cpu_s(trainer.pid), _cpu_s(broker.pid), _busy_s()), time.monotonic()
            told = _ask(player, steps, folder / "trainer.log")
            done += steps
            line = _line_of_step(metrics, done)
            after, wall_s = (_cpu_s(trainer.pid), _cpu_s(broker.pid), _busy_s()), time.monotonic() - started_s
            trainer_s, broker_s, busy_s = (end_s - start_s for start_s, end_s in zip(before, after))
            assert line.embedding_ms_p95 is not None
            return Turn(
                wall_s=told["wall_s"],
                windows=told["windows"],
                trainer_cpu_s=trainer_s,
                broker_cpu_s=broker_s,
                player_cpu_s=told["cpu_s"],
                embedding_ms_p95=line.embedding_ms_p95,
                others_cores=max(0.0, busy_s - trainer_s - broker_s - told["cpu_s"]) / wall_s,
            )

        yield play


def _write_configuration(folder: Path, url: str, encoder: str) -> None:
    fleet = {"fleet": FLEET, "broker": {"url": url}, "encoder": encoder, "parts_per_step": PARTS}
    trainer = {
        "fleet": "fleet.yaml",
        "state_directory": "state",
        "compute": "cpu",
        "threads": 1,
        "gradient_codec": str(CODEC),
        "merge_every": 100_000,
        "merge_each_until": 0,
        "speed": "fast",
        "expected_devices": DEVICES,
    }
    (folder / "fleet.yaml").write_text(yaml.safe_dump(fleet), encoding="utf-8")
    (folder / "trainer.yaml").write_text(yaml.safe_dump(trainer), encoding="utf-8")


@contextlib.contextmanager
def _child(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, **options)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=30)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _ask(player: subprocess.Popen[str], steps: int, log: Path) -> dict[str, Any]:
    assert player.stdin is not None
    assert player.stdout is not None
    player.stdin.write(f"{steps}\n")
    player.stdin.flush()
    line = player.stdout.readline()
    if not line:
        raise RuntimeError(f"the player died; the trainer said:\n{log.read_text(encoding='utf-8')}")
    told: dict[str, Any] = json.loads(line)
    return told


def _line_of_step(path: Path, step: int) -> StepMetrics:
    """The metrics of a step: they are written after its gradients are on their way."""
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s:
        lines = read_metrics(path)
        if lines and lines[-1].step >= step:
            return lines[-1]
        time.sleep(0.02)
    raise TimeoutError(f"the trainer did not write step {step}")


def _cpu_s(pid: int | None) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _busy_s() -> float:
    """Processor time of the whole machine that was not idle."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0))


def _bare(settings: TrainerConfig) -> Callable[[int], tuple[float, float]]:
    """The same work as a function of the number of steps; (wall, processor) seconds for a window."""
    cpu = torch.device("cpu")
    state = build_state(settings, cpu)
    tensors = recorded(build_encoder(settings.fleet.encoder, 0), CUT, DEVICES, PARTS)
    frozen = snapshot(state.encoder, state.mixture, 0)
    step = ServerStep(state.encoder, state.optimizers, state.objective, compute=cpu)
    group = _faster_group(frozen.encoder, torch.stack([part[0] for device in tensors for part in device]))
    done = 0

    def run(steps: int) -> tuple[float, float]:
        nonlocal done
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        for _ in range(steps):
            parts = [
                _part(f"device-{device}", done, part, tensor.detach())
                for device, mine in enumerate(tensors, 1)
                for part, tensor in enumerate(mine)
            ]
            for start in range(0, len(parts), group):
                with torch.inference_mode():
                    view_a = torch.stack([part.activations[0] for part in parts[start : start + group]])
                    frozen.mixture.uncertainty(frozen.encoder.project(frozen.encoder.forward_from(view_a, CUT)))
            result = step.run(parts, learning_rate=settings.learning_rate)
            state.mixture.update(result.projections[0])
            done += 1
        windows = steps * WINDOWS
        return (time.perf_counter() - wall_s) / windows, (time.process_time() - cpu_s) / windows

    return run


def _faster_group(encoder: Encoder, view_a: torch.Tensor) -> int:
    """How many windows the bare side embeds at once."""

    def seconds(group: int) -> float:
        taken_s = []
        for _ in range(5):
            started_s = time.perf_counter()
            with torch.inference_mode():
                for some in view_a.split(group):
                    encoder.project(encoder.forward_from(some, CUT))
            taken_s.append(time.perf_counter() - started_s)
        return min(taken_s)

    return min((DEVICES, GROUP, WINDOWS), key=seconds)


def _part(device: str, step: int, number: int, activations: torch.Tensor) -> Part:
    window = step * PARTS + number
    return Part(
        device=device,
        boot=BOOT,
        step=step,
        part=number,
        last=number == PARTS - 1,
        cut=CUT,
        weights_version=0,
        deadline_s=1.0,
        segment=step // SEGMENT_STEPS,
        window_index=window,
        time_s=window * WINDOW_MS / 1000,
        room="",
        activations=activations,
    )


def _print(result: Result) -> None:
    low, high = result.ratio_spread
    sys.stdout.write(
        f"{result.encoder}, {result.broker}: ratio {result.ratio:.3f} ({low:.3f} to {high:.3f}), "
        f"{result.windows_per_s_pipeline:.0f} of {result.windows_per_s_bare:.0f} windows/s; "
        f"embedding p95 {result.embedding_ms_p95:.1f} ms\n"
        f"  processor ms a window: bare {result.bare_cpu_ms:.2f}, trainer {result.trainer_cpu_ms:.2f}, "
        f"broker {result.broker_cpu_ms:.2f}, player {result.player_cpu_ms:.2f}\n"
        f"  trainer's step {result.step_ms:.0f} ms; other programs {result.others_cores:.2f} cores, "
        f"{result.turns} turns and {result.turns_disturbed} disturbed\n"
    )


if __name__ == "__main__":
    sys.exit(main())
