"""The trainer's loop: take what came, close batches, merge, publish. Read `run` from top to bottom."""

from __future__ import annotations

import copy
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from common import messages
from common.encoder import Encoder
from common.errors import MessageError
from common.link import Link
from common.mixture_memory import MixtureMemory
from common.split import load_block
from common.topics import Topics
from trainer.answering import Answering, Control, Snapshot
from trainer.batcher import Batcher, Part
from trainer.collapse_guard import CollapseGuard
from trainer.merging import MergePlan
from trainer.publisher import Publisher
from trainer.registry import Registry
from trainer.training import Training
from trainer.updates import Updates
from trainer.weights import WeightsLedger

LOG = logging.getLogger(__name__)
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Desired:
    """What the operator wants of the devices: retained on their ``down/`` topics."""

    pins: Mapping[str, int]
    allowed_cuts: tuple[int, ...]
    codec: str | None
    paused: bool


def run(
    *,
    stop: threading.Event,
    link: Link,
    topics: Topics,
    encoder: Encoder,
    mixture: MixtureMemory,
    answering: Answering,
    registry: Registry,
    batcher: Batcher,
    training: Training,
    updates: Updates,
    ledger: WeightsLedger,
    plan: MergePlan,
    guard: CollapseGuard,
    publisher: Publisher,
    desired: Desired,
    save_checkpoint: Callable[[], None],
    announce: Callable[[], None],
) -> None:
    """Train until ``stop`` is set, then merge what is there once more and save."""

    def take(item: Part | Control) -> None:
        if isinstance(item, Part):
            refusal = batcher.add(item, now_s=time.monotonic(), weights_version=ledger.version)
            if refusal is not None:
                training.refuse(item, refusal)
            return
        device = item.address.device
        assert device is not None
        if isinstance(item.message, messages.DeviceStatus):
            follow(device, item.message)
        elif isinstance(item.message, messages.UpdateChunk):
            try:
                contribution = updates.offer(device, item.message)
            except MessageError as error:
                answering.refuse(topics.update(device, item.message.index), len(item.message.data), error)
                return
            if contribution is not None:
                ledger.offer(contribution)

    def follow(device: str, status: messages.DeviceStatus) -> None:
        event = registry.offer(device, status)
        if event == "joined":
            LOG.info("%s is ready (%s)", device, status.profile or "no profile")
            batcher.join(device, status.boot)
            direct(device)
        elif event == "left":
            LOG.info("%s is %s", device, status.state)
            batcher.leave(device)
        elif event == "refused":
            LOG.error("%s speaks for another configuration (fingerprint %s); refused", device, status.fingerprint[:12])
            batcher.leave(device)

    def direct(device: str) -> None:
        splitter = messages.SplitterUpdate(1, desired.pins.get(device), desired.allowed_cuts)
        link.retain(topics.splitter(device), messages.encode(splitter))
        link.retain(topics.config(device), messages.encode(messages.DesiredConfig(1, desired.codec, desired.paused)))

    def merge() -> None:
        merged = ledger.preview()
        candidate = copy.deepcopy(encoder)
        for name, state in merged.items():
            load_block(candidate, name, state)
        verdict = guard.accepts(candidate)
        if verdict.ok:
            ledger.commit(merged)
        else:
            LOG.error("merge refused, the last good weights stay: %s", verdict.reason)
            ledger.refuse()
        plan.merged()
        save_checkpoint()
        answering.snapshot = snapshot(encoder, mixture, ledger.version)
        publisher.publish(encoder, version=ledger.version, merged=ledger.merged)
        announce()

    publisher.publish(encoder, version=ledger.version, merged=ledger.merged)
    announce()
    answering.start()
    while not stop.is_set():
        for item in _waiting(answering.inbox, _patience(batcher)):
            take(item)
        if batcher.due(time.monotonic()):
            training.train(batcher.take())
        if plan.due(live=batcher.live, offered=ledger.offered, now_s=time.monotonic()):
            merge()
    answering.stop()
    for item in _waiting(answering.inbox, 0.0):
        take(item)
    merge()


def snapshot(encoder: Encoder, mixture: MixtureMemory, version: int) -> Snapshot:
    """A copy of the weights that training does not change."""
    frozen = copy.deepcopy(encoder).eval().requires_grad_(False)
    return Snapshot(frozen, copy.deepcopy(mixture), version)


def _patience(batcher: Batcher) -> float:
    left = batcher.seconds_left(time.monotonic())
    return POLL_S if left is None else min(POLL_S, left)


def _waiting(
    inbox: queue.Queue[Part | Control | BaseException], timeout_s: float
) -> Sequence[Part | Control]:
    """Everything that waits, after waiting at most ``timeout_s`` for the first; raises what the other thread died of."""
    items: list[Part | Control] = []
    try:
        item = inbox.get(timeout=timeout_s) if timeout_s > 0 else inbox.get_nowait()
        while True:
            if isinstance(item, BaseException):
                raise item
            items.append(item)
            item = inbox.get_nowait()
    except queue.Empty:
        return items
