"""``python -m trainer CONFIG.yaml``: builds the trainer from its configuration and runs it."""

from __future__ import annotations

import argparse
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from common import config, messages
from common.block_optimizer import BlockOptimizers
from common.codec import DEFAULT_ACTIVATIONS_CODEC, Codec
from common.config_models import DeviceConfig, TrainerConfig
from common.encoder import build_encoder
from common.errors import ConfigError
from common.link import Link
from common.log_mel import LogMel
from common.mixture_memory import MixtureMemory
from common.process import LinkOpener, keep_freed_memory, new_boot, open_link, run_process, software, stop_on_signals
from common.profiling import cached_profile
from common.split import block_state, merge_periods, names
from common.topics import Kind, Topics
from common.views import reach_s, views_of
from trainer import checkpoint
from trainer.allowance import Allowance
from trainer.answering import Answering
from trainer.averaging import AveragedEncoder
from trainer.batcher import Batcher
from trainer.captured import Captured
from trainer.chain_plan import as_merged
from trainer.clap import Clap
from trainer.cola import Cola
from trainer.collapse_guard import CollapseGuard
from trainer.hybrid_loss import HybridLoss
from trainer.listening import Listening
from trainer.loop import Desired, TrainerLoop, snapshot
from trainer.merge_optimizer import ACCUMULATION_RATE, MergeOptimizer
from trainer.merging import MergePlan, RoundPlan
from trainer.metrics import MetricsLog
from trainer.mixture_merging import MixtureMerging
from trainer.objective import Hybrid, Objective, own_parameters
from trainer.partition_wire import measure_wire
from trainer.planned_cuts import PlannedCuts
from trainer.presence import TrainerPresence, retained_version
from trainer.publisher import Publisher
from trainer.registry import Registry
from trainer.resume import Progress, State, fresh_run, restore, to_checkpoint
from trainer.schedule import learning_rate
from trainer.screening import Screening
from trainer.server_step import ServerStep
from trainer.temporal_buffer import TemporalBuffer
from trainer.training import Training
from trainer.updates import Updates
from trainer.weights import WeightsLedger

LOG = logging.getLogger("trainer")
DATA_CAPACITY = 4096  # parts waiting while a step is computed: 64 devices x 8 windows x 8
OUTBOUND_CAPACITY = 4096
STALENESS_DISCOUNT = 0.5  # of a change's weight, per version its base is behind
LOCAL_WINDOWS_CAP = 400  # local windows that one change may count for: about two merges of an answered device
FAST_ROUND_S = 600.0  # likewise of a round in mode federated, which is many steps of the slowest device
FAST_DEADLINE_S = 60.0  # in fast mode only a device that died without its will reaches this


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trainer until it is told to stop; returns the exit status."""
    parser = argparse.ArgumentParser(prog="streamsplit trainer", description="Train with a fleet of devices.")
    parser.add_argument("config", type=Path, help="the trainer's YAML file")
    options = parser.parse_args(arguments)
    return run_process(lambda: train(config.load_trainer(options.config), stop_on_signals()))


def train(settings: TrainerConfig, stop: threading.Event, *, connect: LinkOpener = open_link) -> None:
    """Build every part from the settings and run the loop; ``connect`` opens its link."""
    compute = _compute(settings.compute)
    torch.set_num_threads(settings.threads)
    keep_freed_memory()
    fleet = settings.fleet
    fingerprint = config.fingerprint(fleet)
    topics = Topics(fleet.fleet)
    boot = new_boot()
    saved = checkpoint.load_latest(settings.state_directory, fingerprint)
    state = _state(settings, compute)
    progress = fresh_run() if saved is None else restore(saved, state)
    link = connect(
        fleet,
        client_id=f"{fleet.fleet}-trainer",
        will=TrainerPresence.will(topics, boot=boot, fingerprint=fingerprint),
        data_capacity=DATA_CAPACITY,
        outbound_capacity=OUTBOUND_CAPACITY,
    )
    link.start()
    presence = TrainerPresence(link, topics, boot=boot, run=progress.run, fingerprint=fingerprint)
    retained = retained_version(link, topics, boot=boot, presence=presence, stop=stop)
    if stop.is_set():  # while it waited for the broker: nothing was trained, nothing is saved
        link.stop()
        return
    rounds = fleet.mode == "federated"
    ledger = WeightsLedger(
        state.encoder,
        version=max(progress.weights_version, retained) + 1,
        discount=STALENESS_DISCOUNT,
        local_cap=max(LOCAL_WINDOWS_CAP, 2 * fleet.sync_every_windows) if rounds else LOCAL_WINDOWS_CAP,
        rounds=rounds,
        trim=settings.trim,
        optimizer=state.merging,
        captured=Captured(None if settings.speed == "fast" else time.monotonic),
        merged=progress.merged,
    )
    LOG.info("run %s, step %d, weights version %d, %s", progress.run, progress.steps, ledger.version, software())
    with MetricsLog(settings.state_directory, next_step=progress.steps + 1) as log:
        loop = _loop(settings, compute, fingerprint, link, topics, boot, state, progress, ledger, presence, log)
        loop.run(stop)
    presence.show("stopped", ledger.version)
    # After a bug of ours this is not reached: the connection breaks without a good-bye, and the will tells the fleet.
    link.stop(timeout_s=5.0)


def _state(settings: TrainerConfig, compute: torch.device) -> State:
    fleet = settings.fleet
    optimizer = fleet.optimizer
    encoder = build_encoder(fleet.encoder, fleet.first_seed, head=fleet.head).to(compute)
    directions = torch.Generator().manual_seed(settings.seed)
    mixture = MixtureMemory(dim=encoder.projection_dim, seed=settings.seed).to(compute)
    negatives = torch.Generator().manual_seed(settings.seed + 2)
    objective = _objective(settings, mixture, encoder.projection_dim, directions, negatives)
    objective.module.to(compute)
    merging = MergeOptimizer(
        encoder,
        kind=optimizer.kind,
        weight_decay=optimizer.weight_decay,
        warmup_steps=math.ceil(optimizer.warmup_steps / settings.merge_every),
    )
    return State(
        encoder,
        BlockOptimizers(
            encoder,
            kind=optimizer.kind,
            weight_decay=optimizer.weight_decay,
            warmup_steps=optimizer.warmup_steps,
            own=own_parameters(objective),
        ),
        mixture,
        objective,
        directions=directions,
        averaged=AveragedEncoder() if settings.schedule == "constant" else None,
        merging=merging if fleet.accumulates else None,
        rounding=torch.Generator().manual_seed(settings.seed + 1),
        negatives=negatives,
    )


def _loop(
    settings: TrainerConfig,
    compute: torch.device,
    fingerprint: str,
    link: Link,
    topics: Topics,
    boot: str,
    state: State,
    progress: Progress,
    ledger: WeightsLedger,
    presence: TrainerPresence,
    log: MetricsLog,
) -> TrainerLoop:
    fleet = settings.fleet
    encoder = state.encoder
    lockstep = settings.speed == "fast"
    hears, rounds = fleet.mode == "server-only", fleet.mode == "federated"
    guard = CollapseGuard(progress.ranks, dtype=fleet.weights_codec)
    plan: MergePlan | RoundPlan = MergePlan(
        merge_every=settings.merge_every,
        deadline_s=FAST_DEADLINE_S if lockstep else settings.merge_deadline_s,
        collect=not hears,
    )
    if rounds:
        plan = RoundPlan(
            deadline_s=FAST_ROUND_S if lockstep else settings.merge_deadline_s,
            expected=settings.expected_devices if lockstep else 0,
        )
    limits = messages.Limits(max_message_bytes=fleet.max_message_bytes)
    allowance = Allowance(parts_per_step=fleet.parts_per_step)
    # Sound as it came has no scale that a fleet would share.
    screening = Screening() if settings.screening and not hears else None
    answering = Answering(
        link,
        topics,
        snapshot(encoder, state.mixture, ledger.version),
        limits=limits,
        stream_time=lockstep,
        compute=compute,
        raw_audio=hears and settings.baseline_raw_audio,
        allowance=allowance,
    )
    training = Training(
        link=link,
        topics=topics,
        server_step=ServerStep(encoder, state.optimizers, state.objective, compute=compute),
        ledger=ledger,
        mixture=state.mixture,
        screening=screening,
        plan=plan,
        log=log,
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

    def save_checkpoint() -> None:
        counted = (ledger.version, training.steps, training.windows, tuple(guard.accepted_ranks()), ledger.merged)
        content = to_checkpoint(state, progress.run, fingerprint, *counted)
        checkpoint.save(settings.state_directory, content)

    for kind in (Kind.STATUS,) if hears else (Kind.STATUS, Kind.UPDATE, Kind.MIXTURE):
        link.subscribe(topics.every_device(kind), qos=1)
    link.subscribe(topics.trainer_status(), qos=1)
    planned = _planned(settings)
    if planned is not None:
        link.subscribe(topics.every_device(Kind.TELEMETRY), qos=0)
    # The configuration has seen to it that a trainer of this mode has `baseline_raw_audio`.
    if not rounds:
        link.subscribe(topics.every_device(Kind.AUDIO if hears else Kind.ACTIVATIONS), qos=0)
    return TrainerLoop(
        link=link,
        topics=topics,
        encoder=encoder,
        mixture=state.mixture,
        averaged=state.averaged,
        answering=answering,
        registry=Registry(fingerprint=fingerprint),
        batcher=Batcher(
            max_lag=settings.max_lag,
            parts_per_step=fleet.parts_per_step,
            expected_devices=settings.expected_devices if lockstep else 0,
        ),
        listening=_listening(settings) if hears else None,
        screening=screening,
        allowance=allowance,
        training=training,
        updates=Updates(
            {name: block_state(encoder, name) for name in names(encoder)}, run=progress.run, compute=compute
        ),
        heard=MixtureMerging(state.mixture, limits=limits),
        ledger=ledger,
        plan=plan,
        guard=guard,
        publisher=Publisher(
            link,
            topics,
            run=progress.run,
            fingerprint=fingerprint,
            dtype=fleet.weights_codec,
            delta_codec=fleet.delta_codec,
        ),
        desired=Desired(
            settings.pins, tuple(settings.allowed_cuts or ()), settings.desired.codec, settings.desired.paused
        ),
        planned=planned,
        save_checkpoint=save_checkpoint,
        announce=lambda: presence.show("ready", ledger.version),
        boot=boot,
    )


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
        local_iterations=settings.merge_every * fleet.parts_per_step,
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


def _objective(
    settings: TrainerConfig,
    mixture: MixtureMemory,
    projection_dim: int,
    directions: torch.Generator,
    negatives: torch.Generator,
) -> Objective:
    if settings.fleet.objective == "cola":
        return Cola(projection_dim, false_negative_s=settings.false_negative_s)
    if settings.fleet.objective == "clap":
        return Clap(
            projection_dim,
            text_encoder=settings.text_encoder,
            false_negative_s=settings.false_negative_s,
            seed=settings.seed,
        )
    loss = HybridLoss(
        temperature=settings.temperature,
        sw_weight=settings.sw_weight,
        sw_projections=settings.sw_projections,
        laplacian_weight=settings.laplacian_weight,
    )
    return Hybrid(
        loss,
        TemporalBuffer(window=settings.laplacian_window, neighbours=settings.laplacian_neighbours),
        false_negative_s=settings.false_negative_s,
        directions=directions,
        negatives=partial(mixture.virtual_negatives, count=settings.virtual_negatives, generator=negatives),
    )


def _compute(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("compute: cuda is configured, but torch finds no usable GPU; allowed: cpu, auto")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


if __name__ == "__main__":
    sys.exit(main())
