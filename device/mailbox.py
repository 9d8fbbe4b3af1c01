"""Takes what comes down the link to where it belongs; a message that cannot be used is dropped and counted."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

from common import messages
from common.codec import Codec, decode_tensor
from common.encoder import Encoder
from common.errors import MessageError
from common.link import Incoming, Link
from common.messages import Limits, PolicyUpdate, TrainerStatus
from common.mixture_memory import MIXTURE
from common.split import BEFORE_STEM
from common.topics import Kind, Topics
from device.exchange import Exchange
from device.mixture_replica import MixtureReplica
from device.replica import Replica

LOG = logging.getLogger(__name__)
SIGNS_OF_LIFE = frozenset({Kind.GRADIENT, Kind.EMBEDDING, Kind.DELTA, Kind.MANIFEST, Kind.TRAINER_STATUS})


class Mailbox:
    """What the fleet last said to this device."""

    def __init__(
        self,
        link: Link,
        topics: Topics,
        *,
        boot: str,
        encoder: Encoder,
        replica: Replica,
        mixture: MixtureReplica,
        fingerprint: str,
        limits: Limits,
        take_policy: Callable[[PolicyUpdate], None] | None = None,
        take_plan: Callable[[int | None], None] | None = None,
    ) -> None:
        """``take_policy``: who goes by a policy, raising MessageError for a bad one; None: policies are not wanted.

        ``take_plan``: who goes by the planner's cut; None: plans are not wanted.
        """
        self._take_policy = take_policy
        self._take_plan = take_plan
        self._link = link
        self._topics = topics
        self._boot = boot
        self._encoder = encoder
        self._replica = replica
        self._mixture = mixture
        self._fingerprint = fingerprint
        self._limits = limits
        self.trainer: TrainerStatus | None = None
        self.pinned_cut: int | None = None
        self.allowed_cuts: tuple[int, ...] = ()
        self.codec: str | None = None
        self.paused = False
        self.other_fingerprint: str | None = None
        self.declared_lost = False
        self.uncertainty: float | None = None
        self.uncertainty_at_s: float | None = None
        self.refused: Counter[str] = Counter()
        self.heard = 0  # signs of life of the trainer: what is retained may be the word of one that is gone

    @property
    def trainer_ready(self) -> bool:
        """Whether the trainer is there and speaks for the same configuration."""
        return self.trainer is not None and self.trainer.state == "ready" and self.other_fingerprint is None

    def drain(self, exchange: Exchange, timeout_s: float) -> bool:
        """Take everything that waits, after waiting at most ``timeout_s`` for the first; True if anything came."""
        incoming = self._link.receive(timeout_s)
        came = incoming is not None
        while incoming is not None:
            try:
                self._take(incoming, exchange)
            except MessageError as error:
                self.refused[incoming.topic] += 1
                LOG.warning("dropped a message of %d bytes on %s: %s", len(incoming.payload), incoming.topic, error)
            incoming = self._link.receive(0.0)
        return came

    def _take(self, incoming: Incoming, exchange: Exchange) -> None:
        kind = self._topics.parse(incoming.topic).kind
        if kind is Kind.GRADIENT:
            self._take_gradient(incoming, exchange)
        elif kind is Kind.EMBEDDING:
            self._take_embedding(incoming, exchange)
        elif kind is Kind.WEIGHTS:
            chunk = messages.decode(messages.WeightsChunk, incoming.payload, limits=self._limits)
            (self._mixture if chunk.name == MIXTURE else self._replica).offer_chunk(chunk)
        elif kind is Kind.DELTA:
            self._replica.offer_delta(messages.decode(messages.DeltaChunk, incoming.payload, limits=self._limits))
        elif kind is Kind.MANIFEST:
            self._take_manifest(incoming)
        elif kind is Kind.TRAINER_STATUS:
            self._take_trainer(incoming)
        elif kind in {Kind.SPLITTER, Kind.POLICY, Kind.CONFIG}:
            self._take_wish(kind, incoming.payload)
        elif kind is Kind.STATUS:
            status = messages.decode(messages.DeviceStatus, incoming.payload, limits=self._limits)
            self.declared_lost = status.state == "lost" and self._link.connected
        else:
            raise MessageError(f"{kind} is not for a device")
        self.heard += kind in SIGNS_OF_LIFE and not incoming.retained

    def _take_wish(self, kind: Kind, payload: bytes) -> None:
        """What others want of this device."""
        if kind is Kind.SPLITTER:
            wish = messages.decode(messages.SplitterUpdate, payload, limits=self._limits)
            self.pinned_cut, self.allowed_cuts = wish.pinned_cut, wish.allowed_cuts
            if self._take_plan is not None:
                self._take_plan(wish.planned_cut)
        elif kind is Kind.POLICY:
            update = messages.decode(PolicyUpdate, payload, limits=self._limits)
            if self._take_policy is not None:
                self._take_policy(update)
        else:
            desired = messages.decode(messages.DesiredConfig, payload, limits=self._limits)
            _check_codec(desired.codec)
            self.codec, self.paused = desired.codec, desired.paused

    def _take_gradient(self, incoming: Incoming, exchange: Exchange) -> None:
        answer = messages.decode(messages.Gradient, incoming.payload, limits=self._limits)
        if (answer.boot, answer.step) != (self._boot, exchange.step) or answer.part not in exchange.sent:
            return
        gradient = None
        cut = exchange.sent[answer.part].cut
        if answer.result == "ok" and cut != BEFORE_STEM:
            if answer.tensor is None:
                raise MessageError("gradient: result ok without a tensor")
            shape = (2, *self._encoder.activation_shape(cut))
            gradient = decode_tensor(answer.tensor, shape, self._limits)
        exchange.offer_gradient(answer, gradient, received_s=incoming.received_s)

    def _take_embedding(self, incoming: Incoming, exchange: Exchange) -> None:
        answer = messages.decode(messages.Embedding, incoming.payload, limits=self._limits)
        decode_tensor(answer.tensor, (1, self._encoder.embedding_dim), self._limits)
        if (answer.boot, answer.step) != (self._boot, exchange.step):
            return
        exchange.offer_embedding(answer, received_s=incoming.received_s)
        self.uncertainty, self.uncertainty_at_s = answer.uncertainty, incoming.received_s

    def _take_trainer(self, incoming: Incoming) -> None:
        status = messages.decode(TrainerStatus, incoming.payload, limits=self._limits)
        known = self.trainer
        if status.state == "lost" and not incoming.retained and known is not None and known.boot != status.boot:
            return  # a late will of an earlier boot; what is retained is the latest, whoever it speaks of
        if known is None or (known.state, known.boot) != (status.state, status.boot):
            LOG.info("the trainer is %s", status.state)
        self.trainer = status
        if status.state == "ready":
            self.other_fingerprint = status.fingerprint if status.fingerprint != self._fingerprint else None

    def _take_manifest(self, incoming: Incoming) -> None:
        manifest = messages.decode(messages.Manifest, incoming.payload, limits=self._limits)
        if manifest.fingerprint != self._fingerprint:
            raise MessageError(f"manifest of another configuration (fingerprint {manifest.fingerprint[:12]})")
        self._replica.offer_manifest(manifest)
        self._mixture.offer_manifest(manifest)


def _check_codec(text: str | None) -> None:
    if text is not None:
        try:
            Codec.parse(text)
        except ValueError as error:
            raise MessageError(f"config: {error}") from error
