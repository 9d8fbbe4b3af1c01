"""``streamsplit plan``: where an encoder is best cut for a board and a link, beside what every other cut costs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from common import config
from common.arguments import between
from common.codec import DEFAULT_ACTIVATIONS_CODEC, DEFAULT_GRADIENT_CODEC, Codec
from common.compute_profile import ComputeProfile, load
from common.config_types import DEFAULT_CHANGE_CODEC
from common.encoder import ENCODERS, build_encoder
from common.encoder_graph import trace
from common.errors import ConfigError
from common.profiling import cache_folder, cached_profile
from trainer.partition import NoRoom, Partition
from trainer.partition_graph import CutGraph, Flags, graph_of, up_to_block
from trainer.partition_prices import Breakdown, LinkState, amounts, breakdown, pins, rates
from trainer.partition_wire import measure_wire

UNITS = {"mbps": 1.0, "kbps": 1e-3, "gbps": 1e3, "ms": 1.0, "s": 1e3}
LEAST_MEASURE, MOST_MEASURE = 1e-6, 1e9  # Mbit/s or ms: beyond them a delay is no number that says anything


@dataclass(frozen=True, slots=True)
class Placement:
    """One placement and its price: which operations run on the device, [n], and milliseconds a window by what for."""

    name: str
    on_device: Flags
    cost: Breakdown


@dataclass(frozen=True, slots=True)
class Comparison:
    """A plan, first, and every placement it was compared with; ``sizes_bytes`` up of each result, [n]."""

    title: str
    graph: CutGraph
    sizes_bytes: tuple[float, ...]
    placements: tuple[Placement, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """Plan, print and draw; returns the exit status."""
    given = _options(argv)
    here = cached_profile(build_encoder(given.encoder, seed=0), cache_folder(), nodes=True)
    device = board_profile(given.profile, here)
    if (device.encoder, len(device.nodes)) != (here.encoder, len(here.nodes)):
        raise ConfigError(f"{given.profile}: a profile of {device.encoder}, not of {here.encoder} with its nodes")
    link = LinkState(given.uplink, given.downlink or given.uplink, given.rtt)
    try:
        compared = compare(
            given.encoder, device, here, link, local_iterations=given.local_iterations, min_cut=given.min_cut,
            memory_bytes=None if given.memory_mb is None else given.memory_mb * 2**20,
        )  # fmt: skip
    except NoRoom as error:
        raise ConfigError(f"--memory-mb {given.memory_mb:g}: {error}; allowed: more, or a smaller --min-cut") from error
    if given.png is not None:
        from trainer.plan_picture import draw

        try:
            draw(compared, given.png)
        except (OSError, ValueError) as error:  # ValueError: a suffix that no picture has
            raise ConfigError(f"--png {given.png}: {error}") from error
    if given.json:
        print(json.dumps({one.name: {**asdict(one.cost), "total": one.cost.total} for one in compared.placements}))
    else:
        print(format_comparison(compared))
    return 0


def board_profile(name: str, here: ComputeProfile) -> ComputeProfile:
    """The device's profile: ``here``; a file of ``streamsplit profile``; or a board's, this machine's times scaled.

    Raises:
        ConfigError: neither a board nor a file that holds a profile.
    """
    if name == "here":
        return here
    if name.endswith(".json"):
        return load(Path(name))
    return here.as_board(config.load_profile(name).mobile_forward_ms)


def compare(
    encoder: str,
    device: ComputeProfile,
    server: ComputeProfile,
    link: LinkState,
    *,
    local_iterations: int,
    min_cut: int | None,
    memory_bytes: float | None = None,
) -> Comparison:
    """The plan for an encoder, and what all-device, all-server and every cut cost beside it.

    ``min_cut``: the privacy floor, 0..L; None: sound may travel.
    """
    traced = trace(build_encoder(encoder, seed=0))
    graph = graph_of(traced)
    codecs = Codec.parse(DEFAULT_ACTIVATIONS_CODEC), Codec.parse(DEFAULT_GRADIENT_CODEC)
    wire = measure_wire(*codecs, change_codec=DEFAULT_CHANGE_CODEC, delta_codec=DEFAULT_CHANGE_CODEC)
    known = amounts(graph, device, server, wire)
    price = rates(wire, link, local_iterations=local_iterations)
    nothing = np.zeros(graph.size, dtype=np.bool_)
    floor = nothing if min_cut is None else up_to_block(traced, min_cut)
    partition = Partition(graph, known, pins(graph, device=floor, server=nothing))
    plan = partition.plan(price, memory_bytes=memory_bytes).on_device
    heard = nothing.copy()
    heard[0] = True
    sides = {"plan": plan, "all-device": ~nothing, "all-server": heard}
    sides |= {f"cut {cut}": up_to_block(traced, cut) for cut in range(device.depth + 1)}
    placements = tuple(Placement(name, side, breakdown(graph, known, price, side)) for name, side in sides.items())
    title = f"{encoder} on {device.hardware} (x {device.scale:.1f}), {_link(link)}, N = {local_iterations}"
    return Comparison(title, graph, tuple(known.sizes[:, 0].tolist()), placements)


def format_comparison(compared: Comparison) -> str:
    """The plan in words, and a line for every placement, the plan's first."""
    plan, graph = compared.placements[0], compared.graph
    crossing = [f"{graph.names[at]} ({compared.sizes_bytes[at]:,.0f} B)" for at in graph.crossing(plan.on_device)]
    says = f"{int(plan.on_device.sum()) - 1} of {graph.size - 1} operations on the device"
    across = f"; across: {', '.join(crossing)}" if crossing else "; nothing crosses"
    header = f"{'':<10}  {'ms/window':>10}  {'device':>8}  {'server':>8}  {'tensors':>8}  {'weights':>8}  {'trip':>8}"
    return "\n".join([compared.title, says + across, header, *(_line(one) for one in compared.placements)])


def _line(one: Placement) -> str:
    cost = one.cost
    parts = (cost.device, cost.server, cost.tensors, cost.weights, cost.split)
    return f"{one.name:<10}  {cost.total:>10.2f}  " + "  ".join(f"{part:>8.2f}" for part in parts)


def _link(link: LinkState) -> str:
    return f"{link.uplink_mbps:g} Mbit/s up, {link.downlink_mbps:g} down, {link.round_trip_ms:g} ms round trip"


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="streamsplit plan", description="Where an encoder is best cut: the least delay of a window's training."
    )
    parser.add_argument("--encoder", choices=ENCODERS, default="mobile")
    parser.add_argument(
        "--profile", default="here", help="the device: a board's name, a file of `streamsplit profile`, or here"
    )
    parser.add_argument("--uplink", type=_measure("mbps"), default=2.0, metavar="2mbps")
    parser.add_argument("--downlink", type=_measure("mbps"), metavar="4mbps", help="default: the uplink's")
    parser.add_argument("--rtt", type=_measure("ms"), default=50.0, metavar="50ms")
    parser.add_argument("--local-iterations", type=int, default=200, help="windows between two exchanges of weights")
    parser.add_argument("--min-cut", type=int, choices=range(9), help="privacy floor; default: none, sound may travel")
    parser.add_argument("--memory-mb", type=between(float, 0.0), help="what training may keep in the device's memory")
    parser.add_argument("--png", type=Path, help="draw the comparison and the cut")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    given = parser.parse_args(argv)
    if given.local_iterations < 1:
        parser.error("--local-iterations is at least 1")
    return given


def _measure(kind: str) -> Callable[[str], float]:
    """A parser of numbers with a unit, as 2mbps or 50ms, named for argparse's messages."""
    allowed = [unit for unit in UNITS if unit.endswith("bps") == (kind == "mbps")]

    def parse(text: str) -> float:
        unit = next((unit for unit in allowed if text.lower().endswith(unit)), "")
        try:
            value = float(text[: len(text) - len(unit)]) * UNITS.get(unit, 1.0)
        except ValueError:
            value = 0.0
        if not LEAST_MEASURE <= value <= MOST_MEASURE:
            raise argparse.ArgumentTypeError(f"{text}: allowed is a number above 0 and a unit of {', '.join(allowed)}")
        return value

    return parse
