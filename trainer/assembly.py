"""What a trainer is made of: every part built from the settings, and the loop that works with them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from common import messages
from common.codec import DEFAULT_ACTIVATIONS_CODEC, Codec
from common.config_device import DeviceConfig
from common.config_trainer import TrainerConfig
from common.encoder import build_encoder
from common.link import Link
from common.log_mel import LogMel
from common.profiling import cached_profile
from common.split import block_state, merge_periods, names
from common.topics import Kind, Topics
from common.views import reach_s, views_of
from trainer import checkpoint
from trainer.allowance import Allowance
from trainer.answering import Answering
from trainer.batcher import Batcher
from trainer.captured import WINDOW_S, Captured
from trainer.chain_plan import as_merged
from trainer.collapse_guard import CollapseGuard
from trainer.listening import Listening
from trainer.loop import Desired, TrainerLoop, snapshot
from trainer.merge_optimizer import ACCUMULATION_RATE
from trainer.merging import MergePlan, RoundPlan
from trainer.metrics import MetricsLog
from trainer.mixture_merging import MixtureMerging
from trainer.partition_wire import measure_wire
from trainer.planned_cuts import PlannedCuts
from trainer.presence import TrainerPresence
from trainer.publisher import Publisher
from trainer.registry import Registry
from trainer.resume import Progress, State, to_checkpoint
from trainer.schedule import learning_rate
from trainer.screening import Screening
from trainer.server_step import ServerStep
from trainer.training import Training
from trainer.updates import Updates
from trainer.weights import WeightsLedger

STALENESS_DISCOUNT = 0.5  # of a change's weight, per version its base is behind
LOCAL_WINDOWS_CAP = 400  # local windows that one change may count for: as many as a merge of averaged weights is of
FAST_DEADLINE_S = 60.0  # in fast mode only a device that died without its will reaches this
FAST_ROUND_S = 600.0  # likewise of a round in mode federated, which is many steps of the slowest device


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a trainer finds: its place in the fleet, its computer, its broker and its log."""

    settings: TrainerConfig
    compute: torch.device
    fingerprint: str
    boot: str
    link: Link
    topics: Topics
    log: MetricsLog

    @property
    def lockstep(self) -> bool:
        """No clock decides what is learned."""
        return self.settings.speed == "fast"

    @property
    def hears(self) -> bool:
        """Devices send sound."""
        return self.settings.fleet.mode == "server-only"

    @property
    def rounds(self) -> bool:
        """Devices learn alone, and only their weights meet."""
        return self.settings.fleet.mode == "federated"


def build_ledger(settings: TrainerConfig, state: State, progress: Progress, *, version: int) -> WeightsLedger:
    """The weights of the fleet, from ``version`` on."""
    fleet = settings.fleet
    rounds = fleet.mode == "federated"
    return WeightsLedger(
        state.encoder,
        version=version,
        discount=STALENESS_DISCOUNT,
        local_cap=max(LOCAL_WINDOWS_CAP, 2 * fleet.sync_every_windows) if rounds else LOCAL_WINDOWS_CAP,
        rounds=rounds,
        trim=settings.trim,
        optimizer=state.merging,
        captured=Captured(None if settings.speed == "fast" else time.monotonic),
        merged=progress.merged,
        periods=merge_periods(state.encoder, fleet.values_per_merge) if fleet.accumulates else None,
        away_windows=0.0 if settings.speed == "fast" else progress.away_s / WINDOW_S,
    )


def build_loop(
    around: Surroundings, state: State, progress: Progress, ledger: WeightsLedger, presence: TrainerPresence
) -> TrainerLoop:
    """The trainer's loop, ready to run, subscribed to what it listens to."""
    settings, link, topics = around.settings, around.link, around.topics
    fleet, encoder = settings.fleet, state.encoder
    guard = CollapseGuard(progress.ranks, dtype=fleet.weights_codec)
    plan = _plan(around, progress)
    limits = messages.Limits(max_message_bytes=fleet.max_message_bytes)
    allowance = Allowance(parts_per_step=fleet.parts_per_step)
    # Sound as it came has no scale that a fleet would share.
    screening = Screening() if settings.screening and not around.hears else None
    answering = _answering(around, state, ledger, limits, allowance)
    training = _training(around, state, progress, ledger, screening, plan, answering)

    def save_checkpoint() -> None:
        counted = (ledger.version, training.steps, training.windows, tuple(guard.accepted_ranks()), ledger.merged)
        content = to_checkpoint(state, progress.run, around.fingerprint, *counted)
        checkpoint.save(settings.state_directory, content)

    def forget_moments() -> None:
        state.optimizers.release(state.optimizers.taken)
        if state.merging is not None:
            state.merging.forget()

    planned = _planned(settings)
    _subscribe(around, telemetry=planned is not None)
    return TrainerLoop(
        link=link,
        topics=topics,
        encoder=encoder,
        mixture=state.mixture,
        averaged=state.averaged,
        answering=answering,
        registry=Registry(fingerprint=around.fingerprint),
        batcher=Batcher(
            max_lag=settings.max_lag,
            parts_per_step=fleet.parts_per_step,
            expected_devices=settings.expected_devices if around.lockstep else 0,
        ),
        listening=_listening(settings) if around.hears else None,
        screening=screening,
        allowance=allowance,
        training=training,
        updates=Updates(
            {name: block_state(encoder, name) for name in names(encoder)}, run=progress.run, compute=around.compute
        ),
        heard=MixtureMerging(state.mixture, limits=limits),
        ledger=ledger,
        plan=plan,
        guard=guard,
        publisher=Publisher(
            link,
            topics,
            run=progress.run,
            fingerprint=around.fingerprint,
            dtype=fleet.weights_codec,
            delta_codec=fleet.delta_codec,
        ),
        desired=Desired(
            settings.pins, tuple(settings.allowed_cuts or ()), settings.desired.codec, settings.desired.paused
        ),
        planned=planned,
        forget_moments=forget_moments,
        save_checkpoint=save_checkpoint,
        announce=lambda: presence.show("ready", ledger.version),
        boot=around.boot,
    )


def _plan(around: Surroundings, progress: Progress) -> MergePlan | RoundPlan:
    settings = around.settings
    if around.rounds:
        return RoundPlan(
            deadline_s=FAST_ROUND_S if around.lockstep else settings.merge_deadline_s,
            expected=settings.expected_devices if around.lockstep else 0,
        )
    return MergePlan(
        merge_every=settings.merge_every,
        each_until=settings.merge_each_until if settings.fleet.accumulates else 0,
        steps=progress.steps,
        deadline_s=FAST_DEADLINE_S if around.lockstep else settings.merge_deadline_s,
        collect=not around.hears,
    )


def _answering(
    around: Surroundings, state: State, ledger: WeightsLedger, limits: messages.Limits, allowance: Allowance
) -> Answering:
    return Answering(
        around.link,
        around.topics,
        snapshot(state.encoder, state.mixture, ledger.version),
        limits=limits,
        stream_time=around.lockstep,
        compute=around.compute,
        raw_audio=around.hears and around.settings.baseline_raw_audio,
        allowance=allowance,
    )


def _training(
    around: Surroundings,
    state: State,
    progress: Progress,
    ledger: WeightsLedger,
    screening: Screening | None,
    plan: MergePlan | RoundPlan,
    answering: Answering,
) -> Training:
    settings = around.settings
    return Training(
        link=around.link,
        topics=around.topics,
        server_step=ServerStep(state.encoder, state.optimizers, state.objective, compute=around.compute),
        ledger=ledger,
        mixture=state.mixture,
        screening=screening,
        plan=plan,
        log=around.log,
        gradient_codec=Codec.parse(settings.gradient_codec),
        rounding=state.rounding,
        learning_rate_at=partial(
            learning_rate,
            schedule=settings.schedule,
            peak=settings.learning_rate,
            budget_windows=settings.budget_windows,
        ),
        device_rate=_device_rate(settings),
        embedding_ms_p95=answering.embedding_ms_p95,
        steps=progress.steps,
        windows=progress.windows,
    )


def _subscribe(around: Surroundings, *, telemetry: bool) -> None:
    link, topics = around.link, around.topics
    for kind in (Kind.STATUS,) if around.hears else (Kind.STATUS, Kind.UPDATE, Kind.MIXTURE):
        link.subscribe(topics.every_device(kind), qos=1)
    link.subscribe(topics.trainer_status(), qos=1)
    if telemetry:
        link.subscribe(topics.every_device(Kind.TELEMETRY), qos=0)
    # The configuration has seen to it that a trainer of this mode has `baseline_raw_audio`.
    if not around.rounds:
        link.subscribe(topics.every_device(Kind.AUDIO if around.hears else Kind.ACTIVATIONS), qos=0)


def _planned(settings: TrainerConfig) -> PlannedCuts | None:
    """Who plans the devices' cuts: nobody where no clock may decide what is learned, or where windows are not cut.

    Blocks are measured on the processor, also where a GPU computes. Before anything else computes in this process:
    tracing a model disturbs the others.
    """
    fleet = settings.fleet
    if not settings.plan_cuts or settings.speed == "fast" or fleet.mode != "split":
        return None
    encoder = build_encoder(fleet.encoder, seed=0, head=fleet.head)
    server = cached_profile(encoder, settings.state_directory, nodes=False)
    periods = merge_periods(encoder, fleet.values_per_merge) if fleet.accumulates else {}
    wire = measure_wire(
        Codec.parse(settings.desired.codec or DEFAULT_ACTIVATIONS_CODEC),
        Codec.parse(settings.gradient_codec),
        change_codec=fleet.change_codec,
        delta_codec=fleet.delta_codec or fleet.weights_codec,
    )
    return PlannedCuts(
        as_merged(server, periods),
        wire,
        local_iterations=settings.merge_every * fleet.parts_per_step,  # of most of the run, not of its first batches
        allowed_cuts=settings.allowed_cuts or (),
        min_cut=DeviceConfig.model_fields["min_cut"].default,
    )


def _device_rate(settings: TrainerConfig) -> Callable[[float], float]:
    """The devices' learning rate from the trainer's."""
    if settings.fleet.accumulates:
        return lambda _: ACCUMULATION_RATE
    return lambda rate: settings.device_rate_share * rate


def _listening(settings: TrainerConfig) -> Listening:
    objective = settings.fleet.objective
    return Listening(partial(views_of, objective, LogMel()), context_s=reach_s(objective), seed=settings.seed)
