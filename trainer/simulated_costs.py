"""What every decision would cost along a trace: tables that the simulator and its oracle look up.

Times are those of a measured profile of the encoder, scaled to a board; bytes are those of real messages, encoded;
energy is the board's power model. Nothing here depends on what was decided before: that is `trainer.simulated_device`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from common import messages
from common.codec import DEFAULT_ACTIVATIONS_CODEC, DEFAULT_GRADIENT_CODEC, Codec, EncodedTensor, encode
from common.compute_profile import ComputeProfile
from common.config_types import DEFAULT_CHANGE_CODEC
from common.encoder import Encoder
from common.power_model import PowerModel
from common.split import VALUE_BITS, VIEWS, block_parameters, client_names, merge_periods
from common.topics import Topics
from common.traffic import packet_bytes
from trainer.link_traces import STEP_S, Trace

Values = NDArray[np.float64]

WINDOWS = 8  # of a decision: a step of the fleet's default parts_per_step
VIEWS_SHARE = 0.31  # of `mobile`'s forward time for both views: log-mel and augmentation (1.5 against 4.8 ms, measured)
SERVER_S = 0.03  # part received to embedding published while training runs: README's p95 of 47 ms is the bad case
BATCH_S = 0.1  # what the gradients of a step take longer than its embeddings: the batch waits for the other devices
MERGE_BATCHES = 6  # a version every so many decisions: `merge_every`'s default, after a run's first batches
WHOLE_BYTES = 2  # of a parameter that is fetched whole, in fp16
BOOT = "0" * 16
STEP = 70_000  # a number with as many bytes as those of a long run
TELEMETRY_BYTES = 650  # a packet of telemetry, once a decision (tests/trainer/test_simulated_costs.py)


@dataclass(frozen=True, slots=True)
class Board:
    """A kind of device. ``forward_ms``: one window of one view through `mobile`; ``said_ms``: what devices say of
    that, where it is something else.

    A device computes on one of its ``cores``.
    """

    name: str
    forward_ms: float
    cores: int
    power: PowerModel
    said_ms: float | None = None


@dataclass(frozen=True, slots=True)
class CutCosts:
    """An encoder at every cut, `[L + 1]` each; times on a machine that takes 1 ms for a view through `mobile`.

    Attributes:
        forward_ms, train_ms: of one window's two views on the device: views made and embedded; the same with backward.
        computed_ms: of these, the client segment alone, forward and backward: what devices tell as `client_ms`.
        up_bytes, down_bytes: of one window: packets of activations, and of embedding and gradient.
        answer_bytes: of these, the embedding.
        exchange_bytes: of one window's share in the exchange of weights.
        whole_bytes: of the weights of everything before the cut.
    """

    forward_ms: Values
    train_ms: Values
    computed_ms: Values
    up_bytes: Values
    down_bytes: Values
    answer_bytes: Values
    exchange_bytes: Values
    whole_bytes: Values

    @property
    def depth(self) -> int:
        """``L``."""
        return len(self.forward_ms) - 1


@dataclass(frozen=True, slots=True)
class Tables:
    """One board along one trace: `[D, L + 2]` for D decisions and every action, `LOCAL` last, or `[D]`.

    Attributes:
        service_s: how long the device is occupied by one window, the wait for the step's gradients included.
        delay_s: window taken up to embedding on the device.
        answered, local: shares of the windows that are learned from with the fleet, and alone.
        bytes_moved: both ways, per window, without fetches of blocks.
        joules: above idle, per window, without fetches of blocks.
        replied: whether an uncertainty became known: with an embedding that came back, or a device's own.
        busy: share of all cores that the device itself takes during the last window; learning from an answered step is
            not counted, as a device does not (`Sampler.sample`).
        online, uplink_mbps, round_trip_ms, uncertainty: at the decision, or its windows' mean (rate and round trip: of
            those that are online); `last_load`, `last_uncertainty`: its last window's.
        fetch_joules: per byte fetched.
        forward_ms: what the device says of itself.
        follows: blocks beyond the cut follow every version as well, as where a device judges its windows itself;
            `bytes_moved` and `joules` hold what that costs.
    """

    service_s: Values
    delay_s: Values
    answered: Values
    local: Values
    bytes_moved: Values
    joules: Values
    replied: NDArray[np.bool_]
    busy: Values
    online: NDArray[np.bool_]
    last_load: Values
    uplink_mbps: Values
    round_trip_ms: Values
    uncertainty: Values
    last_uncertainty: Values
    whole_bytes: Values
    fetch_joules: float
    forward_ms: float
    follows: bool

    def __len__(self) -> int:
        return len(self.online)

    @property
    def depth(self) -> int:
        """``L``."""
        return len(self.whole_bytes) - 1


def cut_costs(
    encoder: Encoder, profile: ComputeProfile, *, values_per_merge: int, topics: Topics, device: str
) -> CutCosts:
    """What every cut of `encoder` costs, by a measured profile of it and by messages of the default codecs.

    ValueError as `ComputeProfile.as_board`.
    """
    cuts = range(encoder.depth + 1)
    unit = profile.as_board(1.0)
    views_ms = VIEWS_SHARE * VIEWS
    computed_ms = np.array([unit.client_ms(cut) for cut in cuts])
    packets = np.array([_packets(encoder, cut, topics, device) for cut in cuts], dtype=np.float64)
    return CutCosts(
        forward_ms=np.array([views_ms + unit.client_forward_ms(cut) for cut in cuts]),
        train_ms=views_ms + computed_ms,
        computed_ms=computed_ms,
        up_bytes=packets[:, 0] + TELEMETRY_BYTES / WINDOWS,
        down_bytes=packets[:, 1] + packets[:, 2],
        answer_bytes=packets[:, 1],
        exchange_bytes=np.array([_merged_bytes(encoder, cut, values_per_merge) for cut in cuts])
        / (MERGE_BATCHES * WINDOWS),
        whole_bytes=np.array([WHOLE_BYTES * sum(_sizes(encoder, cut).values()) for cut in cuts], dtype=np.float64),
    )


def _sizes(encoder: Encoder, cut: int) -> dict[str, int]:
    """Parameters of every block before the cut."""
    return {name: sum(value.numel() for value in block_parameters(encoder, name)) for name in client_names(cut)}


def _merged_bytes(encoder: Encoder, cut: int, values_per_merge: int) -> float:
    """The mean merge's bytes both ways: a large block takes part in some merges only."""
    periods = merge_periods(encoder, values_per_merge)
    values = sum(size / periods[name] for name, size in _sizes(encoder, cut).items())
    return values * 2 * VALUE_BITS[DEFAULT_CHANGE_CODEC] / 8


def _packets(encoder: Encoder, cut: int, topics: Topics, device: str) -> tuple[int, int, int]:
    """Bytes of one window's activations, embedding (none at the last cut) and gradient, as packets."""
    generator = torch.Generator().manual_seed(cut)
    values = torch.randn((VIEWS, *encoder.activation_shape(cut)), generator=generator)
    tensor = encode(values, Codec.parse(DEFAULT_ACTIVATIONS_CODEC))
    activations = messages.Activations(
        BOOT, STEP, 7, False, cut, 1000, 2000, 100, STEP, 10**8, "room", tensor
    )  # fmt: skip
    gradient = encode(values, Codec.parse(DEFAULT_GRADIENT_CODEC), generator)
    answer = messages.Gradient(BOOT, STEP, 7, "ok", "", 1.0, 1e-3, False, gradient)
    up = packet_bytes(topics.activations(device), messages.encode(activations), qos=0, expires=True)
    down = packet_bytes(topics.gradient(device), messages.encode(answer), qos=0, expires=True)
    if cut == encoder.depth:
        return up, 0, down
    embedding = messages.Embedding(BOOT, STEP, 7, 1000, 0.5, _embedding(encoder, generator))
    return up, packet_bytes(topics.embedding(device), messages.encode(embedding), qos=0, expires=True), down


def _embedding(encoder: Encoder, generator: torch.Generator) -> EncodedTensor:
    return encode(torch.randn((1, encoder.embedding_dim), generator=generator), Codec.parse("int8"))


def tables(trace: Trace, board: Board, costs: CutCosts, *, follows: bool = False) -> Tables:
    """What every action would cost at every decision of the trace; windows that make no whole decision are left out.

    `follows`: as in `Tables`.
    """
    decisions = len(trace) // WINDOWS
    load, up_mbps, down_mbps, round_trip_ms, uncertainty = (
        values[: decisions * WINDOWS].astype(np.float64).reshape(decisions, WINDOWS, 1)
        for values in (trace.load, trace.uplink_mbps, trace.downlink_mbps, trace.round_trip_ms, trace.uncertainty)
    )
    online = trace.online[: decisions * WINDOWS].reshape(decisions, WINDOWS, 1)
    speed = 1.0 - load
    compute_s = np.append(costs.train_ms, costs.train_ms[-1]) * board.forward_ms * 1e-3
    sent = np.append(np.ones(costs.depth + 1, dtype=bool), False) & online
    embedded = np.append(costs.forward_ms, costs.train_ms[-1]) * board.forward_ms * 1e-3
    answers = sent & (np.arange(costs.depth + 2) < costs.depth)
    with np.errstate(divide="ignore"):
        up_s = _padded(costs.up_bytes) * 8e-6 / np.where(online, up_mbps, np.inf)
        down_s = _padded(costs.answer_bytes) * 8e-6 / np.where(online, down_mbps, np.inf)
    answer_s = up_s + 1e-3 * round_trip_ms + SERVER_S + down_s
    # Of a step that an outage interrupts the gradients never come; its windows without a link are for local steps.
    interrupted = sent & ~online.all(axis=1, keepdims=True)
    wait_s = np.where(sent, answer_s + BATCH_S, 0.0) / WINDOWS
    whole = compute_s[-1]
    occupied_s = np.where(sent, compute_s, whole) / speed
    service_s = np.maximum(occupied_s, np.where(sent, up_s, 0.0)) + wait_s
    delay_s = np.where(sent, embedded, embedded[-1]) / speed + np.where(answers, answer_s, 0.0)
    beyond = (
        np.append(costs.exchange_bytes[-1] - costs.exchange_bytes, costs.exchange_bytes[-1]) / 2 if follows else 0.0
    )
    moved = np.append(costs.up_bytes + costs.down_bytes + costs.exchange_bytes, 0.0) * sent + beyond * online
    up_share = np.append(costs.up_bytes + costs.exchange_bytes / 2, 0.0) * sent
    radio = 1e-6 * (
        board.power.radio_joules_per_megabyte_up * up_share
        + board.power.radio_joules_per_megabyte_down * (moved - up_share)
    )
    computing_s = np.where(sent, compute_s, whole)
    return Tables(
        service_s=service_s.mean(axis=1),
        delay_s=delay_s.mean(axis=1),
        answered=(sent & ~interrupted).mean(axis=1),
        local=(~sent).mean(axis=1),
        bytes_moved=moved.mean(axis=1),
        joules=(radio + board.power.compute_watts * computing_s).mean(axis=1),
        replied=np.asarray(answers.any(axis=1)) | follows,
        busy=(np.minimum(np.where(sent, embedded, whole) / speed / STEP_S, 1.0) * speed)[:, -1] / board.cores,
        online=online[:, 0, 0],
        last_load=load[:, -1, 0],
        uplink_mbps=_mean_where(up_mbps, online),
        round_trip_ms=_mean_where(round_trip_ms, online),
        uncertainty=uncertainty.mean(axis=1)[:, 0],
        last_uncertainty=uncertainty[:, -1, 0],
        whole_bytes=costs.whole_bytes,
        fetch_joules=1e-6 * board.power.radio_joules_per_megabyte_down,
        forward_ms=board.forward_ms if board.said_ms is None else board.said_ms,
        follows=follows,
    )


def _padded(values: Values) -> Values:
    return np.append(values, 0.0)


def _mean_where(values: Values, chosen: NDArray[np.bool_]) -> Values:
    """The mean over a decision's windows that are online; NaN where none is."""
    count = chosen.sum(axis=1)[:, 0]
    with np.errstate(invalid="ignore"):
        mean: Values = np.where(chosen, values, 0.0).sum(axis=1)[:, 0] / count
    return mean
