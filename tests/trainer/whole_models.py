"""Models to cut whole, and all placements of each: the slow reference where trying every one of 2^n has no end."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from torch import nn

from common.encoder import ENCODERS, build_encoder
from tests.models.densenet import DenseNet
from tests.models.googlenet import GoogLeNet
from tests.models.resnet import ResNet
from tests.models.transformer import Transformer
from trainer.partition_graph import CutGraph, Flags
from trainer.partition_prices import Pins

MOST = 200_000
SHAPES: dict[str, Callable[[], nn.Module]] = {
    "googlenet": GoogLeNet,
    "densenet": DenseNet,
    "resnet50": ResNet,
    "transformer": Transformer,
}
NARROW: dict[str, Callable[[], nn.Module]] = {
    "googlenet": partial(GoogLeNet, narrow=8),
    "densenet": partial(DenseNet, layers=(3, 4), growth=8),
    "resnet50": partial(ResNet, layers=(2, 2), width=8),
    "transformer": partial(Transformer, depth=3, width=16),
}
OWN: dict[str, Callable[[], nn.Module]] = {name: partial(build_encoder, name, seed=0) for name in ENCODERS}


def all_placements(graph: CutGraph, given: Pins, *, most: int = MOST) -> Flags | None:
    """Every placement that keeps the pins and the arrows, [many, n]; None where there are more than ``most``.

    Operation by operation each placement of the earlier ones goes on with this one on the server, and on the device too
    where all it needs is there. None of them is in vain, for the rest may always be the server's: the work grows with
    how many there are. Branches multiply only until they meet, so that a model has few: GoogLeNet's 196 operations
    8,836, where `random_graphs.placements` would try 2^196.
    """
    sides = np.zeros((graph.size, 1), dtype=np.bool_)  # a row for each operation: what is asked of them lies together
    for at, parents in enumerate(graph.parents):
        if given.device[at]:
            sides[at] = True  # with all that it needs: `pins` saw to that
            continue
        may = sides[list(parents)].all(axis=0) & ~given.server[at]
        if sides.shape[1] + may.sum() > most:
            return None
        more = sides[:, may]
        more[at] = True
        sides = np.concatenate((sides, more), axis=1)
    return sides.T
