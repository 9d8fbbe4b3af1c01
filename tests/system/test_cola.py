"""COLA with EfficientNet-B0 over a real broker, by configuration alone."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from rich.console import Console

from broker.start import open_broker
from trainer import checkpoint, demo
from trainer.cola import Bilinear
from trainer.demo_files import DemoOptions, write_files
from trainer.evaluate import restore_encoder
from trainer.metrics import FILE_NAME, read_metrics

DEVICES, PARTS, STEPS = 2, 4, 3


def test_the_whole_chain_trains_cola_with_efficientnet_over_a_broker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = DemoOptions(
        devices=DEVICES,
        windows=DEVICES * PARTS * STEPS,
        data=None,
        fold=1,
        order="stream",
        shard="iid",
        profiles=(),
        cut="5",
        codec=None,
        encoder="efficientnet-b0",
        speed="fast",
        seed=3,
        out=tmp_path,
        trainer_settings=(("threads", 1), ("merge_each_until", 0), ("merge_every", 2)),
        fleet_settings=(("objective", "cola"), ("parts_per_step", PARTS)),
    )
    with open_broker("embedded", directory=tmp_path / "broker") as broker:
        files = write_files(options, broker.url, None)
        demo.train(options, files, broker.url, Console(quiet=True))
    steps = read_metrics(files.trainer_state / FILE_NAME)
    assert [step.windows for step in steps] == [8, 16, 24]
    assert all(math.isfinite(step.loss_task) and step.loss_total == step.loss_task for step in steps)
    assert all((step.loss_sw, step.loss_laplacian) == (0.0, 0.0) for step in steps)
    path = checkpoint.latest(files.trainer_state)
    assert path is not None
    saved = checkpoint.load(path)
    encoder = restore_encoder(saved)
    assert (encoder.name, encoder.head_name, encoder.projection_dim) == ("efficientnet-b0", "tanh", 512)
    objective = saved.state["objective"]
    assert isinstance(objective, dict)
    assert not torch.equal(objective["weight"], Bilinear(512).weight), "the matrix was trained as well"
    assert "objective" in saved.state["optimizers"]  # type: ignore[operator]
