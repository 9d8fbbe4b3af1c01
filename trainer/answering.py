"""The thread that receives: decodes parts, answers them with embedding and uncertainty at once, and hands them on.

It computes with a snapshot of the weights that is swapped per version and never changed, so that an answer does not
wait for the training step that runs beside it.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common import messages
from common.audio_codec import decode_audio
from common.codec import Codec, EncodedTensor, decode_tensor, encode, rows
from common.encoder import Encoder
from common.errors import MessageError
from common.link import Incoming, Link
from common.log_mel import LogMel
from common.mixture_memory import MixtureMemory
from common.split import BEFORE_STEM
from common.topics import Address, Kind, Topics, parse
from trainer.allowance import Allowance
from trainer.batcher import Part

EMBEDDING_CODEC = Codec.parse("int8")  # 192 values: the error is below 1 %, the bytes a quarter of fp32
LOG = logging.getLogger(__name__)
INBOX_CAPACITY = 4096
IDLE_S = 0.2
# Peaks are above 1 at every cut of every encoder, ESC-10 and digital silence alike (measured). Where nothing comes in,
# a fresh encoder's normalisations divide by nothing.
SMALLEST_PEAK = 1e-6
LARGEST_ACTIVATION = 1e6  # behind a normalisation they are below 100; squares of far larger ones leave float32
LONGEST_DEADLINE_S = 60.0  # what a device may ask of all the others
PAUSE_S = 0.002  # without a message: the burst is over
BURST_S = 0.02  # the longest that a part waits for the end of its burst
LATENCIES_KEPT = 512
MOST_AT_ONCE = 1024  # messages taken from the link before they are decoded
MOST_UNANSWERED = 1024  # beyond it the oldest get no embedding, only their gradient
GROUP = 24  # parts embedded at once: hardly slower than more, and the first need not wait for the last


ControlMessage = (
    messages.DeviceStatus
    | messages.UpdateChunk
    | messages.MixtureStatistics
    | messages.Telemetry
    | messages.TrainerStatus
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Weights that nobody changes any more."""

    encoder: Encoder
    mixture: MixtureMemory
    version: int


@dataclass(frozen=True, slots=True)
class Control:
    """A decoded control message on its way to the training thread."""

    address: Address
    message: ControlMessage
    retained: bool = False  # it is the topic's latest, whenever it was said


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A device's part that cannot be used: nobody shall wait for it."""

    device: str


Inbox = Sequence[Part | Unreadable | Control] | BaseException


class Answering:
    """Owns the receiving side of the link; the training thread reads `inbox`."""

    def __init__(
        self,
        link: Link,
        topics: Topics,
        snapshot: Snapshot,
        *,
        limits: messages.Limits,
        stream_time: bool,
        compute: torch.device,
        allowance: Allowance,
        raw_audio: bool = False,
    ) -> None:
        """``raw_audio``: take windows as sound, and nothing else (server-only); otherwise they are refused unread."""
        self._raw_audio = raw_audio
        self._parts = Kind.AUDIO if raw_audio else Kind.ACTIVATIONS
        self._log_mel = LogMel()
        self._link = link
        self._topics = topics
        self._limits = limits
        self._stream_time = stream_time
        self._compute = compute
        self._allowance = allowance
        self.snapshot = snapshot
        self.inbox: queue.Queue[Inbox] = queue.Queue(INBOX_CAPACITY)
        self.refused: Counter[str] = Counter()
        self._answer_s: deque[float] = deque(maxlen=LATENCIES_KEPT)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="answering", daemon=True)

    def start(self) -> None:
        """Start receiving."""
        self._thread.start()

    def stop(self) -> None:
        """Stop receiving; what is in the inbox stays there."""
        self._stop.set()
        self._link.wake()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        """Take what has come, then answer one group of parts: training waits for parts, but not for answers."""
        unanswered: list[tuple[Part, float]] = []
        try:
            while not self._stop.is_set():
                unanswered += self._take(self._drain(0.0 if unanswered else IDLE_S))
                unanswered = self._answer(unanswered[-MOST_UNANSWERED:])
        except BaseException as error:  # noqa: BLE001  our own bug: the training thread raises it, loudly
            self.inbox.put(error)

    def _drain(self, timeout_s: float) -> list[Incoming]:
        """What comes within ``timeout_s``, and of a burst a group at least: a fleet sends when it has its gradients.

        Decoding part by part while the network thread reads costs both of them several times as much: a switch between
        threads at every array operation. But a full group is answered at once, while training waits for the rest.
        """
        burst = self._received(timeout_s)
        until_s = time.monotonic() + BURST_S
        while burst and len(burst) < GROUP and time.monotonic() < until_s:
            time.sleep(PAUSE_S)
            more = self._received(0.0)
            if not more:
                break
            burst += more
        return burst

    def _received(self, timeout_s: float) -> list[Incoming]:
        waiting = []
        incoming = self._link.receive(timeout_s)
        while incoming is not None:
            if not self._floods(incoming.topic):
                waiting.append(incoming)
            if len(waiting) >= MOST_AT_ONCE:
                break
            incoming = self._link.receive(0.0)
        return waiting

    def _take(self, waiting: Sequence[Incoming]) -> list[tuple[Part, float]]:
        """Hand on what came; the parts that want an embedding, with the time of their arrival."""
        items: list[Part | Unreadable | Control] = []
        wanting = []
        for incoming in waiting:
            try:
                item = self._decode(incoming)
            except MessageError as error:
                self.refuse(incoming.topic, len(incoming.payload), error)
                items += self._unreadable(incoming.topic)
                continue
            items.append(item)
            if isinstance(item, Part) and item.cut < self.snapshot.encoder.depth:
                wanting.append((item, incoming.received_s))
        if items:
            self.inbox.put(items)
        return wanting

    def _floods(self, topic: str) -> bool:
        """Whether this is a part, or telemetry, beyond what its device may send."""
        for kind in (self._parts, Kind.TELEMETRY):
            device = _sender(topic, kind)
            if device is not None:
                return not self._allowance.takes(device, kind)
        return False

    def _unreadable(self, topic: str) -> list[Unreadable]:
        """What is said of a message that cannot be used: whose part it was, if it was one."""
        device = _sender(topic, self._parts)
        return [] if device is None else [Unreadable(device)]

    def _decode(self, incoming: Incoming) -> Part | Control:
        address = parse(incoming.topic)
        if address.kind is Kind.ACTIVATIONS and not self._raw_audio:
            return self._part(address, incoming)
        if address.kind is Kind.AUDIO and self._raw_audio:
            return self._sound(address, incoming)
        types = {
            Kind.STATUS: messages.DeviceStatus,
            Kind.UPDATE: messages.UpdateChunk,
            Kind.MIXTURE: messages.MixtureStatistics,
            Kind.TELEMETRY: messages.Telemetry,
            Kind.TRAINER_STATUS: messages.TrainerStatus,
        }
        if address.kind not in types:
            raise MessageError(f"{address.kind} is not for the trainer")
        message: ControlMessage = messages.decode(types[address.kind], incoming.payload, limits=self._limits)
        return Control(address, message, incoming.retained)

    def _part(self, address: Address, incoming: Incoming) -> Part:
        message = messages.decode(messages.Activations, incoming.payload, limits=self._limits)
        encoder = self.snapshot.encoder
        if message.cut > encoder.depth:
            raise MessageError(f"activations: cut {message.cut} of an encoder of {encoder.depth} blocks")
        shape = (2, *encoder.activation_shape(message.cut))
        activations = decode_tensor(message.tensor, shape, self._limits)
        peaks = activations.flatten(1).abs().amax(dim=1)
        if float(peaks.max()) > LARGEST_ACTIVATION:
            raise MessageError(f"activations: a value beyond {LARGEST_ACTIVATION:g}")
        if float(peaks.min()) < SMALLEST_PEAK:
            raise MessageError(f"activations: a view with no value beyond {SMALLEST_PEAK:g}")
        assert address.device is not None
        return Part(
            device=address.device,
            boot=message.boot,
            step=message.step,
            part=message.part,
            last=message.last,
            cut=message.cut,
            weights_version=message.weights_version,
            deadline_s=min(message.deadline_ms / 1000, LONGEST_DEADLINE_S),
            segment=message.segment,
            window_index=message.window_index,
            time_s=message.monotonic_ms / 1000 if self._stream_time else incoming.received_s,
            room=message.room,
            activations=activations,
            caption=message.caption,
        )

    def _sound(self, address: Address, incoming: Incoming) -> Part:
        message = messages.decode(messages.Audio, incoming.payload, limits=self._limits)
        samples = decode_audio(message.data, message.codec)
        assert address.device is not None
        return Part(
            device=address.device,
            boot=message.boot,
            step=message.step,
            part=message.part,
            last=message.last,
            cut=BEFORE_STEM,
            weights_version=self.snapshot.version,  # nothing was computed yet, so nothing can be stale
            deadline_s=min(message.deadline_ms / 1000, LONGEST_DEADLINE_S),
            segment=message.segment,
            window_index=message.window_index,
            time_s=message.monotonic_ms / 1000 if self._stream_time else incoming.received_s,
            room=message.room,
            activations=torch.from_numpy(samples),
        )

    def _answer(self, unanswered: list[tuple[Part, float]]) -> list[tuple[Part, float]]:
        """Answer the oldest part and up to `GROUP` of its cut; returns the others."""
        if not unanswered:
            return []
        snapshot, cut = self.snapshot, unanswered[0][0].cut
        group: list[tuple[Part, float]] = []
        others: list[tuple[Part, float]] = []
        for one in unanswered:
            (group if one[0].cut == cut and len(group) < GROUP else others).append(one)
        embeddings, uncertainty = self._embed(snapshot, [part for part, _ in group], cut)
        encoded = encode(embeddings, EMBEDDING_CODEC)
        for (part, received_s), embedding, uncertain in zip(group, rows(encoded), uncertainty, strict=True):
            self._publish(part, snapshot.version, embedding, uncertain)
            self._answer_s.append(time.monotonic() - received_s)
        return others

    def _embed(self, snapshot: Snapshot, parts: Sequence[Part], cut: int) -> tuple[Tensor, list[float]]:
        with torch.inference_mode():
            if cut == BEFORE_STEM:
                view_a = self._log_mel(torch.stack([part.activations for part in parts])).to(self._compute)
                embeddings = snapshot.encoder(view_a)
            else:
                view_a = torch.stack([part.activations[0] for part in parts]).to(self._compute)
                embeddings = snapshot.encoder.forward_from(view_a, cut)
            uncertainty = snapshot.mixture.uncertainty(snapshot.encoder.project(embeddings))
        return embeddings.cpu(), uncertainty.tolist()

    def _publish(self, part: Part, version: int, embedding: EncodedTensor, uncertainty: float) -> None:
        answer = messages.Embedding(
            boot=part.boot,
            step=part.step,
            part=part.part,
            weights_version=version,
            uncertainty=uncertainty,
            tensor=embedding,
        )
        self._link.publish(
            self._topics.embedding(part.device), messages.encode(answer), qos=0, expiry_s=part.deadline_s
        )

    def embedding_ms_p95(self) -> float | None:
        """95th percentile of the latest times from a part's arrival to its embedding handed to the link; any thread."""
        latest = sorted(self._answer_s.copy())
        return 1000.0 * latest[int(0.95 * (len(latest) - 1))] if latest else None

    def refuse(self, topic: str, size_bytes: int, error: MessageError) -> None:
        """Count and log a message that cannot be used."""
        self.refused[str(topic)] += 1
        LOG.warning("dropped a message of %d bytes on %s: %s", size_bytes, topic, error)


def _sender(topic: str, kind: Kind) -> str | None:
    """The device whose message of this kind it is."""
    try:
        address = parse(topic)
    except MessageError:
        return None
    return address.device if address.kind is kind else None
