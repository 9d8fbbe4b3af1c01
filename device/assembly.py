"""What a device is made of: every part built from the settings, and the loop that works with them."""

from __future__ import annotations

import logging
import math

import numpy as np

from common.block_optimizer import BlockOptimizers
from common.codec import DEFAULT_GRADIENT_CODEC, Codec
from common.config_device import DeviceConfig
from common.config_types import ENCODER_DEPTH
from common.encoder import Encoder, build_encoder
from common.log_mel import LogMel
from common.mixture_memory import MixtureMemory
from common.split import cut_table, format_cut_table
from common.views import reach_s, views_of
from device.ambiguity import Ambiguity
from device.board import energy_of, forward_ms, round_trip_of, sampler_of, uplink_of
from device.client_step import ClientStep
from device.compute_time import ComputeTime
from device.correspondence import (
    Surroundings,
    build_contact,
    build_mailbox,
    build_outbox,
    build_presence,
    build_weights,
    uses_all_blocks,
)
from device.cutting import Cutting
from device.edge_learner import EdgeLearner
from device.intake import Intake, SeenWindow
from device.local_steps import LocalSteps
from device.loop import DeviceLoop
from device.mailbox import Mailbox
from device.mixture_replica import MixtureReplica
from device.pace import Pace
from device.policy_splitter import PolicySplitter, shipped_policy
from device.replica import Replica
from device.sending import Sending
from device.senses import Senses
from device.sources import Source, open_source
from device.splitter import FixedSplitter, HeuristicSplitter, PlannedSplitter, Splitter
from device.windows import WINDOW_S

LOG = logging.getLogger(__name__)
LOCAL_TEMPERATURE = 0.1
LOCAL_STEPS_WAITING = 4  # steps' worth of windows for local steps that a step in flight holds up, where all is sent
MOST_LOCAL_WAITING = 512  # windows' views, 48 KiB each
GAPS_AWAITED = 8  # of the mean time between two sent windows: longer ones are rare (tests/device/test_sending.py)
LONGEST_STEP = 4.0  # times the windows that a step takes in the mean where only a share is sent (simulated scenes)
FAST_DEADLINE_SHARE = 0.8  # in fast mode a batch closes by the set of live devices, the deadline only ends a hang


def build_loop(settings: DeviceConfig, around: Surroundings) -> DeviceLoop:
    """One device's loop, ready to run, with the weights that are on its disk.

    Raises:
        ConfigError: the file of a policy cannot be used.
    """
    fleet, link, journal = settings.fleet, around.link, around.journal
    pace = _pace(settings)
    encoder = build_encoder(fleet.encoder, seed=settings.seed if pace.hermit else fleet.first_seed, head=fleet.head)
    _log_cut_table(settings, encoder)
    optimizers = BlockOptimizers(
        encoder,
        kind=fleet.optimizer.kind,
        weight_decay=fleet.optimizer.weight_decay,
        warmup_steps=fleet.optimizer.warmup_steps,
    )
    replica = Replica(
        encoder, device=around.device, boot=around.boot, dtype=fleet.weights_codec, change_codec=fleet.change_codec
    )
    replica.offer_built()
    mixture = MixtureReplica(
        MixtureMemory(dim=encoder.projection_dim, seed=settings.seed),
        boot=around.boot,
        fingerprint=around.fingerprint,
        path=settings.state_directory / "mixture.bin",
    )
    planned = PlannedSplitter(HeuristicSplitter(cut=settings.splitter.cut))
    splitter = _splitter(settings, planned)
    mailbox = build_mailbox(settings, around, encoder, replica, mixture, splitter, planned)
    ambiguity = Ambiguity(encoder, mixture.mixture)
    client_step = ClientStep(encoder, replica.sum_up if fleet.accumulates else optimizers.step)
    weights = build_weights(settings, around, encoder, replica, mixture)
    contact = build_contact(settings, around, mailbox, replica, weights, pace)
    presence = build_presence(settings, around, encoder)
    compute = ComputeTime(journal.totals, around.board.stretch)
    views = views_of(fleet.objective, LogMel(), np.random.default_rng(settings.seed))
    intake = Intake(around.source, views, ambiguity, compute, journal.totals, pace)
    edge_learner = _edge_learner(settings, encoder, optimizers, mixture)
    senses = _senses(settings, around, encoder, mailbox, ambiguity, replica, intake)
    return DeviceLoop(
        pace=pace,
        link=link,
        mailbox=mailbox,
        contact=contact,
        presence=presence,
        source=around.source,
        intake=intake,
        cutting=Cutting(
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
        ),
        sending=_sending(settings, ambiguity),
        outbox=build_outbox(settings, around, encoder, mailbox, replica, client_step, compute, intake, pace),
        local_steps=LocalSteps(
            encoder,
            edge_learner,
            compute,
            replica,
            senses,
            journal,
            link,
            windows=pace.parts_per_step,
            waiting=pace.local_waiting,
        ),
        client_step=client_step,
        optimizers=optimizers,
        replica=replica,
        weights=weights,
        senses=senses,
        compute=compute,
        journal=journal,
        stop=around.stop,
    )


def build_source(settings: DeviceConfig) -> Source:
    """Where the device's sound comes from.

    Raises:
        ConfigError: that cannot be used.
    """
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


def _pace(settings: DeviceConfig) -> Pace:
    lockstep = settings.speed == "fast"
    share = settings.sending.share
    between_s = GAPS_AWAITED * WINDOW_S * (1 / share - 1)  # what is not sent keeps the next part waiting
    # Those that are complete wait for the others as long as a step takes: who gave up sooner would never be answered.
    step_s = 0.0 if lockstep else settings.fleet.parts_per_step * WINDOW_S
    timeout_s = max(settings.step_timeout_s, 2 * step_s) + between_s
    local_waiting = LOCAL_STEPS_WAITING * settings.fleet.parts_per_step
    federated = settings.fleet.mode == "federated"
    sends_sound = settings.fleet.mode == "server-only" and settings.baseline_raw_audio
    alone = federated or (settings.splitter.kind == "local" and settings.fleet.mode == "split")
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


def _log_cut_table(settings: DeviceConfig, encoder: Encoder) -> None:
    fleet = settings.fleet
    table = cut_table(
        encoder,
        Codec.parse(settings.codec),
        gradient_codec=Codec.parse(DEFAULT_GRADIENT_CODEC),  # the trainer's file may say otherwise
        change_codec=fleet.change_codec,
        delta_codec=fleet.delta_codec or fleet.weights_codec,
    )
    LOG.info("what each cut costs:\n%s", format_cut_table(table))


def _splitter(settings: DeviceConfig, planned: PlannedSplitter) -> Splitter:
    choice = settings.splitter
    if settings.fleet.mode == "server-only":
        return FixedSplitter(0)
    if choice.kind == "heuristic":
        return HeuristicSplitter(cut=choice.cut)
    if choice.kind == "planned":
        return planned
    if choice.kind == "policy":
        return _policy_splitter(settings, planned)
    return FixedSplitter(choice.cut)


def _policy_splitter(settings: DeviceConfig, planned: PlannedSplitter) -> PolicySplitter:
    """Begins with the policy of its file, else with the shipped one."""
    choice = settings.splitter
    splitter = PolicySplitter(
        planned,
        encoder=settings.fleet.encoder,
        depth=ENCODER_DEPTH,
        windows=_windows_of_a_decision(settings),
        exploration=choice.exploration,
        seed=settings.seed,
    )
    path = choice.policy or shipped_policy(settings.fleet.encoder)
    if path is not None:
        splitter.offer_file(path)
    return splitter


def _windows_of_a_decision(settings: DeviceConfig) -> int:
    """At most: those of a step. Where a share is sent some are longer than the mean, and none is decided on twice."""
    parts, share = settings.fleet.parts_per_step, settings.sending.share
    return parts if share == 1 else math.ceil(LONGEST_STEP * parts / share)


def _edge_learner(
    settings: DeviceConfig, encoder: Encoder, optimizers: BlockOptimizers, mixture: MixtureReplica
) -> EdgeLearner:
    return EdgeLearner(
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


def _sending(settings: DeviceConfig, ambiguity: Ambiguity) -> Sending:
    def uncertainty(seen: SeenWindow) -> float | None:
        if settings.own_embedding or not ambiguity.ready:
            return seen.uncertainty
        return ambiguity.of(ambiguity.embedding(seen.views[:1]))

    sending = settings.sending
    return Sending(share=sending.share, by=sending.by, uncertainty=uncertainty, seed=settings.seed)


def _senses(
    settings: DeviceConfig,
    around: Surroundings,
    encoder: Encoder,
    mailbox: Mailbox,
    ambiguity: Ambiguity,
    replica: Replica,
    intake: Intake,
) -> Senses:
    return Senses(
        device=around.device,
        boot=around.boot,
        depth=encoder.depth,
        link=around.link,
        topics=around.topics,
        source=around.source,
        waiting=lambda: intake.waiting,
        mailbox=mailbox,
        ambiguity=ambiguity,
        replica=replica,
        journal=around.journal,
        energy=energy_of(settings),
        sampler=sampler_of(settings, around.board, around.journal),
        every_steps=settings.telemetry_every_steps,
        every_window=settings.speed == "realtime",
        uplink_mbps=uplink_of(around.link, around.board),
        round_trip_ms=round_trip_of(around.link, around.board),
        forward_ms=forward_ms(settings),
        follows_all=uses_all_blocks(settings),
        steady_link=_steady_link(settings),
    )


def _steady_link(settings: DeviceConfig) -> tuple[float | None, float | None] | None:
    """What rules and policy go by in fast mode, where no clock may decide what is learned: the profile, if any."""
    if settings.speed != "fast" or settings.splitter.kind not in {"heuristic", "planned", "policy"}:
        return None
    profile = settings.profile
    return (profile.uplink_mbps, profile.round_trip_ms) if profile else (None, None)
