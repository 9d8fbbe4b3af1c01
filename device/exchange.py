"""The step in flight as messages: which parts were sent, which answers came, and when it is over."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from common.messages import Embedding, Gradient

Result = Literal["answered", "late", "stale", "rejected", "lost"]
BEFORE_THE_BATCH = ("rejected", "stale")  # refused as they come: that says nothing of when the others are answered


@dataclass(frozen=True, slots=True)
class Sent:
    """One part on its way: its window, cut or `BEFORE_STEM`, size, when its window was closed and when it left."""

    window: int
    cut: int
    size_bytes: int
    closed_s: float
    sent_s: float


@dataclass(slots=True)
class Exchange:
    """One step of this device.

    ``timeout_s`` after its newest part it is lost; ``grace_s`` after the newest answer of a batch no rest is waited
    for, since the batch was closed with what had arrived. By part: ``embedding_s`` from its window's end,
    ``gradient_s`` from its sending. ``applied_s``: when the optimizer step was taken, on the monotonic clock.
    ``computed_s``: what forward and backward of all parts took here, by the clock on the wall.
    """

    step: int
    timeout_s: float
    grace_s: float
    sent: dict[int, Sent] = field(default_factory=dict)
    gradients: dict[int, Tensor] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    acknowledged: set[int] = field(default_factory=set)
    refused: dict[int, str] = field(default_factory=dict)
    embedding_s: dict[int, float] = field(default_factory=dict)
    gradient_s: dict[int, float] = field(default_factory=dict)
    applied_s: float | None = None
    computed_s: float = 0.0
    trainer_boot: str = ""
    reasons: set[str] = field(default_factory=set)
    learning_rate: float = 0.0
    merge: bool = False
    _answered_s: float | None = None

    def offer_sent(self, part: int, cut: int, size_bytes: int, *, window: int, closed_s: float, sent_s: float) -> None:
        """Note that a part went out."""
        self.sent[part] = Sent(window, cut, size_bytes, closed_s, sent_s)

    def offer_gradient(self, answer: Gradient, gradient: Tensor | None, *, received_s: float) -> None:
        """Take the answer to one part; a second answer to the same part changes nothing.

        A part that was sent as sound is answered without a gradient: whoever trained on it has all of it.
        """
        if answer.part not in self.sent or answer.part in self._done():
            return
        self.gradient_s[answer.part] = received_s - self.sent[answer.part].sent_s
        if answer.result not in BEFORE_THE_BATCH:
            self._answered_s = received_s
        if answer.result != "ok":
            self.refused[answer.part] = answer.result
            self.reasons.add(answer.reason)
            return
        if gradient is None:
            self.acknowledged.add(answer.part)
        else:
            self.gradients[answer.part] = gradient
        self.learning_rate = answer.learning_rate
        self.merge = self.merge or answer.merge
        if answer.loss is not None:
            self.losses.append(answer.loss)

    def offer_embedding(self, answer: Embedding, *, received_s: float) -> None:
        """Note when a window's embedding became available here."""
        if answer.part in self.sent and answer.part not in self.embedding_s:
            self.embedding_s[answer.part] = received_s - self.sent[answer.part].closed_s

    def over(self, now_s: float) -> bool:
        """Whether no further answer is worth waiting for."""
        if len(self._done()) >= len(self.sent):
            return True
        if self._answered_s is not None and now_s - self._answered_s >= self.grace_s:
            return True
        newest_s = max((sent.sent_s for sent in self.sent.values()), default=now_s)
        return now_s - newest_s >= self.timeout_s

    def _done(self) -> set[int]:
        return self.acknowledged | self.gradients.keys() | self.refused.keys()

    def client_ms(self) -> tuple[int, float] | None:
        """The cut, and milliseconds of compute here for each window; None if there were several or gaps in the step."""
        cuts = {sent.cut for sent in self.sent.values()}
        if len(cuts) != 1 or self.gradients.keys() != self.sent.keys():
            return None
        return cuts.pop(), 1e3 * self.computed_s / len(self.sent)

    def result(self) -> Result:
        """How the step ended: answered if any part was, else why not."""
        if self.gradients or self.acknowledged:
            return "answered"
        for result in ("stale", "rejected", "late"):
            if result in self.refused.values():
                return result
        return "lost"
