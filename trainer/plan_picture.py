"""A plan as a picture: what every placement costs, and where the plan cuts the graph."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np

from trainer.plan_command import Comparison

PARTS = ("device", "server", "tensors", "weights", "split")
LABELS = ("device computes", "server computes", "tensors travel", "weights travel", "round trip")


def draw(compared: Comparison, path: Path) -> None:
    """Write the picture; the file's ending says which format. OSError where it cannot be written."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (bars, cut) = plt.subplots(2, 1, figsize=(9, 8), layout="constrained")
    names = [one.name for one in compared.placements]
    bottom = np.zeros(len(names))
    for part, label in zip(PARTS, LABELS, strict=True):
        heights = np.array([getattr(one.cost, part) for one in compared.placements])
        bars.bar(names, heights, bottom=bottom, label=label)
        bottom += heights
    bars.tick_params(axis="x", rotation=30)
    bars.set_ylabel("ms a window")
    bars.set_title(compared.title, fontsize=9)
    bars.legend(fontsize=8)
    _draw_cut(compared, cut)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_cut(compared: Comparison, axes: mpl.axes.Axes) -> None:
    """Operations in the order they run, by the bytes of their result; what crosses is ringed."""
    side = compared.placements[0].on_device
    sizes = np.array(compared.sizes_bytes)
    places = np.arange(sizes.size)
    for chosen, label, colour in ((side, "device", "tab:blue"), (~side, "server", "tab:orange")):
        axes.bar(places[chosen], sizes[chosen], color=colour, label=label)
    crossing = compared.graph.crossing(side)
    axes.plot(places[crossing], sizes[crossing], "o", mfc="none", mec="black", ms=9, label="crosses")
    axes.set_yscale("log")
    axes.set_xlabel("operation, in the order it runs")
    axes.set_ylabel("bytes of its result, up")
    axes.legend(fontsize=8)
