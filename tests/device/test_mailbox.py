from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch

from common import messages
from common.codec import Codec, EncodedTensor, encode
from common.encoder import build_encoder
from common.messages import (
    DesiredConfig,
    DeviceStatus,
    Embedding,
    Gradient,
    PolicyUpdate,
    SplitterUpdate,
    TrainerStatus,
)
from common.mixture_memory import MixtureMemory
from common.split import names
from common.topics import Topics
from device.exchange import Exchange
from device.mailbox import Mailbox
from device.mixture_replica import MixtureReplica
from device.replica import Replica
from tests.fakes import FakeLink
from tests.published import FINGERPRINT, Published

BOOT, OTHER_BOOT = "b" * 16, "c" * 16
TOPICS = Topics("home")
STEP, CUT = 4, 5


class Device:
    """A mailbox with a fake link; a step of three parts at cut 5 is in flight."""

    def __init__(self) -> None:
        self.link = FakeLink()
        self.encoder = build_encoder("mobile", seed=0)
        self.replica = Replica(self.encoder, device="pi", boot=BOOT, dtype="fp32", change_codec="fp32")
        self.mixture = MixtureReplica(MixtureMemory(), boot=BOOT, fingerprint=FINGERPRINT, path=Path("never-written"))
        self.mailbox = Mailbox(
            self.link.as_link,
            TOPICS,
            boot=BOOT,
            encoder=self.encoder,
            replica=self.replica,
            mixture=self.mixture,
            fingerprint=FINGERPRINT,
            limits=messages.Limits(),
        )
        self.exchange = Exchange(STEP, timeout_s=10.0, grace_s=2.0)
        for part in range(3):
            self.exchange.offer_sent(part, CUT, 100, window=part, closed_s=0.0, sent_s=1.0)

    def receive(self, topic: str, message: object, *, received_s: float = 3.0, retained: bool = False) -> None:
        self.link.put(topic, messages.encode(message), received_s=received_s, retained=retained)
        assert self.mailbox.drain(self.exchange, 0.0)

    def gradient(self, part: int = 0, **other: object) -> None:
        fields: dict[str, object] = {
            "boot": BOOT,
            "step": STEP,
            "part": part,
            "result": "ok",
            "reason": "",
            "loss": 1.5,
            "learning_rate": 0.1,
            "merge": False,
            "tensor": tensor(2, *self.encoder.activation_shape(CUT)),
        }
        self.receive(TOPICS.gradient("pi"), Gradient(**fields | other))  # type: ignore[arg-type]


def tensor(*shape: int) -> EncodedTensor:
    return encode(torch.ones(shape), Codec.parse("fp32"))


def trainer(
    state: Literal["ready", "stopped", "lost"] = "ready", boot: str = OTHER_BOOT, fingerprint: str = FINGERPRINT
) -> TrainerStatus:
    return TrainerStatus(state, boot, 1, "run-1", fingerprint, 3)


def test_nothing_waiting_is_no_news() -> None:
    device = Device()
    assert not device.mailbox.drain(device.exchange, 0.0)


def test_a_gradient_reaches_the_step_in_flight() -> None:
    device = Device()
    device.gradient(1, merge=True)
    assert torch.equal(device.exchange.gradients[1], torch.ones(2, *device.encoder.activation_shape(CUT)))
    assert device.exchange.gradient_s == {1: 2.0}
    assert (device.exchange.learning_rate, device.exchange.merge, device.exchange.losses) == (0.1, True, [1.5])


def test_a_refusal_reaches_it_with_its_reason() -> None:
    device = Device()
    device.gradient(2, result="late", reason="step 4 was closed", tensor=None, loss=None)
    assert device.exchange.refused == {2: "late"}
    assert device.exchange.reasons == {"step 4 was closed"}


@pytest.mark.parametrize(
    ("field", "value"), [("boot", OTHER_BOOT), ("step", STEP - 1), ("step", STEP + 1), ("part", 3)]
)
def test_an_answer_for_another_boot_step_or_part_is_passed_over_without_complaint(field: str, value: object) -> None:
    device = Device()
    device.gradient(**{field: value})  # type: ignore[arg-type]
    assert (device.exchange.gradients, device.exchange.refused) == ({}, {})
    assert device.mailbox.refused.total() == 0


def test_a_gradient_without_tensor_or_of_another_shape_is_counted_and_dropped() -> None:
    device = Device()
    device.gradient(0, tensor=None)
    device.gradient(0, tensor=tensor(2, *device.encoder.activation_shape(CUT - 1)))
    assert device.mailbox.refused == {TOPICS.gradient("pi"): 2}
    assert device.exchange.gradients == {}
    device.gradient(0)
    assert list(device.exchange.gradients) == [0], "the part may still be answered"


def test_an_embedding_brings_uncertainty_with_the_time_of_its_arrival() -> None:
    device = Device()
    assert (device.mailbox.uncertainty, device.mailbox.uncertainty_at_s) == (None, None)
    device.receive(TOPICS.embedding("pi"), Embedding(BOOT, STEP, 0, 3, 0.75, tensor(1, 192)), received_s=6.0)
    assert (device.mailbox.uncertainty, device.mailbox.uncertainty_at_s) == (0.75, 6.0)
    assert device.exchange.embedding_s == {0: 6.0}
    device.receive(TOPICS.embedding("pi"), Embedding(OTHER_BOOT, STEP, 0, 3, 0.25, tensor(1, 192)))
    assert device.mailbox.uncertainty == 0.75, "it was for an earlier boot"
    device.receive(TOPICS.embedding("pi"), Embedding(BOOT, STEP, 0, 3, 0.25, tensor(1, 191)))
    assert device.mailbox.refused.total() == 1


def test_what_cannot_be_decoded_is_counted_by_topic_and_the_rest_is_taken() -> None:
    device = Device()
    good = messages.encode(SplitterUpdate(1, 6, ()))
    for topic in (TOPICS.gradient("pi"), TOPICS.splitter("pi"), TOPICS.manifest(), TOPICS.weights("stem", 0)):
        device.link.put(topic, good[:-1])
        device.link.put(topic, b"")
    device.link.put("streamsplit/v1/elsewhere/pi/down/splitter", good)
    device.link.put("no/topic/of/ours", good)
    device.link.put(TOPICS.activations("pi"), good)
    device.link.put(TOPICS.splitter("pi"), good)
    assert device.mailbox.drain(device.exchange, 0.0)
    assert device.mailbox.refused.total() == 11
    assert device.mailbox.refused[TOPICS.manifest()] == 2
    assert device.mailbox.pinned_cut == 6


def test_settings_are_what_was_said_last() -> None:
    device = Device()
    device.receive(TOPICS.splitter("pi"), SplitterUpdate(1, 6, (3, 6)))
    device.receive(TOPICS.config("pi"), DesiredConfig(1, "int8", True))
    assert (device.mailbox.pinned_cut, device.mailbox.allowed_cuts) == (6, (3, 6))
    assert (device.mailbox.codec, device.mailbox.paused) == ("int8", True)
    device.receive(TOPICS.splitter("pi"), SplitterUpdate(2, None, ()))
    device.receive(TOPICS.config("pi"), DesiredConfig(2, None, False))
    assert (device.mailbox.pinned_cut, device.mailbox.allowed_cuts) == (None, ())
    assert (device.mailbox.codec, device.mailbox.paused) == (None, False)


def test_a_plan_goes_to_who_decides_by_it_and_so_does_that_there_is_none_any_more() -> None:
    device, taken = Device(), list[int | None]()
    device.receive(TOPICS.splitter("pi"), SplitterUpdate(1, None, (), 4))  # nobody decides by it
    device.mailbox._take_plan = taken.append
    device.receive(TOPICS.splitter("pi"), SplitterUpdate(1, None, (3, 6), 6))
    device.receive(TOPICS.splitter("pi"), SplitterUpdate(1, None, ()))
    assert taken == [6, None]
    assert device.mailbox.refused.total() == 0


def test_a_policy_goes_to_who_decides_by_one_and_is_of_no_interest_where_nobody_does() -> None:
    device, taken = Device(), list[PolicyUpdate]()
    update = PolicyUpdate(3, "mobile", "00" * 32, b"data")
    device.receive(TOPICS.policy("pi"), update)
    assert device.mailbox.refused.total() == 0
    device.mailbox._take_policy = taken.append
    device.receive(TOPICS.policy("pi"), update)
    assert taken == [update]
    device.link.put(TOPICS.policy("pi"), messages.encode(update)[:-1])
    device.mailbox.drain(device.exchange, 0.0)
    assert (len(taken), device.mailbox.refused[TOPICS.policy("pi")]) == (1, 1)


def test_a_codec_that_does_not_exist_is_refused_with_all_that_came_with_it() -> None:
    device = Device()
    device.receive(TOPICS.config("pi"), DesiredConfig(1, "int8", False))
    device.receive(TOPICS.config("pi"), DesiredConfig(2, "int7", True))
    assert (device.mailbox.codec, device.mailbox.paused) == ("int8", False)
    assert device.mailbox.refused == {TOPICS.config("pi"): 1}


def test_the_trainer_is_ready_when_it_says_so_and_speaks_for_our_configuration() -> None:
    device = Device()
    seen = [device.mailbox.trainer_ready]
    for status in (trainer("ready"), trainer("stopped"), trainer("ready", fingerprint="0" * 64)):
        device.receive(TOPICS.trainer_status(), status)
        seen.append(device.mailbox.trainer_ready)
    assert seen == [False, True, False, False]
    assert device.mailbox.other_fingerprint == "0" * 64


def test_the_will_of_this_trainer_takes_it_away_a_late_one_of_an_earlier_boot_does_not() -> None:
    device = Device()
    device.receive(TOPICS.trainer_status(), trainer("ready", boot=OTHER_BOOT))
    seen = []
    for boot in ("1" * 16, OTHER_BOOT):
        device.receive(TOPICS.trainer_status(), trainer("lost", boot=boot))
        seen.append(device.mailbox.trainer_ready)
    assert seen == [True, False]


def test_weights_and_their_manifest_reach_the_replica() -> None:
    fleet, device = Published(), Device()
    for chunk in fleet.chunks():
        device.receive(TOPICS.weights(chunk.name, chunk.index), chunk, retained=True)
    device.receive(TOPICS.manifest(), fleet.manifest(), retained=True)
    assert device.replica.apply(names(device.encoder))
    assert device.replica.version == fleet.version
    assert device.mailbox.refused.total() == 0


def test_a_manifest_of_another_configuration_does_not_reach_the_replica() -> None:
    fleet, device = Published(), Device()
    device.receive(TOPICS.manifest(), fleet.manifest(fingerprint="0" * 64))
    assert device.mailbox.other_fingerprint is None
    assert device.mailbox.refused[TOPICS.manifest()] == 1
    assert device.replica.announced_version == -1


def test_a_device_that_was_declared_lost_while_it_is_connected_knows_it() -> None:
    device = Device()
    lost = DeviceStatus("lost", OTHER_BOOT, 0, "0.1.0", FINGERPRINT, "", "", ())
    device.receive(TOPICS.status("pi"), lost)
    told = [device.mailbox.declared_lost]
    device.mailbox.declared_lost = device.link.connected = False
    device.receive(TOPICS.status("pi"), lost)
    told.append(device.mailbox.declared_lost)
    assert told == [True, False]


def test_what_the_trainer_says_is_a_sign_of_life_unless_it_was_only_retained() -> None:
    device = Device()
    ready = TrainerStatus("ready", OTHER_BOOT, 1, "", FINGERPRINT, 0)
    device.receive(TOPICS.trainer_status(), ready, retained=True)
    device.receive(TOPICS.splitter("pi"), SplitterUpdate(1, None, (), None))
    assert device.mailbox.heard == 0
    device.receive(TOPICS.trainer_status(), ready)
    device.gradient()
    assert device.mailbox.heard == 2
