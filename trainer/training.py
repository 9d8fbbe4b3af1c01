"""One batch from closed to answered: server step, counting, gradients out, metrics."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from itertools import islice

import torch

from common import messages
from common.codec import Codec, EncodedTensor, decode, encode, quantisation_error
from common.link import Link
from common.messages import GradientResult
from common.mixture_memory import MixtureMemory
from common.split import BEFORE_STEM
from common.topics import Topics
from trainer.batcher import Part, Refusal
from trainer.merging import MergePlan, RoundPlan
from trainer.metrics import MetricsLog, StepMetrics, normalised_task_loss
from trainer.quality import alignment, effective_components, effective_rank, mixture_spread, uniformity
from trainer.screening import Screening
from trainer.server_step import NotFiniteError, ServerResult, ServerStep
from trainer.weights import WeightsLedger

LOG = logging.getLogger(__name__)
TOLD_EVERY_S = 60.0  # a line in the log at most so often
ERROR_STRIDE = 8  # the quantisation error of every eighth gradient tells as much as that of all


class Training:
    """Computes batches and answers them. Used by the training thread only."""

    def __init__(
        self,
        *,
        link: Link,
        topics: Topics,
        server_step: ServerStep,
        ledger: WeightsLedger,
        mixture: MixtureMemory,
        screening: Screening | None,
        plan: MergePlan | RoundPlan,
        log: MetricsLog,
        gradient_codec: Codec,
        rounding: torch.Generator,
        learning_rate_at: Callable[[int], float],
        device_rate: Callable[[float], float],
        embedding_ms_p95: Callable[[], float | None],
        steps: int,
        windows: int,
    ) -> None:
        self._link = link
        self._topics = topics
        self._server_step = server_step
        self._ledger = ledger
        self._mixture = mixture
        self._screening = screening
        self._plan = plan
        self._log = log
        self._gradient_codec = gradient_codec
        self._rounding = rounding
        self._learning_rate_at = learning_rate_at
        self._device_rate = device_rate
        self._embedding_ms_p95 = embedding_ms_p95
        self._unsayable: set[str] = set()  # devices with a gradient that the codec could not say: told once
        self._told_s = -math.inf
        self.steps = steps
        self.windows = windows

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return self._learning_rate_at(self.windows)

    def train(self, batch: Sequence[Part]) -> None:
        """One optimizer step of the trainer on ``batch``, and an answer to every part of it."""
        started_s = time.monotonic()
        learning_rate = self.learning_rate
        try:
            result = self._server_step.run(batch, learning_rate=learning_rate)
        except NotFiniteError as unlearnable:
            LOG.warning("nothing is learned from a batch: %s", unlearnable)
            for part in batch:
                self.refuse(part, Refusal("rejected", str(unlearnable)))
            return
        asking = self._plan.closed({part.device for part in batch}, now_s=started_s)
        error = self._answer(batch, result, self._device_rate(learning_rate), asking)
        seconds = time.monotonic() - started_s
        self._ledger.count(batch)
        self._mixture.update(result.projections[0])
        if self._screening is not None:
            self._screening.observe([part.device for part in batch], result.projections)
        self.steps += 1
        self.windows += len(batch)
        self._write(batch, result, learning_rate, error, seconds)

    def _answer(self, batch: Sequence[Part], result: ServerResult, learning_rate: float, asking: set[str]) -> float:
        """Publish every gradient; returns the mean relative error of the quantisation of some of them.

        A part that came as sound is acknowledged without one: there is nobody behind it who could learn from it.

        All are encoded before the first is published: from then on the network thread, and soon the answering thread
        with the next step's parts, want the interpreter as well, and small operations suffer most from sharing it.
        """
        encoded = [self._encode(part, gradient) for part, gradient in zip(batch, result.gradients, strict=True)]
        errors = [
            quantisation_error(gradient, decode(tensor))
            for gradient, tensor in islice(zip(result.gradients, encoded, strict=True), 0, None, ERROR_STRIDE)
            if tensor is not None
        ]
        losses = result.terms.per_window.tolist()
        answers = [
            self._message(part, "ok", "", loss, learning_rate, part.device in asking, tensor)
            for part, loss, tensor in zip(batch, losses, encoded, strict=True)
        ]
        for part, answer in zip(batch, answers, strict=True):
            self._link.publish(self._topics.gradient(part.device), answer)
        return sum(errors) / len(errors) if errors else 0.0

    def _encode(self, part: Part, gradient: torch.Tensor) -> EncodedTensor | None:
        """A part's gradient as it travels; None for one that came as sound.

        Where the codec cannot say it, and fp16 cannot beyond 65504, there is nothing to learn from the part: zeros. It
        is not rejected, because in such an answer a device does not hear that its change is asked for.
        """
        if part.cut == BEFORE_STEM:
            return None
        try:
            return encode(gradient, self._gradient_codec, self._rounding)
        except ValueError as error:
            if part.device not in self._unsayable:
                LOG.warning("%s learns nothing from a part, its gradient cannot be sent: %s", part.device, error)
                self._unsayable.add(part.device)
            return encode(torch.zeros_like(gradient), self._gradient_codec, self._rounding)

    def refuse(self, part: Part, refusal: Refusal) -> None:
        """Tell a device why its part was not computed with."""
        answer = self._message(part, refusal.result, refusal.reason, None, 0.0, False, None)
        self._link.publish(self._topics.gradient(part.device), answer)

    @staticmethod
    def _message(
        part: Part,
        result: GradientResult,
        reason: str,
        loss: float | None,
        learning_rate: float,
        merge: bool,
        tensor: EncodedTensor | None,
    ) -> bytes:
        answer = messages.Gradient(
            boot=part.boot,
            step=part.step,
            part=part.part,
            result=result,
            reason=reason,
            loss=loss,
            learning_rate=learning_rate,
            merge=merge,
            tensor=tensor,
        )
        return messages.encode(answer)

    def _write(
        self, batch: Sequence[Part], result: ServerResult, learning_rate: float, error: float, seconds: float
    ) -> None:
        terms = result.terms
        view_a, view_b = result.projections[0], result.projections[1]
        mixture, heard = self._mixture, self._mixture.started
        metrics = StepMetrics(
            step=self.steps,
            windows=self.windows,
            weights_version=self._ledger.version,
            loss_total=float(terms.total.detach()),
            loss_task=float(terms.task.detach()),
            loss_task_normalised=normalised_task_loss(float(terms.task.detach()), terms.candidates),
            loss_sw=float(terms.sliced_wasserstein.detach()),
            loss_laplacian=float(terms.laplacian.detach()),
            effective_rank=effective_rank(result.embeddings),
            alignment=alignment(view_a, view_b),
            uniformity=uniformity(view_a),
            mixture_spread=mixture_spread(mixture.means, mixture.mass) if heard else None,
            mixture_components=effective_components(mixture.mass) if heard else None,
            mixture_entropy=float(mixture.entropy(view_a).mean()) if heard else None,
            uncertainty_median=float(mixture.uncertainty(view_a).median()) if heard else None,
            learning_rate=learning_rate,
            clipped_share=self._ledger.clipping.share,
            devices=len({part.device for part in batch}),
            quantisation_error=error,
            seconds=seconds,
            embedding_ms_p95=self._embedding_ms_p95(),
        )
        self._log.write(metrics)
        self._tell(metrics)

    def _tell(self, metrics: StepMetrics) -> None:
        """A line now and then for whoever looks at the log."""
        now_s = time.monotonic()
        if now_s >= self._told_s + TOLD_EVERY_S:
            self._told_s = now_s
            LOG.info(
                "step %d: %d windows, weights version %d, %d devices in the batch, loss %.3f",
                metrics.step, metrics.windows, metrics.weights_version, metrics.devices, metrics.loss_total,
            )  # fmt: skip
