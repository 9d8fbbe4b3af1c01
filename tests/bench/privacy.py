"""How much of the sound can be reconstructed from the activations that leave a device, by cut and codec?

    python -m tests.bench.privacy --data DIR [--run DIR] [--fold N] [--quick] [--json] [--png FILE]

The attacker reads the activations (it is the trainer, or sits on the broker), has the weights of the client segment,
and recordings of its own, the training folds: it knows which activations they give, and fits a decoder to the
normalised log-mel of view A for every cut and codec (`privacy_decoder`). What counts is the error on recordings of the
held-out fold, which neither the decoder nor the encoder of ``--run`` has heard, after the project's own codec
(`privacy_figures` says what the figures mean). As a control a decoder is fitted to activations of other windows: it
must come out at 1.

``--run`` is a folder of checkpoints, or one; without it the first weights are measured alone. Windows of digital
silence are left out on both sides: to know them is to know nothing. The last line is one JSON object:

* ``privacy``: {cut: error} with the default codec; ``min_cut``: the default floor.
* ``own_spectrum_error``: of knowing each window's own mean spectrum exactly, and nothing of its course.
* ``rows``: all figures of each decoder; ``missing``: those not measured yet; ``settings``, ``windows``: what they were
  made with.

Results are kept in ``tests/bench/results/privacy.json`` or ``--results``, row by row, and not measured again under the
same settings: the call can be broken off and repeated. ``--quick`` keeps none.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from common.atomic_file import write_atomically
from common.codec import DEFAULT_ACTIVATIONS_CODEC, Codec, decode, encode
from common.config import EXIT_CONFIG
from common.config_device import DeviceConfig
from common.encoder import Encoder, build_encoder
from common.errors import ConfigError
from tests.bench.privacy_decoder import Decoder, Pairs, fit, mean_spectrum
from tests.bench.privacy_figures import measure, own_spectrum_error
from tests.bench.privacy_report import RESULT, by_cut, terminal
from trainer import checkpoint
from trainer.dataset_layouts import DATA_HELP, split_recordings
from trainer.evaluate import BATCH_WINDOWS, restore_encoder
from trainer.probe_set import ProbeSet, probe_set, read_probe_clips

ENCODER = "mobile"
FLOOR: int = DeviceConfig.model_fields["min_cut"].default
MIDDLE = 5
OTHER_CODECS = ("fp32", "int8")
CHECKED_OF = 8  # one in so many of the attacker's clips tells when to stop
SILENCE = 1e-2  # of normalised log-mel above the lowest value there is
STEPS, QUICK_STEPS = 80, 20
QUICK_WINDOWS = 4  # only each so many-th window
EXAMPLES = 4


@dataclass(frozen=True, slots=True)
class Case:
    """One decoder: whose ``weights`` made the activations, at which cut and codec. ``shuffled``: of other windows."""

    weights: str
    cut: int
    codec: str
    shuffled: bool = False

    def __str__(self) -> str:
        return f"{self.weights} at cut {self.cut} with {self.codec}{', shuffled' if self.shuffled else ''}"


@dataclass(frozen=True, slots=True)
class Material:
    """All windows' pictures [N, 1, 64, 96] float32, the clip of each [N], and who may see which (indices)."""

    pictures: Tensor
    clip_of: Tensor
    fitted: Tensor
    checked: Tensor
    held_out: Tensor

    def sizes(self) -> dict[str, int]:
        """Windows of each part, and held-out clips."""
        clips = len(self.clip_of[self.held_out].unique())
        parts = {"fitted": self.fitted, "checked": self.checked, "held_out": self.held_out}
        return {name: len(part) for name, part in parts.items()} | {"held_out_clips": clips}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing, show what there is; 78 for the operator's errors."""
    given = _parser().parse_args(argv)
    torch.set_num_threads(1)
    console = Console(stderr=given.json)
    try:
        result = _run(given, console)
    except ConfigError as error:
        sys.stderr.write(f"privacy: {error}\n")
        return EXIT_CONFIG
    console.print(terminal(result))
    sys.stdout.write(json.dumps({"privacy": by_cut(result)} | result) + "\n")
    return 0


def cases(depth: int, weights: Sequence[str], *, quick: bool) -> list[Case]:
    """What is measured: every cut with the default codec, other codecs and first weights at some cuts, one control."""
    some = sorted({0, FLOOR, MIDDLE, depth})
    main_weights, *others = weights
    every = some if quick else range(depth + 1)
    found = [Case(main_weights, cut, DEFAULT_ACTIVATIONS_CODEC) for cut in every]
    found.append(Case(main_weights, FLOOR, DEFAULT_ACTIVATIONS_CODEC, shuffled=True))
    if not quick:
        found += [Case(one, cut, DEFAULT_ACTIVATIONS_CODEC) for one in others for cut in some]
        found += [Case(main_weights, cut, codec) for codec in OTHER_CODECS for cut in (FLOOR, MIDDLE, depth)]
    return found


def material(clips: ProbeSet, *, every: int = 1) -> Material:
    """The windows by who may see them; of the held-out clips only windows that do not overlap.

    Raises:
        ConfigError: too few clips to fit on, to stop by, or to measure on.
    """
    counts = np.diff([*clips.starts, len(clips.log_mels)])
    clip_of = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
    within = torch.arange(len(clip_of)) - torch.from_numpy(np.repeat(clips.starts, counts))
    pictures = clips.log_mels.float()
    sounding = (pictures.amax(dim=(1, 2, 3)) > pictures.min() + SILENCE) & (within % every == 0)
    held = torch.from_numpy(np.repeat(clips.held_out, counts))
    checked = clip_of % CHECKED_OF == 0
    parts = [
        (sounding & mask).nonzero().squeeze(1) for mask in (~held & ~checked, ~held & checked, held & (within % 2 == 0))
    ]
    if not all(len(part) for part in parts):
        raise ConfigError("too few recordings with sound: a decoder needs some to fit on, to stop by, and held out")
    return Material(pictures, clip_of, *parts)


@torch.inference_mode()
def travelled(encoder: Encoder, pictures: Tensor, cut: int, codec: Codec) -> Tensor:
    """The activations of pictures [N, 1, 64, 96] at a cut, as the other end decodes them: [N, *activation_shape]."""
    parts = (decode(encode(encoder.forward_to(chunk, cut), codec)) for chunk in pictures.split(BATCH_WINDOWS))
    return torch.cat(list(parts))


def attack(known: Material, activations: Tensor, *, steps: int, shuffled: bool) -> tuple[Decoder, dict[str, Any]]:
    """Fit a decoder to activations [N, ...] of all windows; its figures on the held-out ones.

    ``shuffled``: every window's activations are replaced by another's of the same part, so that nothing can be learned.
    """
    parts = [known.fitted, known.checked, known.held_out]
    draws = torch.Generator().manual_seed(0)
    sources = [part[torch.randperm(len(part), generator=draws)] if shuffled else part for part in parts]
    pairs = [Pairs(activations[source], known.pictures[part]) for source, part in zip(sources, parts)]
    decoder = fit(pairs[0], pairs[1], steps=steps, seed=0)
    figures = measure(
        decoder.reconstruct(pairs[2].activations),
        decoder.linear(pairs[2].activations),
        pairs[2].pictures,
        clip_of=known.clip_of[known.held_out],
        spectrum=mean_spectrum(pairs[0].pictures),
    )
    return decoder, {name: round(value, 4) for name, value in asdict(figures).items()}


def _run(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    encoders, trained = _encoders(given.run)
    clips = probe_set(read_probe_clips(split_recordings(given.data, given.fold), _left_out(console)))
    known = material(clips, every=QUICK_WINDOWS if given.quick else 1)
    settings = {"fold": given.fold, "steps": QUICK_STEPS if given.quick else given.steps, "trained": trained}
    result: dict[str, Any] = {"min_cut": FLOOR, "codec": DEFAULT_ACTIVATIONS_CODEC, "settings": settings}
    yardstick = own_spectrum_error(known.pictures[known.held_out], mean_spectrum(known.pictures[known.fitted]))
    result |= {"own_spectrum_error": round(yardstick, 4), "windows": known.sizes(), "rows": [], "missing": []}
    wanted = cases(next(iter(encoders.values())).depth, list(encoders), quick=given.quick)
    path = None if given.quick else given.results
    rows, examples = dict(_kept(path, result)), {"as it is": _examples(known, known.pictures[known.held_out])}
    for case in track(wanted, "decoders", console=console):
        if case in rows and given.png is None:
            continue
        activations = travelled(encoders[case.weights], known.pictures, case.cut, Codec.parse(case.codec))
        decoder, figures = attack(known, activations, steps=settings["steps"], shuffled=case.shuffled)
        rows[case] = asdict(case) | figures | {"parameters": decoder.parameters}
        if case.codec == DEFAULT_ACTIVATIONS_CODEC and case.weights == wanted[0].weights and not case.shuffled:
            examples[f"cut {case.cut}"] = _examples(known, decoder.reconstruct(activations[known.held_out]))
        result["rows"] = [rows[one] for one in wanted if one in rows]
        result["missing"] = [str(one) for one in wanted if one not in rows]
        if path is not None:
            write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
    result |= {"rows": [rows[one] for one in wanted], "missing": []}
    if given.png is not None:
        from tests.bench.privacy_pictures import draw  # matplotlib is slow to load

        draw(result, examples, given.png)
    return result


def _encoders(run: Path | None) -> tuple[Mapping[str, Encoder], dict[str, Any] | None]:
    """By name, what is looked at first coming first; and what the trained one is."""
    if run is None:
        return {"untrained": build_encoder(ENCODER, seed=0)}, None
    file = checkpoint.latest(run) if run.is_dir() else run
    if file is None:
        raise ConfigError(f"{run}: no checkpoint in this folder")
    found = checkpoint.load(file)
    told = {"encoder": found.encoder_name, "windows": found.windows, "weights_version": found.weights_version}
    return {"trained": restore_encoder(found), "untrained": build_encoder(found.encoder_name, seed=0)}, told


def _kept(path: Path | None, result: Mapping[str, Any]) -> Iterator[tuple[Case, dict[str, Any]]]:
    if path is None or not path.exists():
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if all(before.get(name) == value for name, value in result.items() if name not in {"rows", "missing"}):
        for row in before["rows"]:
            yield Case(row["weights"], row["cut"], row["codec"], row["shuffled"]), row


def _examples(known: Material, held_out: Tensor) -> Tensor:
    places = torch.linspace(0, len(known.held_out) - 1, EXAMPLES + 2)[1:-1].long()
    return held_out[places]


def _left_out(console: Console) -> Any:
    return lambda one: console.print(f"left out: {one.path}: {one.why}", highlight=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.privacy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help=DATA_HELP)
    add("--run", type=Path, help="checkpoint, or folder of them, of a run that left out the fold")
    add("--fold", type=int, default=1, help="whose recordings are reconstructed (default 1)")
    add("--steps", type=int, default=STEPS, help=f"batches that each network is trained on (default {STEPS})")
    add("--results", type=Path, default=RESULT, help="file of the results")
    add("--png", type=Path, help="draw errors and examples; measures everything anew")
    add("--quick", action="store_true", help="four cuts, a quarter of the windows, few steps: shows that it works")
    add("--json", action="store_true", help="only the JSON object on standard output")
    return parser


if __name__ == "__main__":
    sys.exit(main())
