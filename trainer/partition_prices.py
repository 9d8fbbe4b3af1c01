"""What every placement costs: times, bytes and energy of each operation and each result, for one window.

The delay model of Li et al. (arXiv 2507.01041), of whose text only the abstract was at hand: compute on either side,
each crossing result once up and its gradient once down, parameters of the device's side moved once in N local
iterations. Everything is linear in six rates, so that a plan for another link or load is one product away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.compute_profile import ComputeProfile, Cost
from trainer.partition_graph import Array, CutGraph, Flags

BITS = 8
MEGA = 1e6


@dataclass(frozen=True, slots=True)
class LinkState:
    """A device's link: megabits per second either way, and the round trip in milliseconds."""

    uplink_mbps: float
    downlink_mbps: float
    round_trip_ms: float


@dataclass(frozen=True, slots=True)
class Wire:
    """How tensors and weights travel.

    Attributes:
        up_bits: bits of one activation after its codec.
        down_bits: bits of one value of the gradient.
        codec_ns: nanoseconds to encode and decode a value, both ways, all four together.
        header_bytes: of a window's messages beside their tensors, either way.
        weight_bits: bits of a parameter, once up and once down, in one exchange of the weights.
        input_bytes: of a window of sound, where the server may have it.
    """

    up_bits: float
    down_bits: float
    codec_ns: float
    header_bytes: float
    weight_bits: float
    input_bytes: float


@dataclass(frozen=True, slots=True)
class Weights:
    """What a millisecond, a joule of the device and a byte cost; (1, 0, 0) is the delay in milliseconds."""

    per_ms: float = 1.0
    per_joule: float = 0.0
    per_byte: float = 0.0


@dataclass(frozen=True, slots=True)
class Power:
    """The device's energy: watts while it computes, joules per 10^6 bytes either way."""

    compute_watts: float
    joules_per_megabyte_up: float
    joules_per_megabyte_down: float


@dataclass(frozen=True, slots=True)
class Amounts:
    """What is measured of a graph of n operations.

    Attributes:
        compute: milliseconds forward and backward on an idle device, parameters, and milliseconds on an idle server.
        sizes: of each result: bytes up, bytes of its gradient, values to encode.
        memory_bytes: what training each operation keeps in memory, [n].
        travels: whether the result can, [n]; what is no tensor cannot.
    """

    compute: Array  # [3, n]
    sizes: Array  # [n, 3]
    memory_bytes: Array
    travels: Flags

    def savings(self, price: Rates) -> Array:
        """What each operation costs more on the device than on the server, without any result that travels, [n]."""
        each: Array = np.array((price.device_ms, price.parameter, -price.server_ms)).dot(self.compute)
        return each


@dataclass(frozen=True, slots=True)
class Rates:
    """What one unit of each amount costs, in units of `Weights`; ``split``: what any split costs beside."""

    device_ms: float
    parameter: float
    server_ms: float
    up_byte: float
    down_byte: float
    value: float
    split: float

    def vector(self) -> Array:
        """The six that are multiplied with amounts, [6]."""
        return np.array((self.device_ms, self.parameter, self.server_ms, self.up_byte, self.down_byte, self.value))


@dataclass(frozen=True, slots=True)
class Pins:
    """Operations whose side is given, [n] each: the input and what the privacy floor keeps, and the trainer's own."""

    device: Flags
    server: Flags


def amounts(graph: CutGraph, device: ComputeProfile, server: ComputeProfile, wire: Wire) -> Amounts:
    """What two profiles and the wire say of a graph; the first operation is the input, which goes up as sound.

    Raises:
        ValueError: a profile is of another graph, or has no nodes.
    """
    for profile in (device, server):
        if tuple(cost.name for cost in profile.nodes) != graph.names:
            raise ValueError(f"a profile of {len(profile.nodes)} nodes does not fit this graph of {graph.size}")
    values = _column(device.nodes, "output_values")
    travels = values > 0
    sizes = values[:, None] * np.array((wire.up_bits / BITS, wire.down_bits / BITS, 1.0))
    sizes[0] = wire.input_bytes, 0.0, 0.0
    compute = (
        _column(device.nodes, "train_ms"),
        _column(device.nodes, "parameters"),
        _column(server.nodes, "train_ms"),
    )
    return Amounts(np.stack(compute), sizes, _column(device.nodes, "memory_bytes"), travels)


def rates(
    wire: Wire,
    link: LinkState,
    *,
    local_iterations: int,
    device_slowdown: float = 1.0,
    server_slowdown: float = 1.0,
    weights: Weights = Weights(),
    power: Power | None = None,
) -> Rates:
    """Prices for a link and for how much slower than when idle both sides compute; the codec runs on the device.

    Raises:
        ValueError: a rate, slowdown or number of local iterations that is not above 0; energy without its model.
    """
    given = (link.uplink_mbps, link.downlink_mbps, local_iterations, device_slowdown, server_slowdown)
    if min(given) <= 0:
        raise ValueError(f"rates, slowdowns and local iterations are above 0, not {given}")
    if weights.per_joule and power is None:
        raise ValueError("a price of energy needs the device's power model")
    known = power or Power(0.0, 0.0, 0.0)
    up = _byte(link.uplink_mbps, known.joules_per_megabyte_up, weights)
    down = _byte(link.downlink_mbps, known.joules_per_megabyte_down, weights)
    device_ms = device_slowdown * (weights.per_ms + weights.per_joule * known.compute_watts / 1e3)
    return Rates(
        device_ms=device_ms,
        parameter=wire.weight_bits / BITS / local_iterations * (up + down),
        server_ms=server_slowdown * weights.per_ms,
        up_byte=up,
        down_byte=down,
        value=wire.codec_ns / MEGA * device_ms,
        split=link.round_trip_ms * weights.per_ms + wire.header_bytes * (up + down),
    )


def pins(graph: CutGraph, *, device: Flags, server: Flags) -> Pins:
    """Whose side is given, with all that follows: the device has what feeds its own, the server what needs its own.

    Raises:
        ValueError: an operation would have to be on both sides.
    """
    on_device, on_server = device.copy(), server.copy()
    on_device[0] = True
    for at in reversed(range(graph.size)):
        on_device[at] |= any(on_device[consumer] for consumer in graph.consumers[at])
    for at in range(graph.size):
        on_server[at] |= any(on_server[parent] for parent in graph.parents[at])
    both = np.flatnonzero(on_device & on_server)
    if both.size:
        raise ValueError(f"{graph.names[both[0]]} would have to run on both sides")
    return Pins(on_device, on_server)


@dataclass(frozen=True, slots=True)
class Breakdown:
    """What a placement costs by what for, in units of `Weights`; ``split``: round trip and headers, if there is one."""

    device: float
    server: float
    tensors: float
    weights: float
    split: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.device + self.server + self.tensors + self.weights + self.split


def breakdown(graph: CutGraph, known: Amounts, price: Rates, on_device: Flags) -> Breakdown:
    """What a placement costs; ``tensors`` are infinite where a result would have to travel that cannot."""
    crossing = graph.crossing(on_device)
    carried = known.sizes[crossing].sum(axis=0) @ price.vector()[3:]
    device_ms, parameters = known.compute[:2, on_device].sum(axis=1)
    return Breakdown(
        device=float(price.device_ms * device_ms),
        server=float(price.server_ms * known.compute[2, ~on_device].sum()),
        tensors=float(carried) if known.travels[crossing].all() else float("inf"),
        weights=float(price.parameter * parameters),
        split=0.0 if on_device.all() else price.split,
    )


def total(graph: CutGraph, known: Amounts, price: Rates, on_device: Flags) -> float:
    """All that a placement costs."""
    return breakdown(graph, known, price, on_device).total


def _byte(mbps: float, joules_per_megabyte: float, weights: Weights) -> float:
    ms = BITS / (mbps * 1e3)
    return weights.per_ms * ms + weights.per_joule * joules_per_megabyte / MEGA + weights.per_byte


def _column(costs: tuple[Cost, ...], name: str) -> Array:
    return np.array([getattr(cost, name) for cost in costs], dtype=np.float64)
