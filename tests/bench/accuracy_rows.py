"""The rows of the accuracy table: each is the demonstration's options with what makes it this row, and nothing else.

Whatever a row does not set is the pipeline's default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.demo_files import DemoOptions

FOLDS = (1, 2, 3, 4, 5)
CHOSEN_ON = (1, 2)
"""The configuration is chosen on these folds; the others are reported alone as well."""

HEADLINE_SEEDS = (0, 1, 2)
QUICK_WINDOWS = 2_000

BASE = DemoOptions(
    devices=8,
    windows=16_000,
    data=None,
    fold=1,
    order="stream",
    shard="iid",
    profiles=(),
    cut="5",
    codec=None,
    encoder="mobile",
    speed="fast",
    seed=0,
    out=Path("run"),
    trainer_settings=(("threads", 1), ("compute", "cpu")),
)

Settings = tuple[tuple[str, object], ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One method.

    Attributes:
        name: of its results file and in the JSON; ``title``: in the table.
        folds, seeds: what is run where nothing else is asked for.
        trained: False: five untrained encoders are evaluated, nothing runs.
        hostile: the last device means harm (`hostile`).
    """

    name: str
    title: str
    options: DemoOptions = BASE
    folds: tuple[int, ...] = FOLDS
    seeds: tuple[int, ...] = (0,)
    trained: bool = True
    hostile: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    """One run of one row."""

    row: Row
    fold: int
    seed: int

    def __str__(self) -> str:
        """For people."""
        return f"{self.row.name}, fold {self.fold}, seed {self.seed}"

    def options(self, data: Path, out: Path) -> DemoOptions:
        """What the run is started with."""
        return replace(self.row.options, data=data, fold=self.fold, seed=self.seed, out=out)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Row ``a`` minus row ``b``, paired on what both have; ``name`` is its key in the JSON.

    ``mean_from`` and ``low_from`` are what was asked for: the least mean, and the least lower end of the interval.
    """

    name: str
    a: str
    b: str
    title: str
    folds: tuple[int, ...] = FOLDS
    mean_from: float | None = None
    low_from: float | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """Whose uncertainty is held against 5-NN's errors, and what AUROC was asked for."""

    row: str
    mean_from: float
    low_from: float


def plain(*trainer: tuple[str, object], device: Settings = (), fleet: Settings = (), **options: Any) -> DemoOptions:
    """`BASE` with some keys of the trainer's, the devices' and the fleet's files, and other options of the demo."""
    return replace(
        BASE,
        trainer_settings=BASE.trainer_settings + trainer,
        device_settings=device,
        fleet_settings=fleet,
        **options,
    )


def ablation(name: str, title: str, *, without: Sequence[str]) -> Row:
    """A row whose loss lacks some terms."""
    return Row(f"ablation-{name}", f"loss: {title}", plain(*((f"{term}_weight", 0.0) for term in without)))


HEADLINE = Row("streamsplit", "StreamSplit", seeds=HEADLINE_SEEDS)
ROWS = (
    Row("untrained", "untrained (mean of five)", trained=False),
    HEADLINE,
    Row("shuffled", "StreamSplit, shuffled order", plain(order="shuffled")),
    Row("by-class", "StreamSplit, shards by class", plain(shard="by-class")),
    Row("hostile", "StreamSplit, one of the eight devices hostile", seeds=(0, 1), hostile=True),
    ablation("task", "task alone", without=("sw", "laplacian")),
    ablation("sw", "task + sliced Wasserstein", without=("laplacian",)),
    ablation("laplacian", "task + Laplacian", without=("sw",)),
)
QUICK_ROWS = ("untrained", "streamsplit", "server-only")

COMPARISONS = (
    Comparison(
        "difference", "streamsplit", "server-only", "StreamSplit minus server-only", mean_from=-1.0, low_from=-4.0
    ),
    Comparison(
        "difference_folds_3_5",
        "streamsplit",
        "server-only",
        "the same on folds 3 to 5, on which nothing was chosen",
        tuple(fold for fold in FOLDS if fold not in CHOSEN_ON),
    ),
    Comparison("server_only_gain", "server-only", "untrained", "server-only minus untrained", mean_from=6.0),
    Comparison("gain", "streamsplit", "untrained", "StreamSplit minus untrained"),
    Comparison("stream_minus_shuffled", "streamsplit", "shuffled", "`stream` minus `shuffled` order", mean_from=-2.0),
    Comparison("hostile_minus_streamsplit", "hostile", "streamsplit", "one hostile device minus none", mean_from=-2.0),
    Comparison("by_class_minus_iid", "by-class", "streamsplit", "shards by class minus iid shards"),
    *(
        Comparison(f"ablation_{name}_minus_full", f"ablation-{name}", "streamsplit", f"loss: {title} minus all terms")
        for name, title in (("task", "task alone"), ("sw", "task + SW"), ("laplacian", "task + Laplacian"))
    ),
)
AUROC = Prediction("streamsplit", mean_from=0.65, low_from=0.55)
