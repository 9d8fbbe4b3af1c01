"""The rows of the accuracy table: each is the demonstration's options with what makes it this row, and nothing else.

Whatever a row does not set is the pipeline's default.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.demo_files import DemoOptions

FOLDS = (1, 2, 3, 4, 5)
CHOSEN_ON = (1, 2)
"""The configuration is chosen on these folds; the others are reported alone as well."""

HEADLINE_SEEDS = (0, 1, 2)
QUICK_WINDOWS = 2_000
BYTES_WINDOWS = 1_600

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
        bytes_alone: what it sends is all that is told of it: it learns what another row does, or is too short to.
    """

    name: str
    title: str
    options: DemoOptions = BASE
    folds: tuple[int, ...] = FOLDS
    seeds: tuple[int, ...] = (0,)
    trained: bool = True
    hostile: bool = False
    bytes_alone: bool = False


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


def ablations(prefix: str, title: str, device: Settings = ()) -> Iterator[Row]:
    """The rows whose loss lacks some terms."""
    for name, (words, without) in TERMS.items():
        weights = ((f"{term}_weight", 0.0) for term in without)
        yield Row(f"{prefix}-{name}", f"{title}: {words}", plain(*weights, device=device))


COARSE = ("codec", "int4-deviation-zlib")
# Devices that hold no weights of the fleet learn the same whatever these say: so their results outlive new defaults.
APART_TRAINER: Settings = (("merge_every", 50), ("max_lag", 4))
APART_FLEET: Settings = (("change_codec", "int4"), ("delta_codec", "int4"))
# What is not sent is passed over: then the devices' part is summed up, and merged, as in a fleet that sends everything.
SPARSE: Settings = (("sending.share", 0.25), ("sending.by", "uncertainty"), ("sending.unsent", "skip"), COARSE)
SPARSE_RANDOM: Settings = (("sending.share", 0.25), ("sending.by", "random"), ("sending.unsent", "skip"), COARSE)
# The testbed's own row, at the cut that its policy holds where nobody else needs the processor.
TESTBED: Settings = (("own_embedding", True), *SPARSE_RANDOM)
TESTBED_CUT = "8"
SPARSE_LEARNING: Settings = (("sending.share", 0.25), ("sending.by", "uncertainty"))
TERMS = {
    "task": ("task alone", ("sw", "laplacian")),
    "sw": ("task + sliced Wasserstein", ("laplacian",)),
    "laplacian": ("task + Laplacian", ("sw",)),
}
HEADLINE = Row("streamsplit", "StreamSplit", seeds=HEADLINE_SEEDS)
ROWS = (
    Row("untrained", "untrained (mean of five)", trained=False),
    HEADLINE,
    Row(
        "server-only",
        "server-only, PCM16",
        plain(*APART_TRAINER, fleet=APART_FLEET, mode="server-only"),
        seeds=HEADLINE_SEEDS,
    ),
    *(
        Row(
            f"server-only-{codec}",
            f"server-only, {words}",
            plain(mode="server-only", device=(("audio_codec", codec),), windows=BYTES_WINDOWS),
            folds=(1,),
            bytes_alone=True,
        )
        for codec, words in (("flac", "FLAC"), ("opus", "Opus at 24 kbit/s"))
    ),
    Row(
        "edge-only",
        "edge-only: each device alone, nothing sent",
        plain(*APART_TRAINER, fleet=APART_FLEET, mode="edge-only"),
    ),
    Row("federated", "federated averaging", plain(fleet=APART_FLEET, mode="federated")),
    Row("static-compression", "static compression: half as wide, int8, alone", plain(mode="static-compression")),
    Row("heuristic-split", "heuristic split: rules choose the cut", plain(cut="heuristic")),
    Row("shuffled", "StreamSplit, shuffled order", plain(order="shuffled")),
    Row("by-class", "StreamSplit, shards by class", plain(shard="by-class")),
    Row("hostile", "StreamSplit, one of the eight devices hostile", seeds=(0, 1), hostile=True),
    Row("sparse-uncertainty", "25 % of the windows sent, by uncertainty", plain(device=SPARSE), seeds=(0, 1)),
    Row("sparse-random", "25 % of the windows sent, random ones", plain(device=SPARSE_RANDOM), seeds=HEADLINE_SEEDS),
    Row("sparse-learning", "25 % by uncertainty, the others learned alone", plain(device=SPARSE_LEARNING)),
    Row("coarse", "StreamSplit, activations in steps of a deviation", plain(device=(COARSE,))),
    Row("int8", "StreamSplit, activations with 8 bits", plain(device=(("codec", "int8-zlib"),))),
    Row(
        "precise",
        "StreamSplit, 8 bits everywhere",
        plain(
            ("gradient_codec", "int8-zlib"),
            device=(("codec", "int8-zlib"),),
            fleet=(("change_codec", "int8"), ("delta_codec", "int8")),
        ),
    ),
    Row(
        "testbed",
        "as in the testbed: any 25 %, cut 8",
        plain(cut=TESTBED_CUT, device=TESTBED),
        seeds=HEADLINE_SEEDS,
    ),
    Row("cola", "COLA on EfficientNet-B0", plain(fleet=(("objective", "cola"),), encoder="efficientnet-b0"), (1, 2, 3)),
    Row("clap", "CLAP, captions from class names (supervised)", plain(fleet=(("objective", "clap"),))),
    Row("untrained-b0", "EfficientNet-B0, untrained", plain(encoder="efficientnet-b0"), (1, 2, 3), trained=False),
    *ablations("ablation", "loss"),
    *ablations("ablation-sparse", "25 % by uncertainty, loss", SPARSE),
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
    Comparison("offline_gain", "edge-only", "untrained", "a device alone minus untrained", mean_from=3.0),
    Comparison("stream_minus_shuffled", "streamsplit", "shuffled", "`stream` minus `shuffled` order", mean_from=-2.0),
    Comparison("hostile_minus_streamsplit", "hostile", "streamsplit", "one hostile device minus none", mean_from=-2.0),
    Comparison("by_class_minus_iid", "by-class", "streamsplit", "shards by class minus iid shards"),
    Comparison(
        "sparse_uncertainty_minus_full",
        "sparse-uncertainty",
        "streamsplit",
        "25 % by uncertainty minus all",
        mean_from=-2.8,
    ),
    Comparison("sparse_random_minus_full", "sparse-random", "streamsplit", "25 % at random minus all"),
    Comparison(
        "sparse_random_minus_server_only",
        "sparse-random",
        "server-only",
        "25 % at random minus server-only",
        mean_from=-1.0,
        low_from=-4.0,
    ),
    Comparison(
        "sparse_uncertainty_minus_random", "sparse-uncertainty", "sparse-random", "25 % by uncertainty minus at random"
    ),
    Comparison(
        "sparse_learning_minus_full",
        "sparse-learning",
        "streamsplit",
        "25 % by uncertainty, the others learned alone, minus all",
    ),
    Comparison("coarse_minus_full", "coarse", "streamsplit", "activations in steps of a deviation minus default"),
    Comparison("int8_minus_full", "int8", "streamsplit", "activations with 8 bits minus default"),
    Comparison("precise_minus_full", "precise", "streamsplit", "8 bits everywhere minus default"),
    Comparison(
        "testbed_minus_server_only",
        "testbed",
        "server-only",
        "as in the testbed minus server-only",
        mean_from=-1.0,
        low_from=-4.0,
    ),
    Comparison(
        "sparse_uncertainty_minus_server_only",
        "sparse-uncertainty",
        "server-only",
        "25 % by uncertainty minus server-only",
    ),
    Comparison("cola_gain", "cola", "untrained-b0", "COLA minus untrained, EfficientNet-B0", mean_from=5.0),
    Comparison("clap_gain", "clap", "untrained", "CLAP minus untrained", mean_from=5.0),
    *(
        Comparison(f"ablation_{name}_minus_full", f"ablation-{name}", "streamsplit", f"loss: {words} minus all terms")
        for name, (words, _) in TERMS.items()
    ),
    *(
        Comparison(
            f"ablation_sparse_{name}_minus_full",
            f"ablation-sparse-{name}",
            "sparse-uncertainty",
            f"the same at 25 % by uncertainty: {words} minus all terms",
        )
        for name, (words, _) in TERMS.items()
    ),
)
ZERO_SHOT = ("clap", 50.0)
"""The row that is asked by prompts, and the accuracy asked for (chance is 10 % with ten classes)."""

AUROC = Prediction("streamsplit", mean_from=0.65, low_from=0.55)
