"""Versions from a publisher to devices, over a broker in memory: steps lead to what the manifest names."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest
import torch

from common import messages
from common.change_blob import State
from common.codec import digest
from common.encoder import Encoder, build_encoder
from common.link import Link
from common.link_address import BrokerAddress
from common.messages import Manifest
from common.mixture_memory import MIXTURE, MixtureMemory
from common.packed_change import ChangeCodec
from common.split import block_state, client_names, load_block, names
from common.state_blob import WeightsDtype, pack_state
from common.topics import Kind, Topics, parse
from device.exchange import Exchange
from device.mailbox import Mailbox
from device.mixture_replica import MixtureReplica
from device.replica import Replica
from device.weights_exchange import WeightsExchange
from tests.bench.in_process_link import MemoryBroker, MemoryLink
from tests.published import furthest, same
from trainer.publisher import Publisher

TOPICS = Topics("home")
FINGERPRINT = "f" * 64
CUT = 5
BOOT = "b" * 16
STEP = 1e-2


class Trainer:
    """An encoder that moves at random, and its publisher."""

    def __init__(
        self, broker: MemoryBroker, *, dtype: WeightsDtype = "fp16", delta_codec: ChangeCodec | None = "int4"
    ) -> None:
        self.encoder = build_encoder("mobile", seed=0)
        self.version = 0
        self.mixture = MixtureMemory()
        self._broker = broker
        self._generator = torch.Generator().manual_seed(1)
        self._dtype: WeightsDtype = dtype
        self._delta_codec: ChangeCodec | None = delta_codec
        self.restart()

    def restart(self) -> None:
        """A new publisher: what was published before it knows nothing of."""
        link = link_to(self._broker, f"trainer-{self.version}")
        self._publisher = Publisher(
            link, TOPICS, run="run-1", fingerprint=FINGERPRINT, dtype=self._dtype, delta_codec=self._delta_codec
        )
        self.publish()

    def publish(self, moved: Collection[str] | None = None) -> None:
        self.version += 1
        self._publisher.publish(self.encoder, version=self.version, merged={}, mixture=self.mixture, moved=moved)

    def learn(self, step: float = STEP) -> None:
        for name in names(self.encoder):
            moved = {
                key: value + step * torch.randn(value.shape, generator=self._generator)
                for key, value in block_state(self.encoder, name).items()
            }
            load_block(self.encoder, name, moved)
        self.publish()


class Device:
    """The parts of a device that concern weights."""

    def __init__(self, broker: MemoryBroker, path: Path, *, name: str = "pi", dtype: WeightsDtype = "fp16") -> None:
        self.encoder = build_encoder("mobile", seed=99)
        self.link = link_to(broker, name)
        self.replica = Replica(self.encoder, device=name, boot=BOOT, dtype=dtype, change_codec="int4")
        self.mixture = MixtureReplica(
            MixtureMemory(), boot=BOOT, fingerprint=FINGERPRINT, path=path / f"{name}-mixture.bin"
        )
        self._mailbox = Mailbox(
            self.link,
            TOPICS,
            boot=BOOT,
            encoder=self.encoder,
            replica=self.replica,
            mixture=self.mixture,
            fingerprint=FINGERPRINT,
            limits=messages.Limits(),
        )
        self._weights = WeightsExchange(
            self.link,
            TOPICS,
            self.replica,
            self.encoder,
            self.mixture,
            device=name,
            boot=BOOT,
            fingerprint=FINGERPRINT,
            path=path / f"{name}.bin",
        )
        self.link.subscribe(TOPICS.manifest(), qos=1)
        self.keep_up()

    def keep_up(self, cut: int = CUT) -> int:
        """Until nothing more comes; the bytes that it took."""
        before = self.link.counters().bytes_down
        exchange = Exchange(0, timeout_s=1.0, grace_s=1.0)
        self._weights.keep_up(cut=cut, target=cut)
        while self._mailbox.drain(exchange, 0.0):
            self._weights.keep_up(cut=cut, target=cut)
        assert self._mailbox.refused.total() == 0
        return self.link.counters().bytes_down - before

    def weights(self, cut: int = CUT) -> dict[str, State]:
        return {name: block_state(self.encoder, name) for name in client_names(cut)}


def link_to(broker: MemoryBroker, client_id: str) -> Link:
    link = MemoryLink(broker, client_id, BrokerAddress.parse("mqtt://memory"), will=("a/will", b""), data_capacity=16)
    link.start()
    return link  # type: ignore[return-value]  # it has the link's public face


def manifest_of(broker: MemoryBroker) -> Manifest:
    return messages.decode(Manifest, broker._retained[TOPICS.manifest()])


def whole_bytes(encoder: Encoder, cut: int = CUT) -> int:
    return sum(2 * value.numel() for name in client_names(cut) for value in block_state(encoder, name).values())


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
@pytest.mark.parametrize("codec", ["ternary", "ecsq", "int4", "int8"])
def test_a_device_that_follows_the_steps_holds_what_the_manifest_names_bit_for_bit(
    tmp_path: Path, codec: ChangeCodec, dtype: WeightsDtype
) -> None:
    broker = MemoryBroker()
    trainer = Trainer(broker, dtype=dtype, delta_codec=codec)
    device = Device(broker, tmp_path, dtype=dtype)
    for _ in range(5):
        trainer.learn()
        device.keep_up()
        assert device.replica.version == trainer.version
        entries = manifest_of(broker).entries
        for name, state in device.weights().items():
            assert digest(pack_state(state, dtype)) == entries[name].digest


def test_a_step_is_a_third_of_the_bytes_of_a_version_at_most(tmp_path: Path) -> None:
    broker = MemoryBroker()
    trainer = Trainer(broker)
    device = Device(broker, tmp_path)
    for _ in range(3):
        trainer.learn()
        assert device.keep_up() < whole_bytes(trainer.encoder) / 3


def test_what_the_steps_round_away_comes_with_later_ones(tmp_path: Path) -> None:
    broker = MemoryBroker()
    trainer = Trainer(broker)
    device = Device(broker, tmp_path)
    for _ in range(8):
        trainer.learn()
        device.keep_up()
        behind = max(furthest(state, block_state(trainer.encoder, n)) for n, state in device.weights().items())
        assert behind < STEP, "the rounding of one step, however many there were"
    for _ in range(6):
        trainer.learn(step=0.0)
        device.keep_up()
    behind = max(furthest(state, block_state(trainer.encoder, n)) for n, state in device.weights().items())
    assert behind < 1e-3, "the rounding of fp16"


def test_who_comes_later_or_missed_a_version_holds_the_same_weights_as_who_followed(tmp_path: Path) -> None:
    broker = MemoryBroker()
    trainer = Trainer(broker)
    follows, misses = Device(broker, tmp_path), Device(broker, tmp_path, name="late")
    trainer.learn()
    for device in (follows, misses):
        device.keep_up()
    broker.leave(misses.link)  # type: ignore[arg-type]
    trainer.learn()
    follows.keep_up()
    broker.join(misses.link)  # type: ignore[arg-type]
    trainer.learn()
    assert follows.keep_up() < whole_bytes(trainer.encoder) / 3
    assert misses.keep_up() > whole_bytes(trainer.encoder), "the steps lead from a version that it does not hold"
    comes = Device(broker, tmp_path, name="new")
    for device in (misses, comes):
        assert device.replica.version == trainer.version
        assert all(same(state, follows.weights()[name]) for name, state in device.weights().items())
    trainer.learn()
    assert misses.keep_up() < whole_bytes(trainer.encoder) / 3, "from then on it follows again"


def test_a_step_that_is_lost_is_made_up_for_by_the_whole_block_alone(tmp_path: Path) -> None:
    broker = MemoryBroker()
    trainer = Trainer(broker)
    device = Device(broker, tmp_path)
    trainer.learn()
    device.keep_up()
    device.link.unsubscribe(TOPICS.delta_filter("4"))
    trainer.learn()
    block_bytes = len(broker._retained[TOPICS.weights("4", 0)])
    assert block_bytes < device.keep_up() < block_bytes + whole_bytes(trainer.encoder) / 3
    assert device.replica.version == trainer.version


def test_a_trainer_that_starts_again_publishes_whole_blocks_and_goes_on_with_steps(tmp_path: Path) -> None:
    broker = MemoryBroker()
    trainer = Trainer(broker)
    device = Device(broker, tmp_path)
    trainer.learn()
    device.keep_up()
    trainer.restart()
    assert device.keep_up() > whole_bytes(trainer.encoder)
    assert device.replica.version == trainer.version
    trainer.learn()
    assert device.keep_up() < whole_bytes(trainer.encoder) / 3


def test_steps_that_lead_elsewhere_than_the_manifest_says_are_not_taken(tmp_path: Path) -> None:
    broker = MemoryBroker()
    trainer = Trainer(broker)
    device, foreign = Device(broker, tmp_path), Device(broker, tmp_path, name="foreign")
    foreign.replica._dtype = "fp32"  # as if its arithmetic were another
    trainer.learn()
    for each in (device, foreign):
        each.keep_up()
    assert foreign.replica.version == trainer.version
    assert all(same(state, device.weights()[name]) for name, state in foreign.weights().items())


def test_steps_are_not_retained(tmp_path: Path) -> None:
    broker = MemoryBroker()
    trainer = Trainer(broker)
    trainer.learn()
    assert Kind.DELTA not in {parse(topic).kind for topic in broker._retained if topic != "a/will"}


def test_without_a_codec_for_steps_every_version_travels_whole(tmp_path: Path) -> None:
    broker = MemoryBroker()
    trainer = Trainer(broker, delta_codec=None)
    device = Device(broker, tmp_path)
    trainer.learn()
    assert device.keep_up() > whole_bytes(trainer.encoder)
    published = {name: pack_state(block_state(trainer.encoder, name), "fp16") for name in client_names(CUT)}
    assert {name: pack_state(state, "fp16") for name, state in device.weights().items()} == published


def test_a_block_at_the_end_of_what_fp16_holds_travels_whole(tmp_path: Path) -> None:
    broker = MemoryBroker()
    trainer = Trainer(broker)
    device = Device(broker, tmp_path)
    for value in (6e4, -6e4):
        state = block_state(trainer.encoder, "stem")
        load_block(trainer.encoder, "stem", {key: torch.full_like(tensor, value) for key, tensor in state.items()})
        trainer.publish()
        device.keep_up()
        assert device.replica.version == trainer.version
        assert all(float((tensor - value).abs().max()) < 100 for tensor in device.weights()["stem"].values())


def test_the_mixture_travels_in_half_precision_once_it_has_started(tmp_path: Path) -> None:
    broker = MemoryBroker()
    trainer = Trainer(broker)
    device = Device(broker, tmp_path)
    assert MIXTURE not in manifest_of(broker).entries
    generator = torch.Generator().manual_seed(0)
    trainer.mixture.update(torch.nn.functional.normalize(torch.randn(300, 128, generator=generator), dim=1))
    trainer.publish()
    assert manifest_of(broker).entries[MIXTURE].size_bytes < 36_000
    assert 33_000 < device.keep_up() < 40_000
    z = torch.nn.functional.normalize(torch.randn(20, 128, generator=generator), dim=1)
    assert torch.allclose(device.mixture.mixture.uncertainty(z), trainer.mixture.uncertainty(z), atol=0.03)
    trainer.mixture.update(z)
    trainer.publish()
    assert device.keep_up() < 33_000, "not with every version"


def test_a_block_that_no_merge_moved_stays_as_it_was_published_and_costs_nothing(tmp_path: Path) -> None:
    broker = MemoryBroker()
    trainer = Trainer(broker)
    device = Device(broker, tmp_path)
    trainer.learn()
    device.keep_up()
    before = manifest_of(broker).entries
    trainer.publish(moved={"0"})  # whatever rounding left of the others is published when they move again
    assert device.keep_up() < whole_bytes(trainer.encoder)
    assert device.replica.version == trainer.version
    after = manifest_of(broker).entries
    assert [name for name in names(trainer.encoder) if after[name] != before[name]] == ["0"]
