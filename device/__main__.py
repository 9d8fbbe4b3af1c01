"""``python -m device CONFIG.yaml``: builds one device from its configuration and runs it."""

from __future__ import annotations

import argparse
import logging
import math
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from common import config, messages
from common.block_optimizer import BlockOptimizers
from common.codec import DEFAULT_GRADIENT_CODEC, Codec
from common.config_models import ENCODER_DEPTH, DeviceConfig
from common.encoder import Encoder, build_encoder
from common.errors import ConfigError, MessageError
from common.link import Link
from common.link_address import BrokerAddress
from common.log_mel import LogMel
from common.mixture_memory import MixtureMemory
from common.power_model import PowerModel
from common.process import EXIT_UNAVAILABLE, LinkOpener, new_boot, open_link, run_process, software, stop_on_signals
from common.profiling import as_board, cached_profile
from common.split import cut_table, format_cut_table
from common.topics import Topics
from common.views import reach_s, views_of
from device.ambiguity import Ambiguity
from device.captions import CaptionDraw
from device.client_step import ClientStep
from device.compute_time import ComputeTime
from device.contact import Contact, NeverReady
from device.cutting import Cutting
from device.edge_learner import EdgeLearner
from device.emulation import BoardSampler, ComputeStretch, measure_forward_ms
from device.energy import EnergyMeter
from device.intake import Intake
from device.journal import Journal
from device.local_steps import LocalSteps
from device.loop import DeviceLoop
from device.mailbox import Mailbox
from device.mixture_replica import MixtureReplica
from device.outbox import Outbox
from device.pace import Pace
from device.policy_splitter import PolicySplitter, shipped_policy
from device.presence import Presence, last_will
from device.replica import Replica
from device.sending import Sending
from device.senses import Senses
from device.sources import Source, open_source
from device.splitter import FixedSplitter, HeuristicSplitter, Splitter
from device.telemetry import ResourceSampler, Sampler
from device.weights_exchange import WeightsExchange
from device.windows import WINDOW_S

if TYPE_CHECKING:
    from device.conditions import ConditionPlayer
    from device.shaped_link import ShapedLink

LOG = logging.getLogger("device")
DATA_CAPACITY = 512
OUTBOUND_CAPACITY = 1024  # a whole change of the largest encoder, 350 chunks, and the activations beside it
LOCAL_TEMPERATURE = 0.1
LOCAL_STEPS_WAITING = 4  # steps' worth of windows for local steps that a step in flight holds up, where all is sent
MOST_LOCAL_WAITING = 512  # windows' views, 48 KiB each
GAPS_AWAITED = 8  # of the mean time between two sent windows: longer ones are rare (tests/device/test_sending.py)
FAST_DEADLINE_SHARE = 0.8  # in fast mode a batch closes by the set of live devices, the deadline only ends a hang


@dataclass(frozen=True, slots=True)
class _Identity:
    device: str
    boot: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class _Board:
    """What plays the board that this device imitates; nothing of it where it imitates none."""

    link: ShapedLink | None
    stretch: ComputeStretch | None
    player: ConditionPlayer | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one device until its windows are used up or it is told to stop; returns the exit status."""
    parser = argparse.ArgumentParser(prog="streamsplit device", description="Run one device of the fleet.")
    parser.add_argument("config", type=Path, help="the device's YAML file")
    options = parser.parse_args(arguments)
    try:
        return run_process(lambda: listen(config.load_device(options.config), stop_on_signals()))
    except NeverReady as error:
        print(error, file=sys.stderr)
        return EXIT_UNAVAILABLE


def listen(settings: DeviceConfig, stop: threading.Event, *, connect: LinkOpener = open_link) -> None:
    """Build every part from the settings and run the loop; ``connect`` opens its link."""
    torch.set_num_threads(1)
    identity = _Identity(settings.id, new_boot(), config.fingerprint(settings.fleet))
    topics = Topics(settings.fleet.fleet)
    source = _source(settings)  # first: a folder that cannot be used is said before anything is started
    shaped = _shaped_link(settings)
    stretch = _stretch(settings)
    journal = Journal(settings.state_directory / "steps.jsonl")
    player = _player(settings, shaped, stretch, journal)
    link = connect(
        settings.fleet,
        client_id=f"{settings.fleet.fleet}-{settings.id}",
        will=last_will(topics, settings.id, boot=identity.boot, software=software(), fingerprint=identity.fingerprint),
        data_capacity=DATA_CAPACITY,
        outbound_capacity=OUTBOUND_CAPACITY,
        url=f"mqtt://127.0.0.1:{shaped.port}" if shaped else "",
    )
    board = _Board(shaped, stretch, player)
    loop = _loop(settings, identity, link, topics, source, board, journal, stop)
    link.start()
    try:
        if player:
            player.start()
        loop.run()
    except (ConfigError, NeverReady):
        link.stop()
        raise
    finally:
        if player:
            player.stop()
    # After a bug of ours this is not reached: the connection breaks without a good-bye, and the will tells the fleet.
    link.stop(timeout_s=10.0)
    if shaped:
        shaped.drain(timeout_s=5.0)  # the good-bye is on its way; without it the will would say lost
        shaped.stop()


def _loop(
    settings: DeviceConfig,
    identity: _Identity,
    link: Link,
    topics: Topics,
    source: Source,
    board: _Board,
    journal: Journal,
    stop: threading.Event,
) -> DeviceLoop:
    fleet = settings.fleet
    address = BrokerAddress.parse(fleet.broker.url)  # the link's own is the emulated link's, where there is one
    first_seed = settings.seed if _is_local(settings) else fleet.first_seed
    encoder = build_encoder(fleet.encoder, seed=first_seed, head=fleet.head)
    codec = Codec.parse(settings.codec)
    gradients = Codec.parse(DEFAULT_GRADIENT_CODEC)  # the trainer's file may say otherwise
    LOG.info(
        "what each cut costs:\n%s",
        format_cut_table(
            cut_table(
                encoder,
                codec,
                gradient_codec=gradients,
                change_codec=fleet.change_codec,
                delta_codec=fleet.delta_codec or fleet.weights_codec,
            )
        ),
    )
    optimizers = BlockOptimizers(
        encoder,
        kind=fleet.optimizer.kind,
        weight_decay=fleet.optimizer.weight_decay,
        warmup_steps=fleet.optimizer.warmup_steps,
    )
    replica = Replica(
        encoder,
        device=identity.device,
        boot=identity.boot,
        dtype=fleet.weights_codec,
        change_codec=fleet.change_codec,
    )
    replica.offer_built()
    mixture = MixtureReplica(
        MixtureMemory(dim=encoder.projection_dim, seed=settings.seed),
        boot=identity.boot,
        fingerprint=identity.fingerprint,
        path=settings.state_directory / "mixture.bin",
    )
    splitter = _splitter(settings)
    mailbox = Mailbox(
        link,
        topics,
        boot=identity.boot,
        encoder=encoder,
        replica=replica,
        mixture=mixture,
        fingerprint=identity.fingerprint,
        limits=messages.Limits(max_message_bytes=fleet.max_message_bytes),
        take_policy=splitter.offer if isinstance(splitter, PolicySplitter) else None,
    )
    ambiguity = Ambiguity(encoder, mixture.mixture)
    pace = _pace(settings)
    compute = ComputeTime(journal.totals, board.stretch)
    client_step = ClientStep(encoder, replica.sum_up if fleet.accumulates else optimizers.step)
    weights = _weights(settings, identity, link, topics, replica, encoder, mixture)
    contact = Contact(
        link,
        topics,
        mailbox,
        replica,
        weights,
        device=identity.device,
        broker=f"{address.host}:{address.port}",
        pace=pace,
        stop=stop,
    )
    presence = _presence(settings, identity, link, topics, encoder)
    views = views_of(fleet.objective, LogMel(), np.random.default_rng(settings.seed))
    intake = Intake(source, views, ambiguity, compute, journal.totals, pace)
    edge_learner = EdgeLearner(
        encoder,
        optimizers,
        mixture,
        temperature=LOCAL_TEMPERATURE,
        learning_rate=settings.local_learning_rate,
        replayed=settings.local_replayed,
        virtual_negatives=settings.local_virtual_negatives,
        sw_weight=settings.local_sw_weight,
        seed=settings.seed,
    )
    senses = Senses(
        device=identity.device,
        boot=identity.boot,
        depth=encoder.depth,
        link=link,
        topics=topics,
        source=source,
        mailbox=mailbox,
        replica=replica,
        journal=journal,
        energy=_energy(settings),
        sampler=_sampler(settings, board, journal),
        every_steps=settings.telemetry_every_steps,
        every_window=settings.speed == "realtime",
        uplink_mbps=_uplink(link, board),
        forward_ms=_forward_ms(settings, encoder),
        steady_link=_steady_link(settings),
    )
    cutting = Cutting(
        splitter,
        senses,
        contact,
        mailbox,
        replica,
        weights,
        optimizers,
        journal,
        depth=encoder.depth,
        pace=pace,
    )
    outbox = Outbox(
        link,
        topics,
        mailbox,
        replica,
        client_step,
        compute,
        journal.totals,
        device=identity.device,
        boot=identity.boot,
        room=settings.room,
        depth=encoder.depth,
        codec=codec,
        pace=pace,
        finished=intake.finished,
        captions=CaptionDraw(settings.seed) if fleet.objective == "clap" else None,
    )
    local_steps = LocalSteps(
        encoder,
        edge_learner,
        compute,
        replica,
        senses,
        journal,
        link,
        windows=pace.parts_per_step,
        waiting=pace.local_waiting,
    )
    return DeviceLoop(
        pace=pace,
        link=link,
        mailbox=mailbox,
        contact=contact,
        presence=presence,
        source=source,
        intake=intake,
        cutting=cutting,
        sending=_sending(settings, ambiguity, mixture.mixture),
        outbox=outbox,
        local_steps=local_steps,
        client_step=client_step,
        optimizers=optimizers,
        replica=replica,
        weights=weights,
        senses=senses,
        compute=compute,
        journal=journal,
        stop=stop,
    )


def _source(settings: DeviceConfig) -> Source:
    source = settings.source
    return open_source(
        source.kind,
        path=source.path,
        list_file=source.list,
        order=source.order,
        repeat=source.repeat,
        card=source.card,
        classes=source.classes,
        seed=source.seed,
        speed=settings.speed,
        context_s=reach_s(settings.fleet.objective),
        captioned=settings.fleet.objective == "clap",
        caption_file=source.captions,
    )


def _weights(
    settings: DeviceConfig,
    identity: _Identity,
    link: Link,
    topics: Topics,
    replica: Replica,
    encoder: Encoder,
    mixture: MixtureReplica,
) -> WeightsExchange:
    """The exchange of weights, begun with what is on the disk."""
    weights = WeightsExchange(
        link,
        topics,
        replica,
        encoder,
        mixture,
        device=identity.device,
        boot=identity.boot,
        fingerprint=identity.fingerprint,
        path=settings.state_directory / "weights.bin",
        follow_all=_uses_all_blocks(settings),
        # A sum of gradients says nothing by its length.
        negligible_change=0.0 if settings.fleet.accumulates else settings.fleet.negligible_change,
    )
    try:
        weights.load()
    except MessageError as error:
        LOG.warning("%s; starting from the fleet's weights", error)
    return weights


def _uses_all_blocks(settings: DeviceConfig) -> bool:
    """Whether the device goes on using the blocks beyond its cut while it is connected."""
    if settings.fleet.mode == "federated" or settings.own_embedding:
        return True
    sending = settings.sending
    learns = settings.local_learning and sending.unsent == "learn"
    return sending.share < 1 and (learns or sending.by == "uncertainty")


def _pace(settings: DeviceConfig) -> Pace:
    lockstep = settings.speed == "fast"
    share = settings.sending.share
    between_s = GAPS_AWAITED * WINDOW_S * (1 / share - 1)  # what is not sent keeps the next part waiting
    timeout_s = settings.step_timeout_s + between_s
    local_waiting = LOCAL_STEPS_WAITING * settings.fleet.parts_per_step
    federated = settings.fleet.mode == "federated"
    sends_sound = settings.fleet.mode == "server-only" and settings.baseline_raw_audio
    alone = federated or _is_local(settings)
    return Pace(
        parts_per_step=settings.fleet.parts_per_step,
        windows=settings.windows,
        min_cut=0 if sends_sound else settings.min_cut,
        first_cut=0 if sends_sound else ENCODER_DEPTH if alone else settings.splitter.cut,
        deadline_s=FAST_DEADLINE_SHARE * timeout_s if lockstep else settings.deadline_ms / 1000 + between_s,
        step_timeout_s=timeout_s,
        start_timeout_s=settings.connect_timeout_s,
        local_learning=settings.local_learning or alone,
        learn_unsent=settings.sending.unsent == "learn",
        local_waiting=max(local_waiting, min(MOST_LOCAL_WAITING, math.ceil(local_waiting / share))),
        lockstep=lockstep,
        sound=settings.audio_codec if sends_sound else None,
        sends_windows=not alone,
        own_embedding=settings.own_embedding,
        sync_every_windows=settings.fleet.sync_every_windows if federated else None,
    )


def _is_local(settings: DeviceConfig) -> bool:
    return settings.splitter.kind == "local" and settings.fleet.mode == "split"


def _presence(settings: DeviceConfig, identity: _Identity, link: Link, topics: Topics, encoder: Encoder) -> Presence:
    return Presence(
        link,
        topics.status(identity.device),
        boot=identity.boot,
        software=software(),
        fingerprint=identity.fingerprint,
        profile=settings.profile.name if settings.profile else "",
        room=settings.room,
        cuts=range(settings.min_cut, encoder.depth + 1),
        compute=_compute_times(settings, encoder),
    )


def _compute_times(settings: DeviceConfig, encoder: Encoder) -> messages.ComputeTimes | None:
    """What each block costs on this board or, where another one is played, on that."""
    if not settings.measure_compute:
        return None
    folder = settings.state_directory
    costs = cached_profile(encoder, folder, nodes=False)
    if settings.emulate and settings.profile is not None:
        costs = as_board(costs, settings.profile.mobile_forward_ms, folder)
    return messages.ComputeTimes(
        tuple(cost.forward_ms for cost in costs.blocks), tuple(cost.backward_ms for cost in costs.blocks)
    )


def _uplink(link: Link, board: _Board) -> Callable[[], float | None]:
    """Who tells the uplink's rate: the kernel, or the link that is played (the kernel sees the loopback)."""
    played = board.link
    return link.delivery_mbps if played is None else lambda: played.uplink_mbps


def _sampler(settings: DeviceConfig, board: _Board, journal: Journal) -> Sampler:
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


def _steady_link(settings: DeviceConfig) -> tuple[float | None, float | None] | None:
    """What rules and policy go by in fast mode, where no clock may decide what is learned: the profile, if any."""
    if settings.speed != "fast" or settings.splitter.kind not in {"heuristic", "policy"}:
        return None
    profile = settings.profile
    return (profile.uplink_mbps, profile.round_trip_ms) if profile else (None, None)


def _forward_ms(settings: DeviceConfig, encoder: Encoder) -> float | None:
    """How long one window takes through the whole encoder: what the profile says of the board, else measured."""
    if settings.profile is not None:
        return settings.profile.mobile_forward_ms
    if settings.splitter.kind != "policy":
        return None
    window = torch.zeros(1, 1, 64, 96)
    with torch.inference_mode():
        return measure_forward_ms(lambda: encoder(window))


def _energy(settings: DeviceConfig) -> EnergyMeter:
    """Measured where it can be, unless another board is played: this machine's counters say nothing of that."""
    if settings.profile is None:
        return EnergyMeter(power=None)
    power = PowerModel(**settings.profile.power.model_dump(exclude={"source"}))
    return EnergyMeter(power=power, measure=not settings.emulate)


def _sending(settings: DeviceConfig, ambiguity: Ambiguity, mixture: MixtureMemory) -> Sending:
    return Sending(
        share=settings.sending.share,
        by=settings.sending.by,
        uncertainty=lambda views: ambiguity.of(views) if mixture.started else None,
        seed=settings.seed,
    )


def _splitter(settings: DeviceConfig) -> Splitter:
    if settings.fleet.mode == "server-only":
        return FixedSplitter(0)
    if settings.splitter.kind == "heuristic":
        return HeuristicSplitter(cut=settings.splitter.cut)
    if settings.splitter.kind == "policy":
        return _policy_splitter(settings)
    return FixedSplitter(settings.splitter.cut)


def _policy_splitter(settings: DeviceConfig) -> PolicySplitter:
    """Begins with the policy of its file, else with the shipped one; a bad file is an error of the operator's."""
    choice = settings.splitter
    splitter = PolicySplitter(
        HeuristicSplitter(cut=choice.cut),
        encoder=settings.fleet.encoder,
        depth=ENCODER_DEPTH,
        windows=settings.fleet.parts_per_step,
        exploration=choice.exploration,
        seed=settings.seed,
    )
    path = choice.policy or shipped_policy(settings.fleet.encoder)
    if path is not None:
        try:
            splitter.offer(messages.decode(messages.PolicyUpdate, path.read_bytes()))
        except MessageError as error:
            raise ConfigError(f"{path}: {error}") from error
    return splitter


def _shaped_link(settings: DeviceConfig) -> ShapedLink | None:
    """The profile's link in front of the broker; not for TLS, which names the host it reaches."""
    address = BrokerAddress.parse(settings.fleet.broker.url)
    if settings.profile is None or not settings.emulate or address.secure:
        return None
    from device.shaped_link import ShapedLink  # only an emulated device needs it

    shaped = ShapedLink(
        address.host,
        address.port,
        uplink_mbps=settings.profile.uplink_mbps,
        downlink_mbps=settings.profile.downlink_mbps,
        round_trip_ms=settings.profile.round_trip_ms,
    )
    shaped.start()
    return shaped


def _stretch(settings: DeviceConfig) -> ComputeStretch | None:
    if settings.profile is None or not settings.emulate:
        return None
    mobile = build_encoder("mobile", seed=0)
    window = torch.zeros(1, 1, 64, 96)
    with torch.inference_mode():
        host_ms = measure_forward_ms(lambda: mobile(window))
    stretch = ComputeStretch(host_forward_ms=host_ms, board_forward_ms=settings.profile.mobile_forward_ms)
    LOG.info("%s: %s", settings.profile.name, stretch.describe())
    return stretch


def _player(
    settings: DeviceConfig, shaped: ShapedLink | None, stretch: ComputeStretch | None, journal: Journal
) -> ConditionPlayer | None:
    """Who plays what happens to the board; not where its link is not played (TLS)."""
    if settings.emulate_conditions is None or shaped is None or stretch is None:
        return None
    from device.conditions import ConditionPlayer, read_conditions  # only an emulated device needs it

    return ConditionPlayer(
        read_conditions(settings.emulate_conditions), link=shaped, stretch=stretch, on_change=journal.condition
    )


if __name__ == "__main__":
    sys.exit(main())
