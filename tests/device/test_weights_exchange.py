from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest
import torch

from common import messages, weights_file
from common.change_blob import unpack_blocks
from common.chunks import Assembler
from common.codec import digest
from common.encoder import build_encoder
from common.errors import MessageError
from common.messages import ManifestEntry, UpdateChunk, WeightsChunk
from common.mixture_memory import MIXTURE, MixtureMemory
from common.split import block_state, client_names, names
from common.topics import Kind, Topics
from device.mixture_replica import MixtureReplica
from device.replica import Replica
from device.weights_exchange import MIXTURE_VERSIONS, WeightsExchange
from tests.fakes import FakeLink
from tests.published import FINGERPRINT, Published, everywhere, learn, same

BOOT = "b" * 16
TOPICS = Topics("home")
EVERY = names(build_encoder("mobile", seed=0))
REFRESH_VERSIONS, SAVE_VERSIONS = 12, 5


class Device:
    def __init__(self, path: Path, *, follow_all: bool = False, negligible_change: float = 0.0) -> None:
        self.link = FakeLink()
        self.encoder = build_encoder("mobile", seed=99)
        self.path = path / "weights.bin"
        self.fetched: set[str] = set()
        self.replica = Replica(self.encoder, device="pi", boot=BOOT, dtype="fp32", change_codec="fp32")
        self.mixture = MixtureReplica(MixtureMemory(), boot=BOOT, fingerprint=FINGERPRINT, path=path / "mixture.bin")
        self.weights = WeightsExchange(
            self.link.as_link,
            TOPICS,
            self.replica,
            self.encoder,
            self.mixture,
            device="pi",
            boot=BOOT,
            fingerprint=FINGERPRINT,
            path=self.path,
            follow_all=follow_all,
            negligible_change=negligible_change,
            refresh_versions=REFRESH_VERSIONS,
            save_versions=SAVE_VERSIONS,
        )

    def receive(self, fleet: Published, cut: int = 3) -> bool:
        """What a broker would deliver: the manifest, then the blocks this device fetches; True if the weights moved."""
        self.replica.offer_manifest(fleet.manifest())
        self.mixture.offer_manifest(fleet.manifest())
        self.weights.keep_up(cut=cut, target=cut)
        self.fetched = self.fetches()
        for chunk in fleet.chunks(sorted(self.fetched)):
            (self.mixture if chunk.name == MIXTURE else self.replica).offer_chunk(chunk)
        return self.weights.keep_up(cut=cut, target=cut)

    def start(self, fleet: Published) -> None:
        assert self.receive(fleet)

    def follows(self) -> set[str]:
        return {name for name in EVERY if TOPICS.delta_filter(name) in self.link.filters}

    def fetches(self) -> set[str]:
        return {name for name in (*EVERY, MIXTURE) if TOPICS.weights_filter(name) in self.link.filters}


def test_at_first_every_block_is_fetched_so_that_the_device_can_learn_alone(tmp_path: Path) -> None:
    device = Device(tmp_path)
    assert not device.weights.keep_up(cut=3, target=3)
    assert device.fetches() == set(), "what there is to fetch the manifest tells"
    device.replica.offer_manifest(Published().manifest())
    assert not device.weights.keep_up(cut=3, target=3)
    assert device.fetches() == set(EVERY)
    assert set(device.link.filters.values()) == {1}, "acknowledged"


def test_a_new_fleet_that_begins_with_the_encoder_as_it_is_built_here_sends_nothing(tmp_path: Path) -> None:
    fleet, device = Published(), Device(tmp_path)
    device.encoder.load_state_dict(fleet.encoder.state_dict())
    device.replica.offer_built()
    device.replica.offer_manifest(fleet.manifest())
    assert device.weights.keep_up(cut=3, target=3)
    assert device.fetches() == set()
    assert device.replica.initialised


def test_a_fleet_that_has_learned_is_fetched_whatever_was_built_here(tmp_path: Path) -> None:
    fleet, device = Published(), Device(tmp_path)
    device.encoder.load_state_dict(fleet.encoder.state_dict())
    device.replica.offer_built()
    fleet.next(everywhere(fleet.encoder, 0.5, ["stem", "7"]))
    device.replica.offer_manifest(fleet.manifest())
    assert not device.weights.keep_up(cut=3, target=3)
    assert device.fetches() == {"stem", "7"}


def test_then_only_the_steps_of_the_blocks_below_the_cut_are_followed_and_nothing_is_fetched(tmp_path: Path) -> None:
    device = Device(tmp_path)
    device.start(Published())
    assert device.follows() == set(client_names(3))
    assert device.fetches() == set()


def test_a_device_that_goes_on_using_every_block_follows_every_block(tmp_path: Path) -> None:
    fleet, device = Published(), Device(tmp_path, follow_all=True)
    device.start(fleet)
    assert device.follows() == set(EVERY)
    assert device.fetches() == set()
    fleet.next(everywhere(fleet.encoder, 0.5, EVERY))
    assert device.receive(fleet)
    assert device.fetched == set(EVERY), "no step came, so it is fetched whole"
    assert all(same(block_state(device.encoder, name), fleet.state(name)) for name in EVERY)


def test_the_subscriptions_follow_the_cut_down_before_it_moves_and_back_up_after(tmp_path: Path) -> None:
    device = Device(tmp_path)
    device.start(Published())
    device.weights.keep_up(cut=3, target=6)
    assert device.follows() == set(client_names(6)), "fetched before the cut moves"
    device.weights.keep_up(cut=6, target=4)
    assert device.follows() == set(client_names(6)), "needed until the cut has moved"
    device.weights.keep_up(cut=4, target=4)
    assert device.follows() == set(client_names(4))


def test_a_new_version_needs_only_what_runs_here(tmp_path: Path) -> None:
    fleet, device = Published(), Device(tmp_path)
    device.start(fleet)
    fleet.next(everywhere(fleet.encoder, 0.5, EVERY))
    assert device.receive(fleet)
    assert device.fetched == set(client_names(3))
    assert device.replica.version == fleet.version
    assert not device.weights.keep_up(cut=3, target=3), "once"


def test_the_rest_is_fetched_again_every_so_many_versions(tmp_path: Path) -> None:
    fleet, device = Published(), Device(tmp_path)
    device.start(fleet)
    for _ in range(REFRESH_VERSIONS - 1):
        fleet.next(everywhere(fleet.encoder, 0.5, EVERY))
        assert device.receive(fleet)
        assert device.fetched == set(client_names(3))
    fleet.next(everywhere(fleet.encoder, 0.5, EVERY))
    assert device.receive(fleet)
    assert device.fetched == set(EVERY)
    assert all(same(block_state(device.encoder, name), fleet.state(name)) for name in EVERY)
    assert device.fetches() == set()


def test_into_another_run_a_device_moves_with_every_block(tmp_path: Path) -> None:
    fleet, device = Published(version=40), Device(tmp_path)
    device.start(fleet)
    other = Published(run="run-2", version=1, encoder=build_encoder("mobile", seed=2))
    before = {name: block_state(device.encoder, name) for name in EVERY}
    device.replica.offer_manifest(other.manifest())
    for chunk in other.chunks(client_names(3)):
        device.replica.offer_chunk(chunk)
    assert not device.weights.keep_up(cut=3, target=3), "the blocks beyond the cut are not here yet"
    assert all(same(block_state(device.encoder, name), before[name]) for name in EVERY)
    device.path.unlink()
    assert device.receive(other)
    assert device.fetched == set(EVERY) - set(client_names(3))
    assert (device.replica.run, device.replica.version) == ("run-2", 1)
    assert all(same(block_state(device.encoder, name), other.state(name)) for name in EVERY)
    assert device.path.exists(), "what is on the disk is of this run as well"
    assert device.fetches() == set()


def test_in_another_run_the_rest_is_fetched_again_as_often_as_in_the_first(tmp_path: Path) -> None:
    device = Device(tmp_path)
    device.start(Published(version=40))
    other = Published(run="run-2", version=1, encoder=build_encoder("mobile", seed=2))
    device.receive(other)
    for version in range(1, REFRESH_VERSIONS + 1):
        other.next(everywhere(other.encoder, 0.5, EVERY))
        assert device.receive(other)
        assert device.fetched == set(EVERY if version == REFRESH_VERSIONS else client_names(3))


def test_a_device_that_starts_again_fetches_only_what_has_changed_meanwhile(tmp_path: Path) -> None:
    fleet, device = Published(), Device(tmp_path)
    device.start(fleet)
    again = Device(tmp_path)
    assert again.weights.load()
    again.replica.offer_manifest(fleet.manifest())
    again.weights.keep_up(cut=3, target=3)
    assert again.fetches() == set()
    assert again.replica.current(client_names(5)), "the cut may move: the fleet stands where this device stands"
    fleet.next(everywhere(fleet.encoder, 0.5, ["0"]))
    assert again.receive(fleet)
    assert again.fetched == {"0"}


def test_a_version_that_does_not_fit_is_passed_over_and_the_next_one_applied(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fleet, device = Published(), Device(tmp_path)
    device.start(fleet)
    fleet.next({})
    manifest, wrong = fleet.manifest(), fleet.chunks(["stem"])[0].data[:-1]
    manifest.entries["stem"] = ManifestEntry(digest(wrong), 1, len(wrong))
    device.replica.offer_chunk(WeightsChunk(fleet.run, fleet.version, "stem", 0, 1, wrong))
    device.replica.offer_manifest(manifest)
    assert not device.weights.keep_up(cut=3, target=3)
    assert f"weights version {fleet.version} is not applied" in caplog.text
    said = len(caplog.records)
    assert not device.weights.keep_up(cut=3, target=3)
    assert len(caplog.records) == said, "once is enough"
    fleet.next({})
    device.receive(fleet)
    assert device.replica.version == fleet.version


def test_a_change_travels_in_chunks_that_make_the_whole_again(tmp_path: Path) -> None:
    fleet, device = Published(), Device(tmp_path)
    device.start(fleet)
    assert not device.weights.publish_change(), "nothing was learned"
    learn(device.encoder, 0.25, EVERY)
    device.replica.trained(EVERY, local_windows=8)
    assert device.weights.publish_change()
    published = device.link.take_published()
    chunks = [messages.decode(UpdateChunk, sent.payload) for sent in published]
    assert len(chunks) > 2
    assert [sent.topic for sent in published] == [TOPICS.update("pi", index) for index in range(len(chunks))]
    assert {sent.qos for sent in published} == {1}
    assert {(c.run, c.boot, c.seq, c.base_version, c.local_windows) for c in chunks} == {
        (fleet.run, BOOT, 1, fleet.version, 8)
    }
    random.Random(0).shuffle(chunks)
    assembler = Assembler()
    *_, blob = [assembler.add(chunk.seq, chunk.index, chunk.count, chunk.data) for chunk in chunks]
    assert blob is not None
    assert {chunk.digest for chunk in chunks} == {digest(blob)}
    blocks = unpack_blocks(blob, {name: block_state(device.encoder, name) for name in EVERY})
    assert sorted(blocks) == sorted(EVERY)


def test_a_merge_that_asks_is_answered_also_where_there_is_nothing_worth_sending(tmp_path: Path) -> None:
    fleet, device = Published(), Device(tmp_path, negligible_change=1e-2)
    device.start(fleet)
    for step, worth in [(0.0, False), (1e-4, False), (0.25, True)]:
        learn(device.encoder, step, client_names(3))
        device.replica.trained(client_names(3), local_windows=8)
        device.weights.answer_merge()
        chunk = messages.decode(UpdateChunk, device.link.take_published()[0].payload)
        shapes = {name: block_state(device.encoder, name) for name in EVERY}
        assert bool(unpack_blocks(chunk.data, shapes)) == worth if chunk.count == 1 else worth
        assert chunk.local_windows == (24 if worth else 0), "what was kept back counts when it is sent"


def test_a_device_that_leaves_sends_what_it_has_however_little(tmp_path: Path) -> None:
    device = Device(tmp_path, negligible_change=1e-2)
    device.start(Published())
    learn(device.encoder, 1e-4, client_names(3))
    device.replica.trained(client_names(3))
    assert device.weights.publish_change()


def test_the_disk_is_written_at_the_first_version_and_then_seldom(tmp_path: Path) -> None:
    fleet, device = Published(), Device(tmp_path)
    device.start(fleet)
    assert device.path.exists()
    saved = []
    for _ in range(2 * SAVE_VERSIONS):
        device.path.unlink(missing_ok=True)
        fleet.next({})
        device.receive(fleet)
        saved.append(device.path.exists())
    assert saved == ([False] * (SAVE_VERSIONS - 1) + [True]) * 2


def test_a_device_starts_again_from_its_disk(tmp_path: Path) -> None:
    fleet, device = Published(), Device(tmp_path)
    device.start(fleet)
    learn(device.encoder, 0.25, client_names(3))
    device.replica.trained(client_names(3), local_windows=8)
    device.weights.publish_change()
    device.weights.save()
    again = Device(tmp_path)
    assert again.weights.load()
    assert again.replica.initialised
    assert (again.replica.version, again.replica.run) == (fleet.version, fleet.run)
    assert all(same(block_state(again.encoder, name), block_state(device.encoder, name)) for name in EVERY)
    assert (again.replica.local_windows, len(again.replica.snapshot().sent)) == (8, 1)
    assert again.weights.publish_change(), "whether it arrived is not known"


def test_without_a_usable_file_a_device_starts_from_the_fleet(tmp_path: Path) -> None:
    device = Device(tmp_path)
    assert not device.weights.load()
    assert not device.replica.initialised
    device.path.write_bytes(b"half a fi")
    with pytest.raises(MessageError, match="damaged"):
        device.weights.load()
    assert not device.replica.initialised


# -- the mixture ------------------------------------------------------------------------------------------------------


def started(seed: int) -> MixtureMemory:
    memory = MixtureMemory(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    memory.update(torch.nn.functional.normalize(torch.randn(256, 128, generator=generator), dim=1))
    return memory


def test_at_first_the_mixture_is_fetched_with_the_blocks_and_none_is_applied_without_it(tmp_path: Path) -> None:
    fleet, device = Published(mixture=started(1)), Device(tmp_path)
    device.replica.offer_manifest(fleet.manifest())
    device.mixture.offer_manifest(fleet.manifest())
    device.weights.keep_up(cut=3, target=3)
    assert device.fetches() == {*EVERY, MIXTURE}
    for chunk in fleet.chunks(EVERY):
        device.replica.offer_chunk(chunk)
    assert not device.weights.keep_up(cut=3, target=3), "the mixture is not here yet"
    assert device.receive(fleet)
    assert device.mixture.mixture.started
    assert device.fetches() == set()


def test_a_mixture_that_starts_later_is_fetched_once_and_then_as_seldom_as_the_blocks_beyond_the_cut(
    tmp_path: Path,
) -> None:
    fleet, device = Published(), Device(tmp_path)
    device.start(fleet)
    fetched = []
    fleet.mixture = started(1)
    for version in range(REFRESH_VERSIONS + 2):
        fleet.next({})
        fleet.mixture.update(torch.nn.functional.normalize(torch.ones(1, 128), dim=1))
        device.receive(fleet)
        if MIXTURE in device.fetched:
            fetched.append(version)
        assert device.fetches() == set()
    assert fetched == [0, REFRESH_VERSIONS]


def test_a_device_that_follows_all_has_every_version_and_the_mixture_with_every_fourth(tmp_path: Path) -> None:
    fleet, device = Published(mixture=started(1)), Device(tmp_path, follow_all=True)
    device.start(fleet)
    assert fleet.mixture is not None
    fetched = []
    for number in range(1, 9):
        fleet.next(everywhere(fleet.encoder, 0.5, EVERY))
        fleet.mixture.update(torch.nn.functional.normalize(torch.ones(1, 128), dim=1))
        device.receive(fleet)
        assert device.replica.version == fleet.version
        if MIXTURE in device.fetched:
            fetched.append(number)
            assert not device.mixture.missing
    assert fetched == [MIXTURE_VERSIONS, 2 * MIXTURE_VERSIONS]


def test_after_a_trainer_went_back_to_an_older_checkpoint_the_mixture_is_fetched_at_once(tmp_path: Path) -> None:
    fleet, device = Published(mixture=started(1), version=50), Device(tmp_path, follow_all=True)
    device.start(fleet)
    assert fleet.mixture is not None
    fleet.version = 7
    fleet.mixture.update(torch.nn.functional.normalize(torch.ones(1, 128), dim=1))
    device.receive(fleet)
    assert MIXTURE in device.fetched


def test_what_was_heard_in_local_steps_goes_out_before_the_change_and_only_once(tmp_path: Path) -> None:
    fleet, device = Published(mixture=started(1)), Device(tmp_path)
    device.start(fleet)
    learn(device.encoder, 0.25, client_names(3))
    device.replica.trained(client_names(3))
    device.weights.publish_change()
    assert TOPICS.mixture("pi") not in {sent.topic for sent in device.link.take_published()}, "no local step"
    device.mixture.hear(torch.nn.functional.normalize(torch.ones(8, 128), dim=1))
    device.weights.publish_change()
    first, *rest = device.link.take_published()
    assert (first.topic, first.qos) == (TOPICS.mixture("pi"), 1)
    assert {TOPICS.parse(sent.topic).kind for sent in rest} == {Kind.UPDATE}
    device.weights.publish_change()
    assert TOPICS.mixture("pi") not in {sent.topic for sent in device.link.take_published()}


def test_the_mixture_lies_on_the_disk_for_a_device_that_starts_without_a_network(tmp_path: Path) -> None:
    fleet, device = Published(mixture=started(1)), Device(tmp_path)
    device.start(fleet)
    again = Device(tmp_path)
    assert again.weights.load()
    assert again.mixture.mixture.started
    assert same(dict(again.mixture.mixture.state_dict()), dict(device.mixture.mixture.state_dict()))


def test_a_disk_that_takes_nothing_does_not_stop_the_learning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    device = Device(tmp_path)
    monkeypatch.setattr(weights_file, "write", full)
    device.weights.save()
    assert "what was learned is not kept: No space left on device" in caplog.text
