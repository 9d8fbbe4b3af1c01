"""The receiving thread's work, without the thread: what it takes, refuses, answers and hands on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from common import messages
from common.audio_codec import decode_audio, encode_audio
from common.codec import Codec, decode, encode
from common.encoder import Encoder, build_encoder
from common.errors import MessageError
from common.link import Incoming
from common.log_mel import WINDOW_SAMPLES, LogMel
from common.messages import Activations, DeviceStatus, Embedding, UpdateChunk
from common.mixture_memory import MixtureMemory
from common.split import BEFORE_STEM
from common.topics import Kind, Topics
from tests.fakes import FakeLink
from trainer import answering
from trainer.allowance import STEPS, Allowance
from trainer.answering import LARGEST_ACTIVATION, LONGEST_DEADLINE_S, Answering, Control, Snapshot, Unreadable
from trainer.batcher import Part

BOOT = "a" * 16
TOPICS = Topics("home")
VERSION = 6


class Receiving:
    """An `Answering` with a fake link, driven by hand."""

    def __init__(self, *, stream_time: bool = False, raw_audio: bool = False) -> None:
        torch.manual_seed(0)
        self.link = FakeLink()
        self.encoder = build_encoder("mobile", seed=0).eval().requires_grad_(False)
        self.mixture = MixtureMemory(seed=0)
        self.mixture.update(torch.nn.functional.normalize(torch.randn(256, 128), dim=1))
        self.answering = Answering(
            self.link.as_link,
            TOPICS,
            Snapshot(self.encoder, self.mixture, VERSION),
            limits=messages.Limits(),
            stream_time=stream_time,
            compute=torch.device("cpu"),
            raw_audio=raw_audio,
            allowance=Allowance(parts_per_step=8),
        )

    def receive(self, *incoming: Incoming) -> list[Part | Unreadable | Control]:
        """Take what came and answer all of it; what was handed on."""
        unanswered = self.answering._take(list(incoming))
        while unanswered:
            unanswered = self.answering._answer(unanswered)
        handed_on: list[Part | Unreadable | Control] = []
        while not self.answering.inbox.empty():
            items = self.answering.inbox.get_nowait()
            assert not isinstance(items, BaseException)
            handed_on += items
        return handed_on

    def answers(self) -> list[tuple[str, Embedding]]:
        return [(sent.topic, messages.decode(Embedding, sent.payload)) for sent in self.link.take_published()]


def activations(encoder: Encoder, cut: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        return encoder.forward_to(torch.randn(2, 1, 64, 96, generator=generator), cut)


def sent(tensor: Tensor, cut: int, *, device: str = "pi", part: int = 0, received_s: float = 40.0) -> Incoming:
    message = Activations(
        boot=BOOT,
        step=9,
        part=part,
        last=False,
        cut=cut,
        weights_version=5,
        deadline_ms=1_500,
        segment=2,
        window_index=77,
        monotonic_ms=12_250,
        room="kitchen",
        tensor=encode(tensor, Codec.parse("fp32")),
    )
    return Incoming(TOPICS.activations(device), messages.encode(message), retained=False, received_s=received_s)


def control(topic: str, message: object) -> Incoming:
    return Incoming(topic, messages.encode(message), retained=False, received_s=0.0)


def test_a_part_is_decoded_and_handed_on_with_the_time_of_its_arrival() -> None:
    receiving = Receiving()
    tensor = activations(receiving.encoder, 5)
    (part,) = receiving.receive(sent(tensor, 5, part=3))
    assert isinstance(part, Part)
    assert (part.device, part.boot, part.step, part.part, part.last) == ("pi", BOOT, 9, 3, False)
    assert (part.cut, part.weights_version, part.deadline_s) == (5, 5, 1.5)
    assert (part.segment, part.window_index, part.room, part.time_s) == (2, 77, "kitchen", 40.0)
    assert torch.equal(part.activations, tensor)


def sound(samples: np.ndarray, **fields: Any) -> Incoming:
    values: dict[str, Any] = {"codec": "pcm16", "data": encode_audio(samples, "pcm16")} | fields
    message = messages.Audio(BOOT, 9, 3, False, 1_500, 2, 77, 12_250, "kitchen", **values)
    return Incoming(TOPICS.audio("pi"), messages.encode(message), retained=False, received_s=40.0)


def window() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, WINDOW_SAMPLES).astype(np.float32)


def test_sound_is_dropped_unread_where_it_is_not_permitted(monkeypatch: pytest.MonkeyPatch) -> None:
    receiving = Receiving()

    def read(*_: object, **__: object) -> object:
        raise AssertionError("raw audio was decoded")

    monkeypatch.setattr(answering, "decode_audio", read)
    monkeypatch.setattr(messages, "Audio", read)
    assert receiving.receive(Incoming(TOPICS.audio("pi"), b"anything", retained=False, received_s=0.0)) == []
    assert receiving.answering.refused == {TOPICS.audio("pi"): 1}
    assert receiving.answers() == []


def test_sound_where_it_is_permitted_becomes_a_part_before_the_stem_and_is_answered_with_its_embedding() -> None:
    receiving = Receiving(raw_audio=True)
    samples = decode_audio(encode_audio(window(), "pcm16"), "pcm16")
    (part,) = receiving.receive(sound(samples))
    assert isinstance(part, Part)
    assert (part.device, part.boot, part.step, part.part, part.last) == ("pi", BOOT, 9, 3, False)
    assert (part.cut, part.weights_version, part.deadline_s) == (BEFORE_STEM, VERSION, 1.5)
    assert (part.segment, part.window_index, part.room, part.time_s) == (2, 77, "kitchen", 40.0)
    assert torch.equal(part.activations, torch.from_numpy(samples))
    ((topic, answer),) = receiving.answers()
    with torch.no_grad():
        expected = receiving.encoder(LogMel()(torch.from_numpy(samples)[None]))
    assert (topic, answer.step, answer.part) == (TOPICS.embedding("pi"), 9, 3)
    assert float((decode(answer.tensor) - expected).norm() / expected.norm()) < 0.02, "int8"


def test_where_sound_is_expected_activations_and_what_is_no_window_are_dropped() -> None:
    receiving = Receiving(raw_audio=True)
    assert receiving.receive(sent(activations(receiving.encoder, 5), 5)) == []
    assert receiving.receive(sound(window(), data=b"RIFF")) == [Unreadable("pi")]
    assert receiving.receive(sound(window(), codec="flac")) == [Unreadable("pi")]
    assert receiving.answering.refused == {TOPICS.activations("pi"): 1, TOPICS.audio("pi"): 2}


def test_where_nothing_may_depend_on_clocks_the_position_in_the_stream_is_the_time() -> None:
    receiving = Receiving(stream_time=True)
    (part,) = receiving.receive(sent(activations(receiving.encoder, 5), 5))
    assert isinstance(part, Part)
    assert part.time_s == 12.25


def test_every_part_is_answered_on_its_devices_topic_with_view_as_embedding_and_uncertainty() -> None:
    receiving = Receiving()
    cuts = (5, 3, 5, 0)
    tensors = [activations(receiving.encoder, cut, seed) for seed, cut in enumerate(cuts)]
    receiving.receive(
        *(sent(tensor, cut, device=f"pi-{i}", part=i) for i, (tensor, cut) in enumerate(zip(tensors, cuts)))
    )
    answers = dict(receiving.answers())
    assert answers.keys() == {TOPICS.embedding(f"pi-{i}") for i in range(4)}
    for i, (tensor, cut) in enumerate(zip(tensors, cuts)):
        answer = answers[TOPICS.embedding(f"pi-{i}")]
        with torch.no_grad():
            expected = receiving.encoder.forward_from(tensor[:1], cut)
            uncertainty = receiving.mixture.uncertainty(receiving.encoder.project(expected))
        assert (answer.boot, answer.step, answer.part, answer.weights_version) == (BOOT, 9, i, VERSION)
        assert float((decode(answer.tensor) - expected).norm() / expected.norm()) < 0.02, "int8"
        assert answer.uncertainty == pytest.approx(float(uncertainty), abs=1e-4)


def test_at_the_last_cut_the_device_has_the_embedding_itself_and_gets_no_answer() -> None:
    receiving = Receiving()
    handed_on = receiving.receive(sent(activations(receiving.encoder, 8), 8))
    assert len(handed_on) == 1
    assert receiving.answers() == []


def test_a_great_many_parts_are_all_answered_in_groups() -> None:
    receiving = Receiving()
    tensor = activations(receiving.encoder, 7)
    receiving.receive(*(sent(tensor, 7, part=number) for number in range(40)))
    assert sorted(answer.part for _, answer in receiving.answers()) == list(range(40))
    assert receiving.answering.embedding_ms_p95() is not None


def test_status_and_update_are_handed_on_in_order_and_not_answered() -> None:
    receiving = Receiving()
    status = DeviceStatus("ready", BOOT, 1, "0.1.0", "f" * 64, "", "", (5,))
    chunk = UpdateChunk("run-1", BOOT, 1, 5, 0, "0" * 64, 0, 1, b"x")
    handed_on = receiving.receive(control(TOPICS.status("pi"), status), control(TOPICS.update("pi", 0), chunk))
    assert all(isinstance(item, Control) for item in handed_on)
    assert [item.message for item in handed_on if isinstance(item, Control)] == [status, chunk]
    assert [item.address.kind for item in handed_on if isinstance(item, Control)] == [Kind.STATUS, Kind.UPDATE]
    assert receiving.answers() == []


def test_no_device_makes_the_others_wait_longer_than_a_minute() -> None:
    receiving = Receiving()
    message = messages.decode(Activations, sent(activations(receiving.encoder, 5), 5).payload)
    patient = dataclasses.replace(message, deadline_ms=3_600_000)
    [part] = receiving.receive(Incoming(TOPICS.activations("pi"), messages.encode(patient), False, 1.0))
    assert isinstance(part, Part)
    assert part.deadline_s == LONGEST_DEADLINE_S


def refused(receiving: Receiving, incoming: Incoming) -> str:
    with pytest.raises(MessageError) as caught:
        receiving.answering._decode(incoming)
    return str(caught.value)


def test_a_part_of_the_wrong_shape_or_beyond_the_encoder_is_refused_in_words() -> None:
    receiving = Receiving()
    tensor = activations(receiving.encoder, 5)
    assert "instead of" in refused(receiving, sent(tensor, 3))
    assert "instead of" in refused(receiving, sent(tensor[:1], 5))
    assert "cut 9 of an encoder of 8 blocks" in refused(receiving, sent(tensor, 9))
    assert "not for the trainer" in refused(receiving, Incoming(TOPICS.splitter("pi"), b"", False, 0.0))


def test_values_that_would_leave_float32_are_refused_before_anything_computes_with_them() -> None:
    receiving = Receiving()
    for cut in (0, 5, 8):
        tensor = activations(receiving.encoder, cut)
        tensor.view(-1)[7] = -1e30
        assert "a value beyond 1e+06" in refused(receiving, sent(tensor, cut))
        tensor.view(-1)[7] = LARGEST_ACTIVATION
        receiving.receive(sent(tensor, cut))
        for _, answer in receiving.answers():
            assert decode(answer.tensor).isfinite().all()


def test_what_cannot_be_used_is_counted_by_topic_and_the_rest_is_served() -> None:
    receiving = Receiving()
    good = sent(activations(receiving.encoder, 5), 5)
    bad: Sequence[Incoming] = [
        Incoming(good.topic, good.payload[:-3], False, 0.0),
        Incoming(good.topic, b"", False, 0.0),
        Incoming("streamsplit/v1/home/pi/up/nonsense", b"", False, 0.0),
    ]
    handed_on = receiving.receive(bad[0], good, *bad[1:])
    assert [type(item) for item in handed_on] == [Unreadable, Part, Unreadable], "so that nobody waits for them"
    assert len(receiving.answers()) == 1
    assert receiving.answering.refused == {good.topic: 2, bad[2].topic: 1}


def test_an_answer_names_the_version_it_was_computed_with_after_a_swap() -> None:
    receiving = Receiving()
    other = build_encoder("mobile", seed=5).eval().requires_grad_(False)
    receiving.answering.snapshot = Snapshot(other, receiving.mixture, VERSION + 1)
    tensor = activations(receiving.encoder, 5)
    receiving.receive(sent(tensor, 5))
    ((_, answer),) = receiving.answers()
    assert answer.weights_version == VERSION + 1
    expected = other.forward_from(tensor[:1], 5)
    assert float((decode(answer.tensor) - expected).norm() / expected.norm()) < 0.02


def test_our_own_mistake_reaches_the_training_thread() -> None:
    receiving = Receiving()
    mistake = RuntimeError("ours")

    def broken(timeout_s: float) -> Incoming | None:
        raise mistake

    receiving.link.receive = broken  # type: ignore[method-assign]
    receiving.answering.start()
    assert receiving.answering.inbox.get(timeout=10) is mistake
    receiving.answering.stop()


def test_of_a_flood_only_what_a_device_may_send_is_decoded_and_the_others_are_served() -> None:
    receiving = Receiving()
    flood = sent(activations(receiving.encoder, 5), 5, device="flood")
    good = sent(activations(receiving.encoder, 5), 5)
    receiving.link.incoming.extend([flood] * 500 + [good])
    taken = receiving.answering._received(0.0)
    assert [incoming.topic for incoming in taken] == [flood.topic] * 8 * STEPS + [good.topic]


@pytest.mark.parametrize("value", [0.0, 1e-42, 1e-30])
def test_a_view_of_nothing_is_refused_before_anything_divides_by_it(value: float) -> None:
    receiving = Receiving()
    for cut in (0, 5, 8):
        tensor = activations(receiving.encoder, cut)
        tensor[1] = value
        assert "a view with no value beyond 1e-06" in refused(receiving, sent(tensor, cut))
