from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from common import messages
from common.codec import decode, digest
from common.errors import MessageError
from common.messages import ManifestEntry, WeightsChunk
from common.mixture_memory import MIXTURE, MixtureMemory
from common.state_blob import pack_state
from device.mixture_replica import MixtureReplica
from tests.published import FINGERPRINT, Published, same

BOOT = "b" * 16
DIM = 128


def draw(count: int, seed: int) -> Tensor:
    return normalize(torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed)), dim=1)


def started(seed: int) -> MixtureMemory:
    memory = MixtureMemory(seed=seed)
    memory.update(draw(256, seed))
    return memory


def replica(path: Path) -> MixtureReplica:
    return MixtureReplica(MixtureMemory(seed=9), boot=BOOT, fingerprint=FINGERPRINT, path=path / "mixture.bin")


def is_held(device: MixtureReplica) -> bool:
    return device.held


def is_missing(device: MixtureReplica) -> bool:
    return device.missing


def receive(device: MixtureReplica, fleet: Published) -> None:
    for chunk in fleet.chunks([MIXTURE]):
        device.offer_chunk(chunk)
    device.offer_manifest(fleet.manifest())


def test_the_fleets_mixture_is_taken_over_in_place(tmp_path: Path) -> None:
    fleet, device = Published(mixture=started(1)), replica(tmp_path)
    assert fleet.mixture is not None
    held_on_to = device.mixture
    receive(device, fleet)
    assert not is_held(device)
    assert device.apply()
    assert is_held(device)
    z = draw(20, 3)
    assert torch.allclose(held_on_to.uncertainty(z), fleet.mixture.uncertainty(z), atol=0.03), "half precision"
    assert not device.apply(), "once"


def test_it_is_missing_until_its_bytes_match_the_manifest(tmp_path: Path) -> None:
    fleet, device = Published(mixture=started(1)), replica(tmp_path)
    assert not is_missing(device), "nobody said that there is one"
    device.offer_manifest(fleet.manifest())
    assert is_missing(device)
    other = Published(mixture=started(2))
    for chunk in other.chunks([MIXTURE]):
        device.offer_chunk(chunk)
    assert is_missing(device)
    assert not device.apply()
    receive(device, fleet)
    assert not is_missing(device)
    assert device.apply()


@pytest.mark.parametrize("what", ["garbage", "another size", "nan"])
def test_bytes_that_are_no_mixture_of_this_size_change_nothing(tmp_path: Path, what: str) -> None:
    fleet, device = Published(mixture=started(1)), replica(tmp_path)
    receive(device, fleet)
    device.apply()
    before = {key: value.clone() for key, value in device.mixture.state_dict().items()}
    blob = {
        "garbage": b"garbage",
        "another size": pack_state(MixtureMemory(components=8).state_dict(), "fp16"),
        "nan": fleet.blob(MIXTURE)[:-2] + b"\xff\x7f",
    }[what]
    manifest = fleet.manifest()
    manifest.entries[MIXTURE] = ManifestEntry(digest(blob), 1, len(blob))
    device.offer_chunk(WeightsChunk(fleet.run, fleet.version + 1, MIXTURE, 0, 1, blob))
    device.offer_manifest(manifest)
    with pytest.raises(MessageError):
        device.apply()
    assert same(before, dict(device.mixture.state_dict()))
    assert not device.apply(), "and it is said once"


def test_too_many_bytes_are_refused_before_they_are_collected(tmp_path: Path) -> None:
    device = replica(tmp_path)
    device.offer_chunk(WeightsChunk("run-1", 3, MIXTURE, 0, 9, bytes(60_000)))
    with pytest.raises(MessageError, match="bytes together"):
        device.offer_chunk(WeightsChunk("run-1", 3, MIXTURE, 1, 9, bytes(60_000)))


def test_what_a_device_hears_moves_its_copy_and_is_reported_in_a_few_kilobytes(tmp_path: Path) -> None:
    fleet, device = Published(mixture=started(1)), replica(tmp_path)
    receive(device, fleet)
    device.apply()
    assert device.statistics() is None
    before = device.mixture.means.clone()
    spot = draw(1, 7)
    device.hear(spot.repeat(16, 1))
    assert not torch.equal(before, device.mixture.means)
    report = device.statistics()
    assert report is not None
    assert len(messages.encode(report)) < 10_000
    mass, means = decode(report.mass), decode(report.means)
    assert float(mass.sum()) == pytest.approx(16.0, rel=0.01)
    assert float((mass / mass.sum()) @ (means @ spot[0])) == pytest.approx(1.0, abs=0.02)
    assert device.statistics() is None
    device.hear(spot)
    again = device.statistics()
    assert again is not None
    assert again.seq == report.seq + 1


def test_without_a_fleet_it_starts_from_what_the_device_hears(tmp_path: Path) -> None:
    device = replica(tmp_path)
    for seed in range(20):
        device.hear(draw(8, seed))
    assert device.mixture.started
    device.save()
    again = replica(tmp_path)
    assert again.load()
    assert same(dict(again.mixture.state_dict()), dict(device.mixture.state_dict()))
    assert not again.held, "the fleet's is fetched all the same"


def test_another_run_says_nothing_in_the_words_of_the_one_before(tmp_path: Path) -> None:
    device = replica(tmp_path)
    receive(device, Published(mixture=started(1)))
    device.apply()
    device.hear(draw(8, 4))
    other = Published(run="run-2", version=0)
    device.offer_manifest(other.manifest())
    assert not device.apply(), "that run has no mixture yet"
    assert not device.mixture.started
    assert device.statistics() is None
    other.mixture = started(2)
    receive(device, other)
    assert device.apply()


def test_what_was_heard_before_there_was_a_fleet_says_nothing_in_it(tmp_path: Path) -> None:
    device = replica(tmp_path)
    device.hear(draw(200, 1))
    device.hear(draw(8, 2))
    device.offer_manifest(Published().manifest())
    assert not device.apply(), "that fleet has no mixture yet"
    assert not device.mixture.started
    assert device.statistics() is None


def test_what_is_heard_in_a_fleet_without_a_mixture_is_kept_also_over_a_restart(tmp_path: Path) -> None:
    fleet, device = Published(), replica(tmp_path)
    device.offer_manifest(fleet.manifest())
    device.apply()
    device.hear(draw(200, 1))
    device.apply()
    assert device.mixture.started
    device.save()
    again = replica(tmp_path)
    assert again.load()
    again.offer_manifest(fleet.manifest())
    again.apply()
    assert again.mixture.started


def test_what_is_heard_without_the_link_belongs_to_the_run_of_the_weights_beside_it(tmp_path: Path) -> None:
    fleet, device = Published(), replica(tmp_path)
    assert not device.load(run=fleet.run)
    device.hear(draw(200, 1))
    device.offer_manifest(fleet.manifest())
    device.apply()
    assert device.mixture.started


def test_a_file_of_another_configuration_is_passed_over_and_a_damaged_one_is_said(tmp_path: Path) -> None:
    device = replica(tmp_path)
    assert not device.load()
    device.save()
    assert not (tmp_path / "mixture.bin").exists(), "nothing has started"
    device.hear(draw(200, 1))
    device.save()
    other = MixtureReplica(MixtureMemory(), boot=BOOT, fingerprint="0" * 64, path=tmp_path / "mixture.bin")
    assert not other.load()
    content = bytearray((tmp_path / "mixture.bin").read_bytes())
    content[len(content) // 2] ^= 4
    (tmp_path / "mixture.bin").write_bytes(content)
    with pytest.raises(MessageError, match="damaged"):
        replica(tmp_path).load()
