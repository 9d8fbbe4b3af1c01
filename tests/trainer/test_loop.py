"""What the trainer's loop makes of messages, without a broker: its parts as `trainer.assembly` builds them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from common import config, messages
from common.chunks import split
from common.codec import digest
from common.topics import Topics
from tests.fakes import FakeLink
from trainer.assembly import Surroundings, build_ledger, build_loop
from trainer.collapse_guard import Verdict
from trainer.initial_state import build_state
from trainer.metrics import MetricsLog
from trainer.presence import TrainerPresence
from trainer.resume import fresh_run

TOPICS = Topics("home")
BOOT, OWN = "d" * 16, "e" * 16


class Loop:
    """A trainer's loop with one device, ``pi``, that has shown itself."""

    def __init__(self, directory: Path) -> None:
        (directory / "fleet.yaml").write_text("fleet: home\nbroker: {url: 'mqtt://localhost:1'}\n", encoding="utf-8")
        file = directory / "trainer.yaml"
        file.write_text("fleet: fleet.yaml\nstate_directory: state\nplan_cuts: false\n", encoding="utf-8")
        settings = config.load_trainer(file)
        fingerprint, cpu, link = config.fingerprint(settings.fleet), torch.device("cpu"), FakeLink().as_link
        state, self.progress = build_state(settings, cpu), fresh_run()
        self.state = state
        presence = TrainerPresence(link, TOPICS, boot=OWN, run=self.progress.run, fingerprint=fingerprint)
        self.ledger = build_ledger(settings, state, self.progress, version=0)
        log = MetricsLog(settings.state_directory, tensorboard=False)
        around = Surroundings(settings, cpu, fingerprint, OWN, link, TOPICS, log)
        self.loop = build_loop(around, state, self.progress, self.ledger, presence)
        self.loop._follow("pi", messages.DeviceStatus("ready", BOOT, 1, "", fingerprint, "", "", (), None))

    def collect(self, *, boot: str = BOOT, said: str = "") -> None:
        """A change of nothing, under a digest that is not its own where ``said`` is one."""
        (data,) = split(blob := b"no change of anything")
        chunk = messages.UpdateChunk(self.progress.run, boot, 1, 0, 0, said or digest(blob), 0, 1, data)
        self.loop._collect("pi", chunk)


@pytest.fixture
def trainer(tmp_path: Path) -> Loop:
    return Loop(tmp_path)


def test_a_device_whose_change_is_refused_has_answered_and_no_merge_waits_for_it(trainer: Loop) -> None:
    started_s = time.monotonic()
    trainer.loop._plan.closed({"pi"}, now_s=started_s)
    assert not trainer.loop._plan.due(live=("pi",), offered=trainer.ledger.offered, now_s=started_s)
    trainer.collect(said="0" * 64)
    assert trainer.loop._plan.due(live=("pi",), offered=trainer.ledger.offered, now_s=started_s)
    trainer.ledger.commit(trainer.ledger.preview())
    assert trainer.ledger.merged == {}, "nothing of it is merged"


def test_a_change_of_a_boot_that_nobody_knows_answers_for_nobody(trainer: Loop) -> None:
    trainer.collect(boot="f" * 16)
    assert trainer.ledger.offered == ()


def test_after_several_refused_merges_the_optimizers_begin_anew(trainer: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer.state.optimizers.step(["0"], 1e-3)
    verdicts = iter([False, False, True, False, False, False])
    monkeypatch.setattr(trainer.loop._guard, "accepts", lambda _: Verdict(next(verdicts), 1.0, None, "made up"))
    kept = []
    for _ in range(6):
        trainer.loop._merge()
        kept.append(bool(trainer.state.optimizers.taken))
    assert kept == [True] * 5 + [False]
