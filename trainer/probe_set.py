"""Labelled clips made ready for evaluation: read once, their log-mels computed once, for any number of encoders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.audio_file import AudioFileError, read_audio, tile_to
from common.errors import ConfigError
from common.log_mel import WINDOW_SAMPLES, LogMel
from trainer.dataset import Split

HOP_SAMPLES = WINDOW_SAMPLES // 2


@dataclass(frozen=True, slots=True)
class ProbeClip:
    """One labelled clip: ``waveform`` [samples] float32 mono 16 kHz. Probes are fitted on those not ``held_out``.

    ``name`` is what results are told apart by: the relative path of a recording.
    """

    waveform: NDArray[np.float32]
    label: str
    held_out: bool
    name: str


@dataclass(frozen=True, slots=True)
class ProbeSet:
    """Clips ready for any number of encoders: log-mels of all windows, and where each clip's windows start."""

    log_mels: Tensor  # [windows, 1, 64, 96] float16: 12 KB a window; the rounding is far below one decibel
    starts: NDArray[np.int64]  # [clips]
    labels: NDArray[np.str_]  # [clips]
    held_out: NDArray[np.bool_]  # [clips]
    names: NDArray[np.str_]  # [clips]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A recording that was left out, and why."""

    path: str
    why: str


def probe_set(clips: Iterable[ProbeClip]) -> ProbeSet:
    """Compute the log-mels of the clips' half-overlapping windows; a clip shorter than a window is repeated to one.

    Raises:
        ConfigError: nothing that a probe can be fitted and scored on.
    """
    log_mel = LogMel()
    pictures: list[Tensor] = []
    labels: list[str] = []
    held_out: list[bool] = []
    names: list[str] = []
    for clip in clips:
        pictures.append(_log_mels(log_mel, clip.waveform))
        labels.append(clip.label)
        held_out.append(clip.held_out)
        names.append(clip.name)
    held = np.array(held_out, dtype=np.bool_)
    classes = np.array(labels, dtype=np.str_)
    if not held.any():
        raise ConfigError("no labelled clip is held out: nothing to evaluate on")
    if len(set(classes[~held])) < 2:
        raise ConfigError("the clips to train on have fewer than two labels: nothing to tell apart")
    starts = np.cumsum([0, *(len(picture) for picture in pictures[:-1])])
    return ProbeSet(torch.cat(pictures), starts, classes, held, np.array(names, dtype=np.str_))


def read_probe_clips(split: Split, unreadable: Callable[[Unreadable], None]) -> Iterator[ProbeClip]:
    """Read the labelled clips of a split, one at a time; what cannot be read is reported and left out.

    Raises:
        ConfigError: no clip has a label.
    """
    if all(clip.label is None for clip in [*split.training, *split.held_out]):
        raise ConfigError("the recordings have no labels: to be evaluated, the folder needs one folder per class")
    for clips, held_out in ((split.training, False), (split.held_out, True)):
        for clip in clips:
            if clip.label is None:
                continue
            try:
                waveform = read_audio(clip.path)
            except AudioFileError as error:
                unreadable(Unreadable(clip.relative, error.why))
                continue
            yield ProbeClip(waveform, clip.label, held_out, clip.relative)


def _log_mels(log_mel: LogMel, waveform: NDArray[np.float32]) -> Tensor:
    samples = torch.from_numpy(np.ascontiguousarray(tile_to(waveform, WINDOW_SAMPLES)))
    with torch.inference_mode():
        pictures: Tensor = log_mel(samples.unfold(0, WINDOW_SAMPLES, HOP_SAMPLES)).half()
    return pictures
