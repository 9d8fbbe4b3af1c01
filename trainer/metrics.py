"""What a run writes down: one JSON line per step, and the same as TensorBoard events."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

log = logging.getLogger(__name__)

EVENTS_WAITING = 1024  # the default of 10 makes a step wait for the thread that writes

SHOWN_WHOLE = 10_000  # steps, about a day; of what follows TensorBoard gets every SHOWN_STRIDE-th: 0.4 GB a year
SHOWN_STRIDE = 10
LARGEST_BYTES = 256 * 2**20  # some months of steps: a disk must not fill up in a year
FILE_NAME = "metrics.jsonl"

METRICS: dict[str, str] = {
    "step": "optimizer step of the trainer, from 1 within a run",
    "windows": "windows trained so far in the run, all devices together",
    "weights_version": "version of the weights the step started from",
    "loss_total": "the Hybrid Loss: task + weighted sliced Wasserstein + weighted Laplacian",
    "loss_task": "contrastive task loss (InfoNCE), mean over the windows of the batch",
    "loss_task_normalised": "task loss divided by ln(number of candidates): 1 is guessing, 0 is perfect",
    "loss_sw": "sliced Wasserstein term before its weight: distance of the projections from the uniform sphere",
    "loss_laplacian": "Laplacian term before its weight: how much neighbours in time differ",
    "effective_rank": "effective rank of the batch's embeddings (trainer.quality): 1 is a collapsed encoder",
    "alignment": "mean squared distance between the two views' projections: 0 is perfect",
    "uniformity": "log of the mean Gaussian potential between projections: 0 is collapsed, lower is better spread",
    "mixture_spread": "mean distance between the mixture components of two windows: 0 is a collapsed mixture",
    "mixture_components": "components of the mixture in use: exponential of the entropy of their masses",
    "mixture_entropy": "mean entropy of the responsibilities over ln C: 1 is a collapsed mixture",
    "uncertainty_median": "median uncertainty of the batch's windows (scaled so that it stays near 0.5)",
    "learning_rate": "learning rate of the step",
    "clipped_share": "share of the devices' changes of blocks that were clipped at the latest merge (trainer.clipping)",
    "devices": "devices with at least one window in the batch",
    "quantisation_error": "relative L2 error of the gradients sent back (of every eighth), by their quantisation",
    "seconds": "time from the closed batch to its last gradient handed to the link",
    "embedding_ms_p95": "95th percentile over the last 512 parts: from receiving one to handing its embedding on",
}
"""Every metric and what it means: the README's table and TensorBoard's tags."""


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """One optimizer step of the trainer; `METRICS` says what each field means. None: not measured in this step."""

    step: int
    windows: int
    weights_version: int
    loss_total: float
    loss_task: float
    loss_task_normalised: float
    loss_sw: float
    loss_laplacian: float
    effective_rank: float | None
    alignment: float | None
    uniformity: float | None
    mixture_spread: float | None
    mixture_components: float | None
    mixture_entropy: float | None
    uncertainty_median: float | None
    learning_rate: float
    clipped_share: float | None
    devices: int
    quantisation_error: float | None
    seconds: float
    embedding_ms_p95: float | None


def normalised_task_loss(task_loss: float, candidates: float) -> float:
    """``task_loss`` / ln(``candidates``), NaN where an anchor had fewer than two candidates."""
    return task_loss / math.log(candidates) if candidates > 1.0 else math.nan


class MetricsLog:
    """Writes `StepMetrics` into ``directory``, to ``metrics.jsonl`` and as TensorBoard events.

    Opening removes a line torn by a kill and every step from ``next_step`` on, which a resumed run does again. A file
    of more than `LARGEST_BYTES` becomes ``metrics.jsonl.1``, in the place of the one before it. A disk that is full
    ends no training: what cannot be written is left out.

    Attributes:
        lost: steps that could not be written.
    """

    def __init__(self, directory: Path, *, next_step: int = 1, tensorboard: bool = True) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / FILE_NAME
        _truncate(self.path, next_step)
        self._file = self.path.open("ab", buffering=0)
        self._events = _open_events(directory, next_step) if tensorboard else None
        self.lost = 0

    def write(self, metrics: StepMetrics) -> None:
        """Append one step; the line is with the operating system when this returns, or counted as lost."""
        values = {name: _finite(getattr(metrics, name)) for name in METRICS}
        try:
            self._append(json.dumps(values, allow_nan=False).encode() + b"\n")
        except OSError as error:
            self.lost += 1
            if self.lost == 1:  # a full disk would fill the log as well
                log.warning("%s: step %d is not written down: %s", self.path, metrics.step, error)
        try:
            self._show(values, metrics.step)
        except OSError as error:  # of the thread that wrote them: it has ended
            log.warning("no TensorBoard events any more: %s", error)
            self._events = None

    def _show(self, values: dict[str, float | None], step: int) -> None:
        if step > SHOWN_WHOLE and step % SHOWN_STRIDE:
            return
        for name, value in values.items():
            if self._events is not None and name != "step" and value is not None:
                self._events.add_scalar(name, value, step)

    def _append(self, line: bytes) -> None:
        """All of a line or nothing; what is longer than `LARGEST_BYTES` is put aside first."""
        if self._file.tell() > LARGEST_BYTES:
            self.path.replace(self.path.with_name(f"{FILE_NAME}.1"))
            self._file.close()
            self._file = self.path.open("ab", buffering=0)
        written = self._file.write(line)
        if written < len(line):
            self._file.truncate(self._file.tell() - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        if self._events is not None:
            try:
                self._events.close()
            except OSError as error:
                log.warning("the last TensorBoard events are lost: %s", error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(path: Path) -> list[StepMetrics]:
    """Read a ``metrics.jsonl``, also one that is being written or was torn by a kill: unreadable lines are left out.

    A loss that was not finite reads back as NaN, and so does what another version of this program did not write.
    """
    if not path.exists():
        return []
    with path.open("rb") as file:
        return [_metrics(values) for values, _ in _lines(file) if values is not None]


def _lines(file: Iterable[bytes]) -> Iterator[tuple[dict[str, Any] | None, int]]:
    """The lines of a file that have an end, parsed (None: that is no step) and with their lengths."""
    for line in file:
        if not line.endswith(b"\n"):
            return
        try:
            values = json.loads(line)
        except ValueError:
            values = None
        is_step = isinstance(values, dict) and isinstance(values.get("step"), int)
        yield values if is_step else None, len(line)


def _truncate(path: Path, next_step: int) -> None:
    """Keep what is before the first step from ``next_step`` on. A file of months does not fit into memory.

    A line that cannot be read, or was written by another version, is no reason to lose what follows it.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        before = takewhile(lambda line: line[0] is None or line[0]["step"] < next_step, _lines(file))
        kept = sum(length for _, length in before)
    if kept < path.stat().st_size:
        os.truncate(path, kept)


def _metrics(values: dict[str, Any]) -> StepMetrics:
    optional = {field.name for field in fields(StepMetrics) if "None" in str(field.type)}
    found = {name: values.get(name) for name in METRICS}
    known: dict[str, Any] = {
        name: math.nan if value is None and name not in optional else value for name, value in found.items()
    }
    return StepMetrics(**known)


def _finite(value: float | None) -> float | None:
    # NaN is not JSON; null keeps the file readable by every tool.
    return value if value is not None and math.isfinite(value) else None


def _open_events(directory: Path, next_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import: only who writes events pays
    except ImportError as error:
        log.warning("no TensorBoard events: %s", error)
        return None
    return SummaryWriter(log_dir=str(directory / "tensorboard"), purge_step=next_step, max_queue=EVENTS_WAITING)
