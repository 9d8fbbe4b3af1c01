"""The parts of a device that speak with its fleet, built from the settings."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from common import messages
from common.codec import Codec
from common.config_device import DeviceConfig
from common.encoder import Encoder
from common.errors import MessageError
from common.link import Link
from common.link_address import BrokerAddress
from common.process import software
from common.split import merge_periods
from common.topics import Topics
from device.board import Board, compute_times
from device.captions import CaptionDraw
from device.client_step import ClientStep
from device.compute_time import ComputeTime
from device.contact import Contact
from device.intake import Intake
from device.journal import Journal
from device.mailbox import Mailbox
from device.mixture_replica import MixtureReplica
from device.outbox import Outbox
from device.pace import Pace
from device.policy_splitter import PolicySplitter
from device.presence import Presence
from device.replica import Replica
from device.sources import Source
from device.splitter import PlannedSplitter, Splitter
from device.weights_exchange import WeightsExchange

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is there before the device's parts are: who it is, and what it listens, speaks and writes to."""

    device: str
    boot: str
    fingerprint: str
    link: Link
    topics: Topics
    source: Source
    board: Board
    journal: Journal
    stop: threading.Event


def build_mailbox(
    settings: DeviceConfig,
    around: Surroundings,
    encoder: Encoder,
    replica: Replica,
    mixture: MixtureReplica,
    splitter: Splitter,
    planned: PlannedSplitter,
) -> Mailbox:
    """What takes in what the fleet says; policies only where one is gone by.

    Plans rest on what was measured, and in fast mode nothing does that touches learning.
    """
    return Mailbox(
        around.link,
        around.topics,
        boot=around.boot,
        encoder=encoder,
        replica=replica,
        mixture=mixture,
        fingerprint=around.fingerprint,
        limits=messages.Limits(max_message_bytes=settings.fleet.max_message_bytes),
        take_policy=splitter.offer if isinstance(splitter, PolicySplitter) else None,
        take_plan=planned.offer if settings.speed == "realtime" else None,
    )


def build_weights(
    settings: DeviceConfig, around: Surroundings, encoder: Encoder, replica: Replica, mixture: MixtureReplica
) -> WeightsExchange:
    """The exchange of weights, begun with what is on the disk."""
    weights = WeightsExchange(
        around.link,
        around.topics,
        replica,
        encoder,
        mixture,
        device=around.device,
        boot=around.boot,
        fingerprint=around.fingerprint,
        path=settings.state_directory / "weights.bin",
        follow_all=uses_all_blocks(settings),
        # A sum of gradients says nothing by its length.
        negligible_change=0.0 if settings.fleet.accumulates else settings.fleet.negligible_change,
        periods=merge_periods(encoder, settings.fleet.values_per_merge) if settings.fleet.accumulates else None,
    )
    try:
        weights.load()
    except MessageError as error:
        LOG.warning("%s; starting from the fleet's weights", error)
    return weights


def uses_all_blocks(settings: DeviceConfig) -> bool:
    """Whether the device goes on using the blocks beyond its cut while it is connected."""
    if settings.fleet.mode == "federated" or settings.own_embedding:
        return True
    sending = settings.sending
    learns = settings.local_learning and sending.unsent == "learn"
    return sending.share < 1 and (learns or sending.by == "uncertainty")


def build_contact(
    settings: DeviceConfig,
    around: Surroundings,
    mailbox: Mailbox,
    replica: Replica,
    weights: WeightsExchange,
    pace: Pace,
) -> Contact:
    """Whether the fleet is there."""
    address = BrokerAddress.parse(
        settings.fleet.broker.url
    )  # the link's own is the emulated link's, where there is one
    return Contact(
        around.link,
        around.topics,
        mailbox,
        replica,
        weights,
        device=around.device,
        broker=f"{address.host}:{address.port}",
        pace=pace,
        stop=around.stop,
    )


def build_presence(settings: DeviceConfig, around: Surroundings, encoder: Encoder) -> Presence:
    """What the fleet is told of this device."""
    return Presence(
        around.link,
        around.topics.status(around.device),
        boot=around.boot,
        software=software(),
        fingerprint=around.fingerprint,
        profile=settings.profile.name if settings.profile else "",
        room=settings.room,
        cuts=range(settings.min_cut, encoder.depth + 1),
        compute=compute_times(settings, encoder),
    )


def build_outbox(
    settings: DeviceConfig,
    around: Surroundings,
    encoder: Encoder,
    mailbox: Mailbox,
    replica: Replica,
    client_step: ClientStep,
    compute: ComputeTime,
    intake: Intake,
    pace: Pace,
) -> Outbox:
    """What sends windows."""
    return Outbox(
        around.link,
        around.topics,
        mailbox,
        replica,
        client_step,
        compute,
        around.journal.totals,
        device=around.device,
        boot=around.boot,
        room=settings.room,
        depth=encoder.depth,
        codec=Codec.parse(settings.codec),
        pace=pace,
        finished=intake.finished,
        captions=CaptionDraw(settings.seed) if settings.fleet.objective == "clap" else None,
    )
