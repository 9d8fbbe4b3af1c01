"""What is a window's sending worth over a local step on it, and does anything tell beforehand?

    python -m tests.bench.utility --data DIR --runs DIR [--folds 1,2] [--signals uncertainty,novelty] [--json]
    python -m tests.bench.utility --report-only [--json]

``--runs`` is the ``--keep`` folder of `tests.bench.accuracy` with runs of the row ``streamsplit``; what such a run
ended with, encoder and mixture, is where everything starts. Eight devices capture windows of the training clips; by one
of the `SIGNALS`, known before anything is sent, each device's windows fall into quartiles. From the same weights,
either the windows of a quartile are sent (`utility_arms.sent`), or the devices take local steps on them
(`learned_alone`): as many steps, the same windows, the same learning rate. The gain of sending is by how much lower the
contrastive loss of held-out clips then is. What is asked of a signal: that its top quartile gains more than its bottom
one. The signal is chosen on folds 1 and 2; folds 3 to 5 tell once whether it holds.

Results of each (fold, repeat) are kept in ``tests/bench/results/utility.jsonl``, or ``--results``, and not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn import functional

from common.config import EXIT_CONFIG
from common.encoder import Encoder
from common.errors import ConfigError
from common.mixture_memory import MixtureMemory
from tests.bench.accuracy_results import RESULTS
from tests.bench.utility_arms import (
    STEP_WINDOWS,
    Batch,
    Heard,
    capture,
    contrast,
    contrast_of,
    embeddings,
    held_out_loss,
    learned_alone,
    sent,
)
from trainer import checkpoint
from trainer.calibration import restore_mixture
from trainer.dataset import Clip, shards
from trainer.dataset_layouts import DATA_HELP, split_recordings
from trainer.evaluate import restore_encoder

QUARTILES = 4
DEVICES = 8
CHOSEN_ON = (1, 2)
CUT = 5
LEARNING_RATE = 5e-4
DRAWS = 10_000


def _uncertainty(encoder: Encoder, mixture: MixtureMemory, own: Sequence[Heard]) -> Tensor:
    return mixture.uncertainty(_projections(encoder, own))


def _novelty(encoder: Encoder, mixture: MixtureMemory, own: Sequence[Heard]) -> Tensor:
    """How far the nearest of the mixture's means is, as an angle's cosine below 1."""
    means = functional.normalize(mixture.means, dim=1)
    return 1.0 - (_projections(encoder, own) @ means.T).amax(dim=1)


def _loss(encoder: Encoder, mixture: MixtureMemory, own: Sequence[Heard]) -> Tensor:
    """The device's own contrastive loss of the window, in the local step it would be part of."""
    return torch.cat([contrast(encoder, windows) for windows in _steps(own)])


def _gradient(encoder: Encoder, mixture: MixtureMemory, own: Sequence[Heard]) -> Tensor:
    """Norm of the gradient of the device's own loss at the embeddings of the window's views.

    As in BADGE (Ash et al. 2020), where it stands for the whole gradient and costs no backward through the encoder.
    """
    return torch.cat([_gradient_norms(encoder, windows) for windows in _steps(own)])


def _gradient_norms(encoder: Encoder, windows: Sequence[Heard]) -> Tensor:
    both = embeddings(encoder, windows).detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(contrast_of(encoder, both, windows).sum(), both)
    norms: Tensor = torch.linalg.vector_norm(torch.stack(gradient.chunk(2)), dim=(0, 2))
    return norms


def _steps(own: Sequence[Heard]) -> Iterator[Sequence[Heard]]:
    return (own[at : at + STEP_WINDOWS] for at in range(0, len(own), STEP_WINDOWS))


SIGNALS: Mapping[str, Callable[[Encoder, MixtureMemory, Sequence[Heard]], Tensor]] = {
    "uncertainty": _uncertainty,
    "novelty": _novelty,
    "loss": _loss,
    "gradient": _gradient,
}


@dataclass(frozen=True, slots=True)
class Repeat:
    """One repeat on one fold: by signal the gain of each quartile (nats), lowest first."""

    fold: int
    repeat: int
    steps: int
    gains: Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Start:
    """Where the arms start, and what they are measured on."""

    encoder: Encoder
    mixture: MixtureMemory
    held_out: Sequence[Batch]


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, show what there is; 78 for the operator's errors."""
    given = _parser().parse_args(argv)
    torch.set_num_threads(1)
    console = Console(stderr=given.json)
    try:
        if not given.report_only:
            _run(given, console)
        result = summary(read(given.results))
    except ConfigError as error:
        sys.stderr.write(f"utility: {error}\n")
        return EXIT_CONFIG
    for name, one in result.items():
        console.print(f"{name}: {one}", highlight=False)
    if given.json:
        sys.stdout.write(json.dumps(result) + "\n")
    return 0


def summary(repeats: Sequence[Repeat]) -> dict[str, dict[str, object]]:
    """By signal and group of folds: mean gain by quartile, and top minus bottom with its 95 % interval (nats)."""
    found: dict[str, dict[str, object]] = {}
    for signal in SIGNALS:
        for name, chosen in (("folds_1_2", True), ("folds_3_5", False)):
            of = [one for one in repeats if signal in one.gains and (one.fold in CHOSEN_ON) is chosen]
            if of:
                found.setdefault(signal, {})[name] = _estimate([one.gains[signal] for one in of])
    return found


def read(path: Path) -> list[Repeat]:
    """The repeats that were kept."""
    if not path.exists():
        return []
    return [Repeat(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def _estimate(gains: Sequence[Sequence[float]]) -> dict[str, object]:
    table = np.array(gains)
    difference = table[:, -1] - table[:, 0]
    drawn = np.random.default_rng(0).choice(difference, (DRAWS, len(difference))).mean(axis=1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return {
        "quartiles": [round(float(one), 4) for one in table.mean(axis=0)],
        "top_minus_bottom": round(float(difference.mean()), 4),
        "ci95": [round(float(low), 4), round(float(high), 4)],
        "repeats": len(difference),
    }


def _run(given: argparse.Namespace, console: Console) -> None:
    if given.data is None or given.runs is None:
        raise ConfigError(f"--data DIR ({DATA_HELP}) and --runs DIR are needed")
    unknown = [name for name in given.signals if name not in SIGNALS]
    if unknown:
        raise ConfigError(f"no signal {', '.join(unknown)}; there are {', '.join(SIGNALS)}")
    done = {(one.fold, one.repeat, signal) for one in read(given.results) for signal in one.gains}
    wanted = [(fold, repeat) for repeat in range(given.repeats) for fold in given.folds]
    for fold, repeat in track(wanted, "repeats", console=console):
        signals = [name for name in given.signals if (fold, repeat, name) not in done]
        if signals:
            one = _repeat(given, fold, repeat, signals)
            given.results.parent.mkdir(parents=True, exist_ok=True)
            with given.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(one)) + "\n")


def _repeat(given: argparse.Namespace, fold: int, repeat: int, signals: Sequence[str]) -> Repeat:
    split = split_recordings(given.data, fold)
    seed = 1_000 * repeat + fold
    start = _start(given, fold, batches(_captured(given.data, split.held_out, STEP_WINDOWS * given.steps, seed=0)))
    captured = _captured(given.data, split.training, QUARTILES * STEP_WINDOWS * given.steps, seed=seed)
    gains = {name: _gains(start, by_quartile(start, captured, name), seed=seed) for name in signals}
    return Repeat(fold, repeat, given.steps, gains)


def _start(given: argparse.Namespace, fold: int, held_out: Sequence[Batch]) -> Start:
    runs = sorted(given.runs.glob(f"streamsplit-{fold}-*/trainer"))
    path = checkpoint.latest(runs[0]) if runs else None
    saved = None if path is None else checkpoint.load(path)
    mixture = None if saved is None else restore_mixture(saved)
    if saved is None or mixture is None:
        raise ConfigError(f"{given.runs}: no kept run streamsplit-{fold}-SEED whose mixture has started")
    return Start(restore_encoder(saved), mixture, held_out)


def _captured(data: Path, clips: Sequence[Clip], windows: int, *, seed: int) -> dict[str, list[Heard]]:
    found = {}
    with TemporaryDirectory() as folder:
        for number, shard in enumerate(shards(clips, DEVICES, "iid", seed)):
            list_file = Path(folder) / f"{number}.txt"
            list_file.write_text("".join(f"{clip.relative}\n" for clip in shard), encoding="utf-8")
            name = f"device-{number}"
            found[name] = capture(data, list_file, name, windows=windows, seed=seed * DEVICES + number)
    return found


def batches(captured: Mapping[str, Sequence[Heard]]) -> list[Batch]:
    """Steps of `STEP_WINDOWS` of every device, in the order the windows were heard."""
    count = min(len(own) for own in captured.values()) // STEP_WINDOWS
    return [
        {device: own[number * STEP_WINDOWS : (number + 1) * STEP_WINDOWS] for device, own in captured.items()}
        for number in range(count)
    ]


@torch.no_grad()
def by_quartile(start: Start, captured: Mapping[str, Sequence[Heard]], signal: str) -> list[dict[str, list[Heard]]]:
    """Each device's windows by quarters of the signal, lowest first; within a quarter as they were heard."""
    quarters: list[dict[str, list[Heard]]] = [{} for _ in range(QUARTILES)]
    for device, own in captured.items():
        order = np.argsort(SIGNALS[signal](start.encoder, start.mixture, own).numpy(), kind="stable")
        for quarter, chosen in zip(quarters, np.array_split(order, QUARTILES), strict=True):
            quarter[device] = [own[place] for place in sorted(chosen)]
    return quarters


def _gains(start: Start, quarters: Sequence[Mapping[str, Sequence[Heard]]], *, seed: int) -> list[float]:
    return [round(_gain(start, batches(quarter), seed=seed), 6) for quarter in quarters]


def _gain(start: Start, of: Sequence[Batch], *, seed: int) -> float:
    """By how much lower the held-out loss is after sending than after local steps."""
    after_sending = sent(start.encoder, of, cut=CUT, learning_rate=LEARNING_RATE, seed=seed)
    after_alone = learned_alone(start.encoder, of, start.mixture, learning_rate=LEARNING_RATE, seed=seed)
    return held_out_loss(after_alone, start.held_out) - held_out_loss(after_sending, start.held_out)


def _projections(encoder: Encoder, own: Sequence[Heard]) -> Tensor:
    return encoder.project(encoder(torch.cat([one.views[:1] for one in own])))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.utility", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, help=DATA_HELP)
    add("--runs", type=Path, help="folder with kept runs streamsplit-FOLD-SEED")
    add("--folds", type=_numbers, default=[1, 2, 3, 4, 5], help="such as 1,2; default all")
    add("--signals", type=lambda text: text.split(","), default=["uncertainty"], help=f"of {', '.join(SIGNALS)}")
    add("--repeats", type=int, default=6, help="draws of captured windows a fold (default 6)")
    add("--steps", type=int, default=4, help="steps of each device on a quartile (default 4)")
    add("--results", type=Path, default=RESULTS / "utility.jsonl", help="file of the results")
    add("--report-only", action="store_true", help="run nothing, show what there is")
    add("--json", action="store_true", help="end with one line holding one JSON object")
    return parser


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


if __name__ == "__main__":
    sys.exit(main())
