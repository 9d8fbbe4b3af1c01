"""The board that a device runs on, or plays on another machine: what is known of it, and what plays it.

The settings say whether it is played (``emulate``), and their profile what it is like.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from common import messages
from common.config_device import DeviceConfig
from common.encoder import INPUT_SHAPE, Encoder, build_encoder
from common.link import Link
from common.link_address import BrokerAddress
from common.power_model import PowerModel
from common.profiling import cached_profile
from common.split import VIEWS
from device.emulation import BoardSampler, ComputeStretch, ForwardTime
from device.energy import EnergyMeter
from device.journal import Journal
from device.pmic import find_pmic
from device.telemetry import ResourceSampler, Sampler

if TYPE_CHECKING:
    from device.conditions import ConditionPlayer
    from device.shaped_link import ShapedLink

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Board:
    """What plays the board that this device imitates; nothing of it where it imitates none."""

    link: ShapedLink | None
    stretch: ComputeStretch | None
    player: ConditionPlayer | None


def play_link(settings: DeviceConfig) -> ShapedLink | None:
    """The profile's link in front of the broker, started."""
    if settings.profile is None or not settings.emulate:
        return None
    from device.shaped_link import ShapedLink  # only an emulated device needs it

    address = BrokerAddress.parse(settings.fleet.broker.url)
    shaped = ShapedLink(
        address.host,
        address.port,
        uplink_mbps=settings.profile.uplink_mbps,
        downlink_mbps=settings.profile.downlink_mbps,
        round_trip_ms=settings.profile.round_trip_ms,
    )
    shaped.start()
    return shaped


def play_speed(settings: DeviceConfig) -> ComputeStretch | None:
    """The profile's speed, against this machine's, which is measured."""
    if settings.profile is None or not settings.emulate:
        return None
    stretch = ComputeStretch(host=_mobile_forward(), board_forward_ms=settings.profile.mobile_forward_ms)
    LOG.info("%s: %s", settings.profile.name, stretch.describe())
    return stretch


def conditions_player(
    settings: DeviceConfig, shaped: ShapedLink | None, stretch: ComputeStretch | None, journal: Journal
) -> ConditionPlayer | None:
    """Who plays what happens to the board.

    Raises:
        ConfigError: the file of conditions cannot be used.
    """
    if settings.emulate_conditions is None or shaped is None or stretch is None:
        return None
    from device.conditions import ConditionPlayer, read_conditions  # only an emulated device needs it

    return ConditionPlayer(
        read_conditions(settings.emulate_conditions), link=shaped, stretch=stretch, on_change=journal.condition
    )


def uplink_of(link: Link, board: Board) -> Callable[[], float | None]:
    """Who tells the uplink's rate: the kernel, or the link that is played (the kernel sees the loopback)."""
    played = board.link
    return link.delivery_mbps if played is None else lambda: played.uplink_mbps


def round_trip_of(link: Link, board: Board) -> Callable[[], float | None]:
    """Who tells the round trip to the broker, as `uplink_of`."""
    played = board.link
    return link.round_trip_ms if played is None else lambda: played.round_trip_ms


def sampler_of(settings: DeviceConfig, board: Board, journal: Journal) -> Sampler:
    """Who knows load and memory: this machine, or what is known of the board that it plays."""
    if settings.profile is None or not settings.emulate:
        return ResourceSampler()
    player = board.player
    return BoardSampler(
        cores=settings.profile.cores,
        memory_mb=settings.profile.memory_mb,
        busy_s=lambda: journal.totals.busy_s,
        others_cpu=lambda: player.others_cpu if player else 0.0,
    )


def energy_of(settings: DeviceConfig) -> EnergyMeter:
    """Measured where it can be, unless another board is played: this machine's counters say nothing of that."""
    profile = settings.profile
    power = None if profile is None else PowerModel(**profile.power.model_dump(exclude={"source"}))
    if settings.emulate:
        return EnergyMeter(power=power, measure=False)
    pmic = find_pmic()
    if pmic is not None:
        pmic.start()
    return EnergyMeter(power=power, pmic=pmic)


def compute_times(settings: DeviceConfig, encoder: Encoder) -> messages.ComputeTimes | None:
    """What each block costs on this board or, where another one is played, on that."""
    if not settings.measure_compute:
        return None
    folder = settings.state_directory
    costs = cached_profile(encoder, folder, nodes=False)
    if settings.emulate and settings.profile is not None:
        costs = costs.as_board(settings.profile.mobile_forward_ms)
    return messages.ComputeTimes(
        tuple(cost.forward_ms for cost in costs.blocks), tuple(cost.backward_ms for cost in costs.blocks)
    )


def forward_ms(settings: DeviceConfig) -> float | None:
    """The board's `mobile_forward_ms`, whatever is trained: that of the one that is played, else measured.

    None where no policy asks.
    """
    if settings.splitter.kind != "policy":
        return None
    if settings.emulate and settings.profile is not None:
        return settings.profile.mobile_forward_ms
    return mobile_forward_ms()


def mobile_forward_ms() -> float:
    """What a profile states by this name, measured here."""
    return _mobile_forward().least() / VIEWS


def _mobile_forward() -> ForwardTime:
    """Of a window's views at once, and as in training, with a graph."""
    mobile, window = build_encoder("mobile", seed=0), torch.zeros(VIEWS, *INPUT_SHAPE)
    return ForwardTime(lambda: mobile(window))
