"""What a batch is answered with, whatever its gradients are; how they are computed is `test_server_step`'s."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
import torch
from torch.nn import functional

from common import messages
from common.codec import Codec, decode
from common.encoder import build_encoder
from common.mixture_memory import MixtureMemory
from common.topics import Topics
from tests.fakes import FakeLink
from trainer.batcher import Part
from trainer.captured import Captured
from trainer.hybrid_loss import HybridLossResult
from trainer.merging import MergePlan
from trainer.metrics import MetricsLog, read_metrics
from trainer.server_step import NotFiniteError, ServerResult, ServerStep
from trainer.training import Training
from trainer.weights import WeightsLedger

TOPICS = Topics("home")
DIM = 128


def part(device: str) -> Part:
    return Part(device, "a" * 16, 0, 0, True, 5, 0, 1.0, 0, 0, 0.0, "", torch.zeros(1))


class Computed:
    """A server step that gives these gradients."""

    def __init__(self, gradients: Sequence[torch.Tensor]) -> None:
        self._gradients = list(gradients)

    def run(self, parts: Sequence[Part], *, learning_rate: float) -> ServerResult:
        rng, zero = torch.Generator().manual_seed(0), torch.zeros(())
        z = functional.normalize(torch.randn(2, len(parts), DIM, generator=rng), dim=2)
        terms = HybridLossResult(zero, zero, zero, zero, torch.zeros(len(parts)), 4.0)
        return ServerResult(self._gradients, terms, z[0], z)


def answers(folder: Path, codec: str, gradients: dict[str, torch.Tensor]) -> dict[str, messages.Gradient]:
    return answers_of(folder, codec, Computed(list(gradients.values())), list(gradients))


def answers_of(folder: Path, codec: str, step: object, devices: Sequence[str]) -> dict[str, messages.Gradient]:
    link, encoder = FakeLink(), build_encoder("mobile", seed=0)
    with MetricsLog(folder, tensorboard=False) as log:
        Training(
            link=link.as_link,
            topics=TOPICS,
            server_step=cast("ServerStep", step),
            ledger=WeightsLedger(encoder, version=0, discount=0.5, local_cap=1, trim=0.0, captured=Captured(None)),
            mixture=MixtureMemory(dim=DIM),
            screening=None,
            plan=MergePlan(merge_every=1, deadline_s=1.0),
            log=log,
            gradient_codec=Codec.parse(codec),
            rounding=torch.Generator().manual_seed(0),
            learning_rate_at=lambda _: 1e-3,
            device_rate=lambda rate: rate,
            embedding_ms_p95=lambda: None,
            steps=0,
            windows=0,
        ).train([part(device) for device in devices])
    decoded = {one.topic: messages.decode(messages.Gradient, one.payload) for one in link.published}
    return {device: decoded[TOPICS.gradient(device)] for device in devices}


@pytest.mark.parametrize("codec", ["fp16", "fp16-zlib"])
def test_a_gradient_that_the_codec_cannot_say_ends_no_training_and_keeps_nobody_waiting(
    tmp_path: Path, codec: str, caplog: pytest.LogCaptureFixture
) -> None:
    usual = torch.full((2, 4), 0.5)
    told = answers(tmp_path, codec, {"steep": torch.full((2, 4), 1e5), "pi": usual})
    assert all(answer.result == "ok" and answer.merge for answer in told.values()), "both changes are asked for"
    assert told["steep"].tensor is not None
    assert torch.equal(decode(told["steep"].tensor), torch.zeros(2, 4))
    assert told["pi"].tensor is not None
    assert torch.equal(decode(told["pi"].tensor), usual)
    assert caplog.text.count("steep learns nothing from a part, its gradient cannot be sent: a value") == 1


class Unlearnable:
    """A server step whose gradient is not finite."""

    def run(self, parts: Sequence[Part], *, learning_rate: float) -> ServerResult:
        raise NotFiniteError("the gradient is not finite")


def test_a_batch_that_cannot_be_learned_from_is_rejected_and_not_counted(tmp_path: Path) -> None:
    told = answers_of(tmp_path, "fp16", Unlearnable(), ["a", "b"])
    assert {device: (one.result, one.reason) for device, one in told.items()} == dict.fromkeys(
        "ab", ("rejected", "the gradient is not finite")
    )
    assert read_metrics(tmp_path / "metrics.jsonl") == []
