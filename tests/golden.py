"""A whole fleet in one process, and the plain training that it has to equal.

`Fleet` wires the real parts (client step, messages, answering's decoder, batcher, server step, ledger, publisher,
mailbox, replica) with fake links between them. `Unsplit` is the independent reference: one encoder, one `torch.optim`
optimizer, every term of the loss written down once more from its definition on the concatenated batch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from scipy.stats import beta
from torch import Tensor

from common import messages
from common.block_optimizer import BlockOptimizers
from common.codec import Codec, encode
from common.encoder import Encoder, build_encoder
from common.link import Incoming
from common.mixture_memory import MixtureMemory
from common.split import block_parameters, block_state, client_names, names
from common.topics import Topics
from device.client_step import ClientStep
from device.exchange import Exchange
from device.mailbox import Mailbox
from device.mixture_replica import MixtureReplica
from device.replica import Replica
from device.weights_exchange import WeightsExchange
from tests.client_steps import learn
from tests.fakes import FakeLink
from trainer.allowance import Allowance
from trainer.answering import Answering, Control, Snapshot
from trainer.batcher import Batcher, Part
from trainer.captured import Captured
from trainer.hybrid_loss import HybridLoss
from trainer.merge_optimizer import ACCUMULATION_RATE, MergeOptimizer
from trainer.objective import Hybrid
from trainer.publisher import Publisher
from trainer.server_step import ServerStep
from trainer.temporal_buffer import TemporalBuffer
from trainer.updates import Updates
from trainer.weights import WeightsLedger

FINGERPRINT = "f" * 64
RUN = "golden"
LIMITS = messages.Limits()
TEMPERATURE, SW_WEIGHT, SW_PROJECTIONS, LAPLACIAN_WEIGHT, NEIGHBOURS, SCALE_S = 0.2, 5.0, 20, 0.5, 3, 2.0
FALSE_NEGATIVE_S = 1.2
DIRECTIONS_SEED = 11
Kind = Literal["adamw", "sgd"]
Gradients = dict[str, list[Tensor]]


@dataclass(frozen=True, slots=True)
class Heard:
    """One window of a device: its views [2, 1, 64, 96] and where in its stream it stands."""

    views: Tensor
    segment: int
    time_ms: int


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step of the whole batch gave: the loss, and for each block the gradient of each parameter."""

    loss: float
    task: float
    gradients: Gradients


def hear(windows: int, seed: int, *, steps: int) -> list[list[Heard]]:
    """``steps`` batches of one device: every window a texture of its own, view B a noisy copy; times never tie."""
    generator = torch.Generator().manual_seed(seed)
    clock_ms = 0
    batches = []
    for step in range(steps):
        batch = []
        for _ in range(windows):
            texture = torch.randn(1, 64, 1, generator=generator) + torch.randn(1, 1, 96, generator=generator)
            view_a = texture + 0.5 * torch.randn(1, 64, 96, generator=generator)
            view_b = texture + 0.5 * torch.randn(1, 64, 96, generator=generator)
            clock_ms += 960 + int(torch.randint(0, 1_200, (1,), generator=generator))
            batch.append(Heard(torch.stack([view_a, view_b]), segment=step // 3, time_ms=clock_ms))
        batches.append(batch)
    return batches


# -- the fleet --------------------------------------------------------------------------------------------------------


def boot_of(device: str) -> str:
    """Sixteen hexadecimal digits made of a device's name."""
    return device.encode().hex().ljust(16, "0")[:16]


class GoldenDevice:
    """One device: the parts that `device.loop` drives, driven here."""

    def __init__(
        self, name: str, encoder: Encoder, optimizers: BlockOptimizers | None, topics: Topics, codec: Codec
    ) -> None:
        """Without ``optimizers`` the device sums gradients up."""
        self.name = name
        self.boot = boot_of(name)
        self.encoder = encoder
        self.link = FakeLink()
        self.replica = Replica(encoder, device=name, boot=self.boot, dtype="fp32", change_codec="fp32")
        self.client_step = ClientStep(encoder, optimizers.step if optimizers else self.replica.sum_up)
        mixture = MixtureReplica(MixtureMemory(), boot=self.boot, fingerprint=FINGERPRINT, path=Path("never-written"))
        self.mailbox = Mailbox(
            self.link.as_link,
            topics,
            boot=self.boot,
            encoder=encoder,
            replica=self.replica,
            mixture=mixture,
            fingerprint=FINGERPRINT,
            limits=LIMITS,
        )
        self._weights = WeightsExchange(
            self.link.as_link,
            topics,
            self.replica,
            encoder,
            mixture,
            device=name,
            boot=self.boot,
            fingerprint=FINGERPRINT,
            path=Path("never-written"),
        )
        self._topics = topics
        self._codec = codec
        self.exchange = Exchange(0, timeout_s=10.0, grace_s=1.0)

    def send(self, heard: Sequence[Heard], cut: int) -> list[bytes]:
        """Forward every window and publish its part."""
        sent = []
        for part, window in enumerate(heard):
            activations = self.client_step.forward(window.views, part=part, cut=cut)
            message = messages.Activations(
                boot=self.boot,
                step=self.exchange.step,
                part=part,
                last=part + 1 == len(heard),
                cut=cut,
                weights_version=self.replica.version,
                deadline_ms=1_000,
                segment=window.segment,
                window_index=part,
                monotonic_ms=window.time_ms,
                room="",
                tensor=encode(activations, self._codec),
            )
            sent.append(messages.encode(message))
            self.exchange.offer_sent(part, cut, len(sent[-1]), window=part, closed_s=0.0, sent_s=0.0)
        return sent

    def learn(self) -> list[str]:
        """Apply the answers that have arrived; the blocks that moved."""
        self.mailbox.drain(self.exchange, 0.0)
        exchange = self.exchange
        moved = learn(self.client_step, exchange.gradients, learning_rate=exchange.learning_rate)
        self.replica.trained(moved)
        self.exchange = Exchange(exchange.step + 1, timeout_s=10.0, grace_s=1.0)
        return moved

    def publish_change(self) -> None:
        """Publish the unsent change as chunks."""
        assert self._weights.publish_change()

    def follow(self, retained: Sequence[tuple[str, bytes]], cut: int) -> None:
        """Receive what the trainer retained, as far as this device listens to it, and move to that version."""
        needed = client_names(cut) if self.replica.initialised else names(self.encoder)
        for topic, payload in retained:
            if self._topics.parse(topic).name in (None, *needed):
                self.link.put(topic, payload)
        self.mailbox.drain(self.exchange, 0.0)
        assert self.mailbox.refused.total() == 0
        assert self.replica.apply(needed)


class Fleet:
    """Devices and one trainer; every step ends with a merge and a new version that every device applies."""

    def __init__(
        self,
        encoder_name: str,
        devices: Sequence[str],
        *,
        kind: Kind,
        parts_per_step: int,
        activations_codec: str = "fp32",
        gradient_codec: str = "fp32",
        weight_decay: float = 0.0,
        accumulates: bool = False,
    ) -> None:
        self._accumulates = accumulates
        self.topics = Topics("golden")
        self.encoder = build_encoder(encoder_name, seed=1)
        self.batcher = Batcher(max_lag=0, parts_per_step=parts_per_step)
        # Without trimming: a trimmed mean of several devices' changes is not the gradient of their batch.
        self.ledger = WeightsLedger(
            self.encoder,
            version=0,
            discount=0.5,
            local_cap=0,
            trim=0.0,
            captured=Captured(None),
            optimizer=MergeOptimizer(self.encoder, kind=kind, weight_decay=weight_decay, warmup_steps=0)
            if accumulates
            else None,
        )
        self.link = FakeLink()
        self._gradient_codec = Codec.parse(gradient_codec)
        self._rounding = torch.Generator().manual_seed(5)
        cpu = torch.device("cpu")
        mixture = MixtureMemory(seed=0)
        self._answering = Answering(
            self.link.as_link,
            self.topics,
            Snapshot(self.encoder, mixture, 0),
            limits=LIMITS,
            stream_time=True,
            compute=cpu,
            allowance=Allowance(parts_per_step=64),
        )
        self._cuts_move = False
        loss = HybridLoss(
            temperature=TEMPERATURE,
            sw_weight=SW_WEIGHT,
            sw_projections=SW_PROJECTIONS,
            laplacian_weight=LAPLACIAN_WEIGHT,
        )
        optimizers = BlockOptimizers(self.encoder, kind=kind, weight_decay=weight_decay, warmup_steps=0)
        self.server_step = ServerStep(
            self.encoder,
            optimizers,
            Hybrid(
                loss,
                TemporalBuffer(neighbours=NEIGHBOURS, scale_s=SCALE_S),
                false_negative_s=FALSE_NEGATIVE_S,
                directions=torch.Generator().manual_seed(DIRECTIONS_SEED),
            ),
            compute=cpu,
        )
        self._updates = Updates(
            {name: block_state(self.encoder, name) for name in names(self.encoder)}, run=RUN, compute=cpu
        )
        self._publisher = Publisher(
            self.link.as_link, self.topics, run=RUN, fingerprint=FINGERPRINT, dtype="fp32", delta_codec=None
        )
        self.devices = {
            name: self._device(name, encoder_name, kind, weight_decay, activations_codec) for name in devices
        }
        self._publish()
        first = self.link.take_retained()
        for device in self.devices.values():
            device.follow(first, 0)

    def _device(self, name: str, encoder_name: str, kind: Kind, weight_decay: float, codec: str) -> GoldenDevice:
        encoder = build_encoder(encoder_name, seed=99)  # other weights: what counts must have come over the wire
        optimizers = BlockOptimizers(encoder, kind=kind, weight_decay=weight_decay, warmup_steps=0)
        self.batcher.join(name, boot_of(name))
        if self._accumulates:
            return GoldenDevice(name, encoder, None, self.topics, Codec.parse(codec))
        return GoldenDevice(name, encoder, optimizers, self.topics, Codec.parse(codec))

    def _publish(self) -> None:
        self._publisher.publish(self.encoder, version=self.ledger.version, merged=self.ledger.merged)

    def step(
        self, heard: Mapping[str, Sequence[Heard]], cuts: Mapping[str, int], *, learning_rate: float
    ) -> StepResult:
        """One batch: parts up, server step, gradients down, changes up, merge, weights down."""
        batch = self._gather(heard, cuts)
        result = self.server_step.run(batch, learning_rate=learning_rate)
        self.ledger.count(batch)
        gradients = self._server_share(batch)
        losses = result.terms.per_window.tolist()
        for part, gradient, loss in zip(batch, result.gradients, losses, strict=True):
            self._answer(part, gradient, loss, ACCUMULATION_RATE if self._accumulates else learning_rate)
        for name, device in self.devices.items():
            moved = device.learn()
            assert moved == list(client_names(cuts[name]))
            add_share(gradients, device.encoder, {block: len(heard[name]) / len(batch) for block in moved})
            device.publish_change()
            self._receive_change(name)
        self._merge(cuts, learning_rate)
        return StepResult(float(result.terms.total.detach()), sum(losses) / len(losses), gradients)

    def _gather(self, heard: Mapping[str, Sequence[Heard]], cuts: Mapping[str, int]) -> list[Part]:
        for name, device in self.devices.items():
            for payload in reversed(device.send(heard[name], cuts[name])):  # the order of arrival must not matter
                assert not self.batcher.due(0.0)
                incoming = Incoming(self.topics.activations(name), payload, retained=False, received_s=0.0)
                part = self._answering._decode(incoming)
                assert isinstance(part, Part)
                assert self.batcher.add(part, now_s=0.0, weights_version=self.ledger.version) is None
        assert self.batcher.due(0.0)
        return self.batcher.take()

    def _server_share(self, batch: Sequence[Part]) -> Gradients:
        gradients: Gradients = {}
        through = {str(i): sum(part.cut <= i for part in batch) for i in range(self.encoder.depth)}
        shares = {name: windows / len(batch) for name, windows in through.items() if windows} | {"head": 1.0}
        add_share(gradients, self.encoder, shares)
        return gradients

    def _answer(self, part: Part, gradient: Tensor, loss: float, learning_rate: float) -> None:
        stochastic = self._rounding if self._gradient_codec.dtype in ("int8", "int4") else None
        answer = messages.Gradient(
            boot=part.boot,
            step=part.step,
            part=part.part,
            result="ok",
            reason="",
            loss=loss,
            learning_rate=learning_rate,
            merge=True,
            tensor=encode(gradient, self._gradient_codec, stochastic),
        )
        self.devices[part.device].link.put(self.topics.gradient(part.device), messages.encode(answer))

    def _receive_change(self, name: str) -> None:
        contribution = None
        for chunk in self.devices[name].link.take_published():
            control = self._answering._decode(Incoming(chunk.topic, chunk.payload, retained=False, received_s=0.0))
            assert isinstance(control, Control)
            assert isinstance(control.message, messages.UpdateChunk)
            contribution = self._updates.offer(name, control.message)
        assert contribution is not None
        self.ledger.offer(contribution)

    def _merge(self, cuts: Mapping[str, int], learning_rate: float) -> None:
        self.ledger.commit(self.ledger.preview(learning_rate))
        self._publish()
        retained = self.link.take_retained()
        for name, device in self.devices.items():
            # A device whose cut will change needs more blocks next time: here every device follows them all.
            device.follow(retained, self.encoder.depth if self._cuts_move else cuts[name])

    def let_cuts_move(self) -> None:
        """From now on devices follow every block, so that any cut may come next."""
        self._cuts_move = True


def add_share(gradients: Gradients, encoder: Encoder, shares: Mapping[str, float]) -> None:
    """Add one participant's gradients, weighted by its share of the batch's windows."""
    for name, share in shares.items():
        mine = [
            (p.grad if p.grad is not None else torch.zeros_like(p)) * share for p in block_parameters(encoder, name)
        ]
        gradients[name] = [a + b for a, b in zip(gradients.get(name, [torch.zeros_like(g) for g in mine]), mine)]


# -- the reference ----------------------------------------------------------------------------------------------------


@dataclass
class Unsplit:
    """Plain training on the concatenated batch."""

    encoder: Encoder
    optimizer: torch.optim.Optimizer
    directions: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(DIRECTIONS_SEED))
    past: dict[tuple[str, int], list[tuple[float, Tensor]]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def of(cls, encoder_name: str, kind: Kind, learning_rate: float, weight_decay: float = 0.0) -> Unsplit:
        """The encoder that the fleet starts with, and one optimizer for all of it."""
        encoder = build_encoder(encoder_name, seed=1)
        optimizer: torch.optim.Optimizer
        if kind == "sgd":
            optimizer = torch.optim.SGD(encoder.parameters(), lr=learning_rate)
        else:
            optimizer = torch.optim.AdamW(encoder.parameters(), lr=learning_rate, weight_decay=weight_decay)
        return cls(encoder, optimizer)

    def step(self, heard: Mapping[str, Sequence[Heard]]) -> StepResult:
        """One step on every window of every device at once."""
        where = [(name, window) for name in sorted(heard) for window in heard[name]]
        views = torch.cat([torch.stack([w.views[0] for _, w in where]), torch.stack([w.views[1] for _, w in where])])
        z = torch.nn.functional.normalize(self.encoder.head(self.encoder(views)), dim=1)
        task = _task(z, where)
        total = task + SW_WEIGHT * self._to_sphere(z) + LAPLACIAN_WEIGHT * self._smoothness(z[: len(where)], where)
        self.optimizer.zero_grad()
        total.backward()
        gradients: Gradients = {}
        add_share(gradients, self.encoder, dict.fromkeys(names(self.encoder), 1.0))
        self.optimizer.step()
        return StepResult(float(total.detach()), float(task.detach()), gradients)

    def _to_sphere(self, z: Tensor) -> Tensor:
        directions = torch.randn(SW_PROJECTIONS, z.shape[1], generator=self.directions)
        half = (z.shape[1] - 1) / 2
        target = 2 * beta.ppf((np.arange(len(z)) + 0.5) / len(z), half, half) - 1
        terms = []
        for direction in directions:
            along = torch.sort(z @ (direction / direction.norm())).values
            terms.append((along - torch.tensor(target, dtype=z.dtype)).pow(2).mean())
        return torch.stack(terms).mean()

    def _smoothness(self, z: Tensor, where: Sequence[tuple[str, Heard]]) -> Tensor:
        terms = []
        for i, (name, window) in enumerate(where):
            own = [(w.time_ms / 1e3, z[j]) for j, (n, w) in enumerate(where) if j != i and _together((n, w), where[i])]
            known = own + self.past[name, window.segment]
            known.sort(key=lambda each, at=window.time_ms / 1e3: abs(each[0] - at))  # type: ignore[misc]
            for time_s, other in known[:NEIGHBOURS]:
                weight = math.exp(-abs(time_s - window.time_ms / 1e3) / SCALE_S)
                terms.append(weight * (z[i] - other).pow(2).sum())
        for i, (name, window) in enumerate(where):
            self.past[name, window.segment].append((window.time_ms / 1e3, z[i].detach()))
        return torch.stack(terms).mean() if terms else torch.zeros(())


def _together(a: tuple[str, Heard], b: tuple[str, Heard]) -> bool:
    return a[0] == b[0] and a[1].segment == b[1].segment


def _task(z: Tensor, where: Sequence[tuple[str, Heard]]) -> Tensor:
    """InfoNCE, one anchor at a time: softmax over its positive and every view of windows that are its negatives."""
    count = len(where)
    losses = []
    for anchor in range(2 * count):
        mine, positive = anchor % count, (anchor + count) % (2 * count)
        near = [
            _together(where[mine], other) and abs(where[mine][1].time_ms - other[1].time_ms) <= 1e3 * FALSE_NEGATIVE_S
            for other in where
        ]
        others = [v for v in range(2 * count) if v % count != mine and not near[v % count]]
        logits = torch.stack([z[anchor] @ z[v] / TEMPERATURE for v in [positive, *others]])
        losses.append(-torch.log_softmax(logits, dim=0)[0])
    return torch.stack(losses).mean()


# -- kinks ------------------------------------------------------------------------------------------------------------


def smooth_kinks(patch: pytest.MonkeyPatch) -> None:
    """Softplus for ReLU and mean for maximum pooling, in every encoder until the test ends.

    The order of additions differs between one window and a batch, which moves every value by some 1e-7. Where such a
    value is the input of a ReLU at zero, a unit is on here and off there: measured, one unit of 165,888 changes the
    gradient by 8e-4, and the next step starts from there. Without kinks what is left is rounding, and 1e-5 tells a
    wiring mistake from it.
    """
    functional = torch.nn.functional

    def softplus(x: Tensor, inplace: bool = False) -> Tensor:
        return functional.softplus(x, beta=4.0)

    def mean_pool(x: Tensor, kernel: int, stride: int, padding: int, *_: object, **__: object) -> Tensor:
        return functional.avg_pool2d(x, kernel, stride, padding)

    patch.setattr(functional, "relu", softplus)
    patch.setattr(functional, "max_pool2d", mean_pool)


# -- comparing --------------------------------------------------------------------------------------------------------


def relative_error(measured: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """``|measured - reference| / |reference|`` over all tensors of a block together."""
    difference = math.sqrt(sum(float((a - b).double().pow(2).sum()) for a, b in zip(measured, reference, strict=True)))
    return difference / math.sqrt(sum(float(b.double().pow(2).sum()) for b in reference))


def weights(encoder: Encoder) -> dict[str, list[Tensor]]:
    """A copy of every block's parameters."""
    return {name: [p.detach().clone() for p in block_parameters(encoder, name)] for name in names(encoder)}


def changes(encoder: Encoder, start: Gradients) -> Gradients:
    """How far every block has moved from ``start``."""
    return {name: [a - b for a, b in zip(now, start[name], strict=True)] for name, now in weights(encoder).items()}


def worst(measured: Gradients, reference: Gradients) -> float:
    """The largest relative error of any block."""
    assert measured.keys() == reference.keys()
    return max(relative_error(measured[name], reference[name]) for name in reference)
