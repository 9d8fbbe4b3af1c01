"""The trainer's loop: take what came, close batches, merge, publish. Read `TrainerLoop.run` from top to bottom."""

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
from trainer.allowance import Allowance
from trainer.answering import Answering, Control, Inbox, Snapshot, Unreadable
from trainer.averaging import AveragedEncoder
from trainer.batcher import Batcher, Part, Refusal
from trainer.collapse_guard import CollapseGuard
from trainer.listening import Listening
from trainer.merging import MergePlan, RoundPlan
from trainer.mixture_merging import MixtureMerging
from trainer.planned_cuts import PlannedCuts
from trainer.publisher import Publisher
from trainer.registry import Registry
from trainer.screening import Screening
from trainer.training import Training
from trainer.updates import Updates
from trainer.weights import Contribution, WeightsLedger

LOG = logging.getLogger(__name__)
POLL_S = 0.1
HEAR_OUT_S = 5.0
REFUSED_AT_MOST = 3  # merges in a row, before the optimizers begin anew


@dataclass(frozen=True, slots=True)
class Desired:
    """What the operator wants of the devices: retained on their ``down/`` topics."""

    pins: Mapping[str, int]
    allowed_cuts: tuple[int, ...]
    codec: str | None
    paused: bool


class TrainerLoop:
    """The trainer. Its parts come ready made: `trainer.assembly` builds them from the configuration."""

    def __init__(
        self,
        *,
        link: Link,
        topics: Topics,
        encoder: Encoder,
        mixture: MixtureMemory,
        averaged: AveragedEncoder | None,
        answering: Answering,
        registry: Registry,
        batcher: Batcher,
        listening: Listening | None,
        screening: Screening | None,
        allowance: Allowance,
        training: Training,
        updates: Updates,
        heard: MixtureMerging,
        ledger: WeightsLedger,
        plan: MergePlan | RoundPlan,
        guard: CollapseGuard,
        publisher: Publisher,
        desired: Desired,
        planned: PlannedCuts | None,
        forget_moments: Callable[[], None],
        save_checkpoint: Callable[[], None],
        announce: Callable[[], int],
        boot: str,
    ) -> None:
        self._link = link
        self._topics = topics
        self._encoder = encoder
        self._mixture = mixture
        self._averaged = averaged
        self._answering = answering
        self._registry = registry
        self._batcher = batcher
        self._listening = listening
        self._screening = screening
        self._allowance = allowance
        self._training = training
        self._updates = updates
        self._heard = heard
        self._ledger = ledger
        self._plan = plan
        self._guard = guard
        self._publisher = publisher
        self._desired = desired
        self._planned = planned
        self._forget_moments = forget_moments
        self._refused = 0  # merges in a row
        self._save_checkpoint = save_checkpoint
        self._announce = announce
        self._boot = boot
        self._echoed = 0

    def run(self, stop: threading.Event) -> None:
        """Train until ``stop`` is set, then merge what is there once more and save."""
        self._publish()
        self._answering.start()
        while not stop.is_set():
            waiting = _waiting(self._answering.inbox, _patience(self._batcher))
            for item in waiting:
                self._take(item)
            if not waiting:  # a device whose parts were all dropped must not wait for a batch that never closes
                self._allowance.renew()
            if self._batcher.due(time.monotonic()):
                batch = self._batcher.take()
                self._training.train(self._listening(batch) if self._listening else batch)
                self._allowance.renew()
            if self._plan.due(live=self._batcher.live, offered=self._ledger.offered, now_s=time.monotonic()):
                self._merge()
        self._hear_out()
        self._merge()

    def _hear_out(self) -> None:
        """Take what is still on its way: a device's last change was sent before our own status comes back."""
        seq, until_s = self._announce(), time.monotonic() + HEAR_OUT_S
        while self._echoed < seq and time.monotonic() < until_s and self._link.connected:
            for item in _waiting(self._answering.inbox, POLL_S):
                self._take(item)
        self._answering.stop()
        for item in _waiting(self._answering.inbox, 0.0):
            self._take(item)

    def _take(self, item: Part | Unreadable | Control) -> None:
        if isinstance(item, Part):
            refusal = self._screened(item)
            if refusal is None:
                refusal = self._batcher.add(item, now_s=time.monotonic(), weights_version=self._ledger.version)
            if refusal is not None:
                self._training.refuse(item, refusal)
            return
        if isinstance(item, Unreadable):
            self._batcher.excuse(item.device)
            return
        if isinstance(item.message, messages.TrainerStatus):
            if item.message.state == "lost":  # a late will, of an earlier trainer or connection: this one is alive
                self._announce()
            self._echoed = max(self._echoed, item.message.seq if item.message.boot == self._boot else 0)
            return
        device = item.address.device
        assert device is not None
        if isinstance(item.message, messages.DeviceStatus):
            self._follow(device, item.message, retained=item.retained)
        elif isinstance(item.message, messages.MixtureStatistics):
            self._hear(device, item.message)
        elif isinstance(item.message, messages.Telemetry):
            self._refine(device, item.message)
        else:
            self._collect(device, item.message)

    def _screened(self, part: Part) -> Refusal | None:
        """Whether the part is not to be computed with; then nobody waits for the rest of its step either."""
        if self._screening is None or not self._registry.knows(part.device, part.boot):
            return None
        reason = self._screening.judge(part)
        if not reason:
            return None
        self._batcher.excuse(part.device)
        return Refusal("rejected", reason)

    def _follow(self, device: str, status: messages.DeviceStatus, *, retained: bool = False) -> None:
        event = self._registry.offer(device, status, retained=retained)
        if status.state == "stopped":
            self._batcher.finish(device)
        if event == "joined":
            LOG.info("%s is ready (%s)", device, status.profile or "no profile")
            self._batcher.join(device, status.boot)
            if self._planned is not None:
                self._planned.join(device, status, now_s=time.monotonic())
            self._direct(device)
        elif event == "left":
            LOG.info("%s is %s", device, status.state)
            self._batcher.leave(device)
            self._updates.forget(device)
            if self._screening is not None:
                self._screening.forget(device)
        elif event == "refused":
            LOG.error("%s speaks for another configuration (fingerprint %s); refused", device, status.fingerprint[:12])
            self._batcher.leave(device)

    def _direct(self, device: str) -> None:
        """Tell a device what the operator wants of it, and the planner."""
        self._direct_splitter(device)
        config = messages.DesiredConfig(1, self._desired.codec, self._desired.paused)
        self._link.retain(self._topics.config(device), messages.encode(config))

    def _direct_splitter(self, device: str) -> None:
        wanted = self._desired
        planned = None if self._planned is None else self._planned.cut(device)
        splitter = messages.SplitterUpdate(1, wanted.pins.get(device), wanted.allowed_cuts, planned)
        self._link.retain(self._topics.splitter(device), messages.encode(splitter))

    def _refine(self, device: str, told: messages.Telemetry) -> None:
        """What a device measured of itself may be a reason for another cut."""
        if self._planned is None or not self._registry.knows(device, told.boot):
            return
        if self._planned.hear(device, told, now_s=time.monotonic()):
            self._direct_splitter(device)

    def _collect(self, device: str, chunk: messages.UpdateChunk) -> None:
        try:
            if not self._registry.knows(device, chunk.boot):
                raise MessageError(f"update {chunk.seq}: this boot of {device} is not known, or configured otherwise")
            if self._screening is not None and not self._screening.trusts(device):
                raise MessageError(f"update {chunk.seq}: too many parts of {device} were screened")
            contribution = self._updates.offer(device, chunk)
        except MessageError as error:
            self._answering.refuse(self._topics.update(device, chunk.index), len(chunk.data), error)
            if not self._registry.knows(device, chunk.boot):
                return
            contribution = Contribution(device, chunk.boot, chunk.seq, chunk.base_version, 0, {})  # nobody waits for it
        if contribution is not None:
            self._ledger.offer(contribution)

    def _hear(self, device: str, heard: messages.MixtureStatistics) -> None:
        try:
            if not self._registry.knows(device, heard.boot):
                raise MessageError(f"mixture {heard.seq}: this boot of {device} is not known, or configured otherwise")
            self._heard.offer(device, heard)
        except MessageError as error:
            self._answering.refuse(self._topics.mixture(device), len(messages.encode(heard)), error)

    def _merge(self) -> None:
        """Make the next version, keep it on the disk, then publish it."""
        merged = self._ledger.preview(self._training.learning_rate)
        candidate = copy.deepcopy(self._encoder)
        for name, state in merged.items():
            load_block(candidate, name, state)
        verdict = self._guard.accepts(candidate)
        if verdict.ok:
            self._refused = 0
            self._ledger.commit(merged)
            if self._averaged is not None:
                self._averaged.update(self._encoder)
        else:
            LOG.error("merge refused, the last good weights stay: %s", verdict.reason)
            self._ledger.refuse()
            self._begin_gently()
        clipping = self._ledger.clipping
        if clipping.clipped:
            LOG.info("%d of %d changes of blocks were clipped", clipping.clipped, clipping.judged)
        self._plan.merged()
        self._heard.merge()
        self._save_checkpoint()
        self._answering.snapshot = snapshot(self._encoder, self._mixture, self._ledger.version)
        self._publish()

    def _begin_gently(self) -> None:
        """After several refusals in a row: moments that lead away from the good weights would do so for ever."""
        self._refused += 1
        if self._refused >= REFUSED_AT_MOST:
            LOG.warning("%d merges in a row were refused: the optimizers begin anew", self._refused)
            self._forget_moments()
            self._refused = 0

    def _publish(self) -> None:
        self._publisher.publish(
            self._encoder,
            version=self._ledger.version,
            merged=self._ledger.merged,
            mixture=self._mixture,
            moved=self._ledger.moved,
        )
        self._announce()


def snapshot(encoder: Encoder, mixture: MixtureMemory, version: int) -> Snapshot:
    """A copy of the weights that training does not change.

    Its convolutions' weights lie channels last: a forward without a backward takes a third less time that way.
    """
    frozen = copy.deepcopy(encoder).eval().requires_grad_(False)
    frozen.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs forget it
    return Snapshot(frozen, copy.deepcopy(mixture), version)


def _patience(batcher: Batcher) -> float:
    left = batcher.seconds_left(time.monotonic())
    return POLL_S if left is None else min(POLL_S, left)


def _waiting(inbox: queue.Queue[Inbox], timeout_s: float) -> Sequence[Part | Unreadable | Control]:
    """Everything that waits, the first for at most ``timeout_s``; raises what the other thread died of."""
    items: list[Part | Unreadable | Control] = []
    try:
        item = inbox.get(timeout=timeout_s) if timeout_s > 0 else inbox.get_nowait()
        while True:
            if isinstance(item, BaseException):
                raise item
            items.extend(item)
            item = inbox.get_nowait()
    except queue.Empty:
        return items
