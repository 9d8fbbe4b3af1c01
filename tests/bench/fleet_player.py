"""Plays a fleet to a trainer: prerecorded activations, answered as devices do, and no encoder behind them.

    python -m tests.bench.fleet_player URL FLEET ENCODER CUT DEVICES PARTS

One process and one connection for all devices. Each line ``N`` on standard input makes every device do N steps: it
sends the parts of a step, and the next step's when the gradients of the step have all come. Then one JSON line tells
how many windows were answered and in what time. The end of the input ends it. What eight devices would compute each
for itself, messages made and answers read, is done before and after that time.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque

import numpy as np
import torch
from torch import Tensor

from common import messages
from common.codec import Codec, EncodedTensor, encode
from common.encoder import Encoder
from common.link import Incoming, Link
from common.log_mel import SAMPLE_RATE_HZ, WINDOW_SAMPLES, LogMel
from common.soundscape import CLASSES, clip
from common.topics import Kind, Topics, is_data, parse

CODEC = Codec("int8")
DEADLINE_MS = 30_000  # longer than any step: only complete batches close
SEGMENT_STEPS = 5  # steps of a device until its stream goes on to another clip
WINDOW_MS = 960
PATIENCE_S = 120.0
QUEUE = 4096
BOOT = "0123456789abcdef"


def recorded(encoder: Encoder, cut: int, devices: int, parts: int) -> list[list[Tensor]]:
    """For each device the activations [2, C, H, W] of its parts: a clip of a synthetic class, two crops a window."""
    rng = np.random.default_rng(0)
    log_mel = LogMel()
    made = []
    with torch.no_grad():
        for device in range(devices):
            samples = clip(CLASSES[device % len(CLASSES)], 5.0, rng)
            starts = rng.integers(0, 5 * SAMPLE_RATE_HZ - WINDOW_SAMPLES, 2 * parts)
            crops = np.stack([samples[start : start + WINDOW_SAMPLES] for start in starts])
            activations = encoder.forward_to(log_mel(torch.from_numpy(crops)), cut)
            made.append(list(activations.unflatten(0, (parts, 2)).clone()))
    return made


class Fleet:
    """The devices: what they send, and which gradients they wait for."""

    def __init__(self, link: Link, topics: Topics, tensors: list[list[EncodedTensor]], cut: int) -> None:
        self._link = link
        self._topics = topics
        self._tensors = {f"device-{number}": parts for number, parts in enumerate(tensors, 1)}
        self._cut = cut
        self._steps = dict.fromkeys(self._tensors, 0)
        self._answers: dict[str, list[bytes]] = {}
        self._embeddings = 0

    def join(self, fingerprint: str) -> None:
        """Say that every device is ready."""
        for device in self._tensors:
            status = messages.DeviceStatus(
                "ready", BOOT, 1, "fleet_player", fingerprint, "", "", tuple(range(self._cut, 9))
            )
            self._link.retain(self._topics.status(device), messages.encode(status))

    def play(self, steps: int, version: int) -> dict[str, float]:
        """Do ``steps`` steps a device from weights ``version``; how many windows were answered and how long it took."""
        self._embeddings = 0
        self._answers = {device: [] for device in self._tensors}
        waiting = {device: self._payloads(device, steps, version) for device in self._tensors}
        started_s, started_cpu_s = time.monotonic(), time.process_time()
        for device, payloads in waiting.items():
            self._send(device, payloads)
        to_come = steps * sum(map(len, self._tensors.values()))
        while to_come:
            incoming = self._link.receive(PATIENCE_S)
            if incoming is None:
                raise TimeoutError(f"no answer for {PATIENCE_S:g} s; {to_come} still to come")
            answered = self._take(incoming)
            if answered is not None:
                to_come -= 1
                if len(self._answers[answered]) % len(self._tensors[answered]) == 0:
                    self._send(answered, waiting[answered])
        wall_s, cpu_s = time.monotonic() - started_s, time.process_time() - started_cpu_s
        windows = self._check_answers()
        return {"windows": windows, "embeddings": self._embeddings, "wall_s": wall_s, "cpu_s": cpu_s}

    def _take(self, incoming: Incoming) -> str | None:
        """Keep a gradient, count an embedding; the device whose gradient it is."""
        address = parse(incoming.topic)
        if address.kind is Kind.EMBEDDING:
            self._embeddings += 1
        if address.kind is not Kind.GRADIENT or address.device is None:
            return None
        self._answers[address.device].append(incoming.payload)
        return address.device

    def _check_answers(self) -> int:
        """How many parts were answered; every one with a gradient, step by step."""
        for device, payloads in self._answers.items():
            count = len(self._tensors[device])
            for number, payload in enumerate(payloads):
                answer = messages.decode(messages.Gradient, payload)
                step, part = self._steps[device] + number // count, number % count
                if (answer.result, answer.step, answer.part) != ("ok", step, part):
                    raise RuntimeError(f"{device}, step {step}, part {part}: answered by {answer}")
            self._steps[device] += len(payloads) // count
        return sum(map(len, self._answers.values()))

    def _send(self, device: str, payloads: deque[list[bytes]]) -> None:
        if payloads:
            for payload in payloads.popleft():
                self._link.publish(self._topics.activations(device), payload)

    def _payloads(self, device: str, steps: int, version: int) -> deque[list[bytes]]:
        """The messages of the next ``steps`` steps of a device."""
        first = self._steps[device]
        return deque(self._step(self._tensors[device], step, version) for step in range(first, first + steps))

    def _step(self, tensors: list[EncodedTensor], step: int, version: int) -> list[bytes]:
        made = []
        for part, tensor in enumerate(tensors):
            window = step * len(tensors) + part
            activations = messages.Activations(
                boot=BOOT,
                step=step,
                part=part,
                last=part == len(tensors) - 1,
                cut=self._cut,
                weights_version=version,
                deadline_ms=DEADLINE_MS,
                segment=step // SEGMENT_STEPS,
                window_index=window,
                monotonic_ms=window * WINDOW_MS,
                room="",
                tensor=tensor,
            )
            made.append(messages.encode(activations))
        return made


def main() -> None:
    """Record, join, and play as standard input says."""
    from common.encoder import build_encoder

    url, fleet, name, cut, devices, parts = sys.argv[1:]
    torch.set_num_threads(1)
    tensors = recorded(build_encoder(name, seed=0), int(cut), int(devices), int(parts))
    topics = Topics(fleet)
    link = Link(url=url, client_id="fleet-player", is_data=is_data, data_capacity=QUEUE, outbound_capacity=QUEUE)
    with link:
        for kind in (Kind.GRADIENT, Kind.EMBEDDING):
            link.subscribe(topics.every_device(kind), qos=0)
        link.subscribe(topics.trainer_status(), qos=1)
        trainer = _ready_trainer(link)
        players = Fleet(link, topics, [[encode(part, CODEC) for part in device] for device in tensors], int(cut))
        players.join(trainer.fingerprint)
        for line in sys.stdin:
            print(json.dumps(players.play(int(line), trainer.weights_version)), flush=True)


def _ready_trainer(link: Link) -> messages.TrainerStatus:
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s:
        incoming = link.receive_control(1.0)
        if incoming is not None:
            status = messages.decode(messages.TrainerStatus, incoming.payload)
            if status.state == "ready":
                return status
    raise TimeoutError(f"no trainer became ready in {PATIENCE_S:g} s")


if __name__ == "__main__":
    main()
