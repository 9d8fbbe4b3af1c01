"""A window as a message: its activations at the cut, or its sound where that is permitted."""

from __future__ import annotations

import time
from collections.abc import Callable

from common import messages
from common.audio_codec import AudioCodec, encode_audio
from common.codec import Codec, encode
from common.link import Link
from common.split import BEFORE_STEM
from common.topics import Topics
from device.captions import CaptionDraw
from device.client_step import ClientStep
from device.compute_time import ComputeTime
from device.exchange import Exchange
from device.intake import SeenWindow
from device.journal import Totals
from device.mailbox import Mailbox
from device.pace import Pace
from device.replica import Replica
from device.windows import Window


class Outbox:
    """Sends windows as parts of the step in flight. ``finished``: whether the one at hand was the last of all."""

    def __init__(
        self,
        link: Link,
        topics: Topics,
        mailbox: Mailbox,
        replica: Replica,
        client_step: ClientStep,
        compute: ComputeTime,
        totals: Totals,
        *,
        device: str,
        boot: str,
        room: str,
        depth: int,
        codec: Codec,
        pace: Pace,
        finished: Callable[[], bool],
        captions: CaptionDraw | None,
    ) -> None:
        self._link = link
        self._topics = topics
        self._mailbox = mailbox
        self._replica = replica
        self._client_step = client_step
        self._compute = compute
        self._totals = totals
        self._device = device
        self._boot = boot
        self._room = room
        self._depth = depth
        self._codec = codec
        self._pace = pace
        self._finished = finished
        self._captions = captions

    def send(self, exchange: Exchange, seen: SeenWindow, *, cut: int) -> float | None:
        """Send a window at the cut; at the last one, seconds from its end until its embedding was there."""
        window, part = seen.window, len(exchange.sent)
        begun_s = time.monotonic()
        with self._compute.block():
            activations = self._client_step.forward(seen.views, part=part, cut=cut)
        done_s = time.monotonic()
        exchange.computed_s += done_s - begun_s
        with self._compute.block():
            tensor = encode(activations, Codec.parse(self._mailbox.codec) if self._mailbox.codec else self._codec)
        message = messages.Activations(
            boot=self._boot,
            step=exchange.step,
            part=part,
            last=self._is_last(part),
            cut=cut,
            weights_version=self._replica.version,
            deadline_ms=round(1e3 * self._pace.deadline_s),
            segment=window.segment,
            window_index=window.index,
            monotonic_ms=round(1e3 * window.closed_s),
            room=self._room,
            tensor=tensor,
            caption=self._captions(window) if self._captions else None,
        )
        topic = self._topics.activations(self._device)
        self._publish(exchange, topic, messages.encode(message), cut, window, seen.closed_s)
        return done_s - seen.closed_s if cut == self._depth else None

    def send_sound(self, exchange: Exchange, window: Window, codec: AudioCodec, *, closed_s: float) -> None:
        """Only where the device's own file permits it (`common.config_fleet.permits_its_mode`)."""
        part = len(exchange.sent)
        with self._compute.block():
            data = encode_audio(window.samples, codec)
        message = messages.Audio(
            boot=self._boot,
            step=exchange.step,
            part=part,
            last=self._is_last(part),
            deadline_ms=round(1e3 * self._pace.deadline_s),
            segment=window.segment,
            window_index=window.index,
            monotonic_ms=round(1e3 * window.closed_s),
            room=self._room,
            codec=codec,
            data=data,
        )
        topic = self._topics.audio(self._device)
        self._publish(exchange, topic, messages.encode(message), BEFORE_STEM, window, closed_s)

    def _is_last(self, part: int) -> bool:
        return part + 1 == self._pace.parts_per_step or self._finished()

    def _publish(
        self, exchange: Exchange, topic: str, payload: bytes, cut: int, window: Window, closed_s: float
    ) -> None:
        self._totals.sent += 1
        if not exchange.sent and self._mailbox.trainer is not None:
            exchange.trainer_boot = self._mailbox.trainer.boot
        exchange.offer_sent(
            len(exchange.sent), cut, len(payload), window=window.index, closed_s=closed_s, sent_s=time.monotonic()
        )
        self._link.publish(topic, payload, expiry_s=self._pace.step_timeout_s)
