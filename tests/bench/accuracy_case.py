"""One case of the accuracy table in a process of its own: ``python -m tests.bench.accuracy_case``, ends with JSON.

The fleet runs inside this process (`in_process`) as it would over a broker; then its encoder is frozen and evaluated
on the fold that no device heard.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch

from common.encoder import Encoder, build_encoder
from common.link import Link
from tests.bench.accuracy_results import Evaluated, Result
from tests.bench.accuracy_rows import Case
from tests.bench.accuracy_settings import add_changes, changed_row, settings
from tests.bench.hostile import HostileLink
from tests.bench.in_process import run_in_process
from trainer import checkpoint
from trainer.calibration import restore_mixture
from trainer.dataset import Split
from trainer.dataset_layouts import split_recordings
from trainer.demo_files import OWN_ENCODERS, DemoFiles, write_files
from trainer.deployed import deployed_encoders
from trainer.evaluate import UNTRAINED_SEEDS, clip_uncertainty, evaluate_encoder
from trainer.probe_set import ProbeSet, Unreadable, probe_set, read_probe_clips
from trainer.run_report import DeviceRun, read_device
from trainer.zero_shot import zero_shot

NO_BROKER = "mqtt://127.0.0.1:1"  # the fleet in one process has its own


@dataclass(frozen=True, slots=True)
class Frozen:
    """What is evaluated: an encoder, and the checkpoint that mixture and text tower come from, where there are any."""

    encoder: Encoder
    saved: checkpoint.Checkpoint | None


def main() -> int:
    """Run the case and print it."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.accuracy_case")
    parser.add_argument("--row", required=True)
    parser.add_argument("--fold", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--keep", type=Path, help="folder to keep the run in")
    parser.add_argument("--picture", type=Path, help="PNG of the held-out clips' embeddings in two dimensions")
    add_changes(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    case = Case(changed_row(given.row, given), given.fold, given.seed)
    with tempfile.TemporaryDirectory() as folder:
        result = run_case(case, given.data, given.keep or Path(folder), picture=given.picture)
    print(json.dumps({"settings": settings(case.row), "result": asdict(result)}))
    return 0


def run_case(case: Case, data: Path, out: Path, *, picture: Path | None = None) -> Result:
    """Train, where the row trains, and evaluate."""
    started_s = time.monotonic()
    split = split_recordings(data, case.fold, esc10=case.row.options.esc10)
    runs: Mapping[str, DeviceRun] = {}
    if case.row.trained:
        files = write_files(case.options(data, out), NO_BROKER, split)
        run_in_process(files, meddle=_meddle(case, files))
        runs = {device: read_device(state / "steps.jsonl") for device, state in files.device_states.items()}
        frozen = _trained(files, case.row.options.mode)
    else:
        name = case.row.options.encoder
        frozen = [Frozen(build_encoder(name, seed=case.seed + number), None) for number in range(UNTRAINED_SEEDS)]
    clips = probe_set(read_probe_clips(split, _complain))
    evaluated = tuple(_evaluate(one, clips) for one in frozen)
    if picture is not None:
        from tests.bench.accuracy_pictures import draw_embeddings  # matplotlib: only who draws pays

        trained = frozen[0].encoder
        draw_embeddings(build_encoder(trained.name, seed=case.seed), trained, clips, picture)
    return Result(
        fold=case.fold,
        seed=case.seed,
        encoders=evaluated,
        clips=_clips_digest(split),
        windows=sum(run.windows for run in runs.values()),
        windows_sent=sum(run.windows_sent for run in runs.values()),
        bytes_up=sum(run.bytes_up for run in runs.values()),
        bytes_down=sum(run.bytes_down for run in runs.values()),
        steps_sent=sum(run.sent for run in runs.values()),
        steps_answered=sum(run.results["answered"] for run in runs.values()),
        local_steps=sum(run.local_steps for run in runs.values()),
        wall_s=round(time.monotonic() - started_s, 1),
        cpu_s=round(time.process_time(), 1),
        torch=torch.__version__,
    )


def _meddle(case: Case, files: DemoFiles) -> dict[str, Callable[[Link], Link]]:
    if not case.row.hostile:
        return {}
    device = list(files.devices)[-1]
    cut = int(case.row.options.cut)
    encoder = build_encoder(case.row.options.encoder, seed=0)
    return {device: lambda link: cast("Link", HostileLink(link, encoder, cut=cut, seed=case.seed))}


def _trained(files: DemoFiles, mode: str) -> Sequence[Frozen]:
    encoders = deployed_encoders(files, mode)
    path = None if mode in OWN_ENCODERS else checkpoint.latest(files.trainer_state)
    saved = None if path is None else checkpoint.load(path)
    return [Frozen(encoder, saved) for encoder in encoders]


def _evaluate(frozen: Frozen, clips: ProbeSet) -> Evaluated:
    scores = evaluate_encoder(frozen.encoder, clips)
    mixture = None if frozen.saved is None else restore_mixture(frozen.saved)
    uncertainty = () if mixture is None else clip_uncertainty(frozen.encoder, mixture, clips)
    prompted = None if frozen.saved is None else zero_shot(frozen.saved, frozen.encoder, clips)
    return Evaluated(
        linear=_text(scores.linear_hits),
        knn=_text(scores.knn_hits),
        precision_at_10=round(scores.precision_at_10, 4),
        silhouette=None if scores.silhouette is None else round(scores.silhouette, 4),
        effective_rank=round(scores.effective_rank, 2),
        uncertainty=tuple(round(1000 * value) for value in uncertainty),
        zero_shot="" if prompted is None else _text(prompted.hits),
    )


def _text(hits: Sequence[bool]) -> str:
    return "".join(str(int(hit)) for hit in hits)


def _clips_digest(split: Split) -> str:
    return hashlib.sha256("\n".join(clip.relative for clip in split.held_out).encode()).hexdigest()[:8]


def _complain(unreadable: Unreadable) -> None:
    print(f"left out {unreadable.path}: {unreadable.why}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
