"""In real time a version may come when the next step has begun: what is learned in it must still be merged."""

from __future__ import annotations

import threading
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from common import messages
from common.messages import Manifest
from common.topics import Kind, parse
from tests.bench.in_process import run_in_process
from tests.system.test_modes import PARTS, Overhearing, options
from trainer.demo_files import write_files

STEPS, DEVICES = 5, 2
LATE_S = 1.3  # longer than a window, shorter than a step


class Late(Overhearing):
    """Announces versions late."""

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool, expires: bool) -> None:
        publish = partial(super().publish, topic, payload, qos=qos, retain=retain, expires=expires)
        if parse(topic).kind is not Kind.MANIFEST:
            publish()
            return
        announcing = threading.Timer(LATE_S, publish)
        announcing.daemon = True
        announcing.start()


@pytest.mark.slow
def test_every_batch_is_merged_although_each_version_comes_when_the_next_step_has_begun(tmp_path: Path) -> None:
    made = options(
        tmp_path,
        "split",
        windows=STEPS * PARTS * DEVICES,
        speed="realtime",
        trainer_settings=(("threads", 1), ("merge_each_until", 100)),
    )
    broker = Late()
    run_in_process(write_files(made, "mqtt://127.0.0.1:1", None), broker=broker)
    manifests = [messages.decode(Manifest, payload) for payload in broker.heard[Kind.MANIFEST, None]]
    merged = {one.weights_version: {device: seq for device, (_, seq) in one.merged.items()} for one in manifests}
    versions = [seqs for _, seqs in sorted(merged.items()) if seqs]
    assert len(versions) >= STEPS - 1
    for before, after in pairwise(versions):
        assert len(after) == DEVICES
        assert all(after[device] > before[device] for device in after)
